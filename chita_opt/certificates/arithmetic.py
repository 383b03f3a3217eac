r"""Objective and dual bound in numpy, with a bound on every rounding error.

An independent second path to the values that the torch code computes, used for what a certificate
claims and for checking it. With unit roundoff :math:`u=2^{-53}` and
:math:`\gamma_n=nu/(1-nu)`, a dot product of length n taken in any order errs by at most
:math:`\gamma_n\sum|a_i||b_i|` (Higham, *Accuracy and Stability*, ch. 3). Every quantity below
carries such an allowance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from chita_opt.certificates.stored_rows import StoredRows, gamma
from chita_opt.errors import CertificateError

Array = np.ndarray
_U = 2.0**-53
BLOCK = 8192


@dataclass(frozen=True)
class Enclosed:
    """A computed value and how far the exact one may lie from it."""

    value: float
    allowance: float

    @property
    def below(self) -> float:
        """Not above the exact value."""
        return float(np.nextafter(self.value - self.allowance, -np.inf))

    @property
    def above(self) -> float:
        """Not below the exact value."""
        return float(np.nextafter(self.value + self.allowance, np.inf))


@dataclass(frozen=True, eq=False)
class QuadraticData:
    """The arrays of a problem, as numpy.

    Attributes
    ----------
    specification : Mapping
        The curvature's form (see ``Curvature.specification``).
    curvature : Mapping
        Its arrays by name.
    w_bar, g, rho : Array
        (p,) float64.
    """

    specification: Mapping[str, Any]
    curvature: Mapping[str, Array]
    w_bar: Array
    g: Array
    rho: Array


@dataclass(frozen=True, eq=False)
class Block:
    """One block: gradients (columns, scale) or a matrix shared by rows."""

    columns: Array | None
    scale: float
    H: Array | None
    rows: int
    size: int

    @property
    def image_size(self) -> int:
        """Length of an image."""
        return self.size if self.columns is None else self.columns.shape[1]


def objective(data: QuadraticData, w: Array) -> Enclosed:
    """f(w), enclosed."""
    x = w - data.w_bar
    value, error, start = 0.0, 0.0, 0
    for block in blocks_of(data.specification, data.curvature):
        s = slice(start, start + block.size)
        part = _energy_of(block, x[s])
        value, error, start = value + part.value, error + part.allowance, s.stop
    terms = data.g * x + 0.5 * data.rho * x * x
    size = np.abs(data.g * x) + 0.5 * data.rho * x * x
    error += (gamma(len(x)) + 8 * _U) * float(size.sum()) + 4 * _U * abs(value)
    return Enclosed(value + float(terms.sum()), error)


def dual_value(
    data: QuadraticData,
    witness: Array,
    split: Array | None,
    rows: StoredRows,
    y: Array,
) -> Enclosed:
    r"""The dual bound at a witness, with the family's maximum bounded by row multipliers y.

    Any y >= 0 bounds it (see :class:`StoredRows`), so no oracle and no solver is needed. Matrices
    must be proven positive semidefinite after the split.
    """
    if not bool((y >= 0).all()) or y.shape != rows.h.shape:
        raise CertificateError("the witness has multipliers that are negative or missing")
    base, gains = dual_gains(data, witness, split)
    best, best_error = rows.maximum(gains, y)
    error = base.allowance + best_error + 8 * _U * (abs(base.value) + best)
    return Enclosed(base.value - best, error * (1.0 + gamma(len(gains))))


def dual_gains(data: QuadraticData, witness: Array, split: Array | None) -> tuple[Enclosed, Array]:
    """What a dual witness proves but for the family: the bound's free part, and (p,) gains.

    The gains are not below the exact ones.
    """
    d = data.rho if split is None else data.rho + split
    if not float(d.min()) > 0.0:
        raise CertificateError("the witness has d <= 0: it proves nothing")
    q, q_error, energy = _pullback(data, witness, split)
    v = q + data.g
    v_error = q_error + 2 * _U * (np.abs(q) + np.abs(data.g))
    c = d * data.w_bar - v
    c_error = v_error + 4 * _U * (np.abs(d * data.w_bar) + np.abs(v))
    gains = (np.abs(c) + c_error) ** 2 / (2.0 * d) * (1.0 + 16 * _U)
    terms = (0.5 * d * data.w_bar - v) * data.w_bar
    size = (0.5 * d * np.abs(data.w_bar) + np.abs(v)) * np.abs(data.w_bar)
    error = float((v_error * np.abs(data.w_bar)).sum()) + (gamma(len(c)) + 8 * _U) * float(
        size.sum()
    )
    error += energy.allowance + 8 * _U * float(np.abs(terms).sum())
    return Enclosed(float(terms.sum()) - energy.value, error * (1.0 + gamma(len(c)))), gains


def _pullback(
    data: QuadraticData, witness: Array, split: Array | None
) -> tuple[Array, Array, Enclosed]:
    """Qv, its error, and v'Qv/2, block by block."""
    values, errors, energy, allowance = [], [], 0.0, 0.0
    start = used = 0
    for block in blocks_of(data.specification, data.curvature):
        e = None if split is None else split[start : start + block.size]
        if block.columns is not None and e is not None and not e.any():
            e = None
        length = block.image_size if e is None else block.size
        part = witness[used : used + length]
        if len(part) != length:
            raise CertificateError(f"the witness has {len(witness)} entries, too few for the data")
        q, error, own = _block_pullback(block, part, e)
        values.append(q)
        errors.append(error)
        energy, allowance = energy + own.value, allowance + own.allowance
        start, used = start + block.size, used + length
    if used != len(witness):
        raise CertificateError(f"the witness has {len(witness)} entries; the data need {used}")
    allowance += 8 * _U * abs(energy)
    return np.concatenate(values), np.concatenate(errors), Enclosed(energy, allowance)


