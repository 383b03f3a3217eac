r"""The bound of a node of a search tree, in numpy, with a bound on every rounding error.

With :math:`H=C+\mathrm{diag}(\rho)`, :math:`b=H\bar w-g` the objective is
:math:`f(w)=f(0)+\tfrac12w^\top Hw-b^\top w`. A state fixes some weights out (w = 0) and some in
(z = 1); N are the weights not fixed out. If :math:`Q=H_{NN}-\mathrm{diag}(d)\succeq0` with d > 0,
then for any v, with :math:`r=b_N-Qv`,

.. math:: f(w)\ge f(0)-\tfrac12v^\top Qv-\max_z\sum_{j\in N}z_j\frac{r_j^2}{2d_j}

over the masks z that the state and the family allow. The maximum is bounded by weak duality:
:math:`h'^\top y+\sum_{free}(\delta-G^\top y)^+` plus the gains of the weights fixed in, where
:math:`h'` is h less what these take of the rows. Any y >= 0 serves; for budgets on a partition with
a total the best one is read off the sorted gains.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

import numpy as np

from chita_opt.certificates.arithmetic import (
    Enclosed,
    dense_hessian,
    gamma,
    objective,
    prove_semidefinite,
)
from chita_opt.certificates.problem_data import StoredProblem
from chita_opt.errors import CertificateError

Array = np.ndarray
FREE, OUT, IN = -1, 0, 1
_U = 2.0**-53
_SWEEPS = 30


@dataclass(frozen=True, eq=False)
class Gains:
    """What a witness proves: a base value and what keeping each weight may win at most.

    Attributes
    ----------
    base : float
        Not above f(0) - v'Qv/2.
    gain : Array
        (p,) not below r^2 / 2d; zero for weights fixed out.
    """

    base: float
    gain: Array


class NodeBounds:
    """A problem's dense data with their errors, and bounds at states."""

    def __init__(self, problem: StoredProblem) -> None:
        data, p = problem.data, problem.p
        self.p, self.family = p, Family.of(problem)
        self.H, self.error = dense_hessian(data)
        product = self.H @ data.w_bar
        size = np.abs(self.H) @ np.abs(data.w_bar)
        self.b = product - data.g
        spread = self.error * float(np.abs(data.w_bar).sum())
        self.b_error = gamma(p + 3) * (size + np.abs(data.g)) + spread
        self.at_zero: Enclosed = objective(data, np.zeros(p))
        self._proven: dict[int, Array] = {}

    def under(self, problem: StoredProblem) -> NodeBounds:
        """The same data under another family; nothing is proven of its witnesses yet."""
        other = copy(self)
        other.family, other._proven = Family.of(problem), {}
        return other

    def gains(self, v: Array, d: Array, state: Array, row: int) -> Gains:
        """Evaluate a witness (its row number names it) on the weights that a state leaves.

        Raises
        ------
        CertificateError
            If d is not positive, or H - diag(d) is not provably positive semidefinite.
        """
        here = np.flatnonzero(state != OUT)
        v, d = v[here], d[here]
        if not bool((d > 0.0).all()):
            raise CertificateError(f"the split of witness {row} is not positive")
        H = self.H if len(here) == self.p else self.H[np.ix_(here, here)]
        self._prove(H, d, state, row)
        image, size = H @ v - d * v, np.abs(H) @ np.abs(v) + d * np.abs(v)
        image_error = gamma(len(v) + 3) * size + self.error * float(np.abs(v).sum())
        energy = 0.5 * float(v @ image)
        energy_error = 0.5 * float(np.abs(v) @ (image_error + gamma(len(v) + 2) * np.abs(image)))
        r = np.abs(self.b[here] - image)
        r_error = self.b_error[here] + image_error + 2 * _U * (np.abs(self.b[here]) + np.abs(image))
        gain = np.zeros(self.p)
        gain[here] = (r + r_error) ** 2 / (2.0 * d) * (1.0 + 16 * _U)
        base = self.at_zero.below - energy
        base -= energy_error * (1.0 + gamma(len(v) + 8)) + 4 * _U * (abs(base) + abs(energy))
        return Gains(base, gain)

    def bound(self, gains: Gains, state: Array) -> float:
        """Not above the objective of any allowed weights in a state; infinite if there are none."""
        rest = self.family.room(state)
        if rest is None:
            return float("inf")
        kept = gains.gain[state == IN]
        value, error = self.family.maximum(gains.gain, state, rest)
        total = float(kept.sum()) + value
        error += gamma(len(kept) + 4) * total
        result = gains.base - total - error - 8 * _U * (abs(gains.base) + total)
        return result if np.isfinite(result) else -float("inf")

    def _prove(self, H: Array, d: Array, state: Array, row: int) -> None:
        """Prove Q semidefinite, unless it is a principal part of one proven for this witness."""
        held = self._proven.get(row)
        if held is not None and not bool(((state != OUT) & ~held).any()):
            return
        prove_semidefinite(H, d, self.error)
        self._proven[row] = state != OUT


