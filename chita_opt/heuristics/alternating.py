r"""Alternate between what a family decides first and the weights inside that decision.

Block widths, and groups kept whole, are a decision that leaves budgets with thresholds
(``laminar_part``). A round improves the weights inside a decision by exact swaps, then decides
anew: by the family's oracle on the scores :math:`H_{jj}v_j^2/2`, what a step of coordinate descent
would make weight j worth, :math:`v=w-\nabla f(w)/\mathrm{diag}H`. The better solution is kept; it
ends where a round gains nothing. Groups kept whole are then exchanged, one for one, by the exact
objective.
"""

from __future__ import annotations

from torch import Tensor

from chita_opt.heuristics.group_exchange import exchange_groups
from chita_opt.heuristics.iht import iht
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.local_search import local_search
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_SMALLEST = 1e-9  # relative gain of a round that goes on


def alternating(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    rounds: int = 10,
) -> Solution:
    """Alternate decisions (widths, live groups) and weights.

    Parameters
    ----------
    problem : Problem
        Any family; where it has no ``laminar_part`` the swaps are within the family itself.
    start : Solution, optional
        Feasible; never made worse. Iterative hard thresholding if absent.
    time_limit : float, optional
        Seconds.
    seed : int
        Passed on to the methods within.
    rounds : int
        Decisions at most.
    """
    best = Incumbent(problem, time_limit, start)
    status, count, exchanged = Status.ITERATION_LIMIT, 0, 0
    with best.until_interrupt():
        if start is None:
            best.take(iht(problem, time_limit=best.clock.remaining, seed=seed))
        mask = best.w != 0
        for count in range(1, rounds + 1):
            before = best.value
            _inside(problem, mask, best, seed)
            if best.clock.expired:
                break
            if count > 1 and before - best.value <= _SMALLEST * problem.increase(before):
                status = Status.STATIONARY
                break
            mask = _decision(problem, best.w)
        exchanged = exchange_groups(problem, best)
    return best.finish("alternating", status, stats={"rounds": count, "exchanged": exchanged})


def _inside(problem: Problem, mask: Tensor, best: Incumbent, seed: int) -> None:
    """Exact swaps inside the decision of a mask."""
    part = problem.supports.laminar_part(mask)
    inner = problem if part is None else problem.with_supports(part)
    solver = problem.curvature.support_solver(problem.separable, mask)
    begin = Solution(inner, solver.weights, "decision", Status.FEASIBLE)
    best.take(local_search(inner, start=begin, time_limit=best.clock.remaining, seed=seed))


def _decision(problem: Problem, w: Tensor) -> Tensor:
    """The mask that the family would choose after a step of each coordinate by itself."""
    H = problem.curvature.diagonal() + problem.rho
    moved = w - problem.gradient(w) / H
    return problem.supports.best_support(0.5 * H * moved.square())


__all__ = ["alternating"]
