"""``method="best"``: several methods after one another, the best incumbent, then kicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from chita_opt.heuristics.chita import chita
from chita_opt.heuristics.incumbent import check_start
from chita_opt.heuristics.iobs import iobs
from chita_opt.heuristics.kicks import kicked
from chita_opt.heuristics.layerwise import layerwise, suits_layers
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.magnitude import backsolve
from chita_opt.heuristics.mfac import mfac
from chita_opt.heuristics.relax_round import THOROUGH, RoundingOptions, relax_round, relaxes_cheaply
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status, Trace

WITH_ROUNDINGS = replace(THOROUGH, roundings=12)
_NEAR = 0.05  # relative distance to the incumbent within which an answer is polished


def best(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    effort: RoundingOptions = WITH_ROUNDINGS,
    gap: float = 1e-5,
    patience: int = 6,
) -> Solution:
    """The portfolio: several methods, the best answer polished by swaps, kicks, again.

    First a backsolve, so that there is an answer after the shortest time. Then the relaxation's
    rounding (of layers, the layer-wise method), M-FAC's path, the preconditioned thresholding and
    CHITA, each followed by the exchange search where it comes near the incumbent. Then kicks:
    random exchanges among the least certain weights of the incumbent, followed by the exchange
    search. It ends at the time limit, after ``patience`` kicks without a gain, or once the
    relaxation's value is within ``gap``. The seconds that it leaves are the caller's:
    ``solve_certified`` spends them on the bound, which starts from the relaxation's point.

    Parameters
    ----------
    problem, start
        As for every method.
    time_limit : float, optional
        Seconds over everything; without one, patience ends it.
    seed : int
        Of the roundings and kicks.
    effort : RoundingOptions
        Care of the relaxation and its rounding.
    gap : float
        Relative distance to the relaxation's value (at the data's precision) that is enough.
    patience : int
        Kicks without a gain before it ends.
    """
    if start is not None:
        check_start(problem, start)
    run, status = _Run(problem, Clock(time_limit), gap), Status.STATIONARY
    try:
        if start is not None:
            run.begin_at(start)
        for method, polished in _members(problem, seed, effort):
            run.call(method, polished)
            if run.finished:
                break
        run.kick(seed, patience)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return run.solution(status)


def _members(
    problem: Problem, seed: int, effort: RoundingOptions
) -> list[tuple[Callable[..., Solution], bool]]:
    """The methods in turn, and whether exchanges may follow."""
    if not float(problem.rho.min()) > 0.0:  # exchanges may meet singular supports
        return [(backsolve, False), (chita, False)]
    members: list[tuple[Callable[..., Solution], bool]] = [(backsolve, False)]
    if suits_layers(problem):
        members.append((layerwise, True))
    if relaxes_cheaply(problem):
        members.append((partial(relax_round, seed=seed, effort=effort), True))
    return [*members, (mfac, True), (iobs, True), (chita, True)]


class _Run:
    """The incumbent, what is known about the optimum, and the clock."""

    def __init__(self, problem: Problem, clock: Clock, gap: float) -> None:
        self.problem, self.clock, self.gap = problem, clock, gap
        w = torch.zeros_like(problem.w_bar)
        self.incumbent = Solution(problem, w, "nothing", Status.FEASIBLE)
        self.value = float("inf")
        self.floor = -float("inf")
        self.trace = Trace()
        self.calls: dict[str, float] = {}
        self.warm: dict[str, torch.Tensor] = {}
        self.kicks = 0

    @property
    def finished(self) -> bool:
        """No time left, or nothing worth having."""
        size = self.problem.increase(self.value)
        return self.clock.expired or self.value - self.floor <= self.gap * size

    def call(self, method: Callable[..., Solution], polished: bool) -> None:
        """One method, and exchanges from its answer if it is near the incumbent."""
        begin = self.clock.elapsed
        found = method(self.problem, time_limit=self.clock.remaining)
        self.take(found, begin)
        if "relaxation" in found.stats:
            self.floor, self.warm = float(str(found.stats["relaxation"])), dict(found.warm)
        margin = _NEAR * (self.value - self.problem.dense_minimum)
        if polished and not self.finished and found.objective <= self.value + margin:
            self.search(found)

    def search(self, start: Solution) -> None:
        """The exchange search."""
        begin = self.clock.elapsed
        self.take(local_search(self.problem, start=start, time_limit=self.clock.remaining), begin)

    def kick(self, seed: int, patience: int) -> None:
        """Random exchanges among the least certain weights, then the search; until patience."""
        draw, idle = torch.Generator().manual_seed(seed), 0
        if not float(self.problem.rho.min()) > 0.0:
            return
        while idle < patience and not self.finished:
            before = self.value
            self.search(kicked(self.incumbent, draw))
            self.kicks += 1
            least = self.gap * self.problem.increase(before)
            idle = 0 if self.value < before - least else idle + 1

    def begin_at(self, start: Solution) -> None:
        """An answer from elsewhere, whatever ended the search for it."""
        self.incumbent, self.value = start, start.objective
        self.calls[start.method] = self.value

    def take(self, found: Solution, begin: float) -> None:
        """Keep an answer if it is better, and its trace; pass an interrupt on."""
        value = found.objective
        self.trace = self.trace.then(found.trace, begin)
        self.calls[found.method] = min(value, self.calls.get(found.method, torch.inf))
        if value < self.value:
            self.incumbent, self.value = found, value
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt

    def solution(self, status: Status) -> Solution:
        """The incumbent, with what was tried."""
        if status is not Status.INTERRUPTED and self.clock.expired:
            status = Status.TIME_LIMIT
        now = self.clock.elapsed
        stats = {"winner": self.incumbent.method, "objectives": self.calls, "kicks": self.kicks}
        return Solution(
            self.problem, self.incumbent.w, "best", status, now,
            Trace((*self.trace.rows, (now, self.value))), stats, self.warm,
        )  # fmt: skip
