"""A problem's arrays as they stand in a file: names, types, shapes and ranges, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chita_opt.certificates.arithmetic import QuadraticData
from chita_opt.certificates.stored_rows import Entries, StoredRows
from chita_opt.errors import CertificateError

Array = np.ndarray
_MOST_ROWS = 2**31


@dataclass(frozen=True, eq=False)
class StoredProblem:
    """What a file says about its problem.

    Attributes
    ----------
    data : QuadraticData
        The quadratic.
    rows : StoredRows
        The family's rows.
    """

    data: QuadraticData
    rows: StoredRows

    @property
    def p(self) -> int:
        """Number of weights."""
        return len(self.data.w_bar)


def read_problem(arrays: Mapping[str, Array], specification: Mapping[str, Any]) -> StoredProblem:
    """Gather a problem from the arrays of a file.

    Raises
    ------
    CertificateError
        Naming the array that is missing or malformed.
    """
    prefix = "problem.curvature."
    curvature = {k[len(prefix) :]: a for k, a in arrays.items() if k.startswith(prefix)}
    described = _member(specification, "curvature", "the problem")
    p = _curvature_size(described, curvature, "problem.curvature")
    if p < 1:
        raise CertificateError("the problem has no weights")
    w_bar, g, rho = (vector(arrays, f"problem.{name}", p) for name in ("w_bar", "g", "rho"))
    if not bool((rho >= 0.0).all()):
        raise CertificateError("problem.rho holds a negative ridge")
    rows = _family_rows(arrays, p)
    return StoredProblem(QuadraticData(described, curvature, w_bar, g, rho), rows)


def vector(arrays: Mapping[str, Array], name: str, length: int | None = None) -> Array:
    """A finite float64 vector by its name, of a length if one is given."""
    shape: tuple[int | None, ...] = (length,)
    return _checked(arrays, name, shape, ("float64",))


def integers(arrays: Mapping[str, Array], name: str, low: int, stop: int) -> Array:
    """A vector of whole numbers in [low, stop), as int64."""
    values = _checked(arrays, name, (None,), ("int8", "int32", "int64")).astype(np.int64)
    outside = (values < low) | (values >= stop)
    if bool(outside.any()):
        position = int(np.argmax(outside))
        raise CertificateError(
            f"{name}[{position}] is {values[position]}; it must lie in [{low}, {stop})"
        )
    return values


def matrix(arrays: Mapping[str, Array], name: str, shape: tuple[int | None, int | None]) -> Array:
    """A finite float matrix by its name; None stands for any length."""
    return _checked(arrays, name, shape, ("float32", "float64"))


def allowed_weights(arrays: Mapping[str, Array], problem: StoredProblem) -> Array:
    """The weights of a file; refused where their support breaks a row of the family.

    Where the rows have auxiliary variables, the file gives values for them.
    """
    w = vector(arrays, "solution.w", problem.p)
    u = np.empty(0)
    if problem.rows.q:
        u = vector(arrays, "solution.auxiliary", problem.rows.q)
    check_support(w, problem.rows, u)
    return w


def check_support(w: Array, rows: StoredRows, u: Array) -> None:
    """Refuse weights whose support breaks a row, with auxiliary values u (q,) in [0, 1]."""
    if u.shape != (rows.q,) or not bool(((u >= 0.0) & (u <= 1.0)).all()):
        raise CertificateError(f"the family needs {rows.q} auxiliary values in [0, 1]")
    found = rows.broken(w != 0.0, u)
    if found is not None:
        raise CertificateError(
            f"the weights break row {found[0]} of the support family by {found[1]:g}"
        )


def _family_rows(arrays: Mapping[str, Array], p: int) -> StoredRows:
    h = vector(arrays, "problem.rows.h")
    G = _entries(arrays, "problem.rows", len(h), p)
    if not bool((G[2] >= 0.0).all()):
        raise CertificateError("problem.rows.value holds a negative entry")
    name = "problem.rows.auxiliary"
    if f"{name}.size" not in arrays:
        return StoredRows(G, h)
    size = integers(arrays, f"{name}.size", 0, 2**31)
    if len(size) != 1:
        raise CertificateError(f"{name}.size must hold one whole number")
    q = int(size[0])
    return StoredRows(G, h, _entries(arrays, name, len(h), q), q)


def _entries(arrays: Mapping[str, Array], name: str, rows: int, columns: int) -> Entries:
    """A sparse matrix by its name, ranges and lengths checked."""
    row = integers(arrays, f"{name}.row", 0, rows)
    column = integers(arrays, f"{name}.column", 0, columns)
    value = vector(arrays, f"{name}.value", len(row))
    if len(column) != len(row):
        raise CertificateError(f"{name}.row has {len(row)} entries, {name}.column {len(column)}")
    return row, column, value


def _curvature_size(described: Any, arrays: Mapping[str, Array], where: str) -> int:
    """Number of weights of a curvature, whose arrays must fit its form."""
    form = _member(described, "form", where)
    if form == "low_rank":
        scale = _member(described, "scale", where)
        if type(scale) not in (int, float) or not 0.0 < scale < float("inf"):
            raise CertificateError(f"{where} has scale {scale!r}; it must be a number > 0")
        return len(matrix(_named(arrays, where), f"{where}.columns", (None, None)))
    if form in ("dense", "shared_rows"):
        rows = 1 if form == "dense" else _member(described, "rows", where)
        if type(rows) is not int or not 1 <= rows < _MOST_ROWS:
            raise CertificateError(f"{where} has {rows!r} rows; it must be a whole number >= 1")
        return rows * len(_symmetric(_named(arrays, where), f"{where}.H"))
    if form == "block_diagonal":
        return _blocks_size(described, arrays, where)
    raise CertificateError(f"the curvature form {form!r} is not known to this version")


def _blocks_size(described: Any, arrays: Mapping[str, Array], where: str) -> int:
    blocks = _member(described, "blocks", where)
    if not isinstance(blocks, list) or not blocks:
        raise CertificateError(f"{where} has no list of blocks")
    size = 0
    for i, child in enumerate(blocks):
        prefix = f"{i}."
        own = {k[len(prefix) :]: a for k, a in arrays.items() if k.startswith(prefix)}
        size += _curvature_size(child, own, f"{where}.{i}")
    return size


def _symmetric(arrays: Mapping[str, Array], name: str) -> Array:
    H = matrix(arrays, name, (None, None))
    if H.shape[0] != H.shape[1] or not np.array_equal(H, H.T):
        raise CertificateError(f"{name} of shape {H.shape} is not a symmetric matrix")
    return H


def _named(arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    return {f"{where}.{name}": a for name, a in arrays.items()}


def _member(described: Any, name: str, what: str) -> Any:
    if not isinstance(described, Mapping) or name not in described:
        raise CertificateError(f"the description of {what} lacks {name!r}")
    return described[name]


def _checked(
    arrays: Mapping[str, Array], name: str, shape: tuple[int | None, ...], types: tuple[str, ...]
) -> Array:
    if name not in arrays:
        raise CertificateError(f"the file lacks {name}")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.name not in types:
        wanted = tuple("any" if n is None else n for n in shape)
        raise CertificateError(
            f"{name} is {array.dtype.name} {array.shape}; it must be {' or '.join(types)} {wanted}"
        )
    if not np.isfinite(array).all():  # nothing can be compared with NaN
        raise CertificateError(f"{name} holds values that are not finite")
    return array
