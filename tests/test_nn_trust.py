"""Trust: what is held out is held out, what is reported is so, and nothing chosen is worse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from chita_opt.certificates.pipeline import run_method
from chita_opt.curvature import LowRank
from chita_opt.errors import DataError, ProblemError
from chita_opt.nn import PruningResult, RowChoice, gradient_rows, prune, select_layers
from chita_opt.nn.pruning_problem import drawn_samples
from chita_opt.nn.sampling import row_order
from chita_opt.nn.trust import (
    COMPETING,
    HeldOut,
    TrustReport,
    TrustThresholds,
    Verdict,
    flipped_shares,
    hold_out,
    judge,
    set_aside,
    solved_on,
    supports_by,
)
from chita_opt.problem import Problem, from_gradients
from chita_opt.supports import Budget

LOSS = functional.cross_entropy
SIZE = 400


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def samples(count: int = SIZE) -> tuple[Tensor, Tensor]:
    """Inputs that tell their number in the last place, and classes that a line can separate."""
    torch.manual_seed(2)
    x = torch.randn(count, 12)
    y = x[:, :4].argmax(1)
    x[:, 11] = torch.arange(count) / count
    return x, y


def trained() -> nn.Module:
    model, (x, y) = net(), samples()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    return model


def run(**options: Any) -> PruningResult:
    common = {"rows": 60, "batch_size": 4, "ridge": 0.01, "certify": False, "sparsity": 0.7}
    return prune(trained(), LOSS, samples(), **{**common, **options})


def problem_of(model: nn.Module, k: int, m: int = 1) -> Problem:
    layers = select_layers(model)
    rows = gradient_rows(model, LOSS, samples(), layers, RowChoice(rows=60, batch_size=m, seed=0))
    family = Budget.cardinality(layers.size, k)
    return from_gradients(rows.A, layers.weights(model), ridge=0.01, supports=family)


def numbers(batches: Any) -> set[int]:
    return {round(float(v) * SIZE) for x, _ in batches for v in x[:, 11]}


# -- the split ------------------------------------------------------------------------------------


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*samples(), strict=True)


def forms() -> list[Any]:
    x, y = samples()
    dataset = TensorDataset(x, y)
    return [(x, y), dataset, DataLoader(dataset, 32), [(x[:100], y[:100]), (x[100:], y[100:])]]


@pytest.mark.parametrize("form", range(4))
def test_held_out_samples_are_in_no_gradient_row(form: int) -> None:
    model, data = net(), forms()[form]
    held = hold_out(model, LOSS, data, select_layers(model), used=240, count=120, seed=5)
    mine = numbers(held.batches)
    used = {round(float(v) * SIZE) for x in _inputs(drawn_samples(data, 240, 5)) for v in x[:, 11]}
    assert len(mine) == 120 and len(used) == 240 and not mine & used
    assert used == set(row_order(SIZE, 5)[:240].tolist())
    first, second = held.halves()
    assert first.size == second.size == 60
    assert not numbers(first.batches) & numbers(second.batches)
    again = hold_out(model, LOSS, data, select_layers(model), used=240, count=120, seed=5)
    assert numbers(again.batches) == mine


def _inputs(drawn: Any) -> list[Tensor]:
    return [drawn] if isinstance(drawn, Tensor) else [batch[0] for batch in drawn]


@pytest.mark.parametrize("form", range(4))
def test_set_aside_leaves_data_of_the_same_kind(form: int) -> None:
    rest, held = set_aside(forms()[form], used=100, count=150, seed=3)
    mine = numbers(held)
    x, y = (rest if isinstance(rest, tuple) else next(iter(DataLoader(_dataset(rest), SIZE))))[:2]
    others = numbers([(x, y)])
    assert len(mine) == 150 and len(others) == 250 and not mine & others
    rows = gradient_rows(
        net(), LOSS, rest, select_layers(net()), RowChoice(rows=25, batch_size=10, seed=0)
    )
    assert rows.samples == 250


def _dataset(rest: Any) -> Any:
    return rest.dataset if isinstance(rest, DataLoader) else rest


def test_too_few_samples_are_a_notice_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    found = run(rows=90)  # 360 of 400 samples: 40 are left
    assert found.trust is None and "40 of 400" in found.notes["trust"]
    assert "trust: not measured (40 of 400" in found.summary
    assert "trust is not measured" in caplog.text
    assert found.report()["trust"] is None
    assert run(rows=90, holdout=40).trust is not None
    with pytest.raises(DataError, match="lower rows"):
        run(rows=90, holdout=41)
    stream = prune(net(), LOSS, DataLoader(Stream(), 9), k=40, rows=60, certify=False)
    assert stream.trust is None and "by number" in stream.notes["trust"]
    own = prune(
        net(), LOSS, DataLoader(Stream(), 9), k=40, rows=60, certify=False, holdout=samples(50)
    )
    assert own.trust is not None and own.trust.samples == 25
    with pytest.raises(DataError, match="one in 5"):
        set_aside(samples(), used=100)


# -- the report -----------------------------------------------------------------------------------


def test_report_values_are_recomputed() -> None:
    model, found = trained(), run(method="backsolve")
    trust = found.trust
    assert trust is not None and trust.samples == 80  # half of the 160 that rows do not use
    order = row_order(SIZE, 0)
    x, y = (part[order[320:400]] for part in samples())
    dense = model(x)
    with torch.no_grad():
        before = {k: v.clone() for k, v in model.state_dict().items()}
        found.apply_(model)
        after = model(x)
        increase = LOSS(after, y) - LOSS(dense, y)
        assert trust.actual == pytest.approx(float(increase), abs=1e-6)
        assert trust.accuracy == pytest.approx(100 * float((after.argmax(1) == y).double().mean()))
        w0, b0 = before["0.weight"], before["0.bias"]
        gates = (x @ w0.T + b0 > 0) != (x @ model[0].weight.T + b0 > 0)
    assert trust.flipped == {"0": pytest.approx(float(gates.double().mean()))}
    A, d = found.solution.problem.curvature, found.solution.w - found.solution.problem.w_bar
    assert isinstance(A, LowRank)
    along = A.A.double() @ d
    predicted = along.mean() + 4 / 2 * along.square().mean()
    assert trust.predicted == pytest.approx(float(predicted), rel=1e-9)
    assert trust.ratio == pytest.approx(float(increase) / float(predicted), rel=1e-4)
    assert trust.kept == {row.name: pytest.approx(row.kept / row.size) for row in found.layers}
    assert "trust: " in found.summary and found.report()["trust"]["ratio"] == trust.ratio


class Odd(nn.Module):
    """Functional and in-place rectifiers, one of them behind no layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 6), nn.Linear(6, 4)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(self.act(x - 0.1)).relu_()


