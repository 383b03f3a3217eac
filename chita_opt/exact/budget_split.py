r"""The best split of a budget of k weights among blocks with known value curves, and its bound.

With :math:`\phi_B(\kappa)` the value of block B with at most :math:`\kappa` weights the split is

.. math:: \min\ \sum_B\phi_B(\kappa_B)\qquad\text{s.t. }\sum_B\kappa_B\le k .

The curves' upper values give a split, their lower values bound every split, in two ways:

* by the same problem over the lower values, solved exactly: a dynamic program over counts, or
  the multiple-choice knapsack in HiGHS (:func:`chita_opt.formulations.multiple_choice_milp`);
* by one price y >= 0 for all blocks (the Lagrangian),
  :math:`\sum_B\min_\kappa(\ell_B(\kappa)+y\kappa)-yk`, whose best value is the problem over the
  convex minorants of the :math:`\ell_B` and so never above the first. It is the bound to trust
  least and check soonest: the price alone is its witness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from chita_opt.errors import MethodError, ProblemError
from chita_opt.exact.result import BlockProof, TreeResult, relative_gap
from chita_opt.exact.value_curves import ValueCurve
from chita_opt.formulations import multiple_choice_milp
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

Options = Sequence[tuple[Array, Array]]
"""Of every block its counts, increasing, and a value for each."""


@dataclass(frozen=True, eq=False)
class BudgetSplit:
    """Counts for the blocks, and what no split can beat.

    Attributes
    ----------
    counts : tuple of int
        Weights of each block.
    upper : float
        Sum of the blocks' values at these counts.
    lower : float
        The split's bound by exact optimisation over the blocks' bounds.
    priced : float
        The bound by one price, at most ``lower`` but for rounding.
    price : float
        Loss that one further weight is worth, y.
    floor : float
        Sum of the dense minima, which the relative gap refers to.
    """

    counts: tuple[int, ...]
    upper: float
    lower: float
    priced: float
    price: float
    floor: float

    @property
    def gap(self) -> float:
        """(upper - lower) relative to the increase over the dense minimum."""
        return relative_gap(self.lower, self.upper, self.upper - self.floor)


class PricedBound(NamedTuple):
    """The Lagrangian's best value, its price, and the value over convex minorants."""

    value: float
    price: float
    minorants: float


def split_curves(
    curves: Sequence[ValueCurve],
    total: int,
    *,
    method: Literal["program", "knapsack"] = "program",
) -> BudgetSplit:
    """The best split of ``total`` weights over curves, with its bounds.

    Parameters
    ----------
    curves : sequence of ValueCurve
        One a block.
    total : int
        k, at most so many weights in all.
    method : {"program", "knapsack"}
        Dynamic program, or HiGHS: then its choice is taken and valued here, and its word is what
        says that no split over the bounds is lower.

    Raises
    ------
    ProblemError
        If the curves' least counts together exceed ``total``.
    MethodError
        If the method is unknown, or HiGHS ends without an optimum.
    """
    solvers = {"program": best_counts, "knapsack": knapsack_counts}
    if method not in solvers:
        raise MethodError(f"method is {method!r}; choose {' or '.join(map(repr, solvers))}")
    pick, bounded = solvers[method], _bounds(curves)
    upper, chosen = pick([(curve.ks, curve.upper) for curve in curves], total)
    lower = min(pick(bounded, total)[0], upper)
    priced = priced_bound(bounded, total)
    floor = sum(curve.floor for curve in curves)
    return BudgetSplit(tuple(chosen), upper, lower, priced.value, priced.price, floor)


def value_at(curves: Sequence[ValueCurve], counts: Sequence[int]) -> tuple[float, float]:
    """Value and bound of a given split, such as one of :func:`chita_opt.supports.split_budget`."""
    upper = lower = 0.0
    for curve, count in zip(curves, counts, strict=True):
        place = curve.place(count)
        if place < 0:
            raise ProblemError(
                f"the curve begins at {curve.ks[0]} weights, the split gives {count}"
            )
        bound = min(int(np.searchsorted(curve.ks, count)), len(curve.ks) - 1)
        upper, lower = upper + float(curve.upper[place]), lower + float(curve.lower[bound])
    return upper, lower


def _bounds(curves: Sequence[ValueCurve]) -> Options:
    return [(curve.bounded_from, curve.lower) for curve in curves]


def best_counts(options: Options, total: int) -> tuple[float, list[int]]:
    """Smallest sum of one value a block with at most ``total`` weights, by dynamic programming.

    Ties go to the smaller count of the later block. The work is ``total`` for every option.

    Raises
    ------
    ProblemError
        If the least counts together exceed ``total``.
    """
    _check_room(options, total)
    best = np.zeros(total + 1)
    choices = []
    for counts, values in options:
        joined = np.full(total + 1, np.inf)
        choice = np.zeros(total + 1, dtype=np.int64)
        for count, value in zip(counts.tolist(), values.tolist(), strict=True):
            if count > total:
                break
            trial = value + best[: total + 1 - count]
            better = trial < joined[count:]
            joined[count:][better] = trial[better]
            choice[count:][better] = count
        choices.append(choice)
        best = joined
    left, chosen = total, []
    for choice in reversed(choices):
        chosen.append(int(choice[left]))
        left -= chosen[-1]
    return float(best[total]), chosen[::-1]


