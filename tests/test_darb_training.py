"""Block widths over layers, and the training loop: stages, masks that hold, runs that go on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chita_opt import Budget, dual_bound, from_gradients, solve
from chita_opt.errors import DataError, SupportError
from chita_opt.exact import enumerate_optimum
from chita_opt.nn import MLPNet, PruneOptions, TrainingRecipe, select_layers
from chita_opt.nn.characters import CharacterModel, text_data
from chita_opt.nn.darb import (
    DarbMatrix,
    DarbRecipe,
    darb_family,
    solve_with_widths,
    train_darb_,
)
from chita_opt.nn.darb.matrix import widest_widths
from chita_opt.nn.darb.patterns import CHOICES, Choice, dual_gains, fitting_widths
from chita_opt.nn.darb.training import STAGES
from chita_opt.supports.block_widths import BlockWidths

SIZES = (16, 8, 4)


def net() -> MLPNet:
    return MLPNet(SIZES, seed=0)


def data() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(120, SIZES[0], generator=random)
    return x, (x[:, :4].argmax(1)).long()


SHORT = TrainingRecipe(epochs=2, batch_size=20, lr=0.05)
RECIPE = DarbRecipe(sparsity=0.75, dense=SHORT, irregular=SHORT, retrain=SHORT, widest=8)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_family_keeps_to_the_budget_and_to_blocks(choice: Choice) -> None:
    layers = select_layers(net())
    scores = torch.rand(layers.size, generator=torch.Generator().manual_seed(2)).double()
    for k in (24, 40, 80):
        family = darb_family(layers, k, scores, choice=choice, widest=8)
        mask = family.best_support(scores)
        assert family.contains(mask) and int(mask.sum()) <= k
        for own in layers.unflatten(mask).values():
            DarbMatrix.from_dense(own.double())  # at most one weight a block of some width


def test_exact_widths_are_never_worse_than_the_rule() -> None:
    layers = select_layers(net())
    for seed in range(5):
        scores = torch.rand(layers.size, generator=torch.Generator().manual_seed(seed)).double()
        values = {
            choice: darb_family(layers, 50, scores, choice=choice, widest=8).best_value(scores)
            for choice in CHOICES
        }
        assert values["published"] <= values["exact"] * (1 + 1e-12)
        assert values["exact"] == pytest.approx(values["joint"], rel=1e-12)


def test_exact_widths_are_the_enumerated_best() -> None:
    layers = select_layers(MLPNet((4, 2, 2), seed=0))
    scores = torch.rand(layers.size, generator=torch.Generator().manual_seed(3)).double()
    rows = [row for item in layers for row in scores[item.start : item.stop].reshape(item.shape)]
    for k in (4, 6, 9):
        best = 0.0
        for widths in product((0, 1, 2, 4), repeat=len(rows)):  # 0: nothing of the row
            pairs = zip(rows, widths, strict=True)
            pieces = [row.split(width) for row, width in pairs if width]
            if sum(map(len, pieces)) <= k:
                best = max(best, sum(float(b.max()) for blocks in pieces for b in blocks))
        family = darb_family(layers, k, scores, choice="exact", widest=4)
        assert family.best_value(scores) == pytest.approx(best, rel=1e-12)


def test_gains_are_the_terms_of_the_dual_bound() -> None:
    random = torch.Generator().manual_seed(4)
    A, w_bar = torch.randn(6, 30, generator=random), torch.randn(30, generator=random).double()
    problem = from_gradients(A, w_bar, ridge=0.5, supports=Budget.cardinality(30, 3))
    gains = dual_gains(problem, 10)
    best = dual_bound(replace(problem, supports=Budget.cardinality(30, 10)))
    kept = solve(replace(problem, supports=Budget.cardinality(30, 10)))
    chosen = gains.topk(10).indices
    assert gains.shape == (30,) and float(gains.min()) >= 0.0
    assert best.value <= kept.objective  # and the gains point at almost the same weights
    assert int(kept.mask[chosen].sum()) >= 8


def test_without_coupling_gains_are_the_weights_own() -> None:
    w_bar = torch.arange(1.0, 7.0).double()
    problem = from_gradients(torch.zeros(2, 6), w_bar, ridge=0.5, supports=Budget.cardinality(6, 1))
    torch.testing.assert_close(dual_gains(problem, 2), 0.25 * w_bar.square())


@pytest.mark.parametrize("seed", range(3))
def test_joint_widths_are_near_the_enumerated_optimum(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    A, w_bar = torch.randn(5, 8, generator=random), torch.randn(8, generator=random).double()
    family = BlockWidths(((2, 4),), 4, (1, 2, 4))
    problem = from_gradients(A, w_bar, ridge=0.1, supports=family)
    best = enumerate_optimum(problem)
    found = solve_with_widths(problem)
    assert found.is_feasible and found.problem is problem
    assert best.objective <= found.objective * (1 + 1e-9)
    assert found.objective <= 1.15 * best.objective
    again = solve_with_widths(problem, start=best, rounds=1, time_limit=10.0)
    assert again.objective <= best.objective * (1 + 1e-9)  # a start is never made worse
    with pytest.raises(SupportError, match="no block widths"):
        solve_with_widths(replace(problem, supports=Budget.cardinality(8, 4)))


def test_dense_rows_get_narrow_blocks() -> None:
    layers = select_layers(MLPNet((16, 2), seed=0))
    scores = torch.cat([torch.full((16,), 2.0), torch.ones(16)])
    scores[16:20] = 3.0
    widths = fitting_widths(layers, 20, scores, widest=16)["fc1.weight"]
    assert int(widths[0]) < int(widths[1])


def test_what_cannot_be_chosen_is_refused() -> None:
    layers = select_layers(net())
    scores = torch.ones(layers.size, dtype=torch.float64)
    with pytest.raises(SupportError, match="published"):
        darb_family(layers, 40, scores, choice="best")  # type: ignore[arg-type]
    with pytest.raises(SupportError, match="allow wider"):  # the rule drops no row
        darb_family(layers, 5, scores, widest=8)
    mask = darb_family(layers, 5, scores, choice="exact", widest=8).best_support(scores)
    assert int(mask.sum()) <= 5


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("method", ["magnitude", "backsolve", "relax_round", "blocks"])
def test_stages_hold_their_masks(choice: Choice, method: str) -> None:
    model, (x, y) = net(), data()
    measure = PruneOptions(rows=10)
    recipe = replace(RECIPE, choice=choice, method=method, measure=measure)
    stages = train_darb_(model, x, y, recipe=recipe)
    assert tuple(stages) == STAGES
    p, k = 16 * 8 + 8 * 4, 40
    assert stages["irregular"].kept <= k and stages["blocks"].kept <= k < p
    if method == "magnitude":
        assert stages["irregular"].kept == k
    assert [len(stages[name].losses) for name in STAGES] == [2, 0, 2, 0, 2]
    for name in STAGES[1:]:
        for key, mask in stages[name].masks.items():
            assert not stages[name].state[key][~mask].any()
    blocks, retrained = stages["blocks"], stages["blocks_retrained"]
    assert all(torch.equal(blocks.masks[key], retrained.masks[key]) for key in blocks.masks)
    for mask in blocks.masks.values():  # some width over 1 fits some row: these are blocks
        assert int(widest_widths(mask).max()) > 1
    final = model.state_dict()
    assert all(torch.equal(final[key], value) for key, value in retrained.state.items())


def test_blocks_start_from_the_dense_weights() -> None:
    stages = train_darb_(net(), *data(), recipe=RECIPE)
    for key, mask in stages["blocks"].masks.items():
        assert torch.equal(stages["blocks"].state[key][mask], stages["dense"].state[key][mask])


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(
        torch.equal(one[name].state[key], other[name].state[key])
        and one[name].losses == other[name].losses
        for name in STAGES
        for key in one[name].state
    )


@pytest.mark.parametrize("stage", [0, 2, 4])
@pytest.mark.parametrize("method", ["magnitude", "backsolve"])
def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, method: str
) -> None:
    recipe = replace(RECIPE, method=method, measure=PruneOptions(rows=30))
    whole = train_darb_(net(), *data(), recipe=recipe)
    from chita_opt.nn import train

    step, left = train._step, [6 * stage + 9]  # in the second epoch of the stage

    def interrupted(*arguments: Any) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(train, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_darb_(net(), *data(), recipe=recipe, folder=tmp_path)
    monkeypatch.setattr(train, "_step", step)
    assert (tmp_path / f"{STAGES[stage]}.training.safetensors").exists()
    again = train_darb_(net(), *data(), recipe=recipe, folder=tmp_path)
    assert same(again, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{s}.safetensors" for s in STAGES)
    finished = train_darb_(net(), *data(), recipe=recipe, folder=tmp_path)
    assert same(finished, whole)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train_darb_(net(), *data(), recipe=RECIPE, folder=tmp_path)
    with pytest.raises(DataError, match=r"dense\.safetensors is of another run"):
        train_darb_(net(), *data(), recipe=replace(RECIPE, sparsity=0.5), folder=tmp_path)
    with pytest.raises(DataError, match="another run"):
        train_darb_(MLPNet(SIZES, seed=1), *data(), recipe=RECIPE, folder=tmp_path)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_recurrent_networks_are_trained_to_blocks(cell: Any) -> None:
    text = text_data("a rose is a rose is a rose. " * 20, length=8)
    model = CharacterModel(len(text.vocabulary), cell=cell, width=8, seed=0)
    measure = PruneOptions(exclude="embedding", rows=8)
    recipe = replace(RECIPE, method="backsolve", measure=measure, sparsity=0.7)
    stages = train_darb_(model, text.x_train, text.y_train, recipe=recipe)
    for key, mask in stages["blocks_retrained"].masks.items():
        weight = stages["blocks_retrained"].state[key]
        assert torch.equal(DarbMatrix.from_dense(weight).to_dense(), weight)
        assert not weight[~mask].any()
    assert isinstance(model, nn.Module)
