"""Exchange local search: exact best swaps of one weight for another, from any solution.

Each round picks the few hundred weights whose exchange looks best (exact leverages, not
magnitudes), eliminates all other kept weights exactly, and swaps on the small dense problem that
is left until no exchange of two of its weights helps. Every family serves: it says which swaps
keep the support allowed. Groups kept whole are exchanged as wholes at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from chita_opt.curvature import SupportSolver
from chita_opt.heuristics.group_exchange import exchange_groups
from chita_opt.heuristics.incumbent import Incumbent, complete, keep_scores
from chita_opt.heuristics.magnitude import one_step_support
from chita_opt.heuristics.tableau import Tableau
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

_BATCH = 16  # pairs taken from one ranking


@dataclass(frozen=True)
class SearchOptions:
    """How far the search looks.

    Attributes
    ----------
    candidates : int
        Weights in each round's small problem.
    max_rounds : int
        Rounds; each chooses its candidates anew.
    max_swaps : int
        Swaps in each round.
    tol : float
        Relative decrease below which a round, or a swap, counts as none.
    unit : float or None
        What it is relative to; the increase over the dense minimum if None.
    """

    candidates: int = 600
    max_rounds: int = 20
    max_swaps: int = 2000
    tol: float = 1e-6
    unit: float | None = None

    def least(self, problem: Problem, value: float) -> float:
        """The smallest decrease from ``value`` that counts."""
        return self.tol * (problem.increase(value) if self.unit is None else self.unit)


def local_search(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    candidates: int = 600,
    max_rounds: int = 20,
) -> Solution:
    """Improve a solution by exact exchanges until none among the candidates helps.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; without a ``start`` the backsolve's support is taken.
    candidates, max_rounds : int
        See :class:`SearchOptions`.
    """
    best = Incumbent(problem, time_limit, start)
    options = SearchOptions(candidates=candidates, max_rounds=max_rounds)
    status, rounds, exchanged = Status.ITERATION_LIMIT, 0, 0
    with best.until_interrupt():
        mask = start.mask if start is not None else one_step_support(problem)
        mask = complete(problem, mask, keep_scores(problem))
        solver = problem.curvature.support_solver(problem.separable, mask, exact=False)
        best.offer(solver.weights, solver.value)
        solver, rounds, settled = improve(problem, solver, options, best)
        status = Status.STATIONARY if settled else status
        exchanged = exchange_groups(problem, best)
    return best.finish("local_search", status, stats={"rounds": rounds, "exchanged": exchanged})


def improve(
    problem: Problem,
    solver: SupportSolver,
    options: SearchOptions,
    best: Incumbent,
    extra: Tensor | None = None,
) -> tuple[SupportSolver, int, bool]:
    """Rounds of exchanges; ``extra`` are indices that the first round must consider."""
    for count in range(options.max_rounds):
        if best.clock.expired:
            return solver, count, False
        chosen = choose_candidates(problem, solver, options.candidates)
        if extra is not None and count == 0:
            chosen = torch.cat([chosen, extra]).unique()
        last = count + 1 == options.max_rounds
        moved = exchange_round(problem, solver, chosen, options, best.clock, exact=last)
        if moved is None or not solver.value - moved.value > options.least(problem, solver.value):
            return solver, count + 1, True
        solver = moved
        best.offer(solver.weights, solver.value)
    return solver, options.max_rounds, False


def choose_candidates(problem: Problem, solver: SupportSolver, count: int) -> Tensor:
    """Kept weights that are cheap to remove and pruned ones that gain most, by exact leverages."""
    p = problem.p
    if p <= count:
        return torch.arange(p, device=problem.device)
    mask, rho = solver.mask, problem.rho
    raw = torch.where(
        mask, solver.weights.square() * rho, solver.pull.square() / rho.clamp_min(1e-12)
    )
    margins = problem.supports.exchange_margins(0.5 * raw, mask)
    wide = both_sides(margins, mask, 2 * count)
    scores = 0.5 * raw
    inside, outside = wide[mask[wide]], wide[~mask[wide]]
    solver.prepare(wide)
    if len(inside):
        scores[inside] = 0.5 * solver.weights[inside].square() / solver.inverse_diagonal(inside)
    if len(outside):
        scores[outside] = 0.5 * solver.pull[outside].square() / solver.schur_diagonal(outside)
    margins = problem.supports.exchange_margins(scores, mask)
    narrow = torch.full_like(margins, torch.inf)
    narrow[wide] = margins[wide]
    return both_sides(narrow, mask, count)


def both_sides(margins: Tensor, mask: Tensor, count: int) -> Tensor:
    """The ``count`` smallest finite margins, half of them kept weights and half pruned ones."""
    chosen = []
    for side in (mask, ~mask):
        cost = torch.where(side, margins, torch.inf)
        size = min(count // 2, int(torch.isfinite(cost).sum()))
        chosen.append(cost.topk(size, largest=False, sorted=False).indices)
    return torch.cat(chosen).sort().values


def exchange_round(
    problem: Problem,
    solver: SupportSolver,
    chosen: Tensor,
    options: SearchOptions,
    clock: Clock,
    *,
    exact: bool = False,
) -> SupportSolver | None:
    """Best swaps among ``chosen``, the other kept weights eliminated; None if none was found.

    ``exact`` asks for the new support's weights to float64.
    """
    mask = solver.mask
    fixed = mask.clone()
    fixed[chosen] = False
    tableau = _tableau(solver, chosen, fixed)
    swaps = swap_down(problem, tableau, chosen, fixed, options, clock, solver.value)
    if swaps == 0:
        return None
    target = fixed.clone()
    target[chosen] = tableau.inside
    return solver.moved(target, exact=exact)


def _tableau(solver: SupportSolver, chosen: Tensor, fixed: Tensor) -> Tableau:
    """The small problem on ``chosen``: swept from the solver at hand, or by a new solve."""
    inside = solver.mask[chosen]
    V = solver.swept(chosen)
    if V is None:
        base = solver.moved(fixed)
        return Tableau(base.reduced(chosen), base.pull[chosen], inside)
    u = torch.where(inside, solver.weights[chosen], solver.pull[chosen])
    return Tableau.swept(V, u, inside, solver.value)


class Exchanges(Protocol):
    """A small problem whose exchanges are known exactly; :class:`Tableau` is one."""

    inside: Tensor

    def toggle(self, j: int) -> None:
        """Move index j in or out."""

    def exchange(self, a: int, b: int) -> float:
        """Change of the value when ``a`` leaves and ``b`` enters."""

    def best_exchanges(
        self, allowed: Tensor | None, out: Tensor, into: Tensor, count: int = 1
    ) -> list[tuple[float, int, int]]:
        """The ``count`` best allowed pairs as (change, leaving, entering)."""


def swap_down(
    problem: Problem,
    tableau: Exchanges,
    chosen: Tensor,
    fixed: Tensor,
    options: SearchOptions,
    clock: Clock,
    value: float,
) -> int:
    """Take the best allowed exchanges until none lowers the value; the number taken.

    All pairs are ranked at once; the best of them are taken in turn, each judged anew by its exact
    change. ``value`` is the objective that they lower.
    """
    mask = fixed.clone()
    mask[chosen] = tableau.inside
    floor, count = options.least(problem, value), 0
    while count < options.max_swaps and not clock.expired:
        out = tableau.inside.nonzero().squeeze(1)
        into = (~tableau.inside).nonzero().squeeze(1)
        if not len(out) or not len(into):
            break
        allowed = problem.supports.can_swap(mask, chosen[out], chosen[into])
        taken = 0
        for change, a, b in tableau.best_exchanges(allowed, out, into, _BATCH):
            if not change < -floor:
                break
            if taken and not _still_pays(problem, tableau, mask, chosen, (a, b), 0.7 * change):
                continue
            tableau.toggle(a)
            tableau.toggle(b)
            mask[chosen[a]], mask[chosen[b]] = False, True
            taken += 1
        count += taken
        if not taken:
            break
    return count


def _still_pays(
    problem: Problem,
    tableau: Exchanges,
    mask: Tensor,
    chosen: Tensor,
    pair: tuple[int, int],
    promised: float,
) -> bool:
    """Whether a pair ranked before other swaps is still allowed and gains most of its promise."""
    a, b = pair
    if not bool(tableau.inside[a]) or bool(tableau.inside[b]):
        return False
    if not tableau.exchange(a, b) < promised:
        return False
    allowed = problem.supports.can_swap(mask, chosen[a : a + 1], chosen[b : b + 1])
    return allowed is None or bool(allowed.all())
