"""Exchanges of whole groups: values of unions, budgets kept, and no exchange left that helps."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from chita_opt.heuristics import solve
from chita_opt.heuristics.group_exchange import _Parts, exchange_groups, group_values
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.problem import Problem, from_gradients
from chita_opt.supports import WholeGroups

from .problems import CURVATURES, make_problem

GROUPED = ("auto", "relax_round", "local_search", "alternating", "best")


def layer(seed: int, keep: int = 4, *, first_order: float = 0.0) -> Problem:
    """Ten units of twelve weights, fewer gradients than weights."""
    draw = torch.Generator().manual_seed(seed)
    A = torch.randn(40, 120, generator=draw) * (0.2 + torch.rand(120, generator=draw))
    w_bar = torch.randn(120, generator=draw)
    family = WholeGroups.matrix_rows((10, 12), keep)
    return from_gradients(A, w_bar, ridge=0.02, supports=family, first_order=first_order)


def by_solve(problem: Problem, alive: Tensor) -> float:
    """The value of a union by the curvature's own solve."""
    assert isinstance(problem.supports, WholeGroups)
    mask = alive[problem.supports.labels]
    return problem.curvature.support_solver(problem.separable, mask).value


@pytest.mark.parametrize("seed", range(6))
def test_parts_give_the_values_of_unions(seed: int) -> None:
    """From any union as the base, with and without a linear term."""
    problem = layer(seed, first_order=0.3 * (seed % 2))
    assert isinstance(problem.supports, WholeGroups)
    values = _Parts(problem, problem.curvature, problem.supports)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(seed)
    for _ in range(4):
        base, alive = (torch.rand(10, generator=draw) < 0.5 for _ in range(2))
        values.begin(base)
        assert values.value(alive) == pytest.approx(by_solve(problem, alive), rel=1e-6)


@pytest.mark.parametrize("family", ["groups", "unequal_groups"])
@pytest.mark.parametrize("form", list(CURVATURES))
def test_exchanges_never_worsen_and_keep_the_budget(form: str, family: str) -> None:
    for seed in range(4):
        problem = make_problem(form, family, p=12, seed=seed, linear=True)
        start = solve(problem, "magnitude")
        best = Incumbent(problem, None, start)
        exchange_groups(problem, best)
        assert best.value <= start.objective
        found = best.finish("exchange", start.status)
        assert found.is_feasible
        assert found.objective <= start.objective * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize("method", GROUPED)
@pytest.mark.parametrize("seed", range(3))
def test_no_exchange_is_left_that_helps(seed: int, method: str) -> None:
    problem = layer(seed)
    family = problem.supports
    assert isinstance(family, WholeGroups)
    found = solve(problem, method, time_limit=2.0)
    alive = torch.zeros(10, dtype=torch.bool)
    alive[family.labels[found.mask]] = True
    assert int(alive.sum()) == 4
    for out, into in itertools.product(range(10), repeat=2):
        if bool(alive[out]) and not bool(alive[into]):
            other = alive.clone()
            other[out], other[into] = False, True
            assert by_solve(problem, other) >= found.objective * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_units_of_a_small_layer_are_near_their_enumerated_optimum(seed: int) -> None:
    problem = layer(seed, keep=3)
    assert isinstance(problem.supports, WholeGroups)
    unions = torch.zeros(120, 10, dtype=torch.bool)
    for row, chosen in enumerate(itertools.combinations(range(10), 3)):
        unions[row, list(chosen)] = True
    optimum = min(by_solve(problem, alive) for alive in unions)
    assert optimum * (1 - 1e-9) <= solve(problem).objective <= 1.05 * optimum


def test_dear_unions_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is exchanged where values of unions cost too much, or there are no groups."""
    problem = layer(0)
    best = Incumbent(problem, None, solve(problem, "magnitude"))
    monkeypatch.setattr("chita_opt.heuristics.group_exchange._SMALL", 10)
    assert exchange_groups(problem, best, thorough=False) == 0
    assert isinstance(problem.supports, WholeGroups)
    assert isinstance(group_values(problem, problem.supports), _Parts)
    monkeypatch.setattr("chita_opt.heuristics.group_exchange._ROOM", 10)
    assert group_values(problem, problem.supports) is None
    assert exchange_groups(problem, best) == 0
    other = make_problem("low_rank", "cardinality", p=12)
    assert exchange_groups(other, Incumbent(other, None, solve(other))) == 0
