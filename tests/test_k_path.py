"""Paths over counts and exact coupling of blocks, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chita_opt.curvature import BlockDiagonal
from chita_opt.errors import ProblemError
from chita_opt.exact import (
    TreeOptions,
    branch_and_bound,
    enumerate_optimum,
    k_path,
    solve_blocks,
    split_into_blocks,
)
from chita_opt.problem import Problem
from chita_opt.solution import Status
from chita_opt.supports import Budget

from .problems import PairBudget, make_problem

GAP = 1e-4


def slack(problem: Problem) -> float:
    return 1e-12 * (problem.prune_all + abs(problem.dense_minimum))


@pytest.mark.parametrize("family", ["everything", "rows", "nested_blocks"])
@pytest.mark.parametrize("linear", [False, True])
def test_path_against_enumeration(family: str, linear: bool) -> None:
    problem = make_problem("low_rank", family, p=10, seed=2, linear=linear, ridge=1e-2)
    path = k_path(problem)
    assert path.status is Status.OPTIMAL
    assert list(path.ks) == list(range(problem.supports.max_count + 1))
    assert (np.diff(path.upper) <= slack(problem)).all()
    assert (np.diff(path.lower) <= slack(problem)).all()
    base = problem.supports
    assert isinstance(base, Budget)
    for k, upper, lower, w in zip(path.ks, path.upper, path.lower, path.w, strict=True):
        plain = Budget(base.labels, base.caps)
        exact = enumerate_optimum(problem.with_supports(Budget.nested(plain, int(k)))).objective
        tolerance = 1.001 * GAP * (exact - problem.dense_minimum) + slack(problem)
        assert lower <= exact + slack(problem)
        assert lower >= exact - tolerance
        assert exact - slack(problem) <= upper <= exact + tolerance
        assert problem.objective(torch.from_numpy(w)) == pytest.approx(upper, abs=slack(problem))
        assert np.count_nonzero(w) <= k


def test_penalised_value_is_the_best_count() -> None:
    problem = make_problem("tall", "everything", p=10, seed=5)
    path = k_path(problem)
    weight = 0.05 * problem.prune_all
    upper, lower, k = path.penalised(weight)
    values = [
        enumerate_optimum(problem.with_supports(Budget.cardinality(10, j))).objective + weight * j
        for j in range(11)
    ]
    assert lower <= min(values) + slack(problem)
    assert upper == pytest.approx(min(values), rel=2 * GAP)
    assert path.upper[k] + weight * k == upper
    with pytest.raises(ProblemError, match="-1"):
        path.penalised(-1.0)


def test_path_limits_keep_valid_bounds() -> None:
    problem = make_problem("low_rank", "everything", p=12, seed=7, ridge=1e-4)
    path = k_path(problem, ks=[3, 6, 9], options=TreeOptions(node_limit=1))
    for k, upper, lower in zip(path.ks, path.upper, path.lower, strict=True):
        exact = enumerate_optimum(problem.with_supports(Budget.cardinality(12, int(k)))).objective
        assert lower <= exact + slack(problem)
        assert upper >= exact - slack(problem)


def test_path_refuses_what_it_cannot_count() -> None:
    problem = make_problem("tall", "pairs", p=10)
    assert isinstance(problem.supports, PairBudget)
    with pytest.raises(ProblemError, match="budget family"):
        k_path(problem)
    with pytest.raises(ProblemError, match="must lie in"):
        k_path(make_problem("tall", "everything", p=10), ks=[11])


@pytest.mark.parametrize("curvature", ["shared_rows", "gradient_blocks", "mixed_blocks"])
@pytest.mark.parametrize("linear", [False, True])
def test_blocks_under_a_total(curvature: str, linear: bool) -> None:
    for seed in range(3):
        problem = make_problem(
            curvature, "cardinality", p=12, seed=seed, linear=linear, ridge=10.0 ** (-seed)
        )
        check_blocks(problem)


def test_blocks_with_rows_and_their_total() -> None:
    base = make_problem("shared_rows", "rows", p=12, seed=1, ridge=1e-2)
    assert isinstance(base.supports, Budget)
    check_blocks(base)
    check_blocks(base.with_supports(Budget.nested(base.supports, base.supports.max_count // 2)))


def check_blocks(problem: Problem) -> None:
    optimum = enumerate_optimum(problem).objective
    result = solve_blocks(problem)
    tolerance = 1.001 * GAP * (optimum - problem.dense_minimum) + slack(problem)
    assert result.status is Status.OPTIMAL
    assert result.solution.is_feasible
    assert result.lower <= optimum + slack(problem)
    assert optimum - slack(problem) <= result.upper <= optimum + tolerance
    assert result.upper - result.lower <= tolerance


def test_blocks_agree_with_the_whole_tree() -> None:
    problem = make_problem("shared_rows", "cardinality", p=24, seed=4, ridge=1e-2)
    whole, parts = branch_and_bound(problem), solve_blocks(problem)
    assert parts.upper == pytest.approx(whole.upper, rel=2 * GAP)


def test_blocks_refuse_crossing_groups() -> None:
    problem = make_problem("gradient_blocks", "n_of_m", p=12, seed=0)
    assert isinstance(problem.curvature, BlockDiagonal)
    labels = torch.tensor([0, 1] * 6)
    crossing = problem.with_supports(Budget.per_block(labels, 3))
    with pytest.raises(ProblemError, match="more than one block"):
        split_into_blocks(crossing)
    with pytest.raises(ProblemError, match="does not fall into blocks"):
        split_into_blocks(make_problem("tall", "cardinality"))
