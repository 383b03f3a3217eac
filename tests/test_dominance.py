"""Orders of zero columns and twins against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from chita_opt.exact import TreeOptions, branch_and_bound, enumerate_optimum
from chita_opt.exact.quadratic import FREE, IN, Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.branch_and_bound import Tree
from chita_opt.exact.tree_search.dominance import Chain, Ordered, Twins, ordered
from chita_opt.problem import Problem, from_gradients, from_hessian
from chita_opt.solution import Status
from chita_opt.supports import Budget, SupportFamily

from .problems import FAMILIES, LAMINAR

Array = np.ndarray
BUDGETS = [name for name in LAMINAR if name not in ("nothing", "everything")]


def twins(seed: int, family: str, p: int = 12) -> Problem:
    """Few distinct columns up to sign, some of them zero, some weights and ridges equal."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(2 * p, 4, generator=draw, dtype=torch.float64)
    base[:, 0] = 0.0
    which = torch.randint(0, 4, (p,), generator=draw)
    signs = torch.where(torch.rand(p, generator=draw) < 0.3, -1.0, 1.0)
    A = base[:, which] * signs
    w = torch.randn(p, generator=draw, dtype=torch.float64)
    w[torch.rand(p, generator=draw) < 0.3] = 0.7
    rho = torch.full((p,), 10.0 ** float(-3 + 3 * torch.rand((), generator=draw)))
    rho[torch.rand(p, generator=draw) < 0.2] *= 2.0
    supports: SupportFamily = FAMILIES[family](draw, p)
    first_order = float(seed % 2) * 0.1
    return from_gradients(A, w, ridge=rho, supports=supports, first_order=first_order)


@pytest.mark.parametrize("family", BUDGETS)
@pytest.mark.parametrize("seed", range(12))
def test_an_optimum_keeps_the_orders(seed: int, family: str) -> None:
    """The best support among those in order is the best of all."""
    problem = twins(seed, family, p=10)
    found = ordered(problem, allowed(problem.supports))
    quadratic, best = Quadratic.of(problem), np.inf
    for bits in itertools.product((0, 1), repeat=problem.p):
        state = np.array(bits, dtype=np.int8)
        if found.propagate(state):
            best = min(best, quadratic.solve(np.flatnonzero(state))[1])
    optimum = enumerate_optimum(problem).objective
    assert best == pytest.approx(optimum, rel=1e-9, abs=1e-12 * problem.prune_all)


@pytest.mark.parametrize("family", BUDGETS)
@pytest.mark.parametrize("seed", range(20, 24))
def test_what_follows_is_all_that_is_left(seed: int, family: str) -> None:
    """Propagation drops no completion that is in order, and says so where there is none."""
    problem = twins(seed, family, p=10)
    found = ordered(problem, allowed(problem.supports))
    source = np.random.default_rng(seed)
    whole = [np.array(bits, dtype=np.int8) for bits in itertools.product((0, 1), repeat=10)]
    whole = [state for state in whole if found.propagate(state.copy())]
    for _ in range(30):
        state = source.choice([FREE, 0, IN], size=10, p=[0.6, 0.2, 0.2]).astype(np.int8)
        fixed = state != FREE
        left = [s for s in whole if (s[fixed] == state[fixed]).all()]
        after = state.copy()
        if not found.propagate(after):
            assert not left
            continue
        now = after != FREE
        assert all((s[now] == after[now]).all() for s in left)


@pytest.mark.parametrize("family", BUDGETS)
@pytest.mark.parametrize("seed", range(40, 46))
def test_the_tree_with_orders(seed: int, family: str) -> None:
    problem = twins(seed, family)
    optimum = enumerate_optimum(problem).objective
    result = branch_and_bound(problem, options=TreeOptions(gap=1e-6))
    slack = 1e-11 * problem.prune_all
    assert result.status is Status.OPTIMAL
    assert result.lower <= optimum + slack
    assert result.upper <= optimum + 1e-6 * abs(optimum - problem.dense_minimum) + slack


def test_orders_shrink_the_tree() -> None:
    A = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    A = A[:, torch.arange(24) % 6]
    w = torch.linspace(-1.0, 1.3, 24, dtype=torch.float64)
    problem = from_gradients(A, w, ridge=0.5, supports=Budget.cardinality(24, 9))
    tree = Tree(problem, TreeOptions())
    assert isinstance(tree.search.solver.allowed, Ordered)
    with_orders = tree.run()
    plain = Tree(problem, TreeOptions())
    plain.search.solver.allowed = allowed(problem.supports)
    without = plain.run()
    assert with_orders.upper == pytest.approx(without.upper, rel=2e-4)
    assert with_orders.nodes <= without.nodes


def test_a_proof_does_without_orders() -> None:
    problem = twins(3, "cardinality")
    result = branch_and_bound(problem, options=TreeOptions(proof=True))
    assert result.proof is not None
    tree = Tree(problem, TreeOptions(proof=True))
    assert not isinstance(tree.search.solver.allowed, Ordered)


def test_classes_of_a_dense_matrix() -> None:
    """Rows equal up to sign are twins, zero rows a chain; groups are kept apart."""
    H = torch.zeros(8, 8, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    H[:4, :4] = sign[:, None] * sign
    H[4, 4] = 3.0
    w = torch.tensor([0.3, -0.9, 0.1, 2.0, 1.0, 0.2, -0.8, 0.4], dtype=torch.float64)
    problem = from_hessian(H, w, ridge=0.1, supports=Budget.cardinality(8, 4))
    found = ordered(problem, allowed(problem.supports))
    assert isinstance(found, Ordered)
    kinds = {type(order): order.order.tolist() for order in found.orders}
    assert kinds == {Twins: [2, 0, 1, 3], Chain: [6, 7, 5]}
    split = problem.with_supports(Budget.per_layer([2, 6], [1, 3]))
    found = ordered(split, allowed(split.supports))
    assert isinstance(found, Ordered)
    assert sorted(order.order.tolist() for order in found.orders) == [[0, 1], [2, 3], [6, 7, 5]]
    distinct = from_hessian(torch.diag(w.abs()), w, ridge=0.1, supports=Budget.cardinality(8, 4))
    assert not isinstance(ordered(distinct, allowed(distinct.supports)), Ordered)
