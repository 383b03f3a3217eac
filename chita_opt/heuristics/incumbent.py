"""The best answer so far: what a method offers, and what survives a time limit or Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from chita_opt.curvature import SupportSolver
from chita_opt.errors import MethodError
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status


class Incumbent:
    """Keeps the lowest objective offered, its weights, and the trace.

    Parameters
    ----------
    problem : Problem
        What is being solved.
    time_limit : float or None
        Seconds over the whole call.
    start : Solution, optional
        First incumbent; must be feasible for the problem.
    """

    def __init__(
        self, problem: Problem, time_limit: float | None, start: Solution | None = None
    ) -> None:
        self.problem = problem
        self.clock = Clock(time_limit)
        self.value = float("inf")
        self.w = torch.zeros_like(problem.w_bar)
        self.interrupted = False
        if start is not None:
            check_start(problem, start)
            self.offer(start.w, start.objective)

    def offer(self, w: Tensor, value: float) -> bool:
        """Take ``w`` if its objective ``value`` is lower; tell whether it was."""
        better = value < self.value
        if better:
            self.value, self.w = value, w
            self.clock.record(value)
        return better

    def take(self, found: Solution) -> bool:
        """Offer a method's answer, and pass an interrupt on: methods end quietly on Ctrl-C."""
        better = self.offer(found.w, self.problem.objective(found.w))
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return better

    @contextmanager
    def until_interrupt(self) -> Iterator[None]:
        """Run a block that Ctrl-C ends quietly, the incumbent kept."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    def finish(
        self,
        method: str,
        status: Status,
        *,
        stats: Mapping[str, object] | None = None,
        warm: Mapping[str, Tensor] | None = None,
        solver: SupportSolver | None = None,
        backsolve: bool = True,
    ) -> Solution:
        """The solution, its weights solved exactly on the incumbent's support.

        The exact solve replaces the incumbent's weights only where its recomputed objective is
        lower. ``solver`` is an exact solver already at hand for that support. After Ctrl-C the
        weights at hand are returned as they are; a second one ends it.
        """
        notes = (dict(stats or {}), dict(warm or {}))
        try:
            w, value = self.w, self.value
            if backsolve and not (self.interrupted and solver is None and self.clock.expired):
                with self.until_interrupt():  # Ctrl-C here keeps the weights at hand
                    w, value = self._solved_exactly(w, value, solver)
            return self._solution(w, value, method, status, notes)
        except KeyboardInterrupt:
            self.interrupted = True
            return self._solution(self.w, self.value, method, status, notes)

    def _solution(
        self,
        w: Tensor,
        value: float,
        method: str,
        status: Status,
        notes: tuple[Mapping[str, object], Mapping[str, Tensor]],
    ) -> Solution:
        if self.interrupted:
            status = Status.INTERRUPTED
        elif self.clock.expired and status is not Status.FEASIBLE:
            status = Status.TIME_LIMIT
        self.clock.record(value)
        return Solution(
            self.problem, w, method, status, self.clock.elapsed, self.clock.trace, *notes
        )

    def _solved_exactly(
        self, w: Tensor, value: float, solver: SupportSolver | None
    ) -> tuple[Tensor, float]:
        """The exact minimiser on the support of ``w``, and its value; or ``w`` if that is lower."""
        mask = w != 0
        if solver is None or not bool((solver.mask == mask).all()):
            solver = self.problem.curvature.support_solver(self.problem.separable, mask)
        # a tie within rounding goes to the exact weights: theirs is the float64 value
        if solver.value <= value + 1e-5 * abs(value):
            return solver.weights, solver.value
        if self.problem.objective(solver.weights) <= self.problem.objective(w):
            return solver.weights, solver.value
        return w, value


def check_start(problem: Problem, start: Solution) -> None:
    """Refuse a start that is not a feasible point of this problem."""
    if start.problem.p != problem.p:
        raise MethodError(f"the start has {start.problem.p} weights, the problem {problem.p}")
    if not problem.supports.contains(start.w.to(problem.device) != 0):
        raise MethodError(
            f"the start keeps {start.nnz} weights in a pattern outside {problem.supports.name}; "
            "start from a solution of the same family"
        )


def complete(problem: Problem, mask: Tensor, scores: Tensor) -> Tensor:
    """Fill ``mask`` up to the family's caps by ``scores``; a kept weight stays kept."""
    s = scores.double()
    return problem.supports.best_support(torch.where(mask, s + 2.0 * s.sum() + 1.0, s))


def keep_scores(problem: Problem) -> Tensor:
    r"""What keeping each weight is worth before the curvature is seen.

    :math:`(\rho\bar w-g)^2/2\rho`, the gain at the zero dual point, or :math:`\bar w^2` where
    some rho is zero.
    """
    rho = problem.rho
    gains = (rho * problem.w_bar - problem.g).square() / (2.0 * rho.clamp_min(1e-300))
    return gains if float(rho.min()) > 0 else problem.scores
