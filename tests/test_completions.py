"""Leaves with few weights left to choose: every choice, by the search and again by the verifier."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chita_opt as co
from chita_opt.certificates import save_proof, tree_proof, verify
from chita_opt.certificates.certificate import problem_arrays, problem_specification
from chita_opt.certificates.choices import bound_of_choices
from chita_opt.certificates.node_bound import NodeBounds
from chita_opt.certificates.problem_data import read_problem
from chita_opt.errors import CertificateError
from chita_opt.exact import TreeOptions, TreeResult, branch_and_bound
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.result import EVERY_CHOICE
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.completions import affordable, best_completion
from chita_opt.supports import WholeGroups

P = 45


def problem(k: int, *, p: int = P, seed: int = 0, ridge: float = 1e-2) -> co.Problem:
    """Of low rank but for the ridge: splits of its diagonal prove little."""
    torch.manual_seed(seed)
    rows = torch.randn(6, p)
    supports = co.Budget.cardinality(p, k)
    return co.from_gradients(rows, torch.randn(p).double(), ridge=ridge, supports=supports)


def quadratic(of: co.Problem) -> Quadratic:
    return Quadratic.of(of)


def least(q: Quadratic, free: list[int], kept: list[int], count: int) -> float:
    """By solving every support."""
    choices = combinations(free, count)
    return min(q.solve(np.array(sorted([*kept, *more])))[1] for more in choices)


def logged(of: co.Problem) -> TreeResult:
    return branch_and_bound(of, options=TreeOptions(proof=True))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 3), st.sampled_from([1e-4, 1e-2, 1.0])
)
def test_the_best_of_all_choices(seed: int, count: int, inside: int, ridge: float) -> None:
    q = quadratic(problem(count, p=12, seed=seed, ridge=ridge))
    order = np.random.default_rng(seed).permutation(12)
    kept, free = np.sort(order[:inside]), np.sort(order[inside : inside + 8])
    found = best_completion(q, free, kept, count, float(np.linalg.eigvalsh(q.H)[0]))
    assert found is not None
    support, lower = found
    best = least(q, free.tolist(), kept.tolist(), count)
    assert q.solve(support)[1] == pytest.approx(best, rel=1e-9)
    assert set(kept) <= set(support) and len(support) == inside + count
    assert best - 1e-5 * (q.const - best) <= lower <= best


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 2))
def test_the_verifier_bounds_what_the_search_finds(seed: int, k: int, inside: int) -> None:
    of = problem(k + inside, p=11, seed=seed)
    stored = read_problem(problem_arrays(of), problem_specification(of))
    state = np.full(11, FREE, dtype=np.int8)
    order = np.random.default_rng(seed).permutation(11)
    state[order[:inside]], state[order[inside : inside + 2]] = IN, OUT
    free, kept = np.flatnonzero(state == FREE).tolist(), np.flatnonzero(state == IN).tolist()
    best = least(quadratic(of), free, kept, k)
    bound = bound_of_choices(NodeBounds(stored), state)
    assert bound <= best <= bound + 1e-6 * (1.0 + abs(best))
    state[:] = IN
    assert bound_of_choices(NodeBounds(stored), state) == float("inf")


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_small_counts_are_proven_at_the_root(k: int, tmp_path: Path) -> None:
    of = problem(k)
    found = logged(of)
    assert found.nodes == 1 and found.status == "optimal" and found.proof is not None
    assert found.proof.branch.tolist() == [EVERY_CHOICE] == [tree_proof.EVERY_CHOICE]
    best = least(quadratic(of), list(range(P)), [], k) if k < 4 else found.upper
    assert found.upper == pytest.approx(best, rel=1e-9)
    assert best - 1e-6 * (found.upper - of.dense_minimum) <= found.lower <= best + 1e-12
    report = save_proof(found, tmp_path / "proof")
    again = verify(tmp_path / "proof")
    assert again.lower == report.lower <= best and report.leaves == 1
    assert report.lower == pytest.approx(found.lower, rel=1e-6)


def test_deeper_nodes_are_ended_by_choices_too(tmp_path: Path) -> None:
    of = problem(9, seed=3, ridge=0.1)
    found = branch_and_bound(of, options=TreeOptions(proof=True, node_limit=60))
    assert found.proof is not None and (found.proof.branch == EVERY_CHOICE).any()
    report = save_proof(found, tmp_path / "proof")
    assert isinstance(report, tree_proof.ProofReport) and report.leaves > 1
    assert verify(tmp_path / "proof").lower <= found.upper


def test_which_nodes_are_ended_so() -> None:
    assert affordable(200, 200, 4, root=True) and not affordable(200, 200, 4, root=False)
    assert affordable(200, 190, 3, root=False) and affordable(800, 800, 3, root=False)
    assert not affordable(800, 800, 4, root=True) and not affordable(12, 12, 3, root=True)
    assert not affordable(200, 200, 0, root=True) and not affordable(200, 3, 4, root=True)
    state = np.full(6, FREE, dtype=np.int8)
    blocks = co.Budget.per_block([0, 0, 0, 1, 1, 1], 2)
    assert allowed(blocks).free_count(state) is None  # no row holds all weights
    nested = allowed(co.Budget.nested(blocks, 3))
    assert nested.free_count(state) is None  # three of one block are not allowed
    state[[0, 3]] = IN
    assert nested.free_count(state) == 1
    assert allowed(co.Budget.cardinality(6, 4)).free_count(state) == 2
    groups = WholeGroups(torch.arange(6) // 2, 2)
    assert allowed(groups).free_count(np.full(6, FREE, dtype=np.int8)) is None


def test_nothing_is_claimed_near_singular_curvature() -> None:
    of = problem(2, ridge=1e-13)
    q = quadratic(of)
    lowest = float(np.linalg.eigvalsh(q.H)[0])
    assert best_completion(q, np.arange(P), np.array([], dtype=int), 2, lowest) is None
    assert best_completion(q, np.arange(P), np.array([], dtype=int), 2, 0.0) is None
    stored = read_problem(problem_arrays(of), problem_specification(of))
    with pytest.raises(CertificateError, match=r"singular|positive"):
        bound_of_choices(NodeBounds(stored), np.full(P, FREE, dtype=np.int8))


def test_false_leaves_are_refused(tmp_path: Path) -> None:
    of = problem(3)
    found = logged(of)
    proof = found.proof
    assert proof is not None
    child = replace(
        proof, parent=np.array([-1, 0]), side=np.array([-1, -1]),
        branch=np.array([EVERY_CHOICE, -1]), witness_row=np.array([-1, -1]),
    )  # fmt: skip
    fixing = replace(
        proof, fix_step=np.array([0]), fix_index=np.array([1]), fix_value=np.array([0])
    )
    for forged in (child, fixing):
        with pytest.raises(CertificateError, match="more to follow"):
            save_proof(replace(found, proof=forged), tmp_path / "proof")
    raised = replace(proof, cutoff=found.upper + 1e-3)
    with pytest.raises(CertificateError):
        save_proof(replace(found, proof=raised), tmp_path / "proof")
    many = problem(20)
    claimed = replace(found, solution=co.solve(many))
    with pytest.raises(CertificateError, match="20 of 45 weights to choose"):
        save_proof(claimed, tmp_path / "proof")
    blocks = of.with_supports(co.Budget.per_block([i % 3 for i in range(P)], 1))
    with pytest.raises(CertificateError, match="number of all weights"):
        save_proof(replace(found, solution=co.solve(blocks)), tmp_path / "proof")
    assert not (tmp_path / "proof").exists()
