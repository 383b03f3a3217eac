"""Exact neighbourhood search: a window of weights decided anew by proof, all others as they are.

The weights outside the window stay kept or pruned; the kept ones re-solve their values, which is
exact by a Schur complement. What is left is a problem of the window alone, small enough for the
tree or the outer approximation. An answer is taken only where the objective of the whole problem,
recomputed in float64, falls: the search never worsens its start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from chita_opt.bounds import Bound
from chita_opt.curvature import SupportSolver
from chita_opt.errors import ProblemError
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.outer_approximation import outer_approximation
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.reduction import ReducedCosts, Rest
from chita_opt.exact.tree_search.branch_and_bound import branch_and_bound
from chita_opt.exact.windows import Windows, apparent_costs
from chita_opt.heuristics import solve
from chita_opt.heuristics.incumbent import check_start
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

_GROW, _SHRINK = 1.3, 0.7  # factors on the window
_QUICK = 0.25  # share of a window's seconds within which a proof lets the window grow
_GAIN = 1e-12  # relative decrease below which an answer counts as none
SOLVERS = ("tree", "outer_approximation")


@dataclass(frozen=True, kw_only=True)
class NeighbourhoodOptions:
    """How the windows are chosen and solved.

    Attributes
    ----------
    window, least, most : int
        Weights in the first window, and the limits between which its size adapts: it grows when a
        window is proven quickly and shrinks when it is not proven in time.
    seconds : float
        For one window.
    node_limit : int
        Nodes of one window's tree.
    patience : int
        Windows without a gain, at the largest size reached, before the search ends.
    solver : {"tree", "outer_approximation"}
        What solves a window.
    """

    window: int = 64
    least: int = 8
    most: int = 240
    seconds: float = 6.0
    node_limit: int = 300
    patience: int = 16
    solver: str = "tree"

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.window <= self.most:
            raise ProblemError(
                f"window is {self.window}, least {self.least}, most {self.most}; give "
                "1 <= least <= window <= most"
            )
        if not self.seconds > 0 or self.node_limit < 1 or self.patience < 1:
            raise ProblemError("seconds, node_limit and patience must be positive")
        if self.solver not in SOLVERS:
            raise ProblemError(f"solver is {self.solver!r}; give one of {', '.join(SOLVERS)}")


def neighbourhood_search(
    problem: Problem,
    *,
    start: Solution | None = None,
    bound: Bound | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    options: NeighbourhoodOptions | None = None,
) -> Solution:
    """Improve a solution by solving windows of weights exactly; never worse than its start.

    Parameters
    ----------
    problem : Problem
        Any family and any form of curvature; a p-by-p matrix is never formed.
    start : Solution, optional
        Where to begin; otherwise the default heuristic finds it.
    bound : Bound, optional
        Its reduced costs say which weights are undecided; without it the exchange costs do.
    time_limit : float, optional
        Seconds over the whole call.
    seed : int
        Of the windows: the same windows in the same order, as long as no limit in seconds ends one.
    options : NeighbourhoodOptions, optional
        Size and effort.

    Returns
    -------
    Solution
        STATIONARY once patience ends; on Ctrl-C too the best weights so far. ``stats`` counts the
        windows, those proven and those that helped.

    Raises
    ------
    MethodError
        If the start is not allowed.
    """
    clock = Clock(time_limit)
    if start is None:
        start = solve(problem, time_limit=None if time_limit is None else 0.3 * time_limit)
    check_start(problem, start)
    return _Search(problem, start, bound, clock, seed, options or NeighbourhoodOptions()).run()


class _Search:
    """The incumbent, the size of windows, and what became of them."""

    def __init__(
        self,
        problem: Problem,
        start: Solution,
        bound: Bound | None,
        clock: Clock,
        seed: int,
        options: NeighbourhoodOptions,
    ) -> None:
        self.problem, self.best, self.clock, self.options = problem, start, clock, options
        self.bound, self.seed = bound, seed
        self.size = min(options.window, problem.p)
        self.proven = self.helped = self.count = self.idle = 0
        self.seen: set[bytes] = set()
        self.solver: SupportSolver | None = None

    def run(self) -> Solution:
        """Windows until patience, time or Ctrl-C ends it."""
        status = Status.STATIONARY
        self.clock.record(self.best.objective)
        try:
            self._windows()
            status = Status.TIME_LIMIT if self.clock.expired else status
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        stats = {
            "windows": self.count, "proven": self.proven, "helped": self.helped, "size": self.size,
        }  # fmt: skip
        return Solution(
            self.problem, self.best.w, "neighbourhood", status, self.clock.elapsed,
            self.clock.trace, stats, self.best.warm,
        )  # fmt: skip

    def _windows(self) -> None:
        if self.best.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if self.bound is None:
            costs = apparent_costs(self.problem, self.best)
        else:
            costs = np.abs(ReducedCosts.of(self.problem, self.bound).excess)
        windows = Windows(self.problem, costs, np.random.default_rng(self.seed))
        while self.idle < self.options.patience and not self.clock.expired:
            _, index = windows.next(self.size)
            key = self.best.mask.cpu().numpy().tobytes() + index.tobytes()
            if key in self.seen:
                self.idle += 1
                continue
            self.seen.add(key)
            self._window(index)
            if len(index) == self.problem.p and self.proven:
                return  # the window was everything

    def _window(self, index: Array) -> None:
        """Solve one window, take its answer if it helps, and adapt the size."""
        begin = self.clock.elapsed
        limit = self.options.seconds
        if self.clock.remaining is not None:
            limit = min(limit, self.clock.remaining)
        self.count += 1
        found, proven, interrupted = self._solve(torch.from_numpy(index), limit)
        helped = found is not None and self._take(found)
        self.idle = 0 if helped else self.idle + 1
        self.proven += proven
        if interrupted:
            raise KeyboardInterrupt
        if not proven:
            self.size = max(int(_SHRINK * self.size), self.options.least)
        elif self.clock.elapsed - begin < _QUICK * self.options.seconds:
            most = min(self.options.most, self.problem.p)
            self.size = min(int(_GROW * self.size) + 1, most)

    def _solve(self, index: torch.Tensor, limit: float) -> tuple[Solution | None, bool, bool]:
        """The window's answer in the whole problem, whether it is proven, whether Ctrl-C came."""
        index = index.to(self.problem.device)
        rest = self._rest(index)
        start = rest.start(self.best)
        if self.options.solver == "tree":
            options = TreeOptions(gap=1e-7, time_limit=limit, node_limit=self.options.node_limit)
            tree = branch_and_bound(rest.problem, options=options, start=start)
            found, status = tree.solution, tree.status
        else:
            outer = outer_approximation(rest.problem, start=start, time_limit=limit, gap=1e-7)
            if outer.solution is None:
                return None, False, outer.status is Status.INTERRUPTED
            found, status = outer.solution, outer.status
        lifted = None
        if start is None or found.objective < start.objective:
            lifted = rest.lift(self.problem, found.mask, "neighbourhood")
        return lifted, status is Status.OPTIMAL, status is Status.INTERRUPTED

    def _rest(self, index: torch.Tensor) -> Rest:
        """The window's problem, the kept weights outside eliminated."""
        outside = self.best.mask.clone()
        outside[index] = False
        problem = self.problem
        if self.solver is None:
            self.solver = problem.curvature.support_solver(problem.separable, outside)
        else:
            self.solver = self.solver.moved(outside, exact=False)
        H = self.solver.reduced(index).cpu().numpy()
        b = self.solver.pull[index].cpu().numpy()
        return Rest.of(problem, outside, index, Quadratic(H, b, self.solver.value))

    def _take(self, found: Solution) -> bool:
        """Keep an answer if its own objective is lower and it is allowed."""
        low = self.best.objective - _GAIN * abs(self.best.objective)
        if not found.is_feasible or not found.objective < low:
            return False
        self.best, self.helped = found, self.helped + 1
        self.clock.record(found.objective)
        return True


__all__ = ["NeighbourhoodOptions", "neighbourhood_search"]
