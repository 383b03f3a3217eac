"""Bounds of several strengths: never above the optimum, never weaker than the one before."""

from __future__ import annotations

import pytest
import torch

from chita_opt.certificates import certify
from chita_opt.curvature import Dense
from chita_opt.errors import ProblemError
from chita_opt.exact import enumerate_optimum
from chita_opt.exact.strengths import STRENGTHS, lower_bound
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.supports import Budget

from .problems import CURVATURES, FAMILIES, make_problem


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", CURVATURES)
def test_strengths_against_enumeration(form: str, family: str) -> None:
    problem = make_problem(form, family)
    best = enumerate_optimum(problem)
    everything = abs(problem.objective(torch.zeros_like(problem.w_bar)))
    size, last = 1e-9 * abs(best.objective) + 1e-12 * everything, -float("inf")
    start = solve(problem)
    for strength in STRENGTHS:
        found = lower_bound(problem, strength=strength, start=start)
        short = 1e-4 * (best.objective - problem.dense_minimum) if strength == "tree" else 0.0
        assert last - size - short <= found.value <= best.objective + size, strength
        last = found.value
        if found.bound is not None:
            certificate = certify(start, bound=found.bound)
            assert certificate.lower == pytest.approx(found.value, rel=1e-6, abs=10 * size)
    assert last >= best.objective - 2e-4 * (best.objective - problem.dense_minimum) - size


def test_the_best_diagonal_beats_simple_splits() -> None:
    """A Hessian that is strong along two weights only."""
    generator = torch.Generator().manual_seed(2)
    F = torch.randn(14, 12, generator=generator, dtype=torch.float64)
    H = F.T @ F / 14 + torch.diag(torch.tensor([5.0, 3.0] + [0.0] * 10, dtype=torch.float64))
    problem = Problem(
        Dense(H), torch.randn(12, generator=generator, dtype=torch.float64),
        torch.full((12,), 1e-3, dtype=torch.float64), Budget.cardinality(12, 5),
    )  # fmt: skip
    start = solve(problem)
    simple = lower_bound(problem, strength="dual", start=start)
    best = lower_bound(problem, strength="diagonal", start=start)
    assert best.value > simple.value
    assert best.value <= enumerate_optimum(problem).objective


def test_unknown_and_oversized_are_refused() -> None:
    problem = make_problem("low_rank", "cardinality")
    with pytest.raises(ProblemError, match="strength is 'best'"):
        lower_bound(problem, strength="best")
    big = Problem(
        Dense(torch.eye(4001, dtype=torch.float64)), torch.ones(4001, dtype=torch.float64),
        torch.ones(4001, dtype=torch.float64), Budget.cardinality(4001, 9),
    )  # fmt: skip
    with pytest.raises(ProblemError, match="4001 weights"):
        lower_bound(big, strength="diagonal")
