r"""The best diagonal split at fixed indicators, by a barrier Newton method on the split alone.

At indicators z in (0, 1) the perspective relaxation with split d is worth

.. math:: \theta_z(d)=\min_w\ \tfrac12w^\top(H-D)w-b^\top w+\tfrac12\sum_jd_j\frac{w_j^2}{z_j},
          \qquad D=\mathrm{diag}(d),

concave in d. The cut of its maximiser over :math:`H-D\succeq0`, d >= 0 is the highest of all cuts
at z. Taken at a point between a mask and the relaxation's optimum it is one that no other cut
dominates: the core points of Magnanti and Wong (1981), the in-out separation of Ben-Ameur and Neto
(2007).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack

from chita_opt.supports.base import Array

_FIRST, _SHRINK, _STEPS = 1e-3, 0.1, 15


def split_at(H: Array, b: Array, z: Array, *, tol: float = 1e-4) -> Array | None:
    r"""D (n,) that maximises :math:`\theta_z` to ``tol`` of its scale, strictly inside H - D > 0.

    Parameters
    ----------
    H : ndarray
        (n, n) positive definite.
    b, z : ndarray
        (n,); 0 < z < 1.
    tol : float
        Relative to :math:`\tfrac12b^\top H^{-1}b`.

    Returns
    -------
    ndarray or None
        None where H is not positive definite in float64.
    """
    scale = np.sqrt(H.diagonal())
    if not scale.all():
        return None
    unit = H / np.outer(scale, scale)
    lowest = float(np.linalg.eigvalsh(unit)[0])
    if not lowest > 1e-13 * len(b):
        return None
    rhs = b / scale
    size = float(rhs @ np.linalg.solve(unit, rhs))
    rhs = rhs * np.sqrt(2.0 / size) if size > 0.0 else rhs
    d, mu = np.full(len(b), 0.7 * lowest), _FIRST
    while True:
        d = _centre(unit, rhs, z, d, mu)
        if 2.0 * len(b) * mu < tol:
            return np.asarray(d * scale**2)
        mu *= _SHRINK


def weights_at(H: Array, b: Array, z: Array, d: Array) -> Array:
    """The minimiser w (n,) of the perspective relaxation at indicators z and split d."""
    M = H.copy()
    M[np.diag_indices_from(M)] += d * (1.0 / z - 1.0)
    return np.asarray(cho_solve(cho_factor(M, lower=True, overwrite_a=True), b))


def _centre(H: Array, b: Array, z: Array, d: Array, mu: float) -> Array:
    """Newton's method for theta + mu (log det(H - D) + sum log d)."""
    for _ in range(_STEPS):
        inverse = _inverse(_shifted(H, d * (1.0 / z - 1.0)))
        w = inverse @ b
        slope = w / z - w
        S = _inverse(_shifted(H, -d))
        gradient = 0.5 * w * (w / z - w) - mu * S.diagonal() + mu / d
        curvature = inverse * np.outer(slope, slope) + mu * S * S
        curvature[np.diag_indices_from(curvature)] += mu / d**2
        step = cho_solve(cho_factor(curvature, lower=True, overwrite_a=True), gradient)
        d = d + _longest(H, d, step) * step
        if float(gradient @ step) < 0.3 * mu:
            return d
    return d


def _longest(H: Array, d: Array, step: Array) -> float:
    """A step length, 1 where it fits, that keeps d > 0 and H - D > 0."""
    down = step < 0.0
    length = 1.0
    if down.any():
        length = min(1.0, 0.9 * float((-d[down] / step[down]).min()))
    while length > 1e-12:
        if lapack.dpotrf(_shifted(H, -(d + length * step)), lower=1, clean=0)[1] == 0:
            return length if length == 1.0 else 0.95 * length
        length *= 0.6
    return 0.0


def _shifted(H: Array, diagonal: Array) -> Array:
    out = H.copy()
    out[np.diag_indices_from(out)] += diagonal
    return out


def _inverse(H: Array) -> Array:
    """Inverse of a positive definite matrix."""
    factor, _ = lapack.dpotrf(H, lower=1, clean=1)
    lower, _ = lapack.dpotri(factor, lower=1)
    return np.asarray(lower + np.tril(lower, -1).T)