@dataclass(frozen=True, eq=False)
class Family:
    """The rows G z <= h of a support family, and whether they are budgets on a partition.

    Attributes
    ----------
    row, column, value : Array
        Entries of G.
    h : Array
        (rows,) right-hand side.
    p : int
        Number of weights.
    group : Array or None
        (p,) row of each weight's group, -1 for none; None where rows cross otherwise.
    total : int
        Row that holds every weight, -1 for none.
    """

    row: Array
    column: Array
    value: Array
    h: Array
    p: int
    group: Array | None = None
    total: int = -1
    per_column: int = field(default=0)

    @classmethod
    def of(cls, problem: StoredProblem) -> Family:
        """Recognise budgets on a partition, with or without a total."""
        (row, column, value), h, p = problem.rows, problem.h, problem.p
        sizes = np.bincount(row, minlength=len(h))
        whole = np.flatnonzero(sizes == p)
        total = int(whole[-1]) if len(whole) else -1
        inner = row != total
        group = np.full(p, -1)
        group[column[inner]] = row[inner]
        repeated = np.bincount(column[inner], minlength=p).max(initial=0) > 1
        twice = len(np.unique(row * p + column)) < len(row)
        plain = bool((value == 1.0).all()) and not repeated and not twice
        deepest = int(np.bincount(column, minlength=p).max(initial=0))
        return cls(row, column, value, h, p, group if plain else None, total, deepest)

    def room(self, state: Array) -> Array | None:
        """What the weights fixed in leave of h; None if they take more than there is."""
        held = np.where(state[self.column] == IN, self.value, 0.0)
        taken = np.bincount(self.row, weights=held, minlength=len(self.h))
        left = self.h - taken
        slack = gamma(self.p + 2) * (taken + np.abs(self.h))
        if self.group is not None:
            slack = 0.0 * slack  # sums of ones are exact
        return None if bool((left < -slack).any()) else left + slack

    def maximum(self, gain: Array, state: Array, room: Array) -> tuple[float, float]:
        """Upper bound on the best sum of gains over the free weights, and its rounding error."""
        free = np.where(state == FREE, gain, 0.0)
        y = self._budget_prices(free, state, room)
        if y is None:
            y = self._prices(free, room)
        price = np.zeros(self.p)
        np.add.at(price, self.column, self.value * y[self.row])
        excess = np.maximum(free - price, 0.0)[state == FREE]
        value = float(room @ y) + float(excess.sum())
        size = float((free + price)[state == FREE].sum()) + float(np.abs(room) @ y)
        return value, (gamma(self.p + len(self.h)) + gamma(self.per_column + 4)) * size

    def _budget_prices(self, free: Array, state: Array, room: Array) -> Array | None:
        """The first gain beyond each group's room, and beyond the total of what groups keep."""
        if self.group is None:
            return None
        y = np.zeros(len(self.h))
        candidates = np.flatnonzero(state == FREE)
        candidates = candidates[np.argsort(-free[candidates], kind="stable")]
        label = self.group[candidates]
        by_group = np.argsort(label, kind="stable")
        sorted_label = label[by_group]
        first = np.searchsorted(sorted_label, sorted_label)
        rank = np.empty(len(label), dtype=np.int64)
        rank[by_group] = np.arange(len(label)) - first
        limit = np.where(label >= 0, np.floor(room)[label], self.p)
        edge = (rank == limit) & (label >= 0)
        y[label[edge]] = free[candidates[edge]]
        if self.total >= 0:
            taken = candidates[rank < limit]
            most = int(np.floor(room[self.total]))
            tau = float(free[taken[most]]) if most < len(taken) else 0.0
            y = np.maximum(y - tau, 0.0)
            y[self.total] = tau
        return y

    def _prices(self, free: Array, room: Array) -> Array:
        """Coordinate descent on the convex dual, row by row; any end is a valid price."""
        y, price = np.zeros(len(self.h)), np.zeros(self.p)
        entries = [np.flatnonzero(self.row == i) for i in range(len(self.h))]
        for _ in range(_SWEEPS):
            before = y.copy()
            for i, own in enumerate(entries):
                column, value = self.column[own], self.value[own]
                used = value > 0.0
                column, value = column[used], value[used]
                price[column] -= value * y[i]
                steps = np.maximum(free[column] - price[column], 0.0) / value
                order = np.argsort(-steps)
                spent = np.cumsum(value[order])
                beyond = np.flatnonzero(spent > room[i])
                y[i] = float(steps[order[beyond[0]]]) if len(beyond) else 0.0
                price[column] += value * y[i]
            if np.array_equal(before, y):
                break
        return y