def held_out(model: nn.Module) -> HeldOut:
    return hold_out(model, LOSS, samples(), select_layers(model), used=0, count=100)


def test_rectifiers_are_found_however_they_are_called() -> None:
    model = Odd()
    held = held_out(model)
    w = held.layer_map.weights(model)
    assert flipped_shares(held, w, w) == {"a": 0.0, "a#2": 0.0, "b": 0.0}
    shares = flipped_shares(held, w, -w)
    assert shares is not None and shares["a"] > 0.3
    tanh = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4))
    held = held_out(tanh)
    w = held.layer_map.weights(tanh)
    assert flipped_shares(held, w, 0 * w) is None


REPORT = {"actual": 0.1, "predicted": 0.06, "flipped": {"a": 0.1}, "kept": {"a": 0.2}}


@pytest.mark.parametrize(
    "change, verdict, word",
    [
        ({}, Verdict.TRUSTED, ""),
        ({"predicted": 0.049}, Verdict.DOUBTFUL, "2.04"),
        ({"predicted": 0.019}, Verdict.NOT_TRUSTED, "stages"),
        ({"predicted": -0.1}, Verdict.NOT_TRUSTED, "nothing"),
        ({"predicted": 0.0}, Verdict.NOT_TRUSTED, "nothing"),
        ({"predicted": -0.1, "actual": -0.2}, Verdict.TRUSTED, ""),
        ({"predicted": 1e-6, "actual": 0.019}, Verdict.TRUSTED, ""),
        ({"flipped": {"a": 0.16}}, Verdict.NOT_TRUSTED, "rectifiers after a"),
        ({"kept": {"a": 0.004}}, Verdict.NOT_TRUSTED, "reconstruction"),
        ({"predicted": None}, Verdict.DOUBTFUL, "predicts no loss"),
        ({"predicted": None, "actual": -0.5}, Verdict.TRUSTED, "fell by 0.5"),
        ({"actual": None}, Verdict.TRUSTED, "no loss was given"),
        ({"actual": None, "flipped": None}, Verdict.NOT_MEASURED, "neither"),
    ],
)
def test_verdicts(change: dict[str, Any], verdict: Verdict, word: str) -> None:
    found, reasons = judge(TrustReport(**{**REPORT, **change}), TrustThresholds())
    assert found is verdict and word in "; ".join(reasons)


