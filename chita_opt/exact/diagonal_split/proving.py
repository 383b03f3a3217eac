"""Proving that a split leaves H - diag(d) positive semidefinite, and what to do with its point."""

from __future__ import annotations

import numpy as np
from scipy.linalg import lapack

from chita_opt.supports.base import Array


def same_pulls(H: Array, d: Array, v: Array, lowered: Array) -> Array:
    """The v at which ``lowered`` has the pulls r = b - (H - diag d) v of the split d.

    At its best H - diag(d) is all but singular and v long, so that v at another split would cost
    about ||d - lowered|| ||v||^2; the same r costs no more than :math:`r^2/2d` gains.
    """
    Q = H.copy(order="F")
    np.einsum("ii->i", Q)[:] -= lowered
    moved, info = lapack.dposv(Q, H @ v - d * v, lower=1, overwrite_a=1)[1:]
    return np.asarray(moved) if info == 0 else v


def lower_split(H: Array, d: Array, margin: float, *, floor: float = 0.0) -> Array | None:
    """Shift d down until H - diag(d) - margin I has a Cholesky factor; None if d gets <= floor."""
    shift = 0.0
    for _ in range(60):
        S = H.copy(order="F")
        np.einsum("ii->i", S)[:] -= d - shift + margin
        if lapack.dpotrf(S, lower=1, clean=0, overwrite_a=1)[1] == 0:
            return d - shift
        shift = max(2.0 * shift, margin)
        if not float(d.min()) - shift > floor:
            return None
    return None


__all__ = ["lower_split", "same_pulls"]
