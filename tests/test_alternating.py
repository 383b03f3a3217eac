"""Alternating decisions and weights, and the models of the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chita_opt.exact import enumerate_optimum
from chita_opt.formulations import best_mask_milp, multiple_choice_milp
from chita_opt.heuristics import alternating, iht, local_search
from chita_opt.supports.knapsack import best_choice

from .problems import FAMILIES, LAMINAR, make_problem

pyo = pytest.importorskip("pyomo.environ")
OTHERS = [name for name in FAMILIES if name not in LAMINAR]


@pytest.mark.parametrize("family", ["darb", "darb_two_a_block", "groups", "unequal_groups"])
def test_alternating_is_no_worse_than_where_it_begins(family: str) -> None:
    for seed in range(3):
        problem = make_problem("tall", family, seed=seed, ridge=1e-2)
        found, truth = alternating(problem), enumerate_optimum(problem).objective
        assert found.is_feasible and found.objective >= truth - 1e-9 * problem.prune_all
        assert found.objective <= iht(problem).objective + 1e-12
        again = alternating(problem, start=local_search(problem))
        assert again.objective <= local_search(problem).objective + 1e-12


def test_alternating_finds_widths_that_swaps_alone_do_not() -> None:
    """Over many small problems the decisions it takes are as good as those of the swaps."""
    better = worse = 0
    for seed in range(12):
        problem = make_problem("low_rank", "darb", p=14, seed=seed, ridge=1e-3)
        one, other = alternating(problem).objective, local_search(problem).objective
        better += one < other - 1e-9 * problem.prune_all
        worse += one > other + 1e-9 * problem.prune_all
    assert better >= worse


@pytest.mark.parametrize("family", OTHERS)
def test_the_oracle_is_what_highs_finds(family: str) -> None:
    draw = torch.Generator().manual_seed(3)
    supports = FAMILIES[family](draw, 12)
    if not supports.is_exact:
        pytest.skip("its oracle is a heuristic")
    scores = torch.rand(supports.size, generator=draw, dtype=torch.float64)
    model = best_mask_milp(supports, scores)
    pyo.SolverFactory("appsi_highs").solve(model)
    assert pyo.value(model.objective) == pytest.approx(supports.best_value(scores), rel=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_the_knapsack_is_what_highs_finds(seed: int) -> None:
    """Widths of ten rows: the dynamic program and the model agree."""
    draw = np.random.default_rng(seed)
    values = np.sort(draw.random((10, 4)), axis=1)[:, ::-1].copy()
    costs = np.tile([16, 8, 4, 2], (10, 1))
    budget = int(draw.integers(20, 160))
    model = multiple_choice_milp(values, costs, budget)
    pyo.SolverFactory("appsi_highs").solve(model)
    found = best_choice(values, costs, budget)
    assert pyo.value(model.objective) == pytest.approx(found.value, rel=1e-6)
