r"""Relax, round, polish: the relaxation's indicators rounded by the family's oracle.

At network scale the perspective relaxation leaves at most about n of the p indicators fractional,
so its rounding is nearly optimal already. The support is solved, improved by exact exchanges among
the undecided weights, and a few random roundings of the fractional part are tried in one shared
small problem. On small problems a loose relaxation is only one start of several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.bounds.newton import SampleSpaceNewton
from chita_opt.bounds.relaxation import (
    RelaxationOptions,
    RelaxationState,
    StartPoint,
    maximise_dual,
)
from chita_opt.curvature import LowRank, SupportSolver
from chita_opt.curvature.woodbury import WoodburySupport
from chita_opt.errors import MethodError
from chita_opt.heuristics.group_exchange import exchange_groups
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.kicks import search_again
from chita_opt.heuristics.local_search import SearchOptions, improve, swap_down
from chita_opt.heuristics.refit import conjugate_refit
from chita_opt.heuristics.tableau import Tableau
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

_LIGHT = 2000  # weights up to which every relaxation is cheap
_WIDE = 3  # supports of so many times n leave many weights undecided: less smoothing to start
_SMALL, _GAPS = 4000, 200.0  # weights whose dense minimum is cheap; distances to the relaxation
_LINEAR = 3.0  # with a linear term the increase over the dense minimum is some magnitude tails
_REFIT_STEPS = 8  # of conjugate gradients on the first support
_REFIT_TOL = 1e-2  # relative decrease of the last step that makes their dual point a good start


@dataclass(frozen=True, kw_only=True)
class RoundingOptions:
    """How much care :func:`relax_round` takes; :data:`FAST` and :data:`THOROUGH` are two answers.

    Attributes
    ----------
    tol : float
        Relative accuracy of the relaxation.
    share : float
        What it may be short of as a share of its distance to the first answer, if that is less.
    slack : float
        How far from stationary the dual point may be, in units of ``tol``; a rounding needs the
        digits of the value more.
    enough : float
        Share of what is left to gain at which a proximal problem counts as solved.
    roundings : int
        Random roundings of the fractional indicators, each improved by exchanges.
    max_rounds, candidates, max_swaps : int
        Of the exchange search.
    swap_tol : float
        Relative decrease that is worth a swap.
    kicks : int
        Random exchanges, each followed by a search, where the relaxation of a small problem is
        loose.
    memory_limit : float
        Bytes for the relaxation's Newton system.
    """

    tol: float = 3e-3
    share: float = 0.05
    slack: float = 2.0
    enough: float = 1.3
    roundings: int = 0
    max_rounds: int = 1
    candidates: int = 400
    max_swaps: int = 400
    swap_tol: float = 1e-5
    kicks: int = 6
    memory_limit: float = 4e9


FAST = RoundingOptions()
"""An answer mostly within a percent of the best known one."""
THOROUGH = RoundingOptions(
    tol=3e-4,
    share=float("inf"),
    slack=1.0,
    enough=0.5,
    max_rounds=2,
    candidates=600,
    max_swaps=2000,
    swap_tol=1e-7,
    kicks=20,
)
"""What a certificate deserves, at about twice the time."""
_EFFORTS = {"fast": FAST, "thorough": THOROUGH}


def relax_round(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    effort: RoundingOptions | str = "fast",
) -> Solution:
    """The default method: perspective relaxation, rounding, exact exchanges, exact backsolve.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method. ``start``'s support is where the relaxation begins; the answer is
        never worse than ``start``.
    effort : {"fast", "thorough"} or RoundingOptions
        How much care is taken.

    Raises
    ------
    MethodError
        If some rho is zero (there is no relaxation to solve), the family has only an oracle, or
        the effort is unknown.
    """
    options = _check(problem, effort)
    best = Incumbent(problem, time_limit, start)
    stats: dict[str, object] = {}
    warm: dict[str, Tensor] = {}
    solver = None
    with best.until_interrupt():
        state = _relax(problem, best, start, options)
        best.interrupted = state.stopped == "interrupt"  # the rounding still pays, no more
        warm = {"z": state.z, "image": problem.curvature.image_of_dual(state.best_r)}
        stats |= {"newton_steps": state.steps, "relaxation": state.best, **state.stats}
        solver = _solve_rounded(problem, state)
        best.offer(solver.weights, solver.value)
        stats["rounded"] = solver.value
        if not best.interrupted:
            solver = _improve(problem, solver, state, best, options, seed, stats)
            stats["exchanged"] = exchange_groups(problem, best, thorough=options.max_rounds > 1)
            stats["searches"] = search_again(
                problem, best, state.best, kicks=options.kicks, seed=seed
            )
    exact = None
    with best.until_interrupt():
        exact = solver.polished() if isinstance(solver, WoodburySupport) else None
    return best.finish("relax_round", Status.STATIONARY, stats=stats, warm=warm, solver=exact)


def relaxes_cheaply(problem: Problem) -> bool:
    """Whether :func:`relax_round` serves and costs no more than an exchange search.

    On large curvatures without a low-rank factor the relaxation's Newton systems (one a row or
    block) cost more than the whole exchange search.
    """
    light = isinstance(problem.curvature, LowRank) or problem.p <= _LIGHT
    return light and float(problem.rho.min()) > 0.0 and problem.supports.is_smooth


def _check(problem: Problem, effort: RoundingOptions | str) -> RoundingOptions:
    """The options of an effort; refuse problems without a relaxation."""
    if not float(problem.rho.min()) > 0.0:
        raise MethodError("relax_round needs rho > 0; raise the ridge or use local_search")
    if not problem.supports.is_smooth:
        raise MethodError(
            f"relax_round needs a smoothed maximum, which {problem.supports.name} lacks; use chita"
        )
    if isinstance(effort, RoundingOptions):
        return effort
    if effort not in _EFFORTS:
        raise MethodError(f"effort is {effort!r}; give {' or '.join(_EFFORTS)}, or RoundingOptions")
    return _EFFORTS[effort]


def _improve(
    problem: Problem,
    solver: SupportSolver,
    state: RelaxationState,
    best: Incumbent,
    options: RoundingOptions,
    seed: int,
    stats: dict[str, object],
) -> SupportSolver:
    """Exchanges among the undecided weights first, then random roundings."""
    fractional = ((state.z > 1e-6) & (state.z < 1.0 - 1e-6)).nonzero().squeeze(1)
    stats["fractional"] = len(fractional)
    search = SearchOptions(
        candidates=options.candidates,
        max_rounds=options.max_rounds,
        max_swaps=options.max_swaps,
        tol=options.swap_tol,
        unit=_unit(problem, solver.value, state.best, options),
    )
    undecided = (state.z[fractional] - 0.5).abs().argsort()[: options.candidates // 2]
    solver, stats["rounds"], _ = improve(problem, solver, search, best, fractional[undecided])
    if options.roundings and len(fractional):
        solver = _random_roundings(problem, solver, state.z, options.roundings, seed, search, best)
    return solver


def _unit(problem: Problem, value: float, lower: float, options: RoundingOptions) -> float | None:
    """What the exchanges' tolerance is relative to; None for the increase itself.

    The dense minimum of a large problem with a linear term costs as much as the whole fast
    method: there the distance to the relaxation stands in, which says how much can be gained.
    """
    if options.max_rounds > 1 or problem.p <= _SMALL or not bool(problem.g.any()):
        return None
    return min(abs(value), _GAPS * max(value - lower, 0.0))


def _first_point(
    problem: Problem, best: Incumbent, start: Solution | None
) -> tuple[Tensor, Tensor | None]:
    """Support to begin from and, after some conjugate-gradient steps on it, its dual point."""
    if start is not None:
        return start.mask, None
    mask, r = problem.supports.best_support(problem.scores), None
    if isinstance(problem.curvature, LowRank) and bool(mask.any()):
        image, last = None, float("inf")
        for w, value, image in conjugate_refit(problem, mask, steps=_REFIT_STEPS):  # noqa: B007
            last, closing = value, last - value
            best.offer(w, value)
        if image is not None and closing < _REFIT_TOL * abs(last):
            r = problem.curvature.dual_of_image(image)
    return mask, r


def _relax(
    problem: Problem, best: Incumbent, start: Solution | None, options: RoundingOptions
) -> RelaxationState:
    mask, r = _first_point(problem, best, start)
    tail = float((0.5 * problem.rho * problem.scores)[~mask].sum())
    return maximise_dual(
        problem.curvature.factor(),
        problem.separable,
        problem.supports,
        scale=_LINEAR * tail if bool(problem.g.any()) else 0.0,
        options=RelaxationOptions(
            tol=options.tol,
            slack=options.slack,
            enough=options.enough,
            memory_limit=options.memory_limit,
            first=best.value,
            share=options.share,
            smoothing=0.5 if int(mask.sum()) > _WIDE * problem.curvature.image_size else 1.0,
        ),
        clock=Clock(best.clock.remaining),
        start=StartPoint(mask.double(), r),
        on_point=None if r is not None else best.offer,
    )


def rounded_mask(problem: Problem, z: Tensor, gains: Tensor) -> Tensor:
    """The oracle on z, ties broken by the gains."""
    scale = float(gains.max()) or 1.0
    return problem.supports.best_support(z + 1e-3 * (gains / scale).sqrt())


def _solve_rounded(problem: Problem, state: RelaxationState) -> SupportSolver:
    """Solve on the rounded support, from the relaxation's Gram matrix where there is one."""
    gains = state.c.square() / (2.0 * problem.rho)
    mask = rounded_mask(problem, state.z, gains)
    system, C = state.system, problem.curvature
    if (
        isinstance(system, SampleSpaceNewton)
        and isinstance(C, LowRank)
        and system.factor is C.factor()
    ):
        change = mask.double() / problem.rho - system.held
        index = change.nonzero().squeeze(1)
        if 2 * int(mask.sum()) > system.factor.dual_size and len(index) < int(mask.sum()):
            gram = system.factor.gram(index, change[index], onto=system.gram)
            system.held += change
            return WoodburySupport.solve(
                system.factor, problem.separable, mask, exact=False, gram=gram
            )
    return C.support_solver(problem.separable, mask, exact=False)


