"""OBC, ALPS and the default of layers: against enumeration, naive code and published figures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chita_opt.certificates import certify
from chita_opt.curvature import BlockDiagonal, SharedRows
from chita_opt.errors import MethodError
from chita_opt.exact import enumerate_optimum
from chita_opt.heuristics import (
    METHODS,
    PAPER,
    PenaltySchedule,
    RowSearch,
    alps,
    backsolve,
    choose_method,
    layerwise,
    obc,
    solve,
)
from chita_opt.heuristics.alps import conjugate_rows
from chita_opt.heuristics.quotas import FIXED, RowQuota, RowQuotas
from chita_opt.heuristics.row_counts import split_count
from chita_opt.heuristics.row_systems import row_systems, widest_row
from chita_opt.heuristics.row_tableau import RowTableau, RowWindow
from chita_opt.problem import Problem, from_hessian, from_layer_inputs
from chita_opt.solution import Status
from chita_opt.supports import Budget, LayerFamilies

from .problems import FAMILIES, make_problem, moved_by_linear_term, normal

ROW_METHODS = ("obc", "alps", "layerwise")


def layer(
    seed: int, rows: int = 4, width: int = 24, *, k: int | None = None, decay: float = 0.0
) -> Problem:
    """Correlated inputs (``decay`` of the spectrum), rows of unequal size."""
    draw = torch.Generator().manual_seed(seed)
    X = normal(draw, 3 * width, width) @ torch.linalg.qr(normal(draw, width, width)).Q
    X = X * torch.exp(-decay * torch.arange(width) / width) @ normal(draw, width, width)
    H = X.T @ X / len(X)
    W = normal(draw, rows, width) * (0.5 + torch.rand(rows, 1, generator=draw))
    count = rows * width // 3 if k is None else k
    ridge = 0.01 * float(H.diagonal().mean())
    return from_layer_inputs(H, W, ridge=ridge, supports=Budget.cardinality(W.numel(), count))


def naive_removals(M: Tensor, w: Tensor) -> tuple[list[int], list[float]]:
    """Greedy removal by solving anew for every candidate: the definition of OBS."""
    left, order, losses, last = list(range(len(w))), [], [], 0.0
    while left:
        costs = {}
        for q in left:
            out = [j for j in range(len(w)) if j not in left or j == q]
            block = torch.linalg.inv(torch.linalg.inv(M)[out][:, out])
            costs[q] = 0.5 * float(w[out] @ block @ w[out])
        best = min(costs, key=lambda q: costs[q])
        order.append(best)
        losses.append(costs[best] - last)
        last = costs[best]
        left.remove(best)
    return order, losses


def test_obc_removes_what_the_definition_says() -> None:
    from chita_opt.heuristics.obc import _trace

    problem = layer(0, rows=1, width=60)
    (system,) = row_systems(problem)
    quota = RowQuota(np.zeros(60, np.int64), np.array([60]))
    trace = _trace(system.inverse, system.centre[0].numpy(), quota, 1)
    order, losses = naive_removals(system.M, system.centre[0])
    assert trace.order.tolist() == order
    assert trace.loss == pytest.approx(losses, rel=1e-6)


def test_obc_blocks_cost_what_the_definition_says() -> None:
    from chita_opt.heuristics.obc import _trace

    problem = layer(1, rows=1, width=12)
    (system,) = row_systems(problem)
    w = system.centre[0]
    quota = RowQuota(np.zeros(12, np.int64), np.array([12]))
    trace = _trace(system.inverse, w.numpy(), quota, 3)
    P, gone = torch.linalg.inv(system.M), 0.0
    for step in range(4):
        costs = []
        for b in range(4):
            out = trace.order[: 3 * step].tolist() + list(range(3 * b, 3 * b + 3))
            costs.append(0.5 * float(w[out] @ torch.linalg.inv(P[out][:, out]) @ w[out])
                         if len(set(out)) == len(out) else float("inf"))  # fmt: skip
        block = trace.order[3 * step : 3 * step + 3]
        assert block.tolist() == list(
            range(3 * int(np.argmin(costs)), 3 * int(np.argmin(costs)) + 3)
        )
        assert trace.loss[3 * step] == pytest.approx(min(costs) - gone, rel=1e-9)
        gone = min(costs)


def test_obc_keeps_whole_blocks() -> None:
    problem = layer(2, rows=3, width=12, k=12)
    solution = obc(problem, block=4)
    kept = solution.mask.reshape(-1, 4).sum(1)
    assert set(kept.tolist()) <= {0, 4} and solution.nnz == 12
    with pytest.raises(MethodError, match="divisor"):
        obc(problem, block=5)


def test_traces_whose_losses_fall_are_merged_by_their_hull() -> None:
    """Published code sorts the losses themselves; a dear step then hides the cheap ones behind it.

    Two equal columns make the first removal cheap and the second dear; of three columns that
    nearly cancel, the first removal is dear and the next ones are cheap.
    """
    from chita_opt.heuristics.obc import RemovalTrace, _rated

    trace = RemovalTrace(np.array([2, 0, 1]), np.array([3.0, 0.1, 0.2]), np.zeros(3, bool))
    ratings = _rated(trace, 3)
    assert ratings[2] < ratings[0] < ratings[1]  # the order of removal is the order of ratings
    assert ratings == pytest.approx([1.1, 1.1, 1.1], rel=1e-6)


def sorted_losses(problem: Problem) -> float:
    """The published merge: rows give up as many weights as they have among the smallest losses."""
    from chita_opt.heuristics.obc import _trace

    (system,) = row_systems(problem)
    rows, d = system.index.shape
    quota = RowQuota(np.zeros(d, np.int64), np.array([d]))
    traces = [_trace(system.inverse, c.numpy(), quota, 1) for c in system.centre]
    losses = np.concatenate([t.loss for t in traces])
    smallest = losses.argsort()[: problem.p - problem.supports.max_count]
    mask = torch.ones(rows, d, dtype=torch.bool)
    for r, count in enumerate(np.bincount(smallest // d, minlength=rows)):
        mask[r, traces[r].order[:count]] = False
    return problem.curvature.support_solver(problem.separable, mask.reshape(-1)).value


def test_the_merge_is_no_worse_than_sorting_losses() -> None:
    gains = []
    for seed in range(8):
        problem = layer(seed, decay=4.0)
        gains.append(sorted_losses(problem) / obc(problem).objective - 1.0)
    assert np.mean(gains) >= 0.0
    assert min(gains) >= -0.02


@pytest.mark.parametrize("name", ROW_METHODS)
def test_the_budget_is_used_whole(name: str) -> None:
    """Published OBC may stop one weight short; published ALPS prints the number pruned as kept."""
    for k in (0, 1, 17, 95, 96):
        assert solve(layer(3, k=k), name).nnz == k


@pytest.mark.parametrize("name", ROW_METHODS)
def test_dead_inputs_are_no_obstacle(name: str) -> None:
    """A column of zeros in H: published OBC sets its diagonal to one; here the ridge carries it."""
    draw = torch.Generator().manual_seed(5)
    X = normal(draw, 40, 12)
    X[:, [2, 7]] = 0.0
    H = X.T @ X / 40
    W = normal(draw, 3, 12)
    problem = from_layer_inputs(H, W, ridge=0.01, supports=Budget.cardinality(36, 12))
    solution = solve(problem, name)
    assert solution.is_feasible
    assert not bool(solution.mask.reshape(3, 12)[:, [2, 7]].any())


def test_layerwise_finds_optima_of_small_layers() -> None:
    found = 0
    for seed in range(20):
        problem = layer(seed, rows=2, width=7, k=5)
        optimum = enumerate_optimum(problem).objective
        value = layerwise(problem).objective
        assert value >= optimum * (1.0 - 1e-9)
        found += value <= optimum * (1.0 + 1e-9)
    assert found >= 18


def test_layerwise_is_below_obc_and_alps() -> None:
    for seed in range(4):
        problem = layer(seed, rows=6, width=40, decay=3.0)
        others = [obc(problem).objective, alps(problem).objective]
        assert layerwise(problem).objective <= min(others)


def test_a_linear_term_moves_the_centre_and_nothing_else() -> None:
    """Objectives far below zero: tolerances are shares of the increase, not of the value."""
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        X, w_bar = normal(draw, 150, 200), normal(draw, 200)
        H, family = X.T @ X / 150, Budget.cardinality(200, 100)
        centred = from_hessian(H, w_bar, ridge=1e-3, supports=family)
        moved = moved_by_linear_term(centred, normal(draw, 200))
        best, found = layerwise(centred), layerwise(moved)
        assert moved.dense_minimum < 0.0
        assert int((found.w != 0).sum()) <= 100
        increase = found.objective - moved.dense_minimum
        assert increase == pytest.approx(best.objective, rel=1e-4)


def test_layerwise_is_an_exchange_optimum() -> None:
    """No exchange of two weights of a row, judged by solving anew, lowers the objective."""
    problem = layer(9, rows=2, width=10, k=8)
    solution = layerwise(problem, search=RowSearch(rounds=6))
    for row in range(2):
        mask = solution.mask.reshape(2, 10)[row]
        for i, j in ((i, j) for i in range(10) for j in range(10) if mask[i] and not mask[j]):
            trial = solution.mask.clone()
            trial[10 * row + i], trial[10 * row + j] = False, True
            value = problem.curvature.support_solver(problem.separable, trial).value
            assert value >= solution.objective * (1.0 - 1e-4)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "pairs"])
def test_layerwise_improves_any_start(family: str) -> None:
    for seed in range(3):
        problem = make_problem("shared_rows", family, seed=seed, linear=bool(seed % 2))
        start = backsolve(problem)
        if not isinstance(problem.supports, Budget):
            with pytest.raises(MethodError, match="within groups"):
                layerwise(problem, start=start)
            continue
        found = layerwise(problem, start=start)
        assert found.is_feasible
        assert found.objective <= start.objective + 1e-12 * problem.prune_all


def test_budgets_side_by_side_have_a_default_and_a_certificate() -> None:
    """Layers of budgets are laminar, yet no budget: the default must not be layerwise."""
    halves = LayerFamilies([Budget.cardinality(6, 2), Budget.cardinality(6, 3)])
    problem = make_problem("shared_rows", "cardinality", p=12).with_supports(halves)
    assert not METHODS["layerwise"].serves(problem)
    found = solve(problem)
    assert found.is_feasible and found.method != "layerwise"
    assert certify(found).lower <= found.objective


def test_the_default_of_layers() -> None:
    problem = layer(0)
    assert choose_method(problem) == "layerwise"
    (H,) = problem.curvature.arrays().values()
    two = BlockDiagonal([SharedRows(H, 1), SharedRows(2.0 * H, 3)])
    both = Problem(two, problem.w_bar, problem.rho, problem.supports)
    assert choose_method(both) == "layerwise"
    assert solve(both).method == "layerwise"
    assert choose_method(make_problem("mixed_blocks", "cardinality")) != "layerwise"


def test_rows_that_share_a_ridge_share_a_system() -> None:
    problem = layer(0, rows=4, width=6)
    assert len(row_systems(problem)) == 1
    rho = problem.rho.clone()
    rho[6:12] *= 2.0
    split = Problem(problem.curvature, problem.w_bar, rho, problem.supports)
    systems = row_systems(split)
    assert sorted(len(s.index) for s in systems) == [1, 3]
    assert torch.equal(torch.cat([s.index.reshape(-1) for s in systems]).sort().values,
                       torch.arange(24))  # fmt: skip
    assert widest_row(problem.curvature) == 6


def test_centres_are_the_rows_minimisers() -> None:
    for form in ("shared_rows", "mixed_blocks", "low_rank"):
        problem = make_problem(form, "cardinality", linear=True, per_weight=True)
        w = torch.empty(problem.p, dtype=torch.float64)
        for system in row_systems(problem):
            w[system.index] = system.centre
        assert float(problem.gradient(w).abs().max()) < 1e-9


def test_a_tableau_knows_its_objective() -> None:
    """From either side (few kept, few pruned), after walks and exchanges, against fresh solves."""
    problem = layer(4, rows=1, width=30)
    (system,) = row_systems(problem)
    quota = RowQuota(np.zeros(30, np.int64), np.array([30]))
    for count in (6, 24):
        inside = np.zeros(30, bool)
        inside[:count] = True
        tableau = RowTableau(system, system.centre[0].numpy(), inside, quota)
        window = RowWindow(count - 4, count + 4, tableau)
        tableau.exchange(1e-9, window)
        tableau.walk(4, count - 4, window)
        for c, value in enumerate(window.values):
            mask = torch.from_numpy(window.supports[c])
            fresh = problem.curvature.support_solver(problem.separable, mask)
            assert int(mask.sum()) == count - 4 + c
            assert value == pytest.approx(fresh.value, rel=1e-8)


@pytest.mark.parametrize("tol", [0.0, -1.0])
def test_an_exchange_is_of_two_weights(tol: float) -> None:
    """Also where every weight would do: the count stays, and each one gains."""
    problem = layer(4, rows=1, width=30)
    (system,) = row_systems(problem)
    quota = RowQuota(np.zeros(30, np.int64), np.array([30]))
    for count in (6, 15, 24):
        inside = np.zeros(30, bool)
        inside[:count] = True
        tableau = RowTableau(system, system.centre[0].numpy(), inside, quota)
        before = tableau.value
        tableau.exchange(tol, RowWindow(count, count, tableau))
        assert int(tableau.inside.sum()) == count
        assert tableau.value <= before


def test_quotas_of_families() -> None:
    (system,) = row_systems(layer(0, rows=3, width=4))
    index = system.index[1].numpy()

    def rules(family: Budget) -> RowQuota:
        return RowQuotas(family, [system]).of(index)

    assert rules(Budget.cardinality(12, 5)).pool != FIXED
    row = rules(Budget.per_row(3, 4, 2))
    assert row.pool == FIXED and row.closed and row.caps.tolist() == [2]
    pairs = Budget.n_of_m(12, 1, 2)
    assert rules(pairs).group.tolist() == [0, 0, 1, 1] and rules(pairs).caps.tolist() == [1, 1]
    nested = rules(Budget.nested(pairs, 4))
    assert nested.pool != FIXED and not nested.closed
    columns = rules(Budget.per_block(torch.arange(12) % 4, 1))
    assert columns.pool == FIXED and not columns.closed


def test_split_count_against_all_splits() -> None:
    draw = np.random.default_rng(0)
    worse = 0.0
    for _ in range(40):
        values = -np.sort(-draw.exponential(size=(3, 5)), axis=1)
        if draw.random() < 0.5:  # convex rows: the split is exact
            values = values.min() + np.cumsum(np.sort(draw.exponential(size=(3, 5)))[:, ::-1], 1)
            values = -values
            exact = True
        else:
            exact = False
        base, total = draw.integers(0, 4, 3), 0
        total = int(base.sum()) + int(draw.integers(0, 12))
        counts = split_count(base, values, total)
        assert counts.sum() <= total
        value = values[np.arange(3), counts - base].sum()
        every = [c for c in np.ndindex(5, 5, 5) if sum(c) + base.sum() <= total]
        best = min(values[np.arange(3), c].sum() for c in every)
        assert value >= best - 1e-12
        if exact:
            assert value == pytest.approx(best)
        worse = max(worse, value - best)
    assert worse < 1.0


def test_conjugate_gradients_reach_the_exact_weights() -> None:
    problem = layer(6, rows=3, width=20)
    (system,) = row_systems(problem)
    mask = problem.supports.best_support(problem.scores)
    exact = problem.curvature.support_solver(problem.separable, mask)
    w = torch.where(mask, problem.w_bar, 0.0)[system.index]
    found = conjugate_rows(system, w, 60)
    assert torch.allclose(found.reshape(-1), exact.weights, atol=1e-8)


def test_a_penalty_too_large_is_lowered() -> None:
    """Under a huge penalty nothing moves; the published code divides it by five until it does."""
    problem = layer(7, decay=3.0)
    stiff = alps(problem, schedule=PenaltySchedule(first=1e3))
    assert stiff.objective < backsolve(problem).objective
    assert alps(problem, schedule=PAPER).objective < backsolve(problem).objective


def test_permuted_inputs_give_the_same_objective() -> None:
    problem = layer(8, rows=3, width=15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    (H,) = problem.curvature.arrays().values()
    W = problem.w_bar.reshape(3, 15)
    other = from_layer_inputs(
        H[order][:, order], W[:, order], ridge=float(problem.rho[0]), supports=problem.supports
    )
    for name in ROW_METHODS:
        assert solve(other, name).objective == pytest.approx(
            solve(problem, name).objective, rel=2e-2 if name == "alps" else 5e-3
        )


def test_one_group_for_each_row_equals_a_count_for_each_row() -> None:
    problem = layer(10, rows=3, width=8)
    rows = problem.with_supports(Budget.per_row(3, 8, 2))
    groups = problem.with_supports(Budget.n_of_m(24, 2, 8))
    for name in ROW_METHODS:
        assert solve(rows, name).objective == pytest.approx(solve(groups, name).objective)


@pytest.mark.parametrize("name", ROW_METHODS)
def test_a_short_time_limit_keeps_an_answer(name: str) -> None:
    problem = layer(11, rows=8, width=120)
    solution = solve(problem, name, time_limit=1e-3)
    assert solution.is_feasible and solution.status is Status.TIME_LIMIT
    assert solution.objective < problem.prune_all


@pytest.mark.parametrize("name", ROW_METHODS)
@pytest.mark.parametrize("call", [1, 3])
def test_an_interrupt_keeps_the_incumbent(
    name: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the first and in the third of the calls that take the time."""
    from chita_opt.heuristics import alps, obc, row_tableau

    owner, function = {
        "obc": (sys.modules[obc.__module__], "_trace"),
        "alps": (sys.modules[alps.__module__].Splitting, "step"),
        "layerwise": (row_tableau.RowTableau, "exchange"),
    }[name]
    original, calls = getattr(owner, function), []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, function, interrupted)
    problem = layer(12)
    solution = solve(problem, name)
    assert solution.is_feasible
    assert solution.status is Status.INTERRUPTED
    assert solution.objective < problem.prune_all


