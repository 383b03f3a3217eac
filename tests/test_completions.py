"""Leaves with few weights left to choose: every choice, by the search and again by the verifier."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from math import comb
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
from chita_opt.exact.tree_search.completions import LOGGED, best_completion, choices_of
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.exact.tree_search.proof_log import ProofLog
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
    best = least(q, free.tolist(), kept.tolist(), count)
    assert q.solve(found.support)[1] == pytest.approx(best, rel=1e-9)
    assert set(kept) <= set(found.support) and len(found.support) == inside + count
    assert best - 1e-5 * (q.const - best) <= found.value - found.error <= best


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
    assert choices_of(200, 200, 4, root=True) == comb(200, 4)
    assert choices_of(200, 190, 3, root=False) == comb(190, 3)
    assert choices_of(800, 800, 3, root=False) == comb(800, 3)
    beyond = [(200, 200, 4, False), (800, 800, 4, True), (12, 12, 3, True), (4000, 4000, 1, True)]
    beyond += [(200, 200, 0, True), (200, 3, 4, True), (50, 50, 7, True)]
    for size, free, count, root in beyond:
        assert choices_of(size, free, count, root=root) is None
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
    fine, none = quadratic(problem(2)), np.array([], dtype=int)
    small = Quadratic(fine.H * 1e-162, fine.b * 1e-81, fine.const, 0.0)
    assert best_completion(small, np.arange(P), none, 2, 1e-165) is None
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


def hidden(noise: float, ridge: float) -> co.Problem:
    """Three weights explain nearly all: the increase is far smaller than the gains."""
    torch.manual_seed(0)
    rows, w = torch.randn(30, P), noise * torch.randn(P).double()
    w[:3] += torch.tensor([1.0, -2.0, 1.5]).double()
    return co.from_gradients(rows, w, ridge=ridge, supports=co.Budget.cardinality(P, 3))


@pytest.mark.parametrize("proof", [True, False])
@pytest.mark.parametrize("noise, ridge", [(1e-3, 1e-4), (1e-5, 1e-5)])
def test_rounding_hides_no_more_than_a_share_of_the_gap(
    noise: float, ridge: float, proof: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nodes are bounded as ever."""
    options = TreeOptions(proof=proof, node_limit=200)
    found = branch_and_bound(hidden(noise, ridge), options=options)
    monkeypatch.setattr(f"{NodeSolver.__module__}.choices_of", lambda *_, **__: None)
    without = branch_and_bound(hidden(noise, ridge), options=options)
    assert found.gap <= max(1.01e-4, 1.01 * without.gap)


def test_an_order_of_equal_weights_keeps_choices() -> None:
    """Without a log the search keeps to orders of twins and of zero columns."""
    of = problem(3)
    rows = of.curvature.arrays()["columns"].T.clone()
    rows[:, :8] = 0.0
    same = co.from_gradients(rows, of.w_bar, ridge=1e-2, supports=of.supports)
    found = branch_and_bound(same)
    assert found.nodes == 1 and found.upper == pytest.approx(logged(same).upper)
    assert found.lower == pytest.approx(found.upper, rel=1e-6)


def test_tiny_numbers_do_not_vanish(tmp_path: Path) -> None:
    """Products of numbers of 1e-81 and of 1e-162 would be zero, and gains with them."""
    h, p = 2.0e-162, 4
    w = torch.full((p,), 1.05e-81 / h, dtype=torch.float64)
    of = co.from_gradients(
        torch.zeros(1, p).double(), w, ridge=h, supports=co.Budget.cardinality(p, 2)
    )
    nothing = co.Solution(of, torch.zeros(p).double(), "none", co.Status.FEASIBLE)
    one = logged(problem(3)).proof
    assert one is not None
    empty = np.zeros((0, p))
    proof = replace(one, cutoff=-1e9, witnesses=empty, splits=empty)
    forged = replace(logged(problem(3)), solution=nothing, proof=proof)
    with suppress(CertificateError):
        best = 0.5 * nothing.objective
        assert save_proof(forged, tmp_path / "proof").lower <= best * (1.0 + 1e-9)


def test_a_file_may_not_ask_for_days(monkeypatch: pytest.MonkeyPatch) -> None:
    of = problem(3)
    bounds = NodeBounds(read_problem(problem_arrays(of), problem_specification(of)))
    state = np.full(P, FREE, dtype=np.int8)
    monkeypatch.setattr("chita_opt.certificates.choices.IN_ALL", 3 * comb(P, 3))
    first = bound_of_choices(bounds, state)
    assert bound_of_choices(bounds.afresh(), state) == first
    assert bound_of_choices(bounds, state) == first
    with pytest.raises(CertificateError, match="at most"):
        bound_of_choices(bounds, state)


def test_a_log_asks_for_few_choices_below_the_root() -> None:
    log = ProofLog(quadratic(problem(3)))
    assert log.has_room(LOGGED, root=False)
    log.look_at_all(log.enter(-1, -1), LOGGED - 5)
    assert log.has_room(5, root=False) and not log.has_room(6, root=False)
    assert log.has_room(10**9, root=True)
    unknown = replace(log.quadratic, entry_error=None)
    assert not ProofLog(unknown).has_room(1, root=True)
