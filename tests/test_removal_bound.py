"""Removal bounds against the enumerated optimum of random nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions, NodeBound
from chita_opt.exact.tree_search.node import root_node
from chita_opt.exact.tree_search.removal_bound import RemovalBound
from chita_opt.problem import Problem
from chita_opt.supports import Budget

from .problems import awkward_problem, make_problem, random_problem

Array = np.ndarray


class Case:
    """A problem, a state that its family allows, and the bounds there."""

    def __init__(self, problem: Problem, state: Array) -> None:
        self.problem, self.state, self.quadratic = problem, state, Quadratic.of(problem)
        family = allowed(problem.supports)
        self.free = np.flatnonzero(state == FREE)
        node = root_node(problem.p, family.row_count)
        node.state = state
        restricted = family.restrict(state, self.free)
        self.bound = NodeBound(self.quadratic, node, restricted, self.free, AscentOptions())
        self.removal = RemovalBound(
            self.bound.reduced, restricted, self.quadratic.margin(state != OUT)
        )

    def optimum(self) -> float:
        """Best value of the state, by enumeration."""
        best = np.inf
        for code in range(2 ** len(self.free)):
            mask = self.state == IN
            mask[self.free] = [(code >> i) & 1 for i in range(len(self.free))]
            if self.problem.supports.contains(torch.from_numpy(mask)):
                best = min(best, self.quadratic.solve(np.flatnonzero(mask))[1])
        return best

    def check(self) -> tuple[float, float, float]:
        """Dearest removal, scaled sum, optimum: neither bound is above it."""
        optimum, dearest, scaled = self.optimum(), self.removal.dearest(), -np.inf
        split = self.removal.split()
        if split is not None:
            witness = self.bound.prove(*split)
            scaled = -np.inf if witness is None else witness.lower
        slack = 1e-12 * (abs(self.quadratic.const) + abs(optimum))
        assert dearest <= optimum + slack
        assert scaled <= optimum + slack
        return dearest, scaled, optimum


def case(problem: Problem, seed: int) -> Case | None:
    """A random state; None if the family does not allow it or nothing is free."""
    source = np.random.default_rng(seed)
    state = source.choice([FREE, OUT, IN], size=problem.p, p=[0.7, 0.15, 0.15]).astype(np.int8)
    if not allowed(problem.supports).propagate(state) or not (state == FREE).any():
        return None
    return Case(problem, state)


@pytest.mark.parametrize("seed", range(120))
def test_bounds_hold_at_random_nodes(seed: int) -> None:
    found = case(random_problem(seed), seed)
    if found is not None:
        found.check()


@pytest.mark.parametrize("seed", range(60))
def test_bounds_hold_on_awkward_data(seed: int) -> None:
    found = case(awkward_problem(seed), seed)
    if found is not None and np.isfinite(found.quadratic.const):
        try:
            found.check()
        except np.linalg.LinAlgError:
            pytest.skip("the enumeration's own factorisation fails on these data")


def test_one_removal_is_exact() -> None:
    problem = make_problem("dense", "cardinality", p=10, ridge=1e-2)
    problem = problem.with_supports(Budget.cardinality(10, 9))
    dearest, scaled, optimum = Case(problem, np.full(10, FREE, dtype=np.int8)).check()
    assert dearest == pytest.approx(optimum, rel=1e-6)
    assert 0.0 < scaled < optimum


def test_the_scaled_sum_is_exact_without_correlations() -> None:
    """Then every split is, and the sum of the cheapest removals is the optimum."""
    from chita_opt.problem import from_hessian

    H, w = torch.diag(torch.arange(1.0, 9.0)), torch.linspace(0.5, 2.0, 8)
    problem = from_hessian(H, w, ridge=0.1, supports=Budget.cardinality(8, 3))
    dearest, scaled, optimum = Case(problem, np.full(8, FREE, dtype=np.int8)).check()
    assert scaled == pytest.approx(optimum, rel=1e-5)
    assert dearest < scaled


def test_singular_data_give_no_bound() -> None:
    problem = make_problem("deficient", "cardinality", p=10, ridge=0.0)
    assert Case(problem, np.full(10, FREE, dtype=np.int8)).check()[:2] == (-np.inf, -np.inf)