def test_thresholds_are_parameters() -> None:
    report = TrustReport(**{**REPORT, "predicted": 0.03})
    assert judge(report, TrustThresholds())[0] is Verdict.DOUBTFUL
    assert judge(report, TrustThresholds(trusted_ratio=4.0))[0] is Verdict.TRUSTED
    assert judge(report, TrustThresholds(doubtful_ratio=3.0))[0] is Verdict.NOT_TRUSTED
    assert judge(report, TrustThresholds(flipped=0.05))[0] is Verdict.NOT_TRUSTED
    assert judge(report, TrustThresholds(small_increase=0.2))[0] is Verdict.TRUSTED
    lenient = TrustThresholds(small_increase=math.inf, flipped=1.0, kept=0.0)
    assert run(trust_thresholds=lenient).trust.verdict is Verdict.TRUSTED
    with pytest.raises(ProblemError, match="in this order"):
        TrustThresholds(trusted_ratio=6.0)
    with pytest.raises(ProblemError, match="flipped is -1"):
        TrustThresholds(flipped=-1.0)


# -- prune ----------------------------------------------------------------------------------------


def test_switched_off_is_the_plain_path() -> None:
    for options in ({}, {"method": "backsolve"}, {"curvature": "inputs", "scope": "layer"}):
        plain = run(trust=False, **options)
        assert plain.trust is None and "switched off" in plain.summary
        measured = run(compete="never", **options)
        assert torch.equal(plain.w, measured.w) and measured.trust is not None
        assert plain.objective == measured.objective and not measured.trust.candidates
        assert plain.solution.method == measured.solution.method


def test_a_named_method_is_applied_and_auto_competes() -> None:
    named = run(method="magnitude", sparsity=0.9)
    assert named.solution.method == "magnitude" and named.trust is not None
    auto = run(sparsity=0.9, compete="always", certify=True)
    trust, certificate = auto.trust, auto.certificate
    assert trust is not None and len(trust.candidates) > 3
    names = {row["name"] for row in trust.candidates}
    other = run(method="backsolve", sparsity=0.9, compete="always").trust
    assert other is not None and "relax_round" in names
    assert "relaxation" in {row["name"] for row in other.candidates}
    losses = {row["name"]: row["loss"] for row in trust.candidates}
    assert losses[trust.chosen] == min(losses.values())
    assert auto.solution.nnz <= auto.keep.k and auto.solution.is_feasible
    assert certificate is not None and certificate.lower <= auto.objective
    assert torch.equal(certificate.solution.w, auto.w)
    objective = next(r["objective"] for r in trust.candidates if r["name"] == trust.chosen)
    assert objective == pytest.approx(auto.objective, rel=1e-6)
    assert (trust.passed_over is None) == (trust.chosen == trust.candidates[0]["name"])
    again = run(sparsity=0.9, compete="always")
    assert torch.equal(again.w, auto.w) and again.trust.candidates == trust.candidates


