"""Solve and prove in one call, under one time limit, surviving Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, overload

from chita_opt.bounds import Bound, dual_bound, dual_point, trivial_bound
from chita_opt.bounds.splits import safe_split
from chita_opt.certificates.certificate import Certificate, certify
from chita_opt.curvature import BlockDiagonal, LowRank, SharedRows
from chita_opt.errors import ProblemError
from chita_opt.heuristics import THOROUGH, choose_method, solve
from chita_opt.heuristics.portfolio import WITH_ROUNDINGS
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

OPTIMAL_GAP = 1e-9
"""Relative gap, rounding included, from which an answer is called optimal."""
_LOOSE = 0.02  # relative gap above which blocks are given splits of their own
_LEAST = 0.05  # seconds that are worth beginning for
_UNASKED_WORK = 2e9  # cubes of block sizes: some seconds, where no time limit says how many
_CHECK_PASSES = 6  # what a certificate's own arithmetic costs, in products with the curvature


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard to try.

    Attributes
    ----------
    method : str
        A name of ``METHODS``, "auto" or "hybrid" (:func:`chita_opt.exact.hybrid`, which brings its
        own bound); "best" leaves to the bound what it does not need.
    time_limit : float or None
        Seconds over method, bound and the certificate's own arithmetic, which is foreseen from one
        measured product: the method gets half of the rest, the bound what then is left. Where the
        curvature falls into blocks (layer inputs), a loose bound is raised in that time by each
        block's own best split; without a limit, only on blocks where that takes seconds.
    target_gap : float or None
        Stop the bound once the relative gap is this small.
    tol : float
        Accuracy of the bound's ascent; see ``dual_bound``.
    seed : int
        Seed of the method.
    memory_limit : float
        Bytes for the Newton system of the relaxation.
    """

    method: str = "auto"
    time_limit: float | None = None
    target_gap: float | None = None
    tol: float = 3e-5
    seed: int = 0
    memory_limit: float = 4e9

    @property
    def method_share(self) -> float:
        """Share of the seconds that the method gets: nearly all where it brings the bound too."""
        return 0.85 if self.method == "hybrid" else 0.5


def solve_certified(
    problem: Problem,
    effort: Effort | None = None,
    *,
    start: Solution | None = None,
    on_stage: Callable[[str], object] | None = None,
) -> Certificate:
    """Solve a problem and prove how far the answer may be from the best one.

    Ctrl-C ends the method, or the bound, with the best so far, which is then certified;
    ``certificate.solution.status`` says so.

    Parameters
    ----------
    problem : Problem
        With rho > 0, or an explicit positive definite curvature.
    effort : Effort, optional
        Method, limits and seed.
    start : Solution, optional
        Where the method starts.
    on_stage : callable, optional
        Told what begins: the name of the method, then "bound", then "certificate".

    Raises
    ------
    ProblemError
        If no bound can be had for rho = 0.
    """
    effort = effort or Effort()
    tell = on_stage or (lambda stage: None)
    check_provable(problem)
    clock = Clock(effort.time_limit)
    reserve = check_seconds(problem) if effort.time_limit is not None else 0.0
    name = choose_method(problem) if effort.method == "auto" else effort.method
    tell(name)
    solution = run_method(problem, effort, share(clock, effort.method_share, reserve), start)
    return certify_within(solution, effort, less(clock.remaining, reserve), on_stage=on_stage)


def certify_within(
    solution: Solution,
    effort: Effort,
    time_limit: float | None = None,
    *,
    on_stage: Callable[[str], object] | None = None,
) -> Certificate:
    """Prove a bound within a time limit and certify the solution, whatever Ctrl-C cuts short.

    After a first Ctrl-C the bound at hand is certified, and the status says so; a second one ends
    it. ``on_stage`` is told "bound", then "certificate".
    """
    tell, bound = on_stage or (lambda stage: None), None
    try:
        if solution.evidence is not None:
            tell("certificate")
            return certify(solution)
        tell("bound")
        bound = prove(solution, effort, time_limit)
        if bound.stats.get("stopped") == "interrupt":
            solution = replace(solution, status=Status.INTERRUPTED)
        tell("certificate")
        return certify(solution, bound=bound)
    except KeyboardInterrupt:
        solution = replace(solution, status=Status.INTERRUPTED)
        return certify(solution, bound=bound_at_hand(solution) if bound is None else bound)


