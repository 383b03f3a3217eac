"""Reconstruction, layer budgets, one quadratic model at the reconstruction, and refinement."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError, LayerError, ProblemError, SupportError
from chita_opt.nn import RowChoice, gradient_rows, select_layers
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.row_engines import RowLoss
from chita_opt.nn.stages import prune_in_stages
from chita_opt.nn.trust import (
    BudgetSearch,
    Candidate,
    Expansion,
    HeldOut,
    LayerInputs,
    LossRows,
    OneShotOptions,
    Reconstruction,
    RefineOptions,
    TrustedStep,
    held_out_of,
    lowest,
    one_shot,
    refine,
    search_budgets,
)
from chita_opt.nn.trust.budgets import shifted
from chita_opt.nn.trust.competition import solved_on
from chita_opt.nn.trust.layer_surgeon import LayerSurgeon
from chita_opt.nn.trust.moments import LayerMoments
from chita_opt.nn.trust.scores import COMPETING, supports_by
from chita_opt.nn.trust.surgeon import surgeon_support
from chita_opt.problem import from_gradients
from chita_opt.solution import Clock, Status
from chita_opt.supports import Budget

LOSS = functional.cross_entropy


class Convolutional(nn.Module):
    """A convolution in groups, rectified, and a head; biases stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def samples(count: int = 400) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(count, 12)
    return x, x[:, :4].argmax(1)


def setting() -> tuple[nn.Module, LayerMap, HeldOut]:
    model = mlp()
    layers = select_layers(model)
    x, y = samples(500)
    return model, layers, held_out_of(model, LOSS, (x[400:], y[400:]), layers)


def reconstruction(model: nn.Module, x: Tensor, damping: float = 1e-2) -> Reconstruction:
    network = RowLoss(model, LOSS, select_layers(model))
    return Reconstruction(LayerInputs(network, x.split(150)), damping=damping)


def loss_rows(model: nn.Module, layers: LayerMap, seed: int = 0) -> LossRows:
    return LossRows(model, LOSS, samples(), layers, pool=torch.arange(400), batch_size=4, seed=seed)


# -- reconstruction -------------------------------------------------------------------------------


def test_nothing_pruned_is_the_dense_network() -> None:
    torch.manual_seed(3)
    for model, x in ((mlp(), samples()[0]), (Convolutional(), torch.randn(60, 2, 4, 4))):
        found = reconstruction(model, x)
        layers = found.layer_map
        every = dict(zip(layers.names, layers.sizes, strict=True))
        assert torch.allclose(found.prune(every), layers.weights(model), atol=1e-4)


def test_each_layer_fits_the_dense_pre_activations_from_the_pruned_inputs() -> None:
    model, (x, _) = mlp(), samples()
    found = reconstruction(model, x, damping=1e-9)
    layers = found.layer_map
    mask = torch.rand(layers.size, generator=torch.Generator().manual_seed(0)) < 0.6
    w = layers.unflatten(found.refit(mask))
    masks = layers.unflatten(mask)
    bias = [p.detach() for n, p in model.named_parameters() if n.endswith("bias")]
    dense, pruned = x, x
    for name, b in zip(layers.names, bias, strict=True):
        target = dense @ model.get_parameter(name).detach().T
        for row, kept in enumerate(masks[name]):
            S = kept.nonzero().squeeze(1)
            expected = torch.linalg.lstsq(
                pruned[:, S].double(), target[:, row : row + 1].double()
            ).solution
            assert torch.allclose(w[name][row, S], expected[:, 0], atol=1e-3)
            assert not w[name][row, ~kept].any()
        dense = torch.relu(target + b)
        pruned = torch.relu(pruned @ w[name].float().T + b)


def test_grouped_convolutions_are_fitted_group_by_group() -> None:
    torch.manual_seed(4)
    model, x = Convolutional(), torch.randn(200, 2, 4, 4)
    found = reconstruction(model, x)
    layers = found.layer_map
    w = found.prune({"conv.weight": 20, "head.weight": 30})
    assert [int((part != 0).sum()) for part in w.split(layers.sizes)] == [20, 30]
    mask = w != 0
    own = found.refit(mask)
    assert torch.allclose(own, w, atol=1e-9)

    def error(weights: Tensor) -> float:
        selected = layers.unflatten(weights, dtype=torch.float32)
        with torch.no_grad():
            out = torch.func.functional_call(model, selected, (x,))
            return float((out - model(x)).square().mean())

    assert error(w) < error(torch.where(mask, layers.weights(model), 0.0))


