"""Certificates: what they claim is true to the last digit, and nothing else is accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chita_opt.bounds import candidate_splits, dual_bound, dual_point, safe_split, trivial_bound
from chita_opt.bounds.dual import Bound
from chita_opt.bounds.splits import less_diagonal
from chita_opt.certificates import Certificate, certify, save_problem, verify_file
from chita_opt.certificates.arithmetic import Enclosed, dual_value, objective, prove_semidefinite
from chita_opt.certificates.certificate import (
    certificate_arrays,
    problem_arrays,
    problem_specification,
)
from chita_opt.certificates.container import read_sealed, write_sealed
from chita_opt.certificates.problem_data import read_problem
from chita_opt.certificates.verification import SCOPE
from chita_opt.curvature import LowRank
from chita_opt.errors import CertificateError
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget, SupportFamily

from .forging import Arrays, Claims, forge
from .problems import CURVATURES, LAMINAR, make_problem, normal, single_precision

EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)


def small(form: str = "low_rank", family: str = "cardinality", **options: Any) -> Certificate:
    problem = make_problem(form, family, **({"p": 8, "linear": True} | options))
    return certify(solve(problem))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "file"
    small().save(path)
    return path


# -- what a certificate says --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "nothing", "pairs"])
@EVERY_FORM
def test_round_trip(form: str, family: str, tmp_path: Path) -> None:
    certificate = small(form, family)
    path = tmp_path / "file"
    certificate.save(path)
    assert verify_file(path) == certificate.values
    arrays, claims = read_sealed(path)
    assert set(arrays) == set(certificate.arrays)
    assert all(np.array_equal(arrays[k], a) for k, a in certificate.arrays.items())
    assert claims["scope"] == SCOPE and claims["bound_proof"] == certificate.proof
    json.dumps(certificate.claims(), allow_nan=False)


@pytest.mark.parametrize("linear", [False, True])
def test_the_numbers_of_a_certificate(linear: bool) -> None:
    certificate = small(linear=linear)
    problem = certificate.solution.problem
    gap = certificate.upper - certificate.lower
    assert certificate.gap == pytest.approx(gap)
    increase = certificate.upper - problem.dense_minimum
    assert certificate.relative_gap == pytest.approx(gap / increase)
    assert certificate.share_of_all == pytest.approx(gap / problem.prune_all)
    assert certificate.upper == pytest.approx(certificate.solution.objective)
    assert (certificate.values.nnz, certificate.values.p) == (certificate.solution.nnz, 8)
    assert "not about the network" in str(certificate) and "%" in str(certificate)


def test_any_bound_can_be_certified() -> None:
    problem = make_problem("tall", "cardinality", p=8)
    solution = solve(problem)
    trivial = certify(solution, bound=trivial_bound(problem))
    assert trivial.proof == "trivial" and trivial.lower <= certify(solution).lower


def test_only_allowed_weights_are_certified() -> None:
    problem = make_problem("tall", "cardinality", p=8)
    with pytest.raises(CertificateError, match="only allowed solutions"):
        certify(Solution(problem, problem.w_bar, "dense", Status.FEASIBLE))


def test_a_bound_above_the_objective_is_never_clipped() -> None:
    """A wrong bound (here of another, heavier problem's data) is an error, not a zero gap."""
    problem = make_problem("dense", "cardinality", p=8)
    heavier = Problem(problem.curvature, problem.w_bar, problem.rho, Budget.cardinality(8, 0))
    solution = solve(problem)
    bound = dual_bound(heavier)
    assert certify(solution, bound=bound).lower <= solution.objective  # the witness is re-read
    arrays = certificate_arrays(solution, bound)
    assert arrays["bound.multipliers"].shape == problem.supports.rows().h.shape


# -- rounding -----------------------------------------------------------------------------------


def root_of(value: float) -> Fraction:
    """Square root to 100 digits."""
    top, bottom = value.as_integer_ratio()
    return Fraction(isqrt(top * bottom * 10**200), bottom * 10**100)


def exact(values: Tensor) -> list[Any]:
    """Nested lists of the exact rational values of floats."""
    if values.ndim > 1:
        return [exact(row) for row in values]
    return [Fraction(v) for v in values.double().tolist()]


def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def exact_objective(problem: Problem, w: Tensor) -> Fraction:
    x = [a - b for a, b in zip(exact(w), exact(problem.w_bar), strict=True)]
    C = exact_matrix(problem)
    quadratic = dot(x, [dot(row, x) for row in C])
    ridge = sum(r * v * v for r, v in zip(exact(problem.rho), x, strict=True))
    return (quadratic + ridge) / 2 + dot(exact(problem.g), x)


def exact_matrix(problem: Problem) -> list[list[Fraction]]:
    C = problem.curvature
    if isinstance(C, LowRank):
        columns, scale = exact(C.A.T), Fraction(C.scale)
        return [[scale * dot(a, b) for b in columns] for a in columns]
    return exact(C.dense())


def exact_bound(problem: Problem, witness: Tensor, split: Tensor | None) -> Fraction:
    """LB of the witness in rational arithmetic, the maximum by enumeration of all masks."""
    C, u = problem.curvature, exact(witness)
    e = [Fraction(0)] * problem.p if split is None else exact(split)
    if isinstance(C, LowRank) and not any(e):
        root = root_of(C.scale)
        pulled = [root * dot(column, u) for column in exact(C.A.T)]
        energy = dot(u, u) / 2
    else:
        Q = exact_matrix(problem)
        pulled = [dot(row, u) - a * v for row, a, v in zip(Q, e, u, strict=True)]
        energy = dot(u, pulled) / 2
    w_bar = exact(problem.w_bar)
    d = [a + b for a, b in zip(exact(problem.rho), e, strict=True)]
    q = [a + b for a, b in zip(pulled, exact(problem.g), strict=True)]
    gains = [(x * w - y) ** 2 / (2 * x) for x, w, y in zip(d, w_bar, q, strict=True)]
    base = sum(x * w * w / 2 - y * w for x, w, y in zip(d, w_bar, q, strict=True)) - energy
    return base - best_gain(problem.supports, gains)


def best_gain(supports: SupportFamily, gains: list[Fraction]) -> Fraction:
    best = Fraction(0)
    for mask in product((False, True), repeat=supports.size):
        if supports.contains(torch.tensor(mask)):
            best = max(best, sum((g for g, kept in zip(gains, mask, strict=True) if kept),
                                 Fraction(0)))  # fmt: skip
    return best


def enclosed_bound(problem: Problem, witness: Tensor, split: Tensor | None) -> Enclosed:
    """The certificate's evaluation of a bound."""
    arrays = problem_arrays(problem)
    stored = read_problem(arrays, problem_specification(problem))
    gains = dual_point(problem, witness, split).gains
    y = problem.supports.multipliers(gains)
    e = None if split is None else split.numpy()
    return dual_value(stored.data, witness.numpy(), e, stored.rows, y)


FORMS = st.sampled_from(["low_rank", "tall", "dense", "shared_rows"])


@settings(max_examples=120)
@given(
    FORMS, st.sampled_from(LAMINAR), st.integers(0, 10**6), st.integers(-8, 1), st.integers(-6, 6)
)
def test_the_allowance_covers_rounding(
    form: str, family: str, seed: int, ridge: int, length: int
) -> None:
    """lower <= exact bound of the witness and exact objective <= upper, at any scale."""
    problem = make_problem(form, family, p=6, seed=seed, linear=seed % 2 == 0, ridge=10.0**ridge)
    if seed % 3 == 0:
        problem = single_precision(problem)
    source = torch.Generator().manual_seed(seed)
    split = safe_split(problem.curvature)
    splits = list(candidate_splits(problem).values())
    if splits and seed % 2:
        split = safe_split(problem.curvature, splits[seed % len(splits)])
    Q = problem.curvature if split is None else less_diagonal(problem.curvature, split)
    witness = 10.0**length * normal(source, Q.image_size)
    found = enclosed_bound(problem, witness, split)
    true = exact_bound(problem, witness, split)
    assert Fraction(found.below) <= true
    w = torch.where(problem.supports.best_support(problem.scores), 10.0**length, 0.0)
    w = w * normal(source, 6)
    data = read_problem(problem_arrays(problem), problem_specification(problem)).data
    value, exactly = objective(data, w.numpy()), exact_objective(problem, w)
    assert Fraction(value.below) <= exactly <= Fraction(value.above)
    size = float(abs(exactly)) + float(problem.prune_all)
    assert value.allowance <= 1e-12 * (size + float(w.square().sum() + problem.w_bar.square().sum())
                                       * float(problem.curvature.diagonal().max()))  # fmt: skip


@pytest.mark.parametrize("form", ["low_rank", "tall", "dense", "shared_rows"])
def test_certificates_are_tight_to_rounding(form: str) -> None:
    """The allowance is no more than rounding: twelve digits remain."""
    certificate = small(form)
    problem, bound = certificate.solution.problem, certificate.bound
    true = float(exact_bound(problem, bound.witness, bound.split))
    size = problem.prune_all + abs(problem.dense_minimum)
    assert certificate.lower <= true <= certificate.lower + 1e-11 * size
    upper = float(exact_objective(problem, certificate.solution.w))
    assert upper <= certificate.upper <= upper + 1e-11 * size


def is_semidefinite(Q: list[list[Fraction]]) -> bool:
    """By symmetric elimination in rational arithmetic."""
    Q = [row[:] for row in Q]
    for k in range(len(Q)):
        pivot = Q[k][k]
        if pivot < 0 or (pivot == 0 and any(Q[k][j] != 0 for j in range(k, len(Q)))):
            return False
        for i in range(k + 1, len(Q)):
            if pivot:
                ratio = Q[i][k] / pivot
                Q[i] = [a - ratio * b for a, b in zip(Q[i], Q[k], strict=True)]
                for j in range(i, len(Q)):
                    Q[i][j] = Q[i][j]
    return True


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(-18, -1), st.booleans())
def test_semidefiniteness_is_never_claimed_wrongly(seed: int, exponent: int, below: bool) -> None:
    """Matrices within any distance of the boundary, on either side."""
    source = torch.Generator().manual_seed(seed)
    A = normal(source, 3, 5) if seed % 2 else normal(source, 8, 5)
    H = A.T @ A
    lowest = float(torch.linalg.eigvalsh(H)[0])
    shift = lowest + (1.0 if below else -1.0) * 10.0**exponent
    e = np.full(5, shift)
    exact_Q = exact(H)
    for j in range(5):
        exact_Q[j][j] -= Fraction(shift)
    try:
        prove_semidefinite(H.numpy().copy(), e)
    except CertificateError:
        assert below or exponent < -10, "a clearly semidefinite matrix was refused"
    else:
        assert is_semidefinite(exact_Q)