def run_method(
    problem: Problem, effort: Effort, time_limit: float | None, start: Solution | None = None
) -> Solution:
    """Call ``solve`` with what the method understands of ``effort``."""
    if effort.method == "hybrid":
        return _run_hybrid(problem, effort, time_limit, start)
    name = choose_method(problem) if effort.method == "auto" else effort.method
    more: dict[str, Any] = {}
    care = {"relax_round": THOROUGH, "best": WITH_ROUNDINGS}
    if name in care:
        more["effort"] = replace(care[name], memory_limit=effort.memory_limit)
    return solve(problem, name, start=start, time_limit=time_limit, seed=effort.seed, **more)


def _run_hybrid(
    problem: Problem, effort: Effort, time_limit: float | None, start: Solution | None
) -> Solution:
    from chita_opt.exact import HybridOptions, hybrid  # the room starts slowly

    options = HybridOptions()
    if effort.target_gap is not None:
        options = replace(options, gap=effort.target_gap)
    found = hybrid(problem, start=start, time_limit=time_limit, seed=effort.seed, options=options)
    return found.solution


def prove(solution: Solution, effort: Effort, time_limit: float | None) -> Bound:
    """A bound for the solution's problem; the one at hand where the method was interrupted."""
    if solution.status is Status.INTERRUPTED:
        return bound_at_hand(solution)
    begin = time.perf_counter()
    bound = dual_bound(
        solution.problem,
        start=solution,
        tol=effort.tol,
        target_gap=effort.target_gap,
        time_limit=time_limit,
        memory_limit=effort.memory_limit,
    )
    left = None if time_limit is None else time_limit - (time.perf_counter() - begin)
    return _by_blocks(solution, bound, effort, left)


def _by_blocks(solution: Solution, bound: Bound, effort: Effort, left: float | None) -> Bound:
    """The bound raised by each block's own split, where it is loose and there is time for it."""
    problem = solution.problem
    size = solution.objective - problem.dense_minimum
    loose = solution.objective - bound.value > max(effort.target_gap or 0.0, _LOOSE) * size
    ended = bound.stats.get("stopped") == "interrupt" or (left is not None and left < _LEAST)
    if ended or not loose or not isinstance(problem.curvature, BlockDiagonal | SharedRows):
        return bound
    from chita_opt.exact import SplitEffort, block_split_bound  # the room starts slowly

    limits = SplitEffort(
        time_limit=left,
        work=_UNASKED_WORK if left is None else float("inf"),
        memory_limit=effort.memory_limit,
    )
    return block_split_bound(problem, solution, bound, limits)


def bound_at_hand(solution: Solution) -> Bound:
    """The bound that costs one evaluation: from the relaxation the method solved, or none."""
    problem = solution.problem
    if not float(problem.rho.min()) > 0.0:
        return dual_bound(problem, time_limit=1e-3)
    split = safe_split(problem.curvature)
    best = trivial_bound(problem, split)
    image = solution.warm.get("image")
    if image is None or len(image) != len(best.witness):
        return best
    value = dual_point(problem, image, split).value
    return Bound(value, image, split, "dual") if value > best.value else best


def overall_status(certificate: Certificate) -> Status:
    """The solution's status; OPTIMAL where the certificate proves it."""
    if certificate.relative_gap <= OPTIMAL_GAP:
        return Status.OPTIMAL
    return certificate.solution.status


def check_provable(problem: Problem) -> None:
    """Refuse early, not after the method ran, what no bound can be proven for."""
    lowest, C = float(problem.rho.min()), problem.curvature
    if not lowest > 0.0 and isinstance(C, LowRank) and len(C.A) < C.size:
        raise ProblemError(
            f"the ridge is {lowest:g}; {len(C.A)} gradient rows leave {C.size} weights without "
            "curvature in some direction, so a bound needs a ridge > 0 (1e-3 is a common choice)"
        )


def share(clock: Clock, part: float, reserve: float = 0.0) -> float | None:
    """A share of the clock's remaining seconds, of which a reserve is kept back."""
    left = less(clock.remaining, reserve)
    return None if left is None else part * left


@overload
def less(remaining: float, reserve: float) -> float: ...
@overload
def less(remaining: None, reserve: float) -> None: ...
def less(remaining: float | None, reserve: float) -> float | None:
    """Remaining seconds less a reserve, at least a millisecond; None without a limit."""
    return None if remaining is None else max(remaining - reserve, 1e-3)


def check_seconds(problem: Problem) -> float:
    """Estimate of the seconds of a certificate's own arithmetic, from one measured product."""
    begin = time.perf_counter()
    problem.gradient(problem.w_bar)
    return _CHECK_PASSES * (time.perf_counter() - begin)


__all__ = ["Effort", "bound_at_hand", "certify_within", "overall_status", "solve_certified"]
