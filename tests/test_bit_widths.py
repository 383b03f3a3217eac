"""Bit-widths of channels: enumeration, the knapsack, outer approximation, and bounds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from chita_opt.curvature import BlockDiagonal, Dense, LowRank
from chita_opt.errors import ProblemError
from chita_opt.exact import BitWidthProblem, quantised, solve_bit_widths
from chita_opt.solution import Status

CHANNELS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 4])


def make(seed: int, coupled: bool, *, linear: bool = False) -> BitWidthProblem:
    draw = torch.Generator().manual_seed(seed)
    A = torch.randn(6, 10, generator=draw, dtype=torch.float64)
    curvature = LowRank(A, 1 / 6)
    if not coupled:
        parts = [A[:, CHANNELS == c] for c in range(5)]
        curvature = BlockDiagonal([Dense(x.T @ x / 6) for x in parts])
    w = torch.randn(10, generator=draw, dtype=torch.float64)
    rho = torch.full((10,), 0.05 + 0.2 * (seed % 2), dtype=torch.float64)
    g = 0.1 * torch.randn(10, generator=draw, dtype=torch.float64) if linear else None
    return BitWidthProblem(curvature, w, rho, CHANNELS, 20 + 4 * (seed % 5), g=g)


def optimum(problem: BitWidthProblem) -> float:
    values = [
        problem.objective(option)
        for option in product(range(4), repeat=5)
        if problem.bits_used(option) <= problem.budget
    ]
    return min(values)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("coupled", [False, True])
def test_against_enumeration(coupled: bool, seed: int) -> None:
    problem = make(seed, coupled, linear=seed % 3 == 0)
    found = solve_bit_widths(problem)
    best = optimum(problem)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert found.lower <= best * (1 + 1e-12) + 1e-12
    assert (found.solver_bound is None) == (not coupled)
    if not coupled:
        assert found.lower == pytest.approx(best, rel=1e-9)
    elif found.solver_bound is not None:
        assert found.lower <= found.solver_bound <= best + 1e-6 * abs(best)


def test_the_quadratic_of_the_choices() -> None:
    problem = make(1, True, linear=True)
    M, q = problem.quadratic
    draw = np.random.default_rng(0)
    for _ in range(20):
        option = draw.integers(0, 4, 5)
        y = np.zeros(20)
        y[np.arange(5) * 4 + option] = 1.0
        assert 0.5 * y @ M @ y + q @ y == pytest.approx(problem.objective(option))
    assert not problem.is_uncoupled and make(1, False).is_uncoupled


def test_extreme_budgets() -> None:
    problem = make(2, True)
    none = BitWidthProblem(problem.curvature, problem.w_bar, problem.rho, CHANNELS, 0)
    assert not solve_bit_widths(none).weights.any()
    every = BitWidthProblem(problem.curvature, problem.w_bar, problem.rho, CHANNELS, 80)
    assert solve_bit_widths(every).objective <= optimum(problem)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_grid(bits: int) -> None:
    w = torch.randn(50, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    values = quantised(w, bits)
    assert len(values.unique()) <= 2**bits - 1
    assert (values - w).square().sum() <= (quantised(w, bits - 1) - w).square().sum() if (
        bits > 2) else True  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    problem = make(0, True)
    data = (problem.curvature, problem.w_bar, problem.rho, CHANNELS)
    with pytest.raises(ProblemError, match="rise from 0"):
        BitWidthProblem(*data, 10, bits=(2, 4))
    with pytest.raises(ProblemError, match="budget -1"):
        BitWidthProblem(*data, -1)
    with pytest.raises(ProblemError, match="another size"):
        BitWidthProblem(problem.curvature, problem.w_bar[:3], problem.rho, CHANNELS, 5)
    with pytest.raises(ProblemError, match="bits is 1"):
        quantised(problem.w_bar, 1)


def test_a_time_limit_returns_a_bound() -> None:
    found = solve_bit_widths(make(3, True), time_limit=1e-9)
    assert found.lower <= found.objective and found.status in (Status.TIME_LIMIT, Status.OPTIMAL)