def knapsack_counts(options: Options, total: int) -> tuple[float, list[int]]:
    """The same by HiGHS on the multiple-choice knapsack; the value is that of its choice.

    Raises
    ------
    MethodError
        If HiGHS ends without an optimum.
    ProblemError
        If the least counts together exceed ``total``.
    """
    import pyomo.environ as pyo

    _check_room(options, total)
    sizes = [float(np.ptp(values)) for _, values in options]
    unit = max(sizes) / 1e4 or 1.0  # tolerances of solvers are absolute
    scaled = [(values.min() - values) / unit for _, values in options]
    model = multiple_choice_milp(scaled, [counts for counts, _ in options], total)
    engine = pyo.SolverFactory("appsi_highs")
    engine.config.mip_gap = 0.0
    engine.highs_options = {"mip_abs_gap": 0.0, "mip_feasibility_tolerance": 1e-9}
    result = engine.solve(model)
    if result.solver.termination_condition != pyo.TerminationCondition.optimal:
        raise MethodError(
            f"HiGHS ended with {result.solver.termination_condition}; use method='program'"
        )
    value, chosen = 0.0, []
    for r, (counts, values) in enumerate(options):
        o = max(range(len(counts)), key=lambda o: model.y[r, o].value)
        chosen.append(int(counts[o]))
        value += float(values[o])
    return value, chosen


def _check_room(options: Options, total: int) -> None:
    least = sum(int(counts[0]) for counts, _ in options)
    if least > total:
        raise ProblemError(
            f"the blocks keep at least {least} weights together, the budget is {total}; raise it, "
            "or let the curves begin at lower counts"
        )


def priced_bound(options: Options, total: int) -> PricedBound:
    """The best bound by one price, and the same value over the convex minorants."""
    hulls = [_minorant(counts, values) for counts, values in options]
    left = total - sum(int(counts[0]) for counts, _ in hulls)
    value = sum(float(values[0]) for _, values in hulls)
    widths = np.concatenate([np.diff(counts) for counts, _ in hulls])
    gains = np.concatenate([-np.diff(v) / np.diff(c) for c, v in hulls])
    price = 0.0
    for i in np.argsort(-gains, kind="stable"):
        taken = min(left, widths[i])
        value -= float(gains[i] * taken)
        left -= int(taken)
        if taken < widths[i]:
            price = max(float(gains[i]), 0.0)
            break
    priced = sum(float(np.min(values + price * counts)) for counts, values in options)
    return PricedBound(priced - price * total, price, value)


def _minorant(counts: Array, values: Array) -> tuple[Array, Array]:
    """The corners of the convex minorant."""
    kept: list[int] = []
    for i in range(len(counts)):
        while len(kept) > 1 and _above(counts, values, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(i)
    return counts[kept], values[kept]


def _above(c: Array, v: Array, a: int, b: int, i: int) -> bool:
    """Whether point b lies on or above the line from a to i."""
    return bool((v[b] - v[a]) * (c[i] - c[a]) >= (v[i] - v[a]) * (c[b] - c[a]))


def join_curves(
    problem: Problem,
    curves: Sequence[ValueCurve],
    *,
    price: bool = False,
) -> TreeResult:
    """The whole problem's weights and bound from its blocks' curves.

    Where every curve has its logs (``TreeOptions(proof=True)``) the result can be saved and
    verified; with ``price`` the file's bound is the one by a price.

    Parameters
    ----------
    problem : Problem
        What :func:`chita_opt.exact.split_into_blocks` has split.
    curves : sequence of ValueCurve
        Of its blocks, in order, with weights.

    Raises
    ------
    ProblemError
        If the curves have no weights, or not those of the problem's blocks.
    """
    clock = Clock()
    split = split_curves(curves, problem.supports.max_count)
    parts = [c.w[c.place(k)] for c, k in zip(curves, split.counts, strict=True) if c.w is not None]
    if len(parts) < len(curves) or sum(len(part) for part in parts) != problem.p:
        raise ProblemError(
            f"the curves hold weights of {sum(len(part) for part in parts)} variables, the problem "
            f"has {problem.p}; give a curve with weights for every block"
        )
    statuses = [curve.status for curve in curves]
    status = next((s for s in statuses if s is not Status.OPTIMAL), Status.OPTIMAL)
    solution = Solution(
        problem, torch.from_numpy(np.concatenate(parts)), "join_curves", status, clock.elapsed
    )
    lower = min(split.priced if price else split.lower, solution.objective)
    proofs = [curve.proof for curve in curves if curve.proof is not None]
    proof = None
    if len(proofs) == len(curves):
        proof = BlockProof(tuple(proofs), split.price if price else None)
    nodes = sum(curve.nodes for curve in curves)
    return TreeResult(solution, lower, status, nodes, clock.elapsed, lower, proof=proof)


__all__ = [
    "BudgetSplit",
    "PricedBound",
    "best_counts",
    "join_curves",
    "knapsack_counts",
    "priced_bound",
    "split_curves",
    "value_at",
]
