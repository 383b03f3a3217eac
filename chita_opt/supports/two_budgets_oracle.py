r"""The best weights under a budget of numbers and a budget of costs.

.. math:: \max_z\ \sum_j s_jz_j\quad\text{s.t. }\sum_jz_j\le k,\ \ \sum_jf_jz_j\le F,\ \
          z\in\{0,1\}^p

Its linear relaxation has a dual in two prices (FALCON, AISTATS 2024, §3.2),

.. math:: g(\lambda_1,\lambda)=\lambda_1k+\lambda F+\sum_j(s_j-\lambda_1-\lambda f_j)^+ ,

which one-dimensional search over :math:`\lambda` minimises: the best :math:`\lambda_1` is the
(k+1)-st largest of :math:`s-\lambda f`, or 0. At most two entries of a vertex are fractional, so
that rounding loses at most two weights. What is left to the optimum is found by a search over how
many weights each class of equal cost keeps (the best ones of the class): losses at the prices add
up over classes and must stay below the gap of rounding, which leaves few counts. Where costs take
too many values for that, HiGHS solves the same core as an integer program.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array

_MAX_NODES = 2_000_000
_SCALE = 1e4  # of the integer program's objective: its gap tolerance is absolute


@dataclass(frozen=True, eq=False)
class CostClasses:
    """Weights by their cost.

    Attributes
    ----------
    costs : ndarray
        (C,) int64, the distinct costs, ascending.
    members : tuple of ndarray
        Weights of each class, ascending.
    """

    costs: Array
    members: tuple[Array, ...]

    @classmethod
    def of(cls, costs: Array) -> CostClasses:
        """Group the weights by cost."""
        distinct, label = np.unique(costs, return_inverse=True)
        order = np.argsort(label, kind="stable")
        ends = np.cumsum(np.bincount(label, minlength=len(distinct)))
        return cls(distinct.astype(np.int64), tuple(np.split(order, ends[:-1])))

    def ranked(self, scores: Array) -> Ranking:
        """Sort every class by falling score, ties by index."""
        orders = [own[np.argsort(-scores[own], kind="stable")] for own in self.members]
        sums = [np.concatenate([[0.0], np.cumsum(scores[order])]) for order in orders]
        start = np.concatenate([[0], np.cumsum([len(order) for order in orders])])
        order = np.concatenate(orders)
        return Ranking(self.costs, order, start, scores[order], np.concatenate(sums))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Classes of equal cost, each by falling score, one behind the other.

    Attributes
    ----------
    costs : ndarray
        (C,) int64.
    order : ndarray
        (p,) weights.
    start : ndarray
        (C+1,) first position of each class.
    scores : ndarray
        (p,) in this order.
    prefix : ndarray
        (p+C,) sums of the n best of each class, from n = 0 on.
    """

    costs: Array
    order: Array
    start: Array
    scores: Array
    prefix: Array

    def value(self, counts: Array) -> float:
        """Sum of the ``counts[c]`` best scores of each class."""
        at = self.start[:-1] + np.arange(len(self.costs)) + counts
        return float(self.prefix[at].sum())

    def dual(self, k: int, limit: int, one: float, unit: float) -> float:
        """The dual function g at prices >= 0."""
        excess = np.maximum(
            self.scores - one - unit * np.repeat(self.costs, np.diff(self.start)), 0
        )
        return one * k + unit * limit + float(excess.sum())

    def mask(self, counts: Array) -> Array:
        """(p,) bool: the best ``counts[c]`` weights of each class."""
        chosen = np.zeros(len(self.order), dtype=bool)
        for first, n in zip(self.start, counts, strict=False):
            chosen[self.order[first : first + n]] = True
        return chosen


@dataclass(frozen=True, eq=False)
class TwoBudgetAnswer:
    r"""What the oracle found.

    Attributes
    ----------
    mask : ndarray
        (p,) bool.
    value : float
        Sum of its scores.
    upper : float
        Proven to be at least the best value: ``value`` itself where the search is complete, else
        the dual function at the prices.
    prices : tuple of float
        :math:`\lambda_1` and :math:`\lambda`.
    proof : str
        "prices" where rounding was optimal, "search", or "HiGHS": then the word of the solver is
        all there is for the optimality of ``mask``, and ``upper`` does not rest on it.
    """

    mask: Array
    value: float
    upper: float
    prices: tuple[float, float]
    proof: str