def test_rounds_of_the_surgeon_serve_any_count() -> None:
    torch.manual_seed(5)
    x, W = torch.randn(100, 8).double(), torch.randn(3, 8).double()
    H = x.T @ x / 100
    surgeon = LayerSurgeon(LayerMoments(H[None], W @ H, W), damping=1e-6)
    for count in (24, 23, 12, 5, 1, 0):
        mask, weights = surgeon.prune(count)
        assert int(mask.sum()) == count and not weights[~mask].any()
        fresh = LayerSurgeon(LayerMoments(H[None], W @ H, W), damping=1e-6)
        assert torch.equal(fresh.prune(count)[0], mask)
    mask, weights = surgeon.prune(23)  # one removal is exact: compare with all 24 choices
    best = min(
        _error(surgeon.refit(torch.ones(24).bool().index_fill(0, torch.tensor([j]), False)
               .reshape(3, 8)), W, H)
        for j in range(24)
    )  # fmt: skip
    assert _error(weights, W, H) == pytest.approx(best, rel=1e-6)


def _error(V: Tensor, W: Tensor, H: Tensor) -> float:
    return float(((V - W) @ H * (V - W)).sum())


def test_reconstruction_refuses_what_it_cannot_fit() -> None:
    model, (x, _) = mlp(), samples()
    with pytest.raises(SupportError, match="asks for 121"):
        reconstruction(model, x).prune({"0.weight": 121, "2.weight": 3})
    network = RowLoss(model, LOSS, select_layers(model, biases=True))
    with pytest.raises(LayerError, match=r"exclude='0\.bias'"):
        LayerInputs(network, [x])

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.a(x))

    found = reconstruction(Twice(), x)
    with pytest.raises(LayerError, match="called 2 times"):
        found.prune({"a.weight": 12})


# -- budgets --------------------------------------------------------------------------------------


def test_budgets_keep_the_total_and_never_end_higher() -> None:
    _, layers, _ = setting()
    best, seen = (30, 25), []

    def pruned(counts: dict[str, int]) -> Candidate:
        own = tuple(counts.values())
        assert sum(own) == 55 and all(0 < c <= s for c, s in zip(own, layers.sizes, strict=True))
        seen.append(own)
        return Candidate(str(own), torch.zeros(1), float(abs(own[0] - best[0])))

    found = search_budgets(pruned, (45, 10), layers)
    assert found.loss <= 3 and found.loss == min(abs(a - 30) for a, _ in seen)
    assert len(seen) == len(set(seen))
    still = search_budgets(pruned, (45, 10), layers, BudgetSearch(time_limit=1e-9))
    assert still.loss == 15


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.2, 3.0])
def test_shifted_budgets(factor: float) -> None:
    for counts in itertools.product((1, 5, 17), repeat=3):
        new = shifted(counts, 1, factor, (20, 20, 20))
        assert new is None or (sum(new) == sum(counts) and all(0 < c <= 20 for c in new))
    assert shifted((5,), 0, factor, (20,)) is None


# -- the quadratic model at the reconstruction ----------------------------------------------------


def test_rows_of_a_support_are_columns_of_all_rows() -> None:
    torch.manual_seed(6)
    cases = (
        (mlp(), samples()),
        (Convolutional(), (torch.randn(400, 2, 4, 4), torch.randint(3, (400,)))),
    )
    for model, data in cases:
        layers = select_layers(model)
        index = torch.tensor([0, 3, 7, 36, layers.size - 1])
        source = LossRows(model, LOSS, data, layers, pool=torch.arange(80), batch_size=4, seed=1)
        again = LossRows(model, LOSS, data, layers, pool=torch.arange(80), batch_size=4, seed=1)
        w = layers.weights(model)
        some, every = source.on(w, index, 20), again.everywhere(w, 20)
        assert torch.allclose(some.columns, every.columns[index], atol=1e-6)
        assert source.samples == again.samples == 80
        with pytest.raises(DataError, match="lower rows"):
            source.on(w, index, 21)


@pytest.mark.parametrize("rows", [20, 90])
def test_the_expansion_solves_the_problem_that_it_stands_for(rows: int) -> None:
    model = mlp()
    layers = select_layers(model)
    found = gradient_rows(
        model, LOSS, samples(), layers, RowChoice(rows=rows, batch_size=4, seed=0)
    )
    mask = torch.rand(layers.size, generator=torch.Generator().manual_seed(1)) < 0.4
    family = Budget.cardinality(layers.size, int(mask.sum()))
    problem = from_gradients(
        found.A, layers.weights(model), ridge=0.05, supports=family, first_order=0.25
    )
    expected = problem.curvature.support_solver(problem.separable, mask)
    whole = Expansion(found.At, problem.w_bar, 4)
    inside, extra = whole.restricted(mask)
    (solved,) = inside.solve((0.2,), extra)  # m times the ridge: units of the loss
    assert torch.allclose(solved, expected.weights[mask], atol=1e-4)
    index = mask.nonzero().squeeze(1)
    costs = solved.square() / expected.inverse_diagonal(index) * 4
    assert torch.allclose(inside.removal_costs(solved, 0.2), costs, rtol=1e-2)