def _random_roundings(
    problem: Problem,
    solver: SupportSolver,
    z: Tensor,
    tries: int,
    seed: int,
    options: SearchOptions,
    best: Incumbent,
) -> SupportSolver:
    """Random roundings of the undecided weights, improved in one shared reduced problem."""
    generator = torch.Generator().manual_seed(seed)
    free = (z > 1e-6) & (z < 1.0 - 1e-6)
    distance = torch.where(
        free, -torch.ones_like(z), (solver.pull.square() / problem.rho).log().abs()
    )
    chosen = distance.topk(min(problem.p, max(options.candidates, int(free.sum()))), largest=False)
    index = chosen.indices.sort().values
    fixed = solver.mask.clone()
    fixed[index] = False
    base = solver.moved(fixed)
    Q, q = base.reduced(index), base.pull[index]
    lowest, winner = solver.value, None
    for _ in range(tries):
        if best.clock.expired:
            break
        noise = torch.rand(problem.p, generator=generator, dtype=torch.float64).to(z.device)
        scores = torch.where(fixed, 10.0, z + 0.6 * noise * free + 1e-3)
        scores = torch.where(
            fixed | torch.zeros_like(fixed).index_fill(0, index, True), scores, 0.0
        )
        tableau = Tableau(Q, q, problem.supports.best_support(scores)[index])
        swap_down(problem, tableau, index, fixed, options, best.clock, solver.value)
        if base.value + tableau.value < lowest:
            lowest, winner = base.value + tableau.value, tableau.inside.clone()
    if winner is None:
        return solver
    target = fixed.clone()
    target[index] = winner
    moved = solver.moved(target)
    best.offer(moved.weights, moved.value)
    return moved if moved.value < solver.value else solver
