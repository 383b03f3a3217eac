"""The oracle of the other tests, against the plainest possible one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from chita_opt.errors import CurvatureError, ProblemError
from chita_opt.exact import enumerate_optimum, enumerate_supports
from chita_opt.problem import Problem
from chita_opt.solution import Status
from chita_opt.supports import Budget

from .problems import CURVATURES, FAMILIES, PairBudget, make_problem


def plain_optimum(problem: Problem) -> float:
    """numpy and loops over all 2^p masks, not only the maximal ones."""
    H = problem.curvature.dense().numpy() + np.diag(problem.rho.numpy())
    w_bar, g = problem.w_bar.numpy(), problem.g.numpy()
    best = np.inf
    for mask in product((False, True), repeat=problem.p):
        if not problem.supports.contains(torch.tensor(mask)):
            continue
        S = np.flatnonzero(mask)
        x = np.where(mask, 0.0, -w_bar)
        x[S] = np.linalg.solve(H[np.ix_(S, S)], (-g - H @ x)[S])
        best = min(best, 0.5 * x @ H @ x + g @ x)
    return float(best)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", CURVATURES)
def test_enumeration(form: str, family: str) -> None:
    problem = make_problem(form, family, p=8, linear=True, per_weight=True)
    found = enumerate_optimum(problem)
    size = problem.prune_all + abs(problem.dense_minimum)
    assert found.objective == pytest.approx(plain_optimum(problem), rel=1e-9, abs=1e-12 * size)
    assert found.status is Status.OPTIMAL and found.is_feasible
    assert found.method == "enumerate" and found.trace.rows


@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "pairs"])
def test_every_support_is_solved(family: str) -> None:
    problem = make_problem("low_rank", family, p=8, linear=True)
    truth = enumerate_supports(problem)
    for mask, w, value in zip(truth.masks, truth.weights, truth.values, strict=True):
        solver = problem.curvature.support_solver(problem.separable, mask)
        torch.testing.assert_close(w, solver.weights)
        assert float(value) == pytest.approx(solver.value, rel=1e-9)
        assert not bool(w[~mask].any())
    assert truth.optimum == float(truth.values.min())
    assert len(truth.within(truth.optimum)) >= 1
    assert len(truth.within(float("inf"))) == len(truth.masks)


def test_loose_rows_are_corrected_by_membership() -> None:
    """A family whose rows allow more than it does."""
    problem = make_problem("dense", "cardinality", p=8)
    for k in range(5):
        tight = enumerate_optimum(problem.with_supports(PairBudget(8, k)))
        loose = enumerate_optimum(problem.with_supports(PairBudget(8, k, tight=False)))
        assert loose.objective == pytest.approx(tight.objective)


def test_twenty_weights_are_the_limit() -> None:
    problem = make_problem("low_rank", "cardinality", p=20)
    twenty = problem.with_supports(Budget.cardinality(20, 3))
    assert enumerate_optimum(twenty).stats["supports"] == 1140
    with pytest.raises(ProblemError, match=r"22 weights.*20"):
        enumerate_optimum(make_problem("low_rank", "cardinality", p=22))


def test_a_singular_support_is_refused() -> None:
    problem = make_problem("deficient", "everything", ridge=0.0)
    with pytest.raises(CurvatureError, match="raise the ridge"):
        enumerate_optimum(problem)
