"""The tree search against enumeration: every family, every form, and awkward data."""

from __future__ import annotations

import pytest
import torch

from chita_opt.errors import ProblemError
from chita_opt.exact import TreeOptions, TreeResult, branch_and_bound, enumerate_optimum
from chita_opt.problem import Problem
from chita_opt.solution import Status

from .problems import CURVATURES, FAMILIES, make_problem, random_problem

GAP = 1e-4


def check(problem: Problem, result: TreeResult, *, gap: float = GAP) -> None:
    """No bound above the optimum; the incumbent within the gap; all of it recomputed."""
    optimum = enumerate_optimum(problem).objective
    scale = optimum - problem.dense_minimum
    slack = 1e-12 * (problem.prune_all + abs(problem.dense_minimum) + 1e-300)
    assert result.solution.is_feasible
    assert result.lower <= optimum + slack
    assert result.upper >= optimum - slack
    if result.status is Status.OPTIMAL:
        assert result.upper - optimum <= 1.001 * gap * scale + slack
        assert result.upper - result.lower <= 1.001 * gap * scale + slack


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_every_family_and_form(curvature: str, family: str) -> None:
    i, j = list(CURVATURES).index(curvature), list(FAMILIES).index(family)
    problem = make_problem(
        curvature, family, seed=i, linear=(i + j) % 2 == 0, per_weight=j % 2 == 0, ridge=1e-2
    )
    result = branch_and_bound(problem)
    assert result.status is Status.OPTIMAL
    check(problem, result)


@pytest.mark.parametrize("seed", range(40))
def test_random_problems(seed: int) -> None:
    problem = random_problem(seed)
    result = branch_and_bound(problem)
    assert result.status is Status.OPTIMAL
    check(problem, result)


def test_node_limit_keeps_a_valid_bound() -> None:
    problem = make_problem("low_rank", "cardinality", p=14, seed=3, ridge=1e-4)
    result = branch_and_bound(problem, options=TreeOptions(node_limit=1))
    check(problem, result)
    assert result.nodes <= 1


def test_options_are_checked() -> None:
    with pytest.raises(ProblemError, match="gap is -1"):
        TreeOptions(gap=-1)
    with pytest.raises(ProblemError, match="node_limit is 0"):
        TreeOptions(node_limit=0)
    with pytest.raises(ProblemError, match="workers is 0"):
        TreeOptions(workers=0)


def test_large_problems_are_refused() -> None:
    from chita_opt.curvature import LowRank
    from chita_opt.supports import Budget

    p = 5000
    problem = Problem(LowRank(torch.ones(1, p), 1.0), torch.ones(p), 1.0, Budget.cardinality(p, 5))
    with pytest.raises(ProblemError, match="5000 weights"):
        branch_and_bound(problem)
