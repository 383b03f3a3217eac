"""The hybrid: optimal where it is small, a valid bound wherever it ends, a certificate to check."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from chita_opt.bounds import dual_bound
from chita_opt.certificates import certify, save_proof, verify, verify_file
from chita_opt.certificates.pipeline import Effort, solve_certified
from chita_opt.certificates.problem_data import read_problem
from chita_opt.certificates.reduction import FATES, check_fates, reduced_bounds
from chita_opt.errors import CertificateError, ProblemError
from chita_opt.exact import (
    BlockProof,
    HybridOptions,
    NeighbourhoodOptions,
    ReductionProof,
    TreeOptions,
    enumerate_optimum,
    hybrid,
    solve_blocks,
)
from chita_opt.exact.reduction import ReducedCosts, reduce_and_search
from chita_opt.heuristics import solve
from chita_opt.nn import prune
from chita_opt.problem import Problem, from_gradients
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget

from .forging import forge
from .problems import make_problem

CASES = [
    ("low_rank", "cardinality"), ("deficient", "n_of_m"), ("dense", "nested_blocks"),
    ("shared_rows", "layers"), ("mixed_blocks", "groups"), ("gradient_blocks", "pairs"),
    ("tall", "two_budgets"), ("low_rank", "darb"),
]  # fmt: skip
QUICK = HybridOptions(
    windows=NeighbourhoodOptions(window=8, least=4, most=16, patience=2), seconds=20.0
)


def wide(seed: int = 0, p: int = 200, n: int = 30, ridge: float = 0.05) -> Problem:
    """Fewer gradients than weights; too many undecided weights for a quick proof of optimality."""
    draw = torch.Generator().manual_seed(seed)
    A = torch.randn(n, p, generator=draw) * (0.2 + torch.rand(p, generator=draw))
    w_bar = torch.randn(p, generator=draw)
    return from_gradients(A, w_bar, ridge=ridge, supports=Budget.cardinality(p, p // 5))


@pytest.mark.parametrize(("curvature", "family"), CASES)
def test_small_problems_are_solved_and_certified(
    curvature: str, family: str, tmp_path: Path
) -> None:
    problem = make_problem(curvature, family, p=12, linear=family == "layers")
    best, scale = enumerate_optimum(problem).objective, abs(problem.prune_all)
    found = hybrid(problem, options=QUICK)
    assert found.solution.is_feasible
    assert found.upper == pytest.approx(best, abs=1e-8 * scale)
    assert found.lower <= best + 1e-9 * scale
    certificate = certify(found.solution)
    assert certificate.lower <= best + 1e-12 * scale
    certificate.save(tmp_path / "file")
    checked = verify_file(tmp_path / "file")
    assert (checked.lower, checked.upper) == (certificate.lower, certificate.upper)
    if problem.supports.rows_are_tight:
        assert found.status is Status.OPTIMAL
        assert certificate.share_of_all <= 1e-5


def test_a_planted_optimum_is_found_and_proven() -> None:
    draw = torch.Generator().manual_seed(2)
    p, kept = 40, torch.randperm(40, generator=draw)[:8]
    w_bar = 1e-3 * torch.randn(p, generator=draw)
    w_bar[kept] = torch.sign(torch.randn(8, generator=draw)) * 2.0
    A = torch.randn(80, p, generator=draw)
    problem = from_gradients(A, w_bar, ridge=0.01, supports=Budget.cardinality(p, 8))
    found = hybrid(problem, options=QUICK)
    assert found.status is Status.OPTIMAL
    assert torch.equal(found.solution.mask.nonzero()[:, 0], kept.sort().values)


@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize(("curvature", "family"), CASES[:6:2])
def test_every_cutoff_gives_a_valid_bound(curvature: str, family: str, share: float) -> None:
    """Weak duality: whatever the cutoff, the claim is at most the enumerated optimum."""
    problem = make_problem(curvature, family, p=10, seed=3)
    best, scale = enumerate_optimum(problem).objective, abs(problem.prune_all)
    start = solve(problem)
    bound = dual_bound(problem, start=start)
    cutoff = bound.value + share * (start.objective - bound.value)
    found = reduce_and_search(problem, bound, start, cutoff, options=TreeOptions(node_limit=3))
    if found is None:
        return
    assert found.proof.lower <= best + 1e-9 * scale
    assert found.solution.objective <= start.objective
    certificate = certify(found.solution, log=found.proof)
    assert bound.value - 1e-9 * scale <= certificate.lower <= best + 1e-12 * scale


@pytest.mark.parametrize(("curvature", "family"), CASES[1:6:2])
def test_fates_cost_at_least_their_cutoff(curvature: str, family: str) -> None:
    """Forcing a weight against its fate, the enumerated optimum reaches the cutoff."""
    problem = make_problem(curvature, family, p=10, seed=4)
    start = solve(problem)
    bound = dual_bound(problem, start=start)
    cutoff = bound.value + 0.6 * (start.objective - bound.value)
    fates = ReducedCosts.of(problem, bound).fates(cutoff)
    for mask in np.array(np.meshgrid(*[[0, 1]] * 10)).reshape(10, -1).T.astype(bool):
        chosen = torch.from_numpy(mask)
        against = (fates >= 0) & (fates != mask)
        if not against.any() or not problem.supports.contains(chosen):
            continue
        value = problem.curvature.support_solver(problem.separable, chosen).value
        assert value >= cutoff - 1e-9 * abs(problem.prune_all)


def test_the_reduced_quadratic_is_the_whole_one() -> None:
    """The verifier's elimination against the objective, at random weights of the rest."""
    problem = wide(3, 40, 20, ridge=0.5)
    start = solve(problem)
    bound = dual_bound(problem, start=start)
    found = reduce_and_search(
        problem, bound, start, start.objective, options=TreeOptions(node_limit=8)
    )
    assert found is not None
    certificate = certify(found.solution, log=found.proof)
    stored = read_problem(certificate.arrays, certificate.claims()["problem"])
    fates = found.proof.fates
    check_fates(certificate.arrays, stored, fates, certificate.lower)
    bounds = reduced_bounds(stored, fates)
    kept, free = torch.from_numpy(fates == 1), torch.from_numpy(fates == -1)
    H = problem.curvature.dense() + torch.diag(problem.rho)
    b = H @ problem.w_bar - problem.g
    for seed in range(3):
        u = torch.randn(int(free.sum()), generator=torch.Generator().manual_seed(seed)).double()
        w = torch.zeros_like(problem.w_bar)
        w[free] = u
        right = b[kept] - H[kept][:, free] @ u
        w[kept] = torch.linalg.solve(H[kept][:, kept], right)
        x = u.numpy()
        value = bounds.at_zero.value + 0.5 * x @ bounds.H @ x - bounds.b @ x
        assert value == pytest.approx(problem.objective(w), rel=1e-9)


