r"""A leaf of a search tree in which few weights are left to choose: every choice, in numpy.

With the weights of S kept and the others zero the best objective is

.. math:: f(0)-G(S),\qquad G(S)=\tfrac12\,b_S^\top (H_{SS})^{-1}b_S .

Arithmetic gives the gains of some H + E and b + e. With H at least :math:`\lambda>0` and
:math:`\|E\|\le\epsilon` on supports of the size at hand the best weights of a support have
:math:`\|w\|^2\le 2G/\lambda`, so that

.. math:: G\le G'+\|e\|\sqrt{2G/\lambda}+G\,\epsilon/\lambda .
"""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np

from chita_opt.certificates.arithmetic import gamma, prove_semidefinite
from chita_opt.errors import CertificateError

if TYPE_CHECKING:
    from chita_opt.certificates.node_bound import NodeBounds

Array = np.ndarray
MOST, DEEPEST = 200_000_000, 6  # choices in one leaf, and weights left to choose
_FREE, _OUT, _IN = -1, 0, 1
_U = 2.0**-53
_SHARE = 0.9  # of the smallest eigenvalue, which is then proven


def bound_of_choices(bounds: NodeBounds, state: Array) -> float:
    """Not above the objective of any allowed weights in a state; infinite if there are none.

    Raises
    ------
    CertificateError
        If no row bounds the number of all weights, there are too many choices, or H is not
        provably positive definite.
    """
    room = bounds.family.room(state)
    if room is None:
        return float("inf")
    if bounds.family.group is None or bounds.family.total < 0:
        raise CertificateError("choices are looked at where a row bounds the number of all weights")
    free, kept = np.flatnonzero(state == _FREE), np.flatnonzero(state == _IN)
    count = min(int(np.floor(room[bounds.family.total])), len(free))
    if count > DEEPEST or comb(len(free), count) > MOST:
        raise CertificateError(
            f"a leaf leaves {count} of {len(free)} weights to choose; looked at are choices of at "
            f"most {DEEPEST}, and at most {MOST} of them"
        )
    base, H, b = _eliminated(bounds.H, bounds.b, free, kept)
    gain = base + _largest(H, b, count)
    return bounds.at_zero.below - _raised(bounds, gain, len(kept) + count)


def lowest_eigenvalue(H: Array, error: float) -> float:
    """A proven lower bound on the smallest eigenvalue; ``error`` bounds that of every entry."""
    lowest = _SHARE * float(np.linalg.eigvalsh(H)[0])
    if not lowest > 0.0:
        raise CertificateError("the curvature plus the ridge is not provably positive definite")
    prove_semidefinite(H, np.full(len(H), lowest), len(H) * error)
    return lowest


def _eliminated(H: Array, b: Array, free: Array, kept: Array) -> tuple[float, Array, Array]:
    """Gain of the kept weights alone; H and b of the free ones with those eliminated."""
    if not len(kept):
        return 0.0, H[np.ix_(free, free)], b[free]
    try:
        L = np.linalg.cholesky(H[np.ix_(kept, kept)])
    except np.linalg.LinAlgError:
        raise CertificateError("the curvature on kept weights is not positive definite") from None
    Y = np.linalg.solve(L, np.column_stack([H[np.ix_(kept, free)], b[kept]]))
    left, y = Y[:, :-1], Y[:, -1]
    return 0.5 * float(y @ y), H[np.ix_(free, free)] - left.T @ left, b[free] - left.T @ y


def _largest(H: Array, b: Array, count: int) -> float:
    """Largest gain of ``count`` of the weights."""
    if not count:
        return 0.0
    diagonal = np.diag(H)
    if count == 1:
        return 0.5 * float((b * b / diagonal).max())
    if count == 2:
        one, other = np.triu_indices(len(b), 1)
        x, y, z = H[one, other], diagonal[one], diagonal[other]
        outer = b[one] ** 2 * z - 2.0 * b[one] * b[other] * x + b[other] ** 2 * y
        return 0.5 * float((outer / (y * z - x * x)).max())
    best = -float("inf")
    for i in range(len(b) - count + 1):
        row, rest = H[i, i + 1 :] / H[i, i], slice(i + 1, None)
        own = 0.5 * float(b[i] * b[i] / H[i, i])
        below = H[rest, rest] - np.outer(H[i, rest], row), b[rest] - b[i] * row
        best = max(best, own + _largest(*below, count - 1))
    return best


def _raised(bounds: NodeBounds, gain: float, total: int) -> float:
    """An upper bound on the exact gains of supports of a size, from the largest computed one."""
    lowest, n = bounds.lowest, total
    largest = np.sort(np.diag(bounds.H))[::-1][: max(n, 1)]
    spread = n * bounds.error + 8.0 * gamma(n + 8) * float(largest.sum() + largest[0])
    b_error = float(n) ** 0.5 * float((bounds.b_error + 8.0 * _U * np.abs(bounds.b)).max())
    relative = spread / lowest + 64.0 * _U * float(largest[0]) / lowest + gamma(n + 8)
    most = 2.0 * gain + b_error**2 * 8.0 / lowest  # what is concluded below from it lies below it
    raised = (gain + b_error * (2.0 * most / lowest) ** 0.5) / (1.0 - relative)
    if not (relative < 0.1 and raised <= most):
        raise CertificateError("the curvature is too near to singular for gains to be told apart")
    return raised * (1.0 + 16.0 * _U)


__all__ = ["DEEPEST", "MOST", "bound_of_choices", "lowest_eigenvalue"]
