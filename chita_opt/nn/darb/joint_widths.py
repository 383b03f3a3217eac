"""Block widths and weights together, by the family's own dual bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from chita_opt.bounds import dual_bound, dual_point
from chita_opt.errors import SupportError
from chita_opt.heuristics import solve
from chita_opt.nn.darb.patterns import dual_gains
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution
from chita_opt.supports.block_widths import BlockWidths

_GAIN = 1e-6  # relative gain of a round that goes on
_TOL = 1e-3  # of the family's bound, of which only scores are used


def solve_with_widths(
    problem: Problem,
    method: str = "relax_round",
    *,
    start: Solution | None = None,
    rounds: int = 3,
    time_limit: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Solution:
    r"""Choose the block width of every row and the weights for the quadratic model.

    Given widths, the masks are a budget on a partition, which every method solves. The widths are
    those of the best total of scores under the budget: first each weight's gain in the dual bound
    of irregular pruning to as many weights, then in the bound of the family itself, at whose best
    witness the oracle's widths are those that the relaxation prefers. Ends where a round gains
    nothing.

    Parameters
    ----------
    problem : Problem
        With a :class:`~chita_opt.supports.block_widths.BlockWidths` family and rho > 0.
    method : str
        For given widths; a name of ``METHODS``.
    start : Solution, optional
        Whose widths are tried first; a start that is feasible is never made worse.
    rounds : int
        Rounds with the family's own bound.
    time_limit : float, optional
        Seconds over the whole call; the first answer is always completed.
    seed, **options
        Passed on to the method.

    Returns
    -------
    Solution
        For ``problem``.

    Raises
    ------
    SupportError
        If the family is another.
    """
    family, clock = problem.supports, Clock(time_limit)
    if not isinstance(family, BlockWidths):
        raise SupportError(f"{family.name} has no block widths to choose; use solve")

    def inside(mask: Tensor) -> Solution:
        """The best weights with the widths that a mask has."""
        own = replace(problem, supports=family.laminar_part(mask))
        found = solve(own, method, seed=seed, time_limit=clock.remaining, **options)
        return replace(found, problem=problem)

    gains = dual_gains(problem, family.budget, time_limit=time_limit)
    found = [inside(family.best_support(gains))]
    if start is not None and family.contains(start.mask):
        found += [replace(start, problem=problem), inside(start.mask)]
    best = min(found, key=lambda solution: solution.objective)
    for _ in range(rounds):
        if clock.expired:
            break
        bound = dual_bound(problem, start=best, tol=_TOL, splits="none", time_limit=clock.remaining)
        gains = dual_point(problem, bound.witness, bound.split).gains
        step = inside(family.best_support(gains))
        gained = step.objective < best.objective * (1.0 - _GAIN)
        best = min(best, step, key=lambda solution: solution.objective)
        if not gained:
            break
    return replace(best, method=f"widths+{method}", seconds=clock.elapsed)


__all__ = ["solve_with_widths"]