def test_larger_problems_beat_the_plain_bound_and_never_worsen() -> None:
    problem = wide()
    start = solve(problem)
    plain = dual_bound(problem, start=start)
    found = hybrid(problem, start=start, time_limit=6.0, options=QUICK)
    assert found.lower > plain.value
    assert found.upper <= start.objective
    certificate = certify(found.solution)
    assert certificate.proof == "reduction"
    # the check takes rounding off, and leaves what the tree gained; a leaf left open counts with
    # its parent's bound in the claim and its own in the check, so that the check may prove more
    assert isinstance(found.proof, ReductionProof)
    assert certificate.lower <= min(found.proof.cutoff, found.upper)
    assert certificate.lower > plain.value + 0.99 * (found.lower - plain.value)
    assert [row.lower for row in found.history] == sorted(row.lower for row in found.history)


@pytest.mark.parametrize("cutoff", [0.0, 0.3, 1.0])
def test_kicks_among_the_undecided_never_worsen(cutoff: float) -> None:
    """Whatever is left undecided, weights come back allowed, and no worse than they were."""
    problem = wide(2)
    start = solve(problem, "magnitude")
    bound = dual_bound(problem, start=solve(problem))
    level = bound.value + cutoff * (start.objective - bound.value)
    for given in (start, solve(problem)):
        found = reduce_and_search(
            problem, bound, given, level, options=TreeOptions(node_limit=1), kicks=0.5
        )
        assert found is not None
        assert found.solution.is_feasible
        assert bound.value <= found.solution.objective <= given.objective


