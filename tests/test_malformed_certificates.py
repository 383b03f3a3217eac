"""Whatever stands in a file with a valid seal, checking it ends in an answer or our own error."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chita_opt.certificates import certify, save_problem, verify_file
from chita_opt.certificates.container import array_hash, read_sealed, write_sealed
from chita_opt.errors import CertificateError
from chita_opt.heuristics import solve

from .problems import make_problem

Arrays = dict[str, np.ndarray]
Claims = dict[str, Any]
FORMS = ("low_rank", "dense", "shared_rows", "mixed_blocks")


@pytest.fixture(scope="module", params=FORMS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "file"
    problem = make_problem(request.param, "cardinality", p=8, linear=True)
    certify(solve(problem)).save(path)
    return path


def sealed(target: Path, arrays: Arrays, claims: Claims) -> Path:
    """A file with a valid seal, and a valid hash where its description allows one."""
    problem = {k: a for k, a in arrays.items() if k.startswith("problem.")}
    if "problem" in claims and "problem_hash" in claims:
        claims["problem_hash"] = array_hash(problem, claims["problem"])
    write_sealed(target, arrays, claims)
    return target


def refuse(target: Path, arrays: Arrays, claims: Claims, match: str | None = None) -> None:
    with pytest.raises(CertificateError, match=match):
        verify_file(sealed(target, arrays, claims))


def test_every_array_is_needed_and_named(file: Path, tmp_path: Path) -> None:
    arrays, claims = read_sealed(file)
    for name in arrays:
        less = {k: a for k, a in arrays.items() if k != name}
        optional = name == "bound.split"  # without it the witness has to prove more
        refuse(tmp_path / "x", less, deepcopy(claims), None if optional else name)


def test_every_claim_is_needed_and_named(file: Path, tmp_path: Path) -> None:
    arrays, claims = read_sealed(file)
    for name in ("lower", "upper", "gap", "relative_gap", "share_of_all", "nnz", "p", "problem",
                 "problem_hash"):  # fmt: skip
        for value in (None, "0", [], {}, True, 10**400):
            changed = deepcopy(claims) | {name: value}
            write_sealed(tmp_path / "x", arrays, changed)
            with pytest.raises(CertificateError):
                verify_file(tmp_path / "x")
        write_sealed(tmp_path / "x", arrays, {k: v for k, v in claims.items() if k != name})
        with pytest.raises(CertificateError, match=name):
            verify_file(tmp_path / "x")


RESHAPED: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda a: a[None],
    lambda a: a[:0],
    lambda a: a[:-1],
    lambda a: np.concatenate([a, a]),
    lambda a: a.reshape(-1)[0],
    lambda a: a.reshape(-1)[:1],
]


@pytest.mark.parametrize("change", RESHAPED)
def test_wrong_shapes_are_refused(
    file: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    arrays, claims = read_sealed(file)
    for name, array in arrays.items():
        changed = np.atleast_1d(change(array))
        if changed.shape != array.shape:
            refuse(tmp_path / "x", arrays | {name: changed}, deepcopy(claims))


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "float16", "float32", "int64", "uint64", "complex64"]
)
def test_wrong_types_are_refused(file: Path, tmp_path: Path, dtype: str) -> None:
    arrays, claims = read_sealed(file)
    for name, array in arrays.items():
        fine = ("int8", "int64") if array.dtype.kind == "i" else ("float64", str(array.dtype))
        if dtype in fine or (dtype == "float32" and name.startswith("problem.curvature")):
            continue
        with np.errstate(all="ignore"):
            changed = array.astype(dtype)
        refuse(tmp_path / "x", arrays | {name: changed}, deepcopy(claims), f"{name} is {dtype}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(file: Path, tmp_path: Path, value: float) -> None:
    arrays, claims = read_sealed(file)
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            changed = array.copy()
            changed.reshape(-1)[-1] = value
            refuse(tmp_path / "x", arrays | {name: changed}, deepcopy(claims), name)


def paths(described: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of all values in a nested description."""
    found = [path]
    pairs = described.items() if isinstance(described, dict) else ()
    pairs = enumerate(described) if isinstance(described, list) else pairs
    for key, value in pairs:
        found += paths(value, (*path, key))
    return found


def test_descriptions_may_hold_anything(file: Path, tmp_path: Path) -> None:
    """A changed or missing member is refused, unless nothing is read from it."""
    arrays, claims = read_sealed(file)
    read = {"form", "scale", "rows", "blocks"}
    for path in paths(claims["problem"]["curvature"], ("curvature",)):
        for value in (None, "x", -1, 0, 3.5, [], {}, True, [None], "del"):
            changed = deepcopy(claims)
            place = changed["problem"]
            for key in path[:-1]:
                place = place[key]
            if place[path[-1]] == value and type(place[path[-1]]) is type(value):
                continue
            if value == "del" and isinstance(place, dict):
                del place[path[-1]]
            else:
                place[path[-1]] = value
            if path[-1] in read or isinstance(path[-1], int) or len(path) == 1:
                number = type(value) in (int, float) and value > 0
                if path[-1] == "scale" and number:
                    continue
                refuse(tmp_path / "x", arrays, changed)


def test_indefinite_or_skew_curvature_is_refused(tmp_path: Path) -> None:
    """Only the lower triangle is read by Cholesky: the other must agree with it."""
    problem = make_problem("dense", "cardinality", p=8)
    certify(solve(problem)).save(tmp_path / "file")
    arrays, claims = read_sealed(tmp_path / "file")
    H = arrays["problem.curvature.H"].copy()
    H[0, 1] += 5.0
    refuse(tmp_path / "x", arrays | {"problem.curvature.H": H}, claims, "symmetric")


def test_claims_that_are_no_object_are_refused(file: Path, tmp_path: Path) -> None:
    arrays, _ = read_sealed(file)
    for claims in ([], None, 3, "x"):
        write_sealed(tmp_path / "x", arrays, claims)  # type: ignore[arg-type]
        with pytest.raises(CertificateError, match="claims"):
            verify_file(tmp_path / "x")


def test_a_malformed_problem_file_is_refused(tmp_path: Path) -> None:
    problem = make_problem("dense", "cardinality", p=8)
    certify(solve(problem)).save(tmp_path / "file", include_problem=False)
    save_problem(problem, tmp_path / "problem")
    verify_file(tmp_path / "file", tmp_path / "problem")
    arrays, claims = read_sealed(tmp_path / "problem")
    for name in arrays:
        write_sealed(tmp_path / "x", {k: a for k, a in arrays.items() if k != name}, claims)
        with pytest.raises(CertificateError):
            verify_file(tmp_path / "file", tmp_path / "x")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_proves_no_more(
    file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever one array is replaced by: an error of ours, or a check that holds."""
    arrays, claims = read_sealed(file)
    name = data.draw(st.sampled_from(sorted(arrays)))
    number = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324])
    changed = arrays[name].copy()
    flat = changed.reshape(-1)
    for place in data.draw(st.lists(st.integers(0, flat.size - 1), max_size=3)):
        value = data.draw(number if changed.dtype.kind == "f" else st.integers(-(2**40), 2**40))
        with np.errstate(over="ignore"):
            flat[place] = value
    target = tmp_path_factory.mktemp("fuzz") / "x"
    try:
        found = verify_file(sealed(target, arrays | {name: changed}, claims))
    except CertificateError:
        return
    assert found.lower <= found.upper
    assert json.loads(json.dumps(claims))["lower"] <= found.lower + 1e-6 * abs(found.lower)
