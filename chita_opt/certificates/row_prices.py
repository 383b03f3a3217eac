r"""Multipliers of linear rows by the simplex method, dense and in numpy.

For :math:`\max c^\top x` over :math:`Ax\le b`, :math:`0\le x\le1` with b >= 0. Whatever it returns
is >= 0, and so proves a bound by weak duality: a wrong pivot costs strength, never validity.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
_SMALL = 1e-9
_SPREAD = 1e-8  # right sides differ by this, so that no pivot stays in its place


def simplex_prices(A: Array, b: Array, c: Array) -> Array:
    """(m,) optimal multipliers of the rows A (m, n) for the costs c (n,).

    Upper bounds are kept out of the tableau: a variable at its bound is replaced by its distance
    from it. The right side is perturbed; the multipliers of the last basis don't depend on that.
    """
    m, n = A.shape
    scale = float(np.abs(c).max(initial=0.0)) or 1.0
    tableau = _Tableau(A, np.maximum(b, 0.0), c / scale)
    for _ in range(50 * (m + n)):
        entering = int(np.argmax(tableau.rise))
        if not tableau.rise[entering] > _SMALL:
            break
        tableau.enter(entering)
    return scale * np.maximum(-tableau.rise[n:], 0.0)


class _Tableau:
    """Rows of the current basis, its values, and what each variable's rise wins."""

    def __init__(self, A: Array, b: Array, c: Array) -> None:
        m, n = A.shape
        self.rows = np.hstack([A, np.eye(m)])
        steps = 1.0 + (0.618034 * np.arange(m)) % 1.0
        self.values = b + _SPREAD * steps * (1.0 + b)
        self.rise = np.concatenate([c, np.zeros(m)])
        self.limit = np.concatenate([np.ones(n), np.full(m, np.inf)])
        self.basis = n + np.arange(m)

    def enter(self, j: int) -> None:
        """Raise variable j until a basic one, or j itself, meets a bound."""
        column = self.rows[:, j]
        room = np.full(len(column), np.inf)
        down, up = column > _SMALL, column < -_SMALL
        room[down] = np.maximum(self.values[down], 0.0) / column[down]
        slack = self.limit[self.basis] - self.values
        room[up] = np.maximum(slack[up], 0.0) / -column[up]
        i = int(np.argmin(room)) if len(room) else -1
        if i < 0 or room[i] >= self.limit[j]:
            if self.limit[j] == np.inf:  # only rounding makes a bounded program look unbounded
                self.rise[j] = 0.0
                return
            self.values -= self.limit[j] * column
            self.rows[:, j] *= -1.0
            self.rise[j] *= -1.0
            return
        if up[i]:  # it leaves at its upper bound: count its distance from there
            k = self.basis[i]
            self.rows[i] *= -1.0
            self.rows[i, k] = 1.0
            self.values[i] = self.limit[k] - self.values[i]
        self._pivot(i, j)

    def _pivot(self, i: int, j: int) -> None:
        pivot = self.rows[i, j]
        self.rows[i] /= pivot
        self.values[i] /= pivot
        column = self.rows[:, j].copy()
        column[i] = 0.0
        self.rows -= np.outer(column, self.rows[i])
        self.values -= column * self.values[i]
        self.rise -= self.rise[j] * self.rows[i]
        self.basis[i] = j