def test_the_matrix_is_not_changed_by_its_proof() -> None:
    H = np.eye(3)
    prove_semidefinite(H, np.zeros(3))
    assert np.array_equal(H, np.eye(3))


@given(st.floats(-1e300, 1e300), st.floats(0, 1e300))
def test_enclosures_contain_their_value(value: float, allowance: float) -> None:
    found = Enclosed(value, allowance)
    below, above = Fraction(found.below), Fraction(found.above)
    assert below <= Fraction(value) - Fraction(allowance)
    assert above >= Fraction(value) + Fraction(allowance)


# -- changed bytes ------------------------------------------------------------------------------


def test_every_changed_byte_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    source = np.random.default_rng(0)
    body = source.choice(np.arange(header, len(content)), size=200, replace=False)
    changed = tmp_path / "changed"
    for place in [*range(header), *sorted(body.tolist())]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(source.integers(8))
        changed.write_bytes(flipped)
        with pytest.raises(CertificateError):
            verify_file(changed)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:8],
        lambda content: content[:3],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: content[1:],
        lambda content: b"\xff" * 200,
        lambda content: (2**63).to_bytes(8, "little") + content[8:],
        lambda content: b"\x02\0\0\0\0\0\0\0{}",
        lambda content: b"\x04\0\0\0\0\0\0\0null",
        lambda content: b"\x02\0\0\0\0\0\0\0[]",
    ],
)
def test_damaged_files_are_refused(
    file: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(change(file.read_bytes()))
    with pytest.raises(CertificateError):
        verify_file(damaged)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="cannot read"):
        verify_file(tmp_path / "nothing")
    with pytest.raises(CertificateError, match="cannot read"):
        verify_file(tmp_path)