def test_wide_rows_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from chita_opt.heuristics import methods
    from chita_opt.heuristics import row_systems as module

    monkeypatch.setattr(module, "WIDEST", 10)
    monkeypatch.setattr(methods, "WIDEST", 10)
    problem = layer(0)
    assert not METHODS["obc"].serves(problem)
    with pytest.raises(MethodError, match="at most 10"):
        row_systems(problem)


def published() -> list[dict[str, object]]:
    root = os.environ.get("CHITA_OPT_DATA")
    if not root:
        return []
    rows = json.loads((Path(root) / "reference" / "layerwise_peers.json").read_text())["rows"]
    return [row for row in rows if row["layer"] in ("mlp_fc2", "r20_layer1_1_conv1")]


@pytest.mark.skipif(not published(), reason="CHITA_OPT_DATA is not set: no published figures")
@pytest.mark.parametrize("number", range(6))
def test_published_codes(number: int) -> None:
    """Ours at or below the published ALPS and OBC on the same layer, and the default below both."""
    row = published()[number]
    root = Path(os.environ["CHITA_OPT_DATA"])
    with np.load(root / "instances" / "layers" / f"{row['layer']}.npz") as file:
        H, W = (torch.from_numpy(file[name]).double() for name in ("H", "W"))
    family = Budget.cardinality(W.numel(), int(row["k"]))  # type: ignore[call-overload]
    problem = from_layer_inputs(H, W, ridge=float(row["damp"]), supports=family)  # type: ignore[arg-type]
    official: dict[str, float] = row["obj"]  # type: ignore[assignment]
    found = {name: solve(problem, name).objective for name in ROW_METHODS}
    assert found["obc"] <= official["obc"]
    assert found["alps"] <= min(official["alps"], official["alps_refit"])
    assert found["layerwise"] <= 0.98 * min(official["obc"], official["alps"])
