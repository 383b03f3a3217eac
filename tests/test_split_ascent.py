"""The ascent to the best diagonal split, and what proving its end may cost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from chita_opt.certificates import certify
from chita_opt.certificates.hessian_parts import hessian_part
from chita_opt.certificates.problem_data import read_problem
from chita_opt.exact.diagonal_split.proving import same_pulls
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions, NodeBound
from chita_opt.exact.tree_search.branch_and_bound import root_node
from chita_opt.exact.tree_search.proof_log import ProofLog
from chita_opt.heuristics import solve
from chita_opt.problem import Problem, from_gradients
from chita_opt.supports import Budget

CAREFUL = AscentOptions(enough=0.01, shrink=0.5, inside=0.7)


def flat(seed: int, p: int = 120, n: int = 40, ridge: float = 1e-3) -> Problem:
    """Fewer gradients than weights and a small ridge: H has its least eigenvalue many times."""
    draw = torch.Generator().manual_seed(seed)
    A = 0.1 * torch.randn(n, p, generator=draw) * (0.2 + torch.rand(p, generator=draw))
    w_bar = 0.1 * torch.randn(p, generator=draw)
    return from_gradients(A, w_bar, ridge=ridge, supports=Budget.cardinality(p, p // 3))


def root(problem: Problem, options: AscentOptions) -> NodeBound:
    """The root of a problem's tree."""
    quadratic, family = Quadratic.of(problem), allowed(problem.supports)
    node, free = root_node(problem.p, family.row_count), np.arange(problem.p)
    return NodeBound(quadratic, node, family.restrict(node.state, free), free, options)


@pytest.mark.parametrize(("seed", "p", "n"), [(0, 240, 40), (2, 240, 40), (2, 400, 60)])
def test_careful_ascents_end_at_one_value_however_fast_the_barrier_falls(
    seed: int, p: int, n: int
) -> None:
    """Steps that may end next to a singular split get stuck up to a quarter of the gap below."""
    problem = flat(seed, p=p, n=n)
    upper, ends = solve(problem).objective, []
    for shrink in (0.1, 0.3, 0.5):
        options = AscentOptions(enough=2e-3, shrink=shrink, inside=0.7, most_steps=150)
        bound = root(problem, options)
        witness = bound.prove(*bound.ascend(upper, upper))
        assert witness is not None
        ends.append(witness.lower)
    assert max(ends) - min(ends) <= 0.01 * (upper - max(ends))


@pytest.mark.parametrize("seed", range(4))
def test_careful_steps_never_end_lower_and_starts_agree(seed: int) -> None:
    """The objective is concave: from any start the same end, within what the barrier hides."""
    problem = flat(seed)
    upper = solve(problem).objective
    ends = {}
    for name, options in (("quick", AscentOptions(enough=0.01)), ("careful", CAREFUL)):
        bound = root(problem, options)
        d, v = bound.ascend(upper, upper)
        witness = bound.prove(d, v)
        assert witness is not None
        ends[name] = witness.lower
    bound = root(problem, CAREFUL)
    bound.ascend(upper, upper)
    bound.inherit(bound.node)  # and again from a point on the way
    again = NodeBound(bound.quadratic, bound.node, bound.restricted, bound.free, CAREFUL)
    witness = again.prove(*again.ascend(upper, upper))
    assert witness is not None
    gap = upper - ends["careful"]
    assert ends["quick"] <= ends["careful"] + 0.05 * gap
    assert witness.lower == pytest.approx(ends["careful"], abs=0.05 * gap)


@pytest.mark.parametrize("seed", range(3))
def test_a_proven_split_costs_next_to_nothing(seed: int) -> None:
    """At the best split H - diag(d) is all but singular; the pulls are kept, not the point."""
    problem = flat(seed, p=200)
    upper = solve(problem).objective
    bound = root(problem, CAREFUL)
    d, v = bound.ascend(upper, upper)
    image = bound.reduced.H @ v - d * v
    gains = 0.5 * (bound.reduced.b - image) ** 2 / d
    value = bound.reduced.const - 0.5 * float(v @ image) - bound.restricted.best(gains)[1]
    for witness in (bound.prove(d, v), ProofLog(bound.quadratic).prove(bound, d, v)):
        assert witness is not None
        assert value - 1e-3 * (upper - value) <= witness.lower <= value + 1e-9 * upper


def test_pulls_stay_when_a_split_is_lowered() -> None:
    draw = np.random.default_rng(0)
    A = draw.normal(size=(6, 12))
    H = np.asfortranarray(A.T @ A + np.eye(12))
    d, v = np.full(12, 0.9), draw.normal(size=12)
    lowered = d - draw.random(12) * 0.1
    moved = same_pulls(H, d, v, lowered)
    np.testing.assert_allclose(H @ moved - lowered * moved, H @ v - d * v, atol=1e-12)


def test_errors_of_a_part_of_the_hessian_are_bounded_entry_by_entry() -> None:
    """Against rational arithmetic."""
    problem = flat(5, p=14, n=9)
    certificate = certify(solve(problem))
    stored = read_problem(certificate.arrays, certificate.claims()["problem"])
    index = np.array([3, 0, 11, 7, 8])
    H, sizes = hessian_part(stored.data, index)
    columns = np.asarray(certificate.arrays["problem.curvature.columns"])[index]
    scale = Fraction(float(certificate.claims()["problem"]["curvature"]["scale"]))
    for i in range(len(index)):
        for j in range(len(index)):
            pairs = zip(columns[i].tolist(), columns[j].tolist(), strict=True)
            exact = scale * sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))
            exact += Fraction(float(stored.data.rho[index[i]])) if i == j else Fraction(0)
            assert abs(exact - Fraction(float(H[i, j]))) <= Fraction(float(sizes[i] * sizes[j]))
