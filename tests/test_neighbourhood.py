"""Windows solved exactly: never worse, feasible, and at the optimum where they hold everything."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from chita_opt.bounds import dual_bound
from chita_opt.errors import MethodError, ProblemError, SupportError
from chita_opt.exact import NeighbourhoodOptions, enumerate_optimum, neighbourhood_search
from chita_opt.exact.windows import KINDS, Windows, apparent_costs
from chita_opt.heuristics import solve
from chita_opt.problem import Problem, from_gradients
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget, restrict

from .problems import FAMILIES, make_problem

CASES = [
    ("low_rank", "cardinality"), ("low_rank", "nested_n_of_m"), ("dense", "groups"),
    ("shared_rows", "two_budgets"), ("mixed_blocks", "darb"), ("tall", "pairs"),
    ("gradient_blocks", "minimum_keeps"),
]  # fmt: skip
SMALL = NeighbourhoodOptions(window=6, least=2, most=8, seconds=5.0, patience=6)


def worst(problem: Problem) -> Solution:
    """Nothing kept: as bad a start as there is."""
    return Solution(problem, torch.zeros_like(problem.w_bar), "nothing", Status.FEASIBLE)


def wide(seed: int = 0, p: int = 60) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    A = torch.randn(15, p, generator=draw) + 0.4
    w_bar = torch.randn(p, generator=draw)
    return from_gradients(A, w_bar, ridge=0.05, supports=Budget.cardinality(p, p // 4))


@pytest.mark.parametrize(("curvature", "family"), CASES)
def test_one_window_of_everything_is_the_optimum(curvature: str, family: str) -> None:
    problem = make_problem(curvature, family, p=10)
    options = NeighbourhoodOptions(window=10)
    found = neighbourhood_search(problem, start=worst(problem), options=options)
    best = enumerate_optimum(problem).objective
    assert found.is_feasible
    assert found.objective == pytest.approx(best, rel=1e-6, abs=1e-9 * abs(problem.prune_all))


@pytest.mark.parametrize(("curvature", "family"), CASES)
def test_small_windows_never_worsen(curvature: str, family: str) -> None:
    problem = make_problem(curvature, family, p=12, linear=True)
    start = solve(problem)
    found = neighbourhood_search(problem, start=start, options=SMALL, seed=1)
    assert found.is_feasible
    assert found.objective <= start.objective
    values = found.trace.values
    assert values == sorted(values, reverse=True)
    assert found.objective >= enumerate_optimum(problem).objective - 1e-9


def test_the_same_seed_finds_the_same_weights() -> None:
    problem = wide()
    start = solve(problem, "magnitude")
    options = replace(SMALL, seconds=60.0)
    first, second = (
        neighbourhood_search(problem, start=start, options=options, seed=3) for _ in range(2)
    )
    assert torch.equal(first.w, second.w)
    assert first.stats["windows"] == second.stats["windows"]


def test_a_bound_names_the_undecided_weights_and_windows_improve() -> None:
    problem = wide(1)
    start = solve(problem, "magnitude")
    bound = dual_bound(problem, start=start)
    found = neighbourhood_search(problem, start=start, bound=bound, options=SMALL)
    assert bound.value <= found.objective < start.objective
    assert found.status is Status.STATIONARY
    assert found.stats["helped"]


def test_outer_approximation_solves_windows_too() -> None:
    problem = wide(2, 24)
    start = solve(problem, "magnitude")
    options = replace(SMALL, solver="outer_approximation", patience=2)
    found = neighbourhood_search(problem, start=start, options=options)
    assert found.objective <= start.objective
    assert found.is_feasible


def test_time_limit_and_ctrl_c_return_the_incumbent(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = wide()
    start = solve(problem, "magnitude")
    found = neighbourhood_search(problem, start=start, time_limit=1e-3)
    assert found.status is Status.TIME_LIMIT
    assert found.objective <= start.objective

    def stop(self: object, size: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Windows, "next", stop)
    found = neighbourhood_search(problem, start=start)
    assert found.status is Status.INTERRUPTED
    assert torch.equal(found.w, start.w)


def test_windows_are_drawn_of_every_kind() -> None:
    problem = wide()
    costs = apparent_costs(problem, solve(problem))
    windows = Windows(problem, costs, np.random.default_rng(0))
    for turn in range(8):
        kind, index = windows.next(7)
        assert kind == KINDS[turn % len(KINDS)]
        assert len(np.unique(index)) == 7
        assert (np.diff(index) > 0).all()
    kind, index = windows.next(1000)
    assert len(index) == problem.p


def test_bad_options_and_starts_are_refused() -> None:
    with pytest.raises(ProblemError, match="window"):
        NeighbourhoodOptions(window=4, least=8)
    with pytest.raises(ProblemError, match="solver"):
        NeighbourhoodOptions(solver="magic")
    problem = wide()
    dense = Solution(problem, problem.w_bar, "dense", Status.FEASIBLE)
    with pytest.raises(MethodError, match="pattern"):
        neighbourhood_search(problem, start=dense)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_restrictions_allow_what_the_family_allows(family: str) -> None:
    draw = torch.Generator().manual_seed(5)
    whole = FAMILIES[family](draw, 12)
    mask = whole.best_support(torch.rand(whole.size, generator=draw, dtype=torch.float64))
    index = torch.tensor([0, 3, 4, 5, 9])
    kept = mask.clone()
    kept[index] = False
    rest = restrict(whole, kept, index)
    rows, scores = rest.rows(), torch.rand(5, generator=draw, dtype=torch.float64)
    best = 0.0
    for choice in product((False, True), repeat=5):
        trial, part = kept.clone(), torch.tensor(choice)
        trial[index] = part
        assert rest.contains(part) == whole.contains(trial)
        if whole.contains(trial):
            best = max(best, float(scores[part].sum()))
            assert rows.allow(part.numpy()[None].astype(float))[0]
    if whole.is_exact:
        assert rest.best_value(scores) == pytest.approx(best)
    assert rest.value_bound(scores) >= best - 1e-9


def test_restrictions_without_anything_to_decide_are_refused() -> None:
    whole, none = Budget.cardinality(4, 2), torch.zeros(4, dtype=torch.bool)
    with pytest.raises(SupportError, match="index"):
        restrict(whole, none, torch.tensor([], dtype=torch.int64))
    with pytest.raises(SupportError, match="kept"):
        restrict(whole, torch.tensor([True, True, True, False]), torch.tensor([3]))