# -- false claims in whole files ----------------------------------------------------------------


def claim(name: str, factor: float, offset: float = 0.0) -> Callable[[Arrays, Claims], None]:
    def change(arrays: Arrays, claims: Claims) -> None:
        claims[name] = claims[name] * factor + offset

    return change


def test_an_honest_forgery_is_accepted(file: Path, tmp_path: Path) -> None:
    """The helper itself breaks nothing, and a weaker claim is a true one."""
    verify_file(forge(file, tmp_path / "same", lambda arrays, claims: None))
    verify_file(forge(file, tmp_path / "weaker", claim("lower", 1.0, -0.1)))


@pytest.mark.parametrize(
    "name, factor, offset",
    [
        ("lower", 1.0, 1e-6),
        ("lower", 1.0, 100.0),
        ("lower", float("nan"), 0.0),
        ("lower", 1.0, float("inf")),
        ("upper", 1.0, -1e-6),
        ("upper", float("nan"), 0.0),
        ("upper", 1.0, -float("inf")),
        ("gap", 0.5, 0.0),
        ("gap", float("nan"), 0.0),
        ("relative_gap", 0.5, 0.0),
        ("relative_gap", float("nan"), 0.0),
        ("share_of_all", 0.5, 0.0),
        ("nnz", 1, -1),
        ("p", 1, 1),
    ],
)
def test_better_claims_are_refused(
    file: Path, tmp_path: Path, name: str, factor: float, offset: float
) -> None:
    forged = forge(file, tmp_path / "forged", claim(name, factor, offset))
    with pytest.raises(CertificateError):
        verify_file(forged)