def _block_pullback(block: Block, u: Array, e: Array | None) -> tuple[Array, Array, Enclosed]:
    if block.columns is not None and e is None:
        q, error = adjoint(block, u)
        energy = 0.5 * float(u @ u)
        return q, error, Enclosed(energy, gamma(len(u) + 2) * energy)
    H, H_error = _matrix_of(block)
    V, E = u.reshape(block.rows, -1), np.zeros((block.rows, len(H)))
    if e is not None:
        E = e.reshape(block.rows, -1)
    for own in E[:1] if (E == E[0]).all() else E:
        prove_semidefinite(H, own, len(H) * H_error)
    product = V @ H - V * E
    size = np.abs(V) @ np.abs(H) + np.abs(V * E)
    slack = gamma(len(H) + 3) * size + H_error * np.abs(V).sum(1, keepdims=True)
    q, error = product.reshape(-1), slack.reshape(-1)
    energy = 0.5 * float(u @ q)
    rounding = gamma(len(u) + 2) * 0.5 * float(np.abs(u) @ np.abs(q))
    return q, error, Enclosed(energy, rounding + 0.5 * float(np.abs(u) @ error))


def _matrix_of(block: Block) -> tuple[Array, float]:
    """The block's matrix and a bound on the error of its entries."""
    if block.columns is not None:
        H, squares = gram(block)
        return H, float(squares.max())
    if block.H is None:
        raise CertificateError("a block of the curvature has no data")
    return block.H, 0.0


def dense_hessian(data: QuadraticData) -> tuple[Array, float]:
    """C + diag(rho) as one matrix (p, p), and a bound on the error of its entries."""
    p = len(data.w_bar)
    H, error, start = np.zeros((p, p)), 0.0, 0
    for block in blocks_of(data.specification, data.curvature):
        own, own_error = _matrix_of(block)
        error = max(error, own_error)
        for _ in range(block.rows):
            s = slice(start, start + len(own))
            H[s, s] = own
            start = s.stop
    H[np.diag_indices(p)] += data.rho
    return H, error + _U * float(np.abs(np.diag(H)).max())


def prove_semidefinite(H: Array, e: Array, spread: float = 0.0) -> None:
    """Refuse H - diag(e) unless a shifted Cholesky factorisation proves it positive semidefinite.

    If floating-point Cholesky succeeds on Q - cI with c above its backward error, Q is positive
    semidefinite (Rump 2006). ``spread`` bounds the norm of the error of H: with errors of entries
    at most eps, eps times their number a row.
    """
    Q = H - np.diag(e)
    margin = 2.0 * gamma(len(H) + 2) * float(np.abs(np.diag(Q)).sum()) + spread
    Q[np.diag_indices(len(Q))] -= margin
    try:
        np.linalg.cholesky(Q)
    except np.linalg.LinAlgError:
        raise CertificateError(
            "the split leaves a curvature that is not provably positive semidefinite; "
            "the bound proves nothing"
        ) from None