def test_the_surgeon_ends_in_the_family() -> None:
    torch.manual_seed(7)
    index = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    model = Expansion(torch.randn(8, 30), torch.randn(8).double(), 1)
    for family in (Budget.cardinality(16, 3), Budget.n_of_m(16, 2, 4)):
        for rounds in (1, 3):
            kept = surgeon_support(model, index, family, 0.1, rounds)
            assert family.contains(kept) and not kept[4:8].any()
    with pytest.raises(ValueError, match="rounds is 0"):
        surgeon_support(model, index, Budget.cardinality(16, 3), 0.1, 0)


def test_one_shot_keeps_the_count_and_picks_the_lowest() -> None:
    model, layers, held = setting()
    rows = loss_rows(model, layers)
    family = Budget.cardinality(layers.size, 40)
    calls = []

    def rows_at(w: Tensor, index: Tensor) -> Expansion:
        calls.append(len(index))
        return rows.on(w, index, 100)

    found = one_shot(
        layers.weights(model), reconstruction(model, samples()[0]), family, held, rows_at=rows_at
    )
    assert calls == [46] and 7 <= len(found) <= 10
    assert all(family.contains(candidate.w != 0) for candidate in found)
    assert lowest(found).loss == min(held.loss(candidate.w) for candidate in found)
    alone = one_shot(layers.weights(model), reconstruction(model, samples()[0]), family, held)
    assert len(alone) == 1 and torch.equal(alone[0].w, found[0].w)
    with pytest.raises(ProblemError, match="positive ridges"):
        OneShotOptions(ridges=())


# -- refine and stages ----------------------------------------------------------------------------


def test_refine_never_raises_the_held_out_loss() -> None:
    model, layers, held = setting()
    family = Budget.cardinality(layers.size, 40)
    dense = layers.weights(model)
    start = torch.where(family.best_support(dense.square()), dense, 0.0)
    options = RefineOptions(swap_rows=50, refit_rows=50, max_steps=12)
    found = refine(start, loss_rows(model, layers), family, held, options=options)
    assert found.status is Status.ITERATION_LIMIT and found.steps == 12 and found.accepted > 0
    assert found.loss == held.loss(found.w) < held.loss(start)
    values = found.trace.values
    assert values == sorted(values, reverse=True) and values[0] == held.loss(start)
    assert family.contains(found.w != 0) and found.samples == 12 * 200
    assert torch.equal(layers.weights(model), dense)
    again = refine(start, loss_rows(model, layers), family, held, options=options)
    assert torch.equal(again.w, found.w)
    short = refine(start, loss_rows(model, layers), family, held, time_limit=1e-9)
    assert short.status is Status.TIME_LIMIT and torch.equal(short.w, start)


def test_refine_refuses_nonsense() -> None:
    model, layers, held = setting()
    family, rows = Budget.cardinality(layers.size, 40), loss_rows(model, layers)
    with pytest.raises(ProblemError, match="no end"):
        refine(layers.weights(model) * 0, rows, family, held)
    with pytest.raises(ProblemError, match="160 weights"):
        refine(layers.weights(model), rows, family, held, time_limit=1.0)
    with pytest.raises(ProblemError, match="cycle=0"):
        RefineOptions(cycle=0)


def test_a_trusted_stage_takes_the_lowest_of_its_supports() -> None:
    model, _, held = setting()
    common = {"sparsity": 0.9, "stages": 3, "rows": 40, "batch_size": 4, "ridge": 0.01}
    staged = prune_in_stages(
        model, LOSS, samples(), method=TrustedStep(held, late_step=1.0), **common
    )
    assert staged.nnz == 16
    rows = [row.notes for row in staged.stages]
    assert rows[0]["candidates"] == 1 and rows[-1]["candidates"] > 1
    assert rows[-1]["held_out_loss"] == pytest.approx(held.loss(staged.w), rel=1e-5)
    with pytest.raises(ProblemError, match="at least one"):
        TrustedStep(held, scores=())
    with pytest.raises(ProblemError, match="late_step is 0"):
        TrustedStep(held, late_step=0.0)