@pytest.mark.parametrize("name", ["lower", "upper", "relative_gap", "nnz", "problem"])
@pytest.mark.parametrize("value", [None, "0", [], {}])
def test_claims_of_another_type_are_refused(
    file: Path, tmp_path: Path, name: str, value: object
) -> None:
    def change(arrays: Arrays, claims: Claims) -> None:
        if value is None:
            del claims[name]
        else:
            claims[name] = value

    arrays, claims = read_sealed(file)
    change(arrays, claims)
    write_sealed(tmp_path / "forged", arrays, claims)
    with pytest.raises(CertificateError):
        verify_file(tmp_path / "forged")


def put(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays, Claims], None]:
    def change(arrays: Arrays, claims: Claims) -> None:
        arrays[name] = value(arrays[name].copy())

    return change


def first_entry(number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(a: np.ndarray) -> np.ndarray:
        a.reshape(-1)[0] = number
        return a

    return change


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "name, value",
    [
        ("solution.w", lambda w: np.ones_like(w)),
        ("solution.w", first_entry(NAN)),
        ("solution.w", lambda w: w[:-1]),
        ("solution.w", lambda w: w * 1.5),
        ("bound.witness", lambda v: 3.0 * v + 1.0),
        ("bound.witness", first_entry(NAN)),
        ("bound.witness", first_entry(INF)),
        ("bound.witness", lambda v: v[:-1]),
        ("bound.witness", lambda v: np.append(v, 0.0)),
        ("bound.multipliers", lambda y: -1.0 - y),
        ("bound.multipliers", first_entry(NAN)),
        ("bound.multipliers", first_entry(INF)),
        ("bound.multipliers", lambda y: y[:0]),
        ("bound.multipliers", lambda y: 1e3 + y),
        ("solution.dense", lambda w: 0.0 * w),
        ("solution.dense", first_entry(NAN)),
        ("problem.rho", first_entry(NAN)),
        ("problem.rho", lambda rho: -rho),
        ("problem.w_bar", first_entry(NAN)),
        ("problem.w_bar", lambda w: 2.0 * w),
        ("problem.g", first_entry(INF)),
        ("problem.curvature.columns", first_entry(NAN)),
        ("problem.rows.h", first_entry(0.0)),
        ("problem.rows.row", first_entry(7)),
        ("problem.rows.column", first_entry(99)),
        ("problem.rows.column", first_entry(-1)),
    ],
)
def test_changed_content_is_refused(
    file: Path, tmp_path: Path, name: str, value: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Even with a valid seal: the claims no longer follow from the data."""
    forged = forge(file, tmp_path / "forged", put(name, value))
    with pytest.raises(CertificateError):
        verify_file(forged)


@pytest.mark.parametrize(
    "name", ["solution.w", "bound.witness", "bound.multipliers", "problem.w_bar", "problem.rows.h",
             "problem.curvature.columns", "solution.dense"]
)  # fmt: skip
def test_missing_content_is_refused(file: Path, tmp_path: Path, name: str) -> None:
    forged = forge(file, tmp_path / "forged", lambda arrays, claims: arrays.pop(name))
    with pytest.raises(CertificateError):
        verify_file(forged)


def test_nonsense_cannot_claim_a_bound(file: Path, tmp_path: Path) -> None:
    """Arrays of NaN make every comparison false; that must not count as agreement."""

    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["bound.witness"] = np.full_like(arrays["bound.witness"], NAN)
        claims["lower"], claims["relative_gap"] = claims["upper"], 0.0

    with pytest.raises(CertificateError):
        verify_file(forge(file, tmp_path / "forged", change))


@pytest.mark.parametrize("form", ["dense", "shared_rows", "mixed_blocks"])
def test_a_split_that_takes_too_much_is_refused(form: str, tmp_path: Path) -> None:
    """A larger split proves a better bound, of a curvature that is no longer semidefinite."""
    small(form, ridge=1e-2).save(tmp_path / "file")

    def change(arrays: Arrays, claims: Claims) -> None:
        arrays["bound.split"] = arrays["bound.split"] + 10.0
        claims["lower"] = -1e9

    with pytest.raises(CertificateError, match="semidefinite"):
        verify_file(forge(tmp_path / "file", tmp_path / "forged", change))


# -- files without their problem ----------------------------------------------------------------


def test_the_problem_may_stay_in_a_file_of_its_own(tmp_path: Path) -> None:
    certificate = small()
    certificate.save(tmp_path / "certificate", include_problem=False)
    save_problem(certificate.solution.problem, tmp_path / "problem")
    found = verify_file(tmp_path / "certificate", tmp_path / "problem")
    assert found == certificate.values
    with pytest.raises(CertificateError, match="name the problem's file"):
        verify_file(tmp_path / "certificate")
    assert not any(name.startswith("problem.") for name in read_sealed(tmp_path / "certificate")[0])


@pytest.mark.parametrize("options", [{"seed": 1}, {"family": "blocks"}, {"ridge": 0.2}])
def test_another_problem_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    small().save(tmp_path / "certificate", include_problem=False)
    other = small(**options)
    save_problem(other.solution.problem, tmp_path / "problem")
    with pytest.raises(CertificateError, match="another problem"):
        verify_file(tmp_path / "certificate", tmp_path / "problem")


def test_a_problem_file_outranks_the_enclosed_problem(tmp_path: Path) -> None:
    """A certificate that brings its own easier problem does not pass for the named one."""
    small().save(tmp_path / "certificate")
    save_problem(small(seed=1).solution.problem, tmp_path / "problem")
    with pytest.raises(CertificateError, match="another problem"):
        verify_file(tmp_path / "certificate", tmp_path / "problem")


def test_a_problem_file_is_no_certificate(tmp_path: Path) -> None:
    save_problem(small().solution.problem, tmp_path / "problem")
    with pytest.raises(CertificateError):
        verify_file(tmp_path / "problem")


# -- files --------------------------------------------------------------------------------------


def test_files_are_written_whole_or_not_at_all(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            small().save(target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    small().save(target)
    verify_file(target)


def test_checking_needs_no_torch(file: Path) -> None:
    code = (
        "import sys; from chita_opt.certificates import verify_file; "
        f"print(verify_file({str(file)!r}).lower); "
        "print(*({'torch', 'scipy', 'cvxpy', 'pyomo', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    lower, loaded = run.stdout.splitlines()
    assert float(lower) == verify_file(file).lower
    assert loaded == ""


def test_a_bound_may_be_certified_for_weaker_rows() -> None:
    """A family whose rows allow more than it does still gets a valid, weaker bound."""
    from .problems import PairBudget

    problem = make_problem("tall", "cardinality", p=8)
    loose = problem.with_supports(PairBudget(8, 2, tight=False))
    tight = problem.with_supports(PairBudget(8, 2))
    solution = solve(loose)
    a, b = certify(solution), certify(Solution(tight, solution.w, "same", Status.FEASIBLE))
    assert a.lower <= b.lower + 1e-4 * problem.prune_all
    assert isinstance(a.bound, Bound)
