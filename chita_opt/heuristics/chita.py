"""CHITA single stage: thresholding on an active set, then the backsolve."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.heuristics.iht import (
    Descent,
    IhtPoint,
    active_gradient,
    descend,
    first_points,
    solve_end,
    thresholded_step,
)
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.local_search import SearchOptions, improve
from chita_opt.heuristics.magnitude import one_step_support
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_ROUNDS = 10  # times the active set may grow


def chita(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    starts: int = 1,
    widen: float = 1.5,
    descent: Descent | None = None,
    exchanges: int = 40,
) -> Solution:
    """CHITA's single stage (ICML 2023, §3.2): IHT on an active set that grows, then a backsolve.

    The first active set is the support of a gradient step and its runners-up, ``widen`` times the
    budget in all. When the iteration has settled there, a step over all weights shows which
    others would enter; they join and it is repeated (ten times at most). Unlike the published
    code, no weight is dropped beforehand, the last solve is exact to float64, and some exact
    exchanges follow.

    Parameters
    ----------
    problem, start, time_limit
        As for every method.
    seed : int
        Of the random starts.
    starts : int
        Supports to begin from: ``start``'s or the one-step support, then random stratified ones.
    widen : float
        Size of the first active set over the budget, >= 1.
    descent : Descent, optional
        Steps on each active set (100 unless given), accuracy and momentum.
    exchanges : int
        Exact exchanges at the end, which the published method lacks; 0 for none, as where some
        rho is zero.
    """
    descent = descent or Descent(max_iter=100)
    best = Incumbent(problem, time_limit, start)
    status, rounds = Status.ITERATION_LIMIT, 0
    with best.until_interrupt():
        first = start.mask if start is not None else one_step_support(problem)
        for w in first_points(problem, start, first, starts, seed):
            point = IhtPoint.at(problem, w)
            best.offer(point.w, point.value)
            settled, count = _grow(problem, point, best, widen, descent)
            solve_end(problem, point, best, starts)
            status, rounds = Status.STATIONARY if settled else status, rounds + count
            if best.clock.expired:
                break
        if exchanges and float(problem.rho.min()) > 0.0 and not best.clock.expired:
            _exchange(problem, best, exchanges)
    return best.finish("chita", status, stats={"rounds": rounds})


def _grow(
    problem: Problem,
    point: IhtPoint,
    best: Incumbent,
    widen: float,
    descent: Descent,
) -> tuple[bool, int]:
    """Descend on growing active sets; (whether nothing more would enter, rounds)."""
    active = _widened(problem, point.w != 0, widen)
    for count in range(1, _ROUNDS + 1):
        descend(problem, point, best, active.nonzero().squeeze(1), descent)
        if best.clock.expired:
            return False, count
        thresholded_step(problem, point, active_gradient(problem, point, None))
        best.offer(point.w, point.value)
        entered = (point.w != 0) & ~active
        if not bool(entered.any()):
            return True, count
        active |= entered
    return False, _ROUNDS


def _exchange(problem: Problem, best: Incumbent, count: int) -> None:
    """One round of exact exchanges from the best support."""
    solver = problem.curvature.support_solver(problem.separable, best.w != 0, exact=False)
    best.offer(solver.weights, solver.value)
    improve(problem, solver, SearchOptions(candidates=160, max_rounds=1, max_swaps=count), best)


def _widened(problem: Problem, mask: Tensor, widen: float) -> Tensor:
    """``mask`` and the family's next best weights, about ``widen`` times as many."""
    extra = round((widen - 1.0) * int(mask.sum()))
    scores = problem.scores.masked_fill(mask, 0.0)
    runners_up = problem.supports.best_support(scores) & (scores > 0)
    ranked = torch.where(runners_up, scores, torch.zeros_like(scores)).argsort(descending=True)
    chosen = ranked[: min(extra, int(runners_up.sum()))]
    return mask.index_fill(0, chosen, True)
