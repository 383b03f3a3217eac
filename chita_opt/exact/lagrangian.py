r"""One price for kept weights in all blocks: the Lagrangian of the total.

With :math:`\phi_B(\kappa)` a bound for block B with at most :math:`\kappa` weights, every price
:math:`y\ge0` bounds the whole under a total of k by

.. math:: L(y)=\sum_B\min_\kappa\big(\phi_B(\kappa)+y\kappa\big)-yk .

L is concave and piecewise linear; its best price is a slope of the convex hulls of the
:math:`\phi_B`. Only counts that some price near the best one uses are bounded: :math:`\phi_B` falls
with :math:`\kappa`, so a bound for a count holds for all smaller ones, and intervals between known
counts are halved where the minimum lies in them.

Source: Geoffrion, *Mathematical Programming Study* 2 (1974).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from chita_opt.errors import ProblemError
from chita_opt.exact.blocks import Coupling, block_paths, split_into_blocks
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.path import PathSolver
from chita_opt.exact.result import BlockProof, TreeResult
from chita_opt.exact.tree_search.bounding import AscentOptions
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import Budget
from chita_opt.supports.base import Array

_CLOSE = AscentOptions(enough=2e-4)
_TIE = 1e-12  # relative difference of equal values


def block_lagrangian(
    problem: Problem, *, time_limit: float | None = None, node_limit: int | None = None
) -> TreeResult:
    """The best Lagrangian bound from bounds of the blocks, with its logs and its price.

    Parameters
    ----------
    problem : Problem
        Block-diagonal or shared-row curvature under a budget.
    time_limit : float, optional
        Seconds over the whole call.
    node_limit : int, optional
        Nodes for every count of a block that is bounded; 1 if absent.

    Raises
    ------
    ProblemError
        If the problem does not fall into blocks under a budget.
    """
    clock, family = Clock(time_limit), problem.supports
    paths = block_paths(split_into_blocks(problem))
    if not isinstance(family, Budget):
        raise ProblemError(f"{family.name} is no budget; use strength='diagonal' or 'tree'")
    total, status = family.max_count, Status.STATIONARY
    options = TreeOptions(proof=True, node_limit=node_limit or 1)
    try:
        while True:
            wanted = _wanted(paths, best_price(paths, total))
            if clock.expired:
                status = Status.TIME_LIMIT
            if not wanted or clock.expired:
                break
            for path, i in wanted:
                if clock.expired:
                    break
                own = replace(options, time_limit=clock.remaining)
                if path.solve(i, own, ascent=_CLOSE) is Status.INTERRUPTED:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    proof = BlockProof(tuple(path.proof() for path in paths), best_price(paths, total))
    lower = value_at(paths, proof.price or 0.0, total)
    solution = _solution(problem, Coupling(paths, total), status, clock)
    nodes = sum(path.nodes for path in paths)
    return TreeResult(
        solution, min(lower, solution.objective), status, nodes, clock.elapsed, lower, proof=proof
    )


def best_price(paths: list[PathSolver], total: int) -> float:
    """A maximiser of L: the first slope of the blocks' hulls that the total has no room for."""
    slopes = np.sort(np.concatenate([_hull_slopes(path.lower) for path in paths]))[::-1]
    return float(slopes[total]) if total < len(slopes) else 0.0


def value_at(paths: list[PathSolver], price: float, total: int) -> float:
    """L at a price."""
    parts = [float(np.min(path.lower + price * path.ks)) for path in paths]
    return sum(parts) - price * total


def _hull_slopes(values: Array) -> Array:
    """Decreases of the lower convex hull of a falling sequence, one an index."""
    corners = [0]
    for i in range(1, len(values)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (values[b] - values[a]) * (i - b) <= (values[i] - values[b]) * (b - a):
                break
            corners.pop()
        corners.append(i)
    lengths = np.diff(corners)
    return np.repeat(-np.diff(values[corners]) / np.maximum(lengths, 1), lengths)


def _wanted(paths: list[PathSolver], price: float) -> list[tuple[PathSolver, int]]:
    """Where a bound is due: minimal counts that are not known, or halfway to the next known one.

    The first and the last minimal count of a block both matter: at the best price some block has
    two, and the price is known to be the best only once neither can rise.
    """
    found = []
    for path in paths:
        values = path.lower + price * path.ks
        minimal = np.flatnonzero(values <= values.min() + _TIE * np.abs(values).max())
        known = np.array([-1, *sorted(path.tried), len(path.ks)])
        places = {_halfway(known, int(i)) for i in minimal[[0, -1]] if i not in path.tried}
        found += [(path, i) for i in sorted(places)]
    return found


def _halfway(known: Array, i: int) -> int:
    """The middle of the interval of ``known`` around i; the largest count before all others."""
    place = int(np.searchsorted(known, i))
    low, high = int(known[place - 1]), int(known[place])
    return high - 1 if high == known[-1] else (low + 1 + high) // 2


def _solution(problem: Problem, coupling: Coupling, status: Status, clock: Clock) -> Solution:
    """The best weights that the blocks' paths make together."""
    high = coupling.bounds()[3]
    w = np.concatenate([path.w[i] for path, i in zip(coupling.paths, high, strict=True)])
    return Solution(problem, torch.from_numpy(w), "lagrangian", status, clock.elapsed)


__all__ = ["block_lagrangian"]