@pytest.mark.parametrize("support", ["cardinality", "1:2"])
def test_units_compete_where_the_loss_rises_in_a_stage(support: str) -> None:
    model, _, held = setting()
    common: dict[str, Any] = {"stages": 3, "rows": 40, "batch_size": 4, "ridge": 0.01}
    common |= {"support": support, "sparsity": 0.9 if support == "cardinality" else None}

    def notes(rise: float) -> list[dict[str, Any]]:
        step = TrustedStep(held, late_step=1.0, rise=rise)
        found = prune_in_stages(model, LOSS, samples(), method=step, **common)
        assert found.stages[-1].notes["held_out_loss"] == pytest.approx(
            held.loss(found.w), rel=1e-5
        )
        return [row.notes for row in found.stages]

    never, always = notes(1e9), notes(0.0)
    assert always[0]["candidates"] == never[0]["candidates"] + 2
    assert always[0]["held_out_loss"] <= never[0]["held_out_loss"]
    with pytest.raises(ProblemError, match="rise is -1"):
        TrustedStep(held, rise=-1.0)


def test_late_stages_go_part_of_the_way() -> None:
    model, _, held = setting()
    common = {"sparsity": 0.5, "stages": 1, "rows": 40, "batch_size": 4, "ridge": 0.01}
    far, near = (
        prune_in_stages(
            model, LOSS, samples(), method=TrustedStep(held, late_step=s, late_share=1.0), **common
        ).w
        for s in (1.0, 0.25)
    )
    dense = select_layers(model).weights(model)
    expected = torch.where(far != 0, dense + 0.25 * (far - dense), 0.0)
    assert torch.allclose(near, expected, atol=1e-6)


@pytest.mark.parametrize("change", [{"holdout": 30}, {"curvature": "sampled"}, {"trust": False}])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, change: dict[str, Any]) -> None:
    """Samples held out only later have served for gradients before."""
    common = {"sparsity": 0.9, "stages": 2, "rows": 20, "batch_size": 4, "ridge": 0.01}
    file = tmp_path / "run.safetensors"
    first = prune_in_stages(mlp(), LOSS, samples(600), checkpoint=file, **common)
    again = {"checkpoint": file, "resume": True}
    same = prune_in_stages(mlp(), LOSS, samples(600), **again, **common)
    assert torch.equal(first.w, same.w) and "last_stage" not in same.notes["trust"]
    with pytest.raises(DataError, match="another run"):
        prune_in_stages(mlp(), LOSS, samples(600), **again, **(common | change))


def test_an_expired_clock_ends_the_competition() -> None:
    model, layers, held = setting()
    rows = gradient_rows(model, LOSS, samples(), layers, RowChoice(rows=30, batch_size=4))
    k = Budget.cardinality(layers.size, layers.size // 2)
    problem = from_gradients(rows.A, layers.weights(model), ridge=0.01, supports=k)
    masks = supports_by(problem, layers, COMPETING)
    assert len(solved_on(problem, masks, held)) == len(masks)
    assert len(solved_on(problem, masks, held, clock=Clock(1e-9))) == 1


def test_stages_hold_samples_out_by_default() -> None:
    common = {"sparsity": 0.9, "stages": 3, "rows": 20, "batch_size": 4, "ridge": 0.01}
    found = prune_in_stages(mlp(), LOSS, samples(600), **common)
    trust = found.notes["trust"]
    assert trust["samples"] == 60 and trust["loss"] > 0 and "no stage used" in found.summary
    last = trust["last_stage"]
    assert {"predicted", "actual", "ratio", "flipped", "kept", "verdict"} <= set(last)
    assert last["predicted"] is not None and 0.0 < last["kept"]["0.weight"] < 1.0
    assert f"last stage: {last['verdict']}" in found.summary
    numbered = prune_in_stages(mlp(), LOSS, samples(600), holdout=np.int64(60), **common)
    assert numbered.notes["trust"]["samples"] == 30
    assert "support" in found.stages[-1].notes
    off = prune_in_stages(mlp(), LOSS, samples(600), trust=False, **common)
    assert off.notes["trust"] == {"reason": "switched off"}
    assert "support" not in off.stages[-1].notes
    own = prune_in_stages(mlp(), LOSS, samples(600), holdout=samples(50), **common)
    assert own.notes["trust"]["samples"] == 25
    with pytest.raises(DataError, match="hold out"):
        prune_in_stages(mlp(), LOSS, samples(600), holdout=550, **common)