def test_kicks_find_what_swaps_do_not() -> None:
    """The swap search's optimum stands without them; with them a quarter of its gap goes."""
    problem = wide(5, p=400, n=60)
    start = solve(problem, "local_search")
    bound = dual_bound(problem, start=start)
    gap = start.objective - bound.value
    cutoff, once = bound.value + 0.8 * gap, TreeOptions(node_limit=1)
    without = reduce_and_search(problem, bound, start, cutoff, options=once)
    kicked = reduce_and_search(problem, bound, start, cutoff, options=once, kicks=60.0)
    assert without is not None
    assert kicked is not None
    assert without.solution.objective >= start.objective - 1e-9 * gap
    assert kicked.solution.objective < start.objective - 0.1 * gap


def test_time_limits_leave_weights_and_a_bound() -> None:
    problem = wide(1)
    found = hybrid(problem, time_limit=1e-3)
    assert found.solution.is_feasible
    assert found.lower <= found.upper
    assert certify(found.solution).lower <= found.upper


@pytest.mark.parametrize(
    "step", ["solve", "dual_bound", "neighbourhood_search", "reduce_and_search"]
)
def test_ctrl_c_leaves_weights_and_a_bound(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("low_rank", "cardinality", p=12)
    module = sys.modules["chita_opt.exact.hybrid"]

    original, calls = getattr(module, step), []

    def stop(*args: Any, **kwargs: Any) -> Any:
        calls.append(step)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, step, stop)
    found = hybrid(problem, options=replace(QUICK, gap=0.0))
    assert found.status is Status.INTERRUPTED
    assert found.solution.is_feasible
    best = enumerate_optimum(problem).objective
    assert found.lower <= best + 1e-12 <= found.upper + 1e-9
    assert certify(found.solution).lower <= best


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a reduction that decides some weights, has a tree, and stops below its cutoff."""
    problem = wide(5, 60, 20, ridge=0.5)
    start = solve(problem)
    bound = dual_bound(problem, start=start)
    cutoff = bound.value + 0.7 * (start.objective - bound.value)
    found = reduce_and_search(problem, bound, start, cutoff, options=TreeOptions(node_limit=8))
    assert found is not None
    assert set(found.proof.fates) == {-1, 0, 1}
    assert bound.value < found.proof.lower < cutoff
    path = tmp_path_factory.mktemp("hybrid") / "file.safetensors"
    save_proof(replace(found.tree, solution=found.solution, proof=found.proof), path)
    return path


def raised(arrays: dict[str, np.ndarray], claims: dict[str, Any]) -> None:
    """A higher cutoff, and the claims that would follow."""
    rise = 0.2 * (claims["upper"] - claims["lower"]) + 1e-6 * claims["upper"]
    arrays["reduction.cutoff"] = arrays["reduction.cutoff"] + rise
    claims["lower"] += rise


def shifted(name: str, factor: float) -> Callable[[dict[str, np.ndarray], Any], None]:
    def change(arrays: dict[str, np.ndarray], claims: dict[str, Any]) -> None:
        arrays[name] = factor * arrays[name]

    return change


def turned(arrays: dict[str, np.ndarray], claims: dict[str, Any]) -> None:
    """A decided weight gets the other fate."""
    fates = arrays[FATES].copy()
    j = int(np.flatnonzero(fates >= 0)[0])
    fates[j] = 1 - fates[j]
    arrays[FATES] = fates


def dropped(arrays: dict[str, np.ndarray], claims: dict[str, Any]) -> None:
    for name in [n for n in arrays if n.startswith("reduction.")]:
        del arrays[name]


@pytest.mark.parametrize(
    "change",
    [
        raised, turned, dropped, shifted("reduction.tree.witnesses", 1.1),
        shifted("reduction.tree.splits", 1.5), shifted("reduction.tree.splits", -1.0),
        shifted("bound.witness", 1.3), shifted("bound.multipliers", 0.5),
    ],
)  # fmt: skip
def test_forged_reductions_are_refused(
    change: Callable[[Any, Any], None], file: Path, tmp_path: Path
) -> None:
    assert verify(file).lower > 0.0
    with pytest.raises(CertificateError):
        verify(forge(file, tmp_path / "forged", change))


def test_every_array_of_a_reduction_is_needed(file: Path, tmp_path: Path) -> None:
    names = ("fates", "cutoff", "tree.parent", "tree.witnesses", "tree.fix_value")
    for name in names:

        def without(arrays: dict[str, np.ndarray], claims: Any, name: str = name) -> None:
            del arrays[f"reduction.{name}"]

        with pytest.raises(CertificateError, match=name):
            verify(forge(file, tmp_path / "less", without))


def test_the_pipeline_and_other_weights_use_the_evidence() -> None:
    problem = make_problem("low_rank", "cardinality", p=12)
    certificate = solve_certified(problem, Effort(method="hybrid", time_limit=10.0))
    assert certificate.solution.method == "hybrid"
    assert certificate.relative_gap <= 1e-6
    other = solve(problem, "magnitude")
    own = certify(other, log=certificate.log)
    assert own.lower == pytest.approx(certificate.lower)
    odd = replace(other, evidence="my word")
    with pytest.raises(CertificateError, match="no evidence"):
        certify(odd)


def test_pruning_a_network_ends_in_one_certificate() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(200, 8)
    data = (x, x[:, :3].argmax(1))
    common: dict[str, Any] = {"sparsity": 0.8, "rows": 30, "trust": False}
    plain = prune(net, functional.cross_entropy, data, **common).certificate
    result = prune(net, functional.cross_entropy, data, method="hybrid", time_limit=4.0, **common)
    certificate = result.certificate
    assert certificate is not None
    assert plain is not None
    assert certificate.upper <= plain.upper + 1e-12
    assert certificate.gap < 2 / 3 * plain.gap
    assert sum(row.gap_share or 0.0 for row in result.layers) <= 1.0 + 1e-9
    layers = prune(
        net,
        functional.cross_entropy,
        data,
        method="hybrid",
        time_limit=3.0,
        scope="layer",
        **common,
    )
    assert layers.certificate is not None
    assert layers.certificate.proof in ("reduction", "dual")


def test_bad_options_are_refused() -> None:
    with pytest.raises(ProblemError, match="gap"):
        HybridOptions(gap=1.0)
    with pytest.raises(ProblemError, match="positive"):
        HybridOptions(rounds=0)
    problem = wide(1, 30, 10)
    flat = Problem(problem.curvature, problem.w_bar, 0.0, problem.supports)
    with pytest.raises(ProblemError, match="rho"):
        hybrid(flat, time_limit=1.0)
    start = Solution(problem, 0.0 * problem.w_bar, "nothing", Status.FEASIBLE)
    assert hybrid(problem, start=start, time_limit=1e-3).upper <= start.objective


def test_small_blocks_are_solved_one_by_one(tmp_path: Path) -> None:
    problem = make_problem("shared_rows", "cardinality", p=12, seed=6)
    best, scale = enumerate_optimum(problem).objective, abs(problem.prune_all)
    found = hybrid(problem, options=replace(QUICK, gap=1e-5))
    assert found.upper == pytest.approx(best, abs=1e-8 * scale)
    if not isinstance(found.proof, BlockProof):  # the dual bound, or the tree, was enough
        found = replace(found, proof=replace(blocks_proof(problem), bound=dual_bound(problem)))
    certificate = certify(found.solution, log=found.proof)
    assert certificate.proof == "blocks"
    assert best - 1e-3 * scale <= certificate.lower <= best + 1e-12 * scale
    certificate.save(tmp_path / "file")
    assert verify_file(tmp_path / "file").lower == certificate.lower

    def higher(arrays: dict[str, np.ndarray], claims: dict[str, Any]) -> None:
        arrays["blocks.lower"] = arrays["blocks.lower"] + 0.1 * scale

    with pytest.raises(CertificateError, match="blocks prove"):
        verify(forge(tmp_path / "file", tmp_path / "forged", higher))


def blocks_proof(problem: Problem) -> BlockProof:
    proof = solve_blocks(problem, options=TreeOptions(proof=True)).proof
    assert isinstance(proof, BlockProof)
    return proof