def lp_prices(ranking: Ranking, k: int, limit: int) -> tuple[float, float, Array]:
    """Prices that minimise the dual function, and counts that keep both budgets."""
    from chita_opt.supports.two_budgets_kernels import prices

    counts = np.zeros(len(ranking.costs), dtype=np.int64)
    one, unit = prices(ranking.scores, ranking.start, ranking.costs, k, limit, counts)
    return one, unit, _filled(ranking, counts, k, limit)


def best_two_budgets(
    scores: Array, classes: CostClasses, k: int, limit: int, *, max_nodes: int = _MAX_NODES
) -> TwoBudgetAnswer:
    """The best mask with at most k weights of cost at most ``limit`` together.

    Parameters
    ----------
    scores : ndarray
        (p,) float64, >= 0.
    classes : CostClasses
        The weights by cost.
    k, limit : int
        Both budgets, >= 0.
    max_nodes : int
        Counts that the search looks at before it leaves the rest to HiGHS.
    """
    from chita_opt.supports.two_budgets_kernels import search

    ranking = classes.ranked(scores)
    one, unit, counts = lp_prices(ranking, k, limit)
    upper = ranking.dual(k, limit, one, unit)
    price = one + unit * ranking.costs
    if upper <= ranking.value(counts) * (1.0 + 1e-13):
        nodes, proof = 0, "prices"
    else:
        nodes = search(
            ranking.prefix, ranking.start, ranking.costs, (k, limit), price, upper, counts,
            max_nodes,
        )  # fmt: skip
        proof = "search"
    if nodes < 0:
        counts, proof = integer_program(ranking, k, limit, counts, (one, unit)), "HiGHS"
    counts = _filled(ranking, counts, k, limit)
    value = ranking.value(counts)
    upper = upper if proof == "HiGHS" else value
    return TwoBudgetAnswer(ranking.mask(counts), value, max(upper, value), (one, unit), proof)


def integer_program(
    ranking: Ranking, k: int, limit: int, counts: Array, at: tuple[float, float]
) -> Array:
    """The integer program in HiGHS, over the weights that prices do not decide; better counts.

    A weight whose reduced score at the prices exceeds the gap to the incumbent ``counts`` is in, or
    out, in every better solution. Prices of 0 leave every weight to HiGHS.

    Raises
    ------
    SupportError
        If HiGHS ends without an answer.
    """
    repeats = np.diff(ranking.start)
    costs = np.repeat(ranking.costs, repeats)
    gap = ranking.dual(k, limit, *at) - ranking.value(counts)
    reduced = ranking.scores - at[0] - at[1] * costs
    fixed, core = reduced > gap, np.abs(reduced) <= gap * (1.0 + 1e-9)
    k, limit = k - int(fixed.sum()), limit - int(costs[fixed].sum())
    chosen = fixed.copy()
    if core.any():
        s = ranking.scores[core]
        rows = LinearConstraint(np.stack([np.ones(len(s)), costs[core]]), ub=[k, limit])
        found = milp(
            -_SCALE * s / (float(s.max()) or 1.0),
            constraints=rows,
            integrality=np.ones(len(s)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise SupportError(f"HiGHS found no mask within both budgets: {found.message}")
        chosen[core] = found.x > 0.5
    better = np.add.reduceat(chosen, ranking.start[:-1]).astype(np.int64)
    inside = better.sum() <= fixed.sum() + k and ranking.costs @ better <= (
        limit + int(costs[fixed].sum())
    )
    return better if inside and ranking.value(better) > ranking.value(counts) else counts


def _filled(ranking: Ranking, counts: Array, k: int, limit: int) -> Array:
    """Add what both budgets have room for, class after class from the cheapest."""
    counts = counts.copy()
    left, spend = k - int(counts.sum()), limit - int(ranking.costs @ counts)
    for c, room in enumerate(np.diff(ranking.start) - counts):
        if left <= 0:
            break
        cost = int(ranking.costs[c])
        more = min(left, int(room), spend // cost if cost else left)
        counts[c] += more
        left, spend = left - more, spend - more * cost
    return counts