def separate(data: QuadraticData) -> list[tuple[slice, QuadraticData]]:
    """The blocks of a problem, rows that share a matrix one by one, in the order of the weights."""
    found, start = [], 0
    for block in blocks_of(data.specification, data.curvature):
        if block.columns is not None:
            described = {"form": "low_rank", "scale": block.scale}
            arrays = {"columns": block.columns}
        else:
            assert block.H is not None
            described, arrays = {"form": "dense"}, {"H": block.H}
        for _ in range(block.rows):
            s = slice(start, start + block.size // block.rows)
            parts = (data.w_bar[s], data.g[s], data.rho[s])
            found.append((s, QuadraticData(described, arrays, *parts)))
            start = s.stop
    return found


def adjoint(block: Block, r: Array) -> tuple[Array, Array]:
    """sqrt(scale) A'r and its error."""
    assert block.columns is not None
    root = block.scale**0.5
    q, size = np.empty(block.size), np.empty(block.size)
    for i in range(0, block.size, BLOCK):
        part = block.columns[i : i + BLOCK].astype(np.float64)
        q[i : i + BLOCK] = part @ r
        size[i : i + BLOCK] = np.abs(part, out=part) @ np.abs(r)
    return root * q, root * gamma(len(r) + 4) * size


def forward(block: Block, x: Array) -> tuple[Array, Array]:
    """sqrt(scale) A x and its error, with x known to within a rounding.

    Summed in about sqrt(p) parts, no term goes through more than about 2 sqrt(p) additions.
    """
    assert block.columns is not None
    r, size = np.zeros(block.image_size), np.zeros(block.image_size)
    step = min(max(isqrt(block.size), 64), BLOCK)
    for i in range(0, block.size, step):
        part = block.columns[i : i + step].astype(np.float64)
        r += x[i : i + step] @ part
        size += np.abs(x[i : i + step]) @ np.abs(part, out=part)
    root = block.scale**0.5
    additions = step + -(-block.size // step)
    return root * r, root * (gamma(additions + 4) + 2 * _U) * size * (1.0 + gamma(additions))


def gram(block: Block) -> tuple[Array, Array]:
    """Scale * A'A, and squares e of which sqrt(e_i e_j) bounds the error of entry i, j."""
    assert block.columns is not None
    columns = block.columns.astype(np.float64)
    H = block.scale * (columns @ columns.T)
    return H, gamma(columns.shape[1] + 8) * block.scale * (columns**2).sum(1)


def _energy_of(block: Block, x: Array) -> Enclosed:
    """x'Cx/2 with x known to within a rounding."""
    if block.columns is not None:
        r, error = forward(block, x)
        value = 0.5 * float(r @ r)
        allowance = (
            float(np.abs(r) @ error) + 0.5 * float(error @ error) + gamma(len(r) + 2) * value
        )
        return Enclosed(value, allowance)
    assert block.H is not None
    X = x.reshape(block.rows, -1)
    value = 0.5 * float((X * (X @ block.H)).sum())
    total = 0.5 * float((np.abs(X) * (np.abs(X) @ np.abs(block.H))).sum())
    return Enclosed(value, (gamma(len(x) + len(block.H) + 4) + 4 * _U) * total)


def blocks_of(specification: Mapping[str, Any], arrays: Mapping[str, Array]) -> list[Block]:
    """The blocks of a curvature, in order."""
    form = specification.get("form")
    if form == "low_rank":
        columns = arrays["columns"]
        return [Block(columns, float(specification["scale"]), None, 1, len(columns))]
    if form in ("dense", "shared_rows"):
        H, rows = arrays["H"].astype(np.float64), int(specification.get("rows", 1))
        return [Block(None, 1.0, H, rows, rows * len(H))]
    if form == "block_diagonal":
        found = []
        for i, child in enumerate(specification["blocks"]):
            prefix = f"{i}."
            own = {k[len(prefix) :]: a for k, a in arrays.items() if k.startswith(prefix)}
            found += blocks_of(child, own)
        return found
    raise CertificateError(f"the curvature form {form!r} is not known to this version")
