"""Other starts for the exchange search: random exchanges of the least certain weights."""

from __future__ import annotations

import torch

from chita_opt.curvature import LowRank
from chita_opt.heuristics.incumbent import Incumbent, complete
from chita_opt.heuristics.layerwise import layerwise
from chita_opt.heuristics.local_search import choose_candidates, local_search
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget

_CANDIDATES = 600  # least certain weights, of which a kick exchanges some
_LEAST, _MOST = 0.02, 0.1  # share of them
_NARROW = 300  # as many, for kicks that follow every solve
_SMALL = 1000  # weights up to which a search costs less than a relaxation
_EACH = 4  # weights for a kick: tiny problems have few local optima
_LOOSE = 0.01  # share of the increase over the dense minimum that a relaxation leaves open


def kicked(
    incumbent: Solution, draw: torch.Generator, *, candidates: int = _CANDIDATES
) -> Solution:
    """Take some of the least certain kept weights out and fill up at random by gain."""
    problem, mask = incumbent.problem, incumbent.mask.clone()
    solver = problem.curvature.support_solver(problem.separable, incumbent.mask, exact=False)
    chosen = choose_candidates(problem, solver, candidates)
    inside = chosen[mask[chosen]]
    share = _LEAST + (_MOST - _LEAST) * float(torch.rand((), generator=draw))
    count = min(len(inside), max(2, round(share * len(chosen))))
    out = torch.randperm(len(inside), generator=draw)[:count].to(inside.device)
    gains = torch.zeros_like(problem.w_bar)
    outside = chosen[~mask[chosen]]
    noise = torch.rand(len(outside), generator=draw, dtype=torch.float64).to(gains.device)
    gains[outside] = solver.pull[outside].square() * noise
    mask[inside[out]] = False
    moved = solver.moved(complete(problem, mask, gains))
    return Solution(problem, moved.weights, "kick", Status.FEASIBLE)


def search_again(problem: Problem, best: Incumbent, floor: float, *, kicks: int, seed: int) -> int:
    """Exchange searches from other supports where a relaxation says little; those that helped.

    A relaxation whose value ``floor`` is far below the incumbent points to a support no better
    than others. On small curvatures searches from the magnitude support, from that of a splitting
    and from a few kicks of the incumbent cost less than that relaxation did. Budgets are searched
    by walks too (:func:`~chita_opt.heuristics.layerwise.layerwise`), whose single exchanges are
    those of the exchange search. Elsewhere nothing is done.
    """
    size = best.value - problem.dense_minimum
    small = isinstance(problem.curvature, LowRank) and problem.p <= _SMALL
    if not small or best.value - floor <= _LOOSE * size:
        return 0
    helped = int(best.take(local_search(problem, time_limit=best.clock.remaining)))
    if isinstance(problem.supports, Budget) and not best.clock.expired:
        helped += best.take(layerwise(problem, time_limit=best.clock.remaining))
        helped += _searched(best, Solution(problem, best.w, "incumbent", Status.FEASIBLE))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(min(kicks, problem.p // _EACH)):
        if best.clock.expired:
            break
        at = Solution(problem, best.w, "incumbent", Status.FEASIBLE)
        helped += _searched(best, kicked(at, draw, candidates=_NARROW))
    return helped


def _searched(best: Incumbent, start: Solution) -> bool:
    """Whether walks and exchanges from ``start`` helped; for other families exchanges alone."""
    problem, left = best.problem, best.clock.remaining
    if isinstance(problem.supports, Budget):
        return best.take(layerwise(problem, start=start, time_limit=left))
    return best.take(local_search(problem, start=start, time_limit=left, candidates=_NARROW))


__all__ = ["kicked", "search_again"]