@pytest.mark.parametrize(
    "options",
    [
        {"support": "2:4", "sparsity": None, "exclude": "2.weight"},
        {"scope": "layer", "sparsity": 0.8},
        {"curvature": "inputs", "scope": "layer", "sparsity": 0.8, "certify": True},
        {"biases": True, "sparsity": 0.8},
    ],
)
def test_every_family_competes(options: dict[str, Any]) -> None:
    found = run(compete="always", **options)
    assert found.trust is not None and found.trust.candidates and found.solution.is_feasible
    names = " ".join(row["name"] for row in found.trust.candidates)
    if options.get("biases"):
        assert any("no layer-wise reconstruction" in reason for reason in found.trust.reasons)
    else:
        assert "reconstruction" in names
    for name, own in found.layer_certificates.items():
        assert own.lower <= own.upper and name in found.layer_map.names


# -- supports -------------------------------------------------------------------------------------


def test_competing_supports_are_solved_exactly() -> None:
    model = trained()
    layers = select_layers(model)
    problem = problem_of(model, 40)
    masks = supports_by(problem, layers, COMPETING)
    assert all(int(mask.sum()) == 40 for mask in masks.values())
    held = held_out(model)
    for candidate in solved_on(problem, masks, held):
        S = masks[candidate.name]
        A, w_bar = problem.curvature.A.double(), problem.w_bar
        H = A.T @ A / 60 + 0.01 * torch.eye(problem.p)
        right = (H @ torch.where(S, 0.0, w_bar))[S]
        expected = w_bar[S] + torch.linalg.solve(H[S][:, S], right)
        assert torch.allclose(candidate.w[S], expected, atol=1e-4)
        assert not candidate.w[~S].any()
        assert candidate.loss == held.loss(candidate.w)


def test_saliencies_by_definition() -> None:
    from chita_opt.nn.trust.scores import inverse_diagonal

    problem = problem_of(trained(), 40)
    A = problem.curvature.A.double()
    H = A.T @ A / 60 + 0.01 * torch.eye(problem.p)
    expected = torch.linalg.inv(H).diagonal()
    assert torch.allclose(inverse_diagonal(problem), expected, rtol=1e-3)


def test_interrupts_end_the_competition_with_what_is_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chita_opt.nn.trust.guard.one_shot", stop)
    found = run(compete="always", certify=True)
    assert found.solution.status == "interrupted" and found.solution.is_feasible
    assert found.trust is not None and found.trust.interrupted and len(found.trust.candidates) > 1
    assert any("interrupted" in reason for reason in found.trust.reasons)
    assert found.certificate is not None and found.certificate.lower <= found.objective


def test_a_time_limit_leaves_candidates_out_and_says_so() -> None:
    found = run(compete="always", time_limit=1e-3)
    assert found.trust is not None and len(found.trust.candidates) >= 1
    assert any("time limit" in reason for reason in found.trust.reasons)


@pytest.mark.parametrize("compete, most", [("always", 0.5), ("never", 1.0)])
def test_the_method_leaves_time_to_what_competes_with_it(
    monkeypatch: pytest.MonkeyPatch, compete: str, most: float
) -> None:
    given: list[float] = []

    def noted(problem: Problem, effort: Any, limit: float) -> Any:
        given.append(limit)
        return run_method(problem, effort, limit)

    monkeypatch.setattr("chita_opt.nn.pruning.run_method", noted)
    found = run(compete=compete, time_limit=3600.0)
    assert most - 0.1 < given[0] / 3600.0 <= most
    assert found.trust is not None and bool(found.trust.candidates) == (compete == "always")
