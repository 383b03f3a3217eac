r"""A family's rows as they stand in a file, and what multipliers prove with them.

The rows are :math:`Gz+Eu\le h` with G >= 0, masks z and auxiliary variables :math:`u\in[0,1]^q`.
For any y >= 0 the best sum of scores is at most
:math:`h^\top y+\sum_j(s_j-(G^\top y)_j)^++\sum_i(-(E^\top y)_i)^+`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Entries = tuple[Array, Array, Array]
_U = 2.0**-53
NO_ENTRIES: Entries = (
    np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64)
)  # fmt: skip


def gamma(n: int) -> float:
    """Higham's constant: the relative error of n roundings in a row."""
    return n * _U / (1.0 - n * _U)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """The rows of a file.

    Attributes
    ----------
    G : tuple of Array
        Entries as (row, column, value), each value >= 0.
    h : Array
        (m,) right side.
    E : tuple of Array
        Entries of the auxiliary variables.
    q : int
        Number of auxiliary variables.
    """

    G: Entries
    h: Array
    E: Entries = NO_ENTRIES
    q: int = 0

    def price(self, y: Array, p: int) -> Array:
        """(p,) ``G'y``."""
        return _transposed(self.G, y, p)

    def auxiliary_part(self, y: Array) -> tuple[float, float]:
        """What u adds to the bound at most, and its rounding error."""
        row, column, value = self.E
        if not self.q:
            return 0.0, 0.0
        rest = np.maximum(-_transposed(self.E, y, self.q), 0.0)
        size = float(np.abs(value) @ y[row])
        longest = int(np.bincount(column, minlength=1).max(initial=0))
        return float(rest.sum()), (gamma(longest + 4) + gamma(self.q + 4)) * size

    def least(self) -> Array:
        """(m,) the smallest value of ``E u``."""
        row, _, value = self.E
        return np.bincount(row, weights=np.minimum(value, 0.0), minlength=len(self.h))

    def maximum(self, scores: Array, y: Array) -> tuple[float, float]:
        """The bound on the best sum of scores (p,) at y (m,) >= 0, and its rounding error."""
        price = self.price(y, len(scores))
        excess = np.maximum(scores - price, 0.0)
        counted = excess > 0
        extra, extra_error = self.auxiliary_part(y)
        value = float(self.h @ y) + float(excess.sum()) + extra
        longest = int(np.bincount(self.G[1], minlength=len(scores)).max(initial=0))
        size = float((scores + price)[counted].sum()) + float(np.abs(self.h) @ y) + extra
        error = gamma(len(scores) + len(self.h) + self.q) + gamma(longest + 4)
        return value, error * size + extra_error

    def broken(self, kept: Array, u: Array) -> tuple[int, float] | None:
        """The row that a mask (p,) bool with u (q,) breaks most, and by how much."""
        row, column, value = self.G
        taken = np.bincount(row, weights=value * kept[column], minlength=len(self.h))
        size = taken + np.abs(self.h)
        if self.q:
            row, column, value = self.E
            taken += np.bincount(row, weights=value * u[column], minlength=len(self.h))
            size += np.bincount(row, weights=np.abs(value), minlength=len(self.h))
        over = taken - self.h - gamma(len(kept) + self.q + 4) * size
        broken = np.flatnonzero(~(over <= 0.0))  # a sum that overflows has not been shown to hold
        if not len(broken):
            return None
        worst = int(broken[np.argmax(over[broken])])
        return worst, float(over[worst])


def _transposed(entries: Entries, y: Array, length: int) -> Array:
    row, column, value = entries
    return np.bincount(column, weights=value * y[row], minlength=length)
