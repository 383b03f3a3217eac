"""The default for layers: splitting, then every row improved by exact exchanges and walks.

A slow splitting (see :mod:`chita_opt.heuristics.alps`) gives a support. In every row, weights enter
in the order of their exact gains and leave in the order of their exact costs, a few at a time, and
the best exchanges of two are taken until none helps. A last walk past the row's count learns what
the row would pay with fewer weights and gain with more; the budget is then divided anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chita_opt.curvature import SupportSolver
from chita_opt.errors import MethodError
from chita_opt.heuristics.alps import PenaltySchedule, Splitting
from chita_opt.heuristics.incumbent import Incumbent, complete, keep_scores
from chita_opt.heuristics.quotas import FIXED, RowQuotas
from chita_opt.heuristics.row_counts import split_count
from chita_opt.heuristics.row_systems import (
    WIDEST,
    RowSystem,
    has_layers,
    row_systems,
    widest_row,
)
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget
from chita_opt.supports.base import Array

SLOW = PenaltySchedule(first=0.02, growth=(1.1, 1.07, 1.04))
"""A penalty that grows slowly: better supports for about twice the iterations."""


@dataclass(frozen=True, kw_only=True)
class RowSearch:
    """How far :func:`layerwise` looks.

    Attributes
    ----------
    walks : tuple of int
        Weights that enter before as many leave, walk by walk; exchanges follow each.
    window : int
        Counts above and below the present one that the last walk of a row learns about.
    rounds : int
        Times that the rows are searched and the budget divided anew.
    tol : float
        Decrease that is worth an exchange, relative to a row's mean objective.
    """

    walks: tuple[int, ...] = (16, 16)
    window: int = 8
    rounds: int = 1
    tol: float = 1e-5


def layerwise(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    schedule: PenaltySchedule | None = None,
    search: RowSearch | None = None,
) -> Solution:
    """The default for layer-wise problems; any curvature whose rows' matrices can be formed.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method. With a ``start`` its support is improved, without the splitting.
        ``seed`` is unused.
    schedule : PenaltySchedule, optional
        Of the splitting; :data:`SLOW` if None.
    search : RowSearch, optional
        How far the rows are searched.

    Raises
    ------
    MethodError
        If the family is not a budget on groups, or a row is too wide for its matrix.
    """
    if not isinstance(problem.supports, Budget):
        raise MethodError(
            f"layerwise exchanges weights within groups; {problem.supports.name} has none: use alps"
        )
    best = Incumbent(problem, time_limit, start)
    stats: dict[str, object] = {}
    status = Status.ITERATION_LIMIT
    with best.until_interrupt():
        systems = row_systems(problem)
        mask = _first_support(problem, systems, best, start, schedule or SLOW)
        solver = problem.curvature.support_solver(problem.separable, mask)
        best.offer(solver.weights, solver.value)
        stats["start"] = solver.value
        rows = LayerRows(problem, systems)
        for number in range((search or RowSearch()).rounds):
            moved = rows.improve(solver, search or RowSearch(), best)
            stats["rounds"] = number + 1
            if not best.offer(moved.weights, moved.value):
                status = Status.STATIONARY
                break
            solver = moved
            if best.clock.expired:
                break
    return best.finish("layerwise", status, stats=stats)


def suits_layers(problem: Problem) -> bool:
    """Whether the curvature is that of layers and :func:`layerwise` serves the problem."""
    C = problem.curvature
    ridge = float(problem.rho.min()) > 0.0
    budget = isinstance(problem.supports, Budget)
    return has_layers(C) and widest_row(C) <= WIDEST and ridge and budget


def _first_support(
    problem: Problem,
    systems: list[RowSystem],
    best: Incumbent,
    start: Solution | None,
    schedule: PenaltySchedule,
) -> Tensor:
    """The start's support, or that of the splitting, filled up to the caps."""
    if start is not None:
        return complete(problem, start.mask, keep_scores(problem))
    mask = problem.supports.best_support(problem.scores)
    w = torch.where(mask, problem.w_bar, 0.0)
    best.offer(w, problem.objective(w))
    splitting = Splitting(problem, systems)
    splitting.run(schedule, best)
    return complete(problem, splitting.mask, keep_scores(problem))


class LayerRows:
    """All rows of a problem, their matrices and rules on the CPU."""

    def __init__(self, problem: Problem, systems: list[RowSystem]) -> None:
        self.problem = problem
        self.quotas = RowQuotas(problem.supports, systems)
        self.systems = [s.to("cpu") for s in systems]

    def improve(self, solver: SupportSolver, search: RowSearch, best: Incumbent) -> SupportSolver:
        """One round over the rows; the exact minimiser on the new support.

        When the time is up or Ctrl-C comes, the rows done so far count.
        """
        mask = solver.mask.cpu().numpy().copy()
        pools: dict[int, list[_Row]] = {}
        increase = self.problem.increase(solver.value)
        tol = search.tol * increase / sum(len(s.index) for s in self.systems)
        try:
            for system in self.systems:
                for index, centre in zip(system.index.numpy(), system.centre.numpy(), strict=True):
                    if best.clock.expired:
                        break
                    row = self._search(system, index, centre, mask, search, tol)
                    mask[index] = row.support(int(mask[index].sum()))
                    if row.pool != FIXED:
                        pools.setdefault(row.pool, []).append(row)
            for rows in pools.values():
                _divide(rows, mask)
        except KeyboardInterrupt:
            best.interrupted = True
        return solver.moved(torch.from_numpy(mask).to(self.problem.device), exact=True)

    def _search(
        self, system: RowSystem, index: Array, centre: Array, mask: Array, search: RowSearch,
        tol: float,
    ) -> _Row:  # fmt: skip
        """Walks and exchanges of one row at its count, then a walk past it."""
        from chita_opt.heuristics.row_tableau import RowTableau, RowWindow

        inside = mask[index]
        quota, count, d = self.quotas.of(index, inside), int(inside.sum()), len(index)
        reach = 0 if quota.pool == FIXED else search.window
        low = max(count - reach, 0)
        high = min(count + max((reach, *search.walks)), d)
        tableau = RowTableau(system, centre, inside, quota)
        window = RowWindow(low, high, tableau)
        if 0 < count < d:
            tableau.exchange(tol, window)
            for adds in search.walks:
                tableau.walk(min(adds, d // 4 + 1), count, window)
                tableau.exchange(tol, window)
        if reach:
            tableau.walk(min(reach, high - count), low, window)
        return _Row(index, quota.pool, window.base, window.values, window.supports)


@dataclass(frozen=True, eq=False)
class _Row:
    """What is known about a row: the best support at every count in a window."""

    index: Array
    pool: int
    base: int
    values: Array
    supports: Array

    def support(self, count: int) -> Array:
        return self.supports[count - self.base]


def _divide(rows: list[_Row], mask: Array) -> None:
    """Divide the rows' joint count anew and write their supports into ``mask``."""
    total = sum(int(mask[row.index].sum()) for row in rows)
    values = np.full((len(rows), max(len(row.values) for row in rows)), np.inf)
    for r, row in enumerate(rows):
        values[r, : len(row.values)] = row.values
    base = np.array([row.base for row in rows])
    for row, count in zip(rows, split_count(base, values, total), strict=True):
        mask[row.index] = row.support(int(count))


__all__ = ["SLOW", "RowSearch", "layerwise", "suits_layers"]
