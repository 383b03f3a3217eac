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
IN_ALL = 4_000_000_000  # choices in all leaves of a problem's logs: minutes
_FREE, _OUT, _IN = -1, 0, 1
_U = 2.0**-53
_PAIRS = 250_000  # pairs at a time
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
    choices = comb(len(free), count)
    if count > DEEPEST or choices > MOST:
        raise CertificateError(
            f"a leaf leaves {count} of {len(free)} weights to choose; looked at are choices of at "
            f"most {DEEPEST}, and at most {MOST} of them"
        )
    bounds.held["choices"] = seen = bounds.held.get("choices", 0.0) + choices
    if seen > IN_ALL:
        raise CertificateError(f"the log's leaves leave {seen:.3g} choices; at most {IN_ALL:.3g}")
    H, b, unit = _scaled(bounds.H, bounds.b)
    base, H, b = _eliminated(H, b, free, kept)
    gain = (base + _largest(H, b, count)) * unit
    return bounds.at_zero.below - _raised(bounds, gain, len(kept) + count)


def _scaled(H: Array, b: Array) -> tuple[Array, Array, float]:
    """H and b over powers of two, their largest entries about 1, and the unit of gains.

    Products of small numbers would vanish, and gains with them.
    """
    sizes = float(np.abs(np.diag(H)).max()), float(np.abs(b).max())
    if not sizes[1] > 0.0:
        return H, b, 1.0
    h, e = (round(np.log2(size)) if size > 0.0 else 0 for size in sizes)
    unit = 2.0 ** (2 * e - h) if abs(2 * e - h) < 900 and abs(h) < 900 else float("nan")
    return np.ldexp(H, -h), np.ldexp(b, -e), unit


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
        return float(np.max([_pair_rows(H, b, rows) for rows in _pieces(len(b))]))  # NaN stays
    best = -float("inf")
    for i in range(len(b) - count + 1):
        row, rest = H[i, i + 1 :] / H[i, i], slice(i + 1, None)
        own = 0.5 * float(b[i] * b[i] / H[i, i])
        below = H[rest, rest] - np.outer(H[i, rest], row), b[rest] - b[i] * row
        best = float(np.maximum(best, own + _largest(*below, count - 1)))
    return best


def _pieces(n: int) -> list[Array]:
    """Numbers of rows, so many at a time that the pairs with them take little memory."""
    step = max(1, _PAIRS // n)
    return [np.arange(i, min(i + step, n - 1)) for i in range(0, n - 1, step)]


def _pair_rows(H: Array, b: Array, rows: Array) -> float:
    """Largest gain of a pair whose first weight is one of ``rows``; infinite where singular."""
    columns = np.arange(int(rows[0]) + 1, len(b))
    H_row, own = H[np.ix_(rows, columns)], np.diag(H)[rows]
    ratio = H_row / own[:, None]
    later = columns[None, :] > rows[:, None]
    left = np.where(later, np.diag(H)[columns] - ratio * H_row, 1.0)
    if not bool((left > 0.0).all()):
        return float("inf")
    gain = (b[rows] ** 2 / own)[:, None] + (b[columns] - b[rows][:, None] * ratio) ** 2 / left
    return 0.5 * float(np.where(later, gain, -np.inf).max())


def _raised(bounds: NodeBounds, gain: float, total: int) -> float:
    """An upper bound on the exact gains of supports of a size, from the largest computed one."""
    lowest, n = bounds.lowest, total
    largest = np.sort(np.diag(bounds.H))[::-1][: max(n, 1)]
    spread = n * bounds.error + 8.0 * gamma(n + 8) * float(largest.sum() + largest[0])
    b_error = float(n) ** 0.5 * float((bounds.b_error + 8.0 * _U * np.abs(bounds.b)).max())
    relative = spread / lowest + 64.0 * _U * float(largest[0]) / lowest + gamma(n + 8)
    most = 2.0 * gain + b_error**2 * 8.0 / lowest  # what is concluded below from it lies below it
    raised = (gain + b_error * (2.0 * most / lowest) ** 0.5) / (1.0 - relative)
    if not (relative < 0.1 and raised <= most < float("inf")):
        raise CertificateError("the curvature is too near to singular for gains to be told apart")
    return raised * (1.0 + 16.0 * _U)


__all__ = ["DEEPEST", "MOST", "bound_of_choices", "lowest_eigenvalue"]
