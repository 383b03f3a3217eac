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
from dataclasses import dataclass

import numpy as np

from chita_opt.certificates.arithmetic import (
    Enclosed,
    dense_hessian,
    gamma,
    objective,
    prove_semidefinite,
)
from chita_opt.certificates.choices import lowest_eigenvalue
from chita_opt.certificates.problem_data import StoredProblem
from chita_opt.certificates.row_prices import simplex_prices
from chita_opt.certificates.stored_rows import StoredRows
from chita_opt.errors import CertificateError

Array = np.ndarray
FREE, OUT, IN = -1, 0, 1
_U = 2.0**-53
_FORCE = 64.0  # score of a weight fixed in, over the sum of all gains


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
        self.lowered = 0.0
        self._proven: dict[int, Array] = {}
        self.held: dict[str, float] = {}  # of all copies: what looking at choices has cost

    @classmethod
    def of_parts(
        cls,
        family: Family,
        H: tuple[Array, float],
        b: tuple[Array, Array],
        at_zero: Enclosed,
        lowered: float = 0.0,
    ) -> NodeBounds:
        """From a quadratic f(0) + w'Hw/2 - b'w, each part with its error.

        ``lowered`` is what rounding has taken from the diagonal of H already.
        """
        made = object.__new__(cls)
        made.lowered = lowered
        made.p, made.family, made._proven, made.held = family.p, family, {}, {}
        (made.H, made.error), (made.b, made.b_error), made.at_zero = H, b, at_zero
        return made

    def afresh(self) -> NodeBounds:
        """The same, with nothing proven of any witness yet."""
        other = copy(self)
        other._proven = {}
        return other

    def under(self, problem: StoredProblem) -> NodeBounds:
        """The same data under another family; nothing is proven of its witnesses yet."""
        other = self.afresh()
        other.family = Family.of(problem)
        return other

    @property
    def lowest(self) -> float:
        """A proven lower bound on the smallest eigenvalue of H."""
        if "lowest" not in self.held:
            self.held["lowest"] = lowest_eigenvalue(self.H, self.error)
        return self.held["lowest"]

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
        prove_semidefinite(H, d, len(H) * self.error)
        self._proven[row] = state != OUT


@dataclass(frozen=True, eq=False)
class Family:
    """The rows of a support family, and whether they are budgets on a partition.

    Attributes
    ----------
    rows : StoredRows
        As in the file.
    p : int
        Number of weights.
    group : Array or None
        (p,) row of each weight's group, -1 for none; None where rows cross otherwise.
    total : int
        Row that holds every weight, -1 for none.
    """

    rows: StoredRows
    p: int
    group: Array | None = None
    total: int = -1

    @classmethod
    def of(cls, problem: StoredProblem) -> Family:
        """Recognise budgets on a partition, with or without a total."""
        return cls.of_rows(problem.rows, problem.p)

    @classmethod
    def of_rows(cls, rows: StoredRows, p: int) -> Family:
        """The same from the rows over p weights."""
        row, column, value = rows.G
        sizes = np.bincount(row, minlength=len(rows.h))
        whole = np.flatnonzero(sizes == p)
        total = int(whole[-1]) if len(whole) else -1
        inner = row != total
        group = np.full(p, -1)
        group[column[inner]] = row[inner]
        repeated = np.bincount(column[inner], minlength=p).max(initial=0) > 1
        twice = len(np.unique(row * p + column)) < len(row)
        plain = bool((value == 1.0).all()) and not repeated and not twice and not rows.q
        return cls(rows, p, group if plain else None, total)

    def room(self, state: Array) -> Array | None:
        """What the weights fixed in leave of h; None if some row has too little for every u."""
        row, column, value = self.rows.G
        held = np.where(state[column] == IN, value, 0.0)
        taken = np.bincount(row, weights=held, minlength=len(self.rows.h))
        left = self.rows.h - taken
        slack = gamma(self.p + 2) * (taken + np.abs(self.rows.h))
        if self.group is not None:
            slack = 0.0 * slack  # sums of ones are exact
        least = self.rows.least()
        empty = left - least < -slack - gamma(self.rows.q + 2) * np.abs(least)
        return None if bool(empty.any()) else left + slack

    def is_empty(self, state: Array) -> bool:
        """Whether it is proven that no mask of the family keeps all weights fixed in."""
        if self.room(state) is None:
            return True
        inside = (state == IN).astype(np.float64)
        if self.group is not None or not inside.any():
            return False
        value, error = self.rows.maximum(inside, self._prices(inside, inside > 0.0))
        return value + error < float(inside.sum())

    def maximum(self, gain: Array, state: Array, room: Array) -> tuple[float, float]:
        """Upper bound on the best sum of gains over the free weights, and its rounding error."""
        free = np.where(state == FREE, gain, 0.0)
        y = self._budget_prices(free, state, room)
        if y is None:
            forced = _FORCE * float(free.sum()) or 1.0
            scores = np.where(state == IN, forced, free)
            y = self._prices(scores, scores > 0.0)
        rest = StoredRows(self.rows.G, room, self.rows.E, self.rows.q)
        price = rest.price(y, self.p)
        value, error = rest.maximum(np.where(state == FREE, free, price), y)
        return value, error

    def _budget_prices(self, free: Array, state: Array, room: Array) -> Array | None:
        """The first gain beyond each group's room, and beyond the total of what groups keep."""
        if self.group is None:
            return None
        y = np.zeros(len(self.rows.h))
        if not len(y):
            return y
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

    def _prices(self, scores: Array, columns: Array) -> Array:
        """Multipliers of the linear program over some columns and the auxiliary variables."""
        row, column, value = self.rows.G
        number = np.cumsum(columns) - 1
        here = columns[column]
        A = np.zeros((len(self.rows.h), int(columns.sum()) + self.rows.q))
        np.add.at(A, (row[here], number[column[here]]), value[here])
        row, column, value = self.rows.E
        np.add.at(A, (row, column + int(columns.sum())), value)
        c = np.concatenate([scores[columns], np.zeros(self.rows.q)])
        return simplex_prices(A, self.rows.h, c)
