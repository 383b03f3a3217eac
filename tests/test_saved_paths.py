"""Paths over counts and problems of blocks: saved, verified, corrupted, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chita_opt.certificates import PathReport, ProofReport, save_problem, save_proof, verify
from chita_opt.certificates.container import read_sealed
from chita_opt.cli import OK, run
from chita_opt.errors import CertificateError, DataError
from chita_opt.exact import (
    BlockProof,
    KPath,
    TreeOptions,
    TreeResult,
    branch_and_bound,
    enumerate_optimum,
    k_path,
    solve_blocks,
)
from chita_opt.exact.path import PathSolver
from chita_opt.instances import correlated_instance
from chita_opt.problem import Problem
from chita_opt.solution import Status
from chita_opt.supports import Budget

from .forging import Arrays, Claims, forge, with_changed_bits
from .problems import make_problem
from .test_tree_limits import Replay, hard

PROOF = TreeOptions(proof=True)


def path_problem() -> Problem:
    return make_problem("low_rank", "nested_blocks", p=10, seed=2, linear=True, ridge=1e-2)


def block_problem(seed: int = 1) -> Problem:
    return make_problem("mixed_blocks", "cardinality", p=12, seed=seed, linear=True, ridge=1e-2)


def optimum_of(problem: Problem, k: int) -> float:
    base = problem.supports
    assert isinstance(base, Budget)
    family = Budget.nested(Budget(base.labels, base.caps), k)
    return enumerate_optimum(problem.with_supports(family)).objective


@pytest.fixture(scope="module")
def path_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("path") / "file"
    save_proof(k_path(path_problem(), options=PROOF), file)
    return file


@pytest.fixture(scope="module")
def block_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("blocks") / "file"
    save_proof(solve_blocks(block_problem(), options=PROOF), file)
    return file


# -- accepted ------------------------------------------------------------------------------------


def test_a_path_is_verified(path_file: Path) -> None:
    report, problem = verify(path_file), path_problem()
    assert isinstance(report, PathReport)
    scale = problem.prune_all - problem.dense_minimum
    for k, upper, lower in zip(report.ks, report.uppers, report.lowers, strict=True):
        exact = optimum_of(problem, k)
        assert lower <= exact <= upper
        assert upper - lower <= 1.1e-4 * (upper - problem.dense_minimum) + 1e-9 * scale
    assert (report.upper, report.lower) == (report.uppers[-1], report.lowers[-1])


@pytest.mark.parametrize("limit", [1, 8])
def test_a_stopped_path_is_verified(limit: int, tmp_path: Path) -> None:
    problem = make_problem("low_rank", "everything", p=12, seed=7, ridge=1e-4)
    path = k_path(problem, ks=[3, 6, 9], options=TreeOptions(proof=True, node_limit=limit))
    save_proof(path, tmp_path / "file")
    report = verify(tmp_path / "file")
    assert isinstance(report, PathReport) and report.ks == (3, 6, 9)
    for k, upper, lower, own in zip(path.ks, report.uppers, report.lowers, path.lower, strict=True):
        assert own - 1e-6 * problem.prune_all <= lower <= optimum_of(problem, int(k)) <= upper


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["shared_rows", "gradient_blocks", "mixed_blocks"])
def test_blocks_are_verified(form: str, seed: int, tmp_path: Path) -> None:
    problem = make_problem(form, "cardinality", p=12, seed=seed, linear=seed == 1, ridge=1e-2)
    result = solve_blocks(problem, options=PROOF)
    save_proof(result, tmp_path / "file")
    report, optimum = verify(tmp_path / "file"), enumerate_optimum(problem).objective
    assert isinstance(report, ProofReport) and report.trees > 1
    assert report.lower <= optimum <= report.upper
    slack = 1e-9 * (problem.prune_all - problem.dense_minimum)
    assert report.gap <= 1.1e-4 * (report.upper - problem.dense_minimum) + slack


def test_blocks_with_rows_and_a_total_are_verified(tmp_path: Path) -> None:
    base = make_problem("shared_rows", "rows", p=12, seed=1, ridge=1e-2)
    assert isinstance(base.supports, Budget)
    inner = base.supports
    for family in (inner, Budget.nested(inner, inner.max_count // 2)):
        problem = base.with_supports(family)
        save_proof(solve_blocks(problem, options=PROOF), tmp_path / "file")
        report, optimum = verify(tmp_path / "file"), enumerate_optimum(problem).objective
        assert report.lower <= optimum <= report.upper
        assert report.relative_gap <= 1.1e-4


@pytest.mark.parametrize("limit", [1e-9, 0.05])
def test_stopped_blocks_are_verified(limit: float, tmp_path: Path) -> None:
    problem = block_problem()
    result = solve_blocks(problem, options=TreeOptions(proof=True, time_limit=limit))
    assert isinstance(result.proof, BlockProof)
    save_proof(result, tmp_path / "file")
    report = verify(tmp_path / "file")
    assert report.lower <= enumerate_optimum(problem).objective <= report.upper
    assert result.upper < problem.prune_all
    assert report.lower >= result.lower - 1e-6 * (problem.prune_all - problem.dense_minimum)


def test_the_command_line_verifies(
    path_file: Path, block_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for file in (path_file, block_file):
        assert run(["verify", str(file)]) == OK
        assert "trees of" in capsys.readouterr().out
        assert run(["verify", str(file), "--json"]) == OK
    save_problem(block_problem(), tmp_path / "problem")
    assert verify(block_file, tmp_path / "problem").lower == verify(block_file).lower
    save_problem(block_problem(2), tmp_path / "problem")
    with pytest.raises(CertificateError, match="another problem"):
        verify(block_file, tmp_path / "problem")


def test_without_logs_nothing_is_written(tmp_path: Path) -> None:
    for result in (k_path(path_problem(), ks=[2]), solve_blocks(block_problem())):
        with pytest.raises(CertificateError, match="left no log"):
            save_proof(result, tmp_path / "file")
    assert not list(tmp_path.iterdir())


# -- refused -------------------------------------------------------------------------------------


def test_every_changed_byte_is_refused(path_file: Path, block_file: Path, tmp_path: Path) -> None:
    for file in (path_file, block_file):
        for changed in with_changed_bits(file, tmp_path / "x", 60):
            with pytest.raises(CertificateError):
                verify(changed)


def test_every_array_is_needed(path_file: Path, block_file: Path, tmp_path: Path) -> None:
    for file in (path_file, block_file):
        for name in read_sealed(file)[0]:
            with pytest.raises(CertificateError):
                verify(forge(file, tmp_path / "x", lambda a, c, name=name: a.pop(name)))  # type: ignore[misc]


def raised_count(arrays: Arrays, claims: Claims) -> None:
    arrays["path.lower"][0] += 1e-2 * abs(claims["upper"])


def raised_bound(arrays: Arrays, claims: Claims) -> None:
    claims["lower"] += 1e-2 * abs(claims["upper"])


def lowered_objective(arrays: Arrays, claims: Claims) -> None:
    claims["upper"] -= 1e-2 * abs(claims["upper"])


def more_weights(arrays: Arrays, claims: Claims) -> None:
    arrays["path.weights"][0] = arrays["path.weights"][-1]


def other_counts(arrays: Arrays, claims: Claims) -> None:
    """A log for few weights passed off as one for more."""
    name = next(n for n in sorted(arrays) if n.endswith(".counts") and len(arrays[n]) > 1)
    arrays[name] = np.full_like(arrays[name], arrays[name].max())


def weaker_witness(arrays: Arrays, claims: Claims) -> None:
    for name in arrays:
        if name.endswith(".witnesses"):
            arrays[name] = 0.5 * arrays[name]


def stronger_split(arrays: Arrays, claims: Claims) -> None:
    for name in arrays:
        if name.endswith(".splits"):
            arrays[name] = 3.0 * arrays[name]


def swapped_lengths(arrays: Arrays, claims: Claims) -> None:
    for name in arrays:
        if name.endswith(".steps"):
            arrays[name] = arrays[name][::-1].copy() + np.arange(len(arrays[name])) % 2


@pytest.mark.parametrize(
    "change",
    [raised_count, raised_bound, lowered_objective, more_weights, other_counts, weaker_witness,
     stronger_split, swapped_lengths],
)  # fmt: skip
def test_a_forged_path_is_refused(
    change: Callable[[Arrays, Claims], None], path_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CertificateError):
        verify(forge(path_file, tmp_path / "x", change))


@pytest.mark.parametrize(
    "change",
    [raised_bound, lowered_objective, other_counts, weaker_witness, stronger_split,
     swapped_lengths, lambda a, c: c.update(price=float("nan")),
     lambda a, c: c.update(price=-1.0), lambda a, c: c.update(price="1")],
)  # fmt: skip
def test_forged_blocks_are_refused(
    change: Callable[[Arrays, Claims], None], block_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CertificateError):
        verify(forge(block_file, tmp_path / "x", change))


# -- resumed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("proof", [False, True])
def test_a_tree_resumes_with_its_log(proof: bool, tmp_path: Path) -> None:
    file = tmp_path / "tree.npz"
    options = TreeOptions(node_limit=4, checkpoint=file, proof=proof)
    branch_and_bound(hard(), options=options)
    result = branch_and_bound(
        hard(), options=TreeOptions(checkpoint=file, resume=True, proof=proof)
    )
    assert result.status is Status.OPTIMAL and result.nodes > 4
    if proof:
        Replay(hard(), result.proof).check()  # type: ignore[arg-type]
        assert save_proof(result, tmp_path / "proof").relative_gap <= 1.1e-4
    else:
        with pytest.raises(DataError, match="without a proof log"):
            branch_and_bound(hard(), options=TreeOptions(checkpoint=file, resume=True, proof=True))


def wide() -> Problem:
    instance = correlated_instance(50, 26, correlation=0.7, seed=1)
    return instance.problem(ridge=1e-2, supports=Budget.cardinality(26, 8))


@pytest.mark.parametrize("proof", [False, True])
def test_a_path_resumes(proof: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, ks = tmp_path / "path.npz", [2, 4, 6, 8]
    options = TreeOptions(checkpoint=file, proof=proof)
    calls: list[int] = []
    solve = PathSolver.solve

    def counted(self: PathSolver, i: int, *given: Any, **named: Any) -> Status:
        calls.append(i)
        return Status.INTERRUPTED if len(calls) == 3 else solve(self, i, *given, **named)

    monkeypatch.setattr(PathSolver, "solve", counted)
    first = k_path(wide(), ks=ks, options=options)
    assert first.status is Status.INTERRUPTED and calls == [3, 2, 1] and file.exists()
    second = k_path(wide(), ks=ks, options=TreeOptions(checkpoint=file, proof=proof, resume=True))
    assert second.status is Status.OPTIMAL and calls == [3, 2, 1, 1, 0]
    whole = k_path(wide(), ks=ks)
    assert second.upper == pytest.approx(whole.upper, rel=2e-4)
    assert (second.lower <= whole.upper).all() and (second.lower >= 0.999 * whole.upper).all()
    if proof:
        report = save_proof(second, tmp_path / "proof")
        assert isinstance(report, PathReport) and report.relative_gap <= 1.1e-4
    with pytest.raises(DataError, match="another problem"):
        k_path(wide(), ks=[1, 2], options=TreeOptions(checkpoint=file, resume=True))


def test_a_stopped_count_goes_on_from_its_tree(tmp_path: Path) -> None:
    file = tmp_path / "path.npz"
    first = k_path(wide(), ks=[6], options=TreeOptions(checkpoint=file, proof=True, node_limit=2))
    assert first.status is Status.ITERATION_LIMIT
    assert sorted(f.name for f in tmp_path.iterdir()) == ["path.npz", "path.npz.0.6"]
    again = TreeOptions(checkpoint=file, proof=True, resume=True)
    second = k_path(wide(), ks=[6], options=again)
    assert second.status is Status.OPTIMAL and isinstance(second, KPath)
    assert [f.name for f in tmp_path.iterdir()] == ["path.npz"]
    assert save_proof(second, tmp_path / "proof").relative_gap <= 1.1e-4


@pytest.mark.parametrize("proof", [False, True])
def test_blocks_resume(proof: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, problem = tmp_path / "blocks.npz", block_problem()
    calls: list[int] = []
    solve = PathSolver.solve

    def counted(self: PathSolver, i: int, *given: Any, **named: Any) -> Status:
        calls.append(i)
        return Status.INTERRUPTED if len(calls) == 8 else solve(self, i, *given, **named)

    monkeypatch.setattr(PathSolver, "solve", counted)
    options = TreeOptions(checkpoint=file, proof=proof)
    first: TreeResult = solve_blocks(problem, options=options)
    assert first.status is Status.INTERRUPTED and len(calls) == 8
    fresh, optimum = len(calls), enumerate_optimum(problem).objective
    second = solve_blocks(problem, options=TreeOptions(checkpoint=file, proof=proof, resume=True))
    resumed = len(calls) - fresh
    solve_blocks(problem, options=TreeOptions(proof=proof))
    assert resumed < len(calls) - fresh - resumed
    assert second.status is Status.OPTIMAL and second.upper == pytest.approx(optimum, rel=2e-4)
    if proof:
        assert save_proof(second, tmp_path / "proof").relative_gap <= 1.1e-4
