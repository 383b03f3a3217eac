r"""Where few weights are left to choose, every choice is looked at.

With weights K kept, the best value on :math:`K\cup T` lies below that on K by

.. math:: \tfrac12\,b_T^\top (H_{TT})^{-1}b_T,

H and b those of the free weights with K eliminated. A recursion over T eliminates one weight after
the other and reads the last two off closed formulas, a few nanoseconds a choice: four of two
hundred weights, 65 million choices, take a quarter of a second, where relaxations may leave most
of the gap: the best split of a curvature of low rank is little more than its ridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numba import njit

from chita_opt.exact.quadratic import Quadratic
from chita_opt.supports.base import Array

MOST = 100_000_000  # choices at the root, about half a second
LOGGED = 20_000_000  # below the root, in all leaves of a log: a verifier takes ten times as long
_A_NODE = 2_000_000  # below it, at least; beyond 200 weights what bounding a node takes allows more
_DEEPEST = 6  # weights left to choose
_SMALL, _LARGE = 40, 1000  # weights of problems for which it is done
_TINY = 1e-60  # products of smaller numbers might vanish
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Completion:
    """The best of all choices.

    Attributes
    ----------
    support : ndarray
        Sorted index array, weights that were kept already included.
    value : float
        Objective as computed.
    error : float
        Bound on what rounding may hide: no choice is below ``value - error``.
    """

    support: Array
    value: float
    error: float


def choices_of(size: int, free: int, count: int, *, root: bool) -> int | None:
    """How many choices of ``count`` among ``free`` of ``size`` weights; None for too many."""
    if not _SMALL <= size <= _LARGE or not 1 <= count <= min(_DEEPEST, free):
        return None
    limit = MOST if root else min(max(_A_NODE, free**3 // 4), MOST)
    found = comb(free, count)
    return found if found <= limit else None


def best_completion(
    quadratic: Quadratic, free: Array, kept: Array, count: int, lowest: float
) -> Completion | None:
    r"""The best support of ``kept`` and ``count`` of ``free`` weights; None where rounding decides.

    The computed gains are those of a matrix H + E and a vector b + e: with :math:`\|E\|\le\epsilon`
    on supports of this size and H at least :math:`\lambda`, a gain G is wrong by at most
    :math:`G\epsilon/\lambda+\|e\|\sqrt{2G/\lambda}`.

    Parameters
    ----------
    quadratic : Quadratic
        The whole problem.
    free, kept : ndarray
        Index arrays.
    count : int
        How many of ``free`` are kept, too.
    lowest : float
        Not above the smallest eigenvalue of the whole H.
    """
    q, total = quadratic, len(kept) + count
    diagonal = np.sort(q.H.diagonal())[::-1]
    unit = 16.0 * (q.size + 2) * _EPS
    spread = unit * (float(diagonal[:total].sum()) + float(diagonal[0]))
    spread += total * (q.entry_error or 0.0)
    sizes = float(diagonal[0]), float(np.abs(q.b).max())
    if not lowest > 2.0 * spread or any(not _TINY < size < 1.0 / _TINY for size in sizes):
        return None
    H, b, const = q.reduce(free, kept)
    gain, chosen = _best_gain(np.ascontiguousarray(H), b, count)
    support = np.sort(np.concatenate([kept, free[chosen]]))
    every = 2.0 * (q.const - const + gain)
    b_error = unit * total**0.5 * (sizes[1] + (sizes[0] * every) ** 0.5)
    error = spread / lowest * every + b_error * (2.0 * every / lowest) ** 0.5
    value = const - gain
    return Completion(support, value, error + q.rounding(value))


@njit(cache=True, error_model="numpy")
def _best_gain(H: Array, b: Array, count: int) -> tuple[float, Array]:
    """Largest gain of ``count`` of n weights, and which they are; depth first over the first ones.

    ``rest[d]`` and ``pull[d]`` are H and b with d weights eliminated, above the diagonal and for
    weights behind the last of them alone.
    """
    n = len(b)
    rest, pull = np.empty((count, n, n)), np.empty((count, n))
    rest[0], pull[0] = H, b
    base, start = np.zeros(count), np.zeros(count, dtype=np.int64)
    path, best = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    most, depth = -1.0, 0
    while depth >= 0:
        if count - depth <= 2:
            value, i, j = _last(rest[depth], pull[depth], start[depth], n, count - depth)
            if base[depth] + value > most:
                most = base[depth] + value
                best[:depth] = path[:depth]
                best[count - 1], best[depth] = j, i
            depth -= 1
            continue
        i = start[depth]
        if i > n - (count - depth):
            depth -= 1
            continue
        start[depth], path[depth] = i + 1, i
        pivot, c = rest[depth, i, i], pull[depth, i]
        for r in range(i + 1, n):
            ratio = rest[depth, i, r] / pivot
            pull[depth + 1, r] = pull[depth, r] - ratio * c
            for s in range(r, n):
                rest[depth + 1, r, s] = rest[depth, r, s] - ratio * rest[depth, i, s]
        base[depth + 1], start[depth + 1] = base[depth] + c * c / pivot, i + 1
        depth += 1
    return 0.5 * most, best


@njit(cache=True, error_model="numpy")
def _last(H: Array, b: Array, start: int, n: int, count: int) -> tuple[float, int, int]:
    """The best one or two weights from ``start`` on, by twice their gain; one is given twice."""
    most, first, second = -1.0, start, start
    if count == 1:
        for i in range(start, n):
            value = b[i] * b[i] / H[i, i]
            if value > most:
                most, first, second = value, i, i
        return most, first, second
    for i in range(start, n):
        h, c = H[i, i], b[i]
        for j in range(i + 1, n):
            x, y, d = H[i, j], H[j, j], b[j]
            inner = h * y - x * x
            value = c * c * y - 2.0 * c * d * x + d * d * h
            if value > most * inner:
                most, first, second = value / inner, i, j
    return most, first, second


__all__ = ["LOGGED", "Completion", "best_completion", "choices_of"]
