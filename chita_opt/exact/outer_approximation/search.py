"""One run of the outer approximation: what is fixed, bounds, incumbent, cuts, rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from chita_opt.bounds import Bound
from chita_opt.errors import CurvatureError, MethodError
from chita_opt.exact.outer_approximation.covers import Covers, shortest_cover
from chita_opt.exact.outer_approximation.cuts import CutMaker, root_witness
from chita_opt.exact.outer_approximation.master import Master, Round
from chita_opt.exact.outer_approximation.result import OuterApproximation, TraceRow
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions
from chita_opt.exact.tree_search.node import Node, root_node
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.formulations.dual_cuts import DualCut, cleaned
from chita_opt.formulations.model_parts import SideConstraint
from chita_opt.heuristics.incumbent import check_start
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.methods import solve as heuristic
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

_TOWARDS_MASK = 0.1  # where between the relaxation's optimum and the mask a cut is made sharpest
_MASKS = 3  # masks of a round that get cuts
_SHARE = 0.5  # of the gap that the next level is to close
_PATIENT = AscentOptions(enough=0.02)  # a root bound is worth more steps than a node's
_NEAR = 0.1  # relative distance to the incumbent within which a mask is improved by swaps


class Search:
    """The state of one call.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    clock : Clock
        Time over the whole call.
    gap : float
        Relative gap to stop at.
    side : sequence of callables
        Side constraints.
    """

    def __init__(
        self, problem: Problem, clock: Clock, gap: float, side: Sequence[SideConstraint]
    ) -> None:
        self.problem, self.clock, self.gap, self.side = problem, clock, gap, side
        self.quadratic, self.family = Quadratic.of(problem), allowed(problem.supports)
        self.solver = NodeSolver(self.quadratic, self.family, options=_PATIENT)
        self.base: Node = root_node(problem.p, self.family.row_count)
        self.base.state[self.quadratic.H.diagonal() <= 0.0] = OUT  # nothing depends on them
        # base: what holds for every better solution; node: for every one below the level
        self.node = self.base.copy()
        self.maker = CutMaker(self.quadratic, self.node.state)
        self.covers = Covers(NodeSolver(self.quadratic, self.family), self.offer_support)
        self.master = Master(problem, side)
        self.floor = problem.dense_minimum
        self.lower = self.proven = self.floor - self.quadratic.rounding(self.floor)
        self.value, self.scale, self.level = np.inf, 1.0, np.inf
        self.w: Array | None = None
        self.mask: Array | None = None
        self.bound: Bound | None = None
        self.rounds = self.nodes = self.cover_count = 0
        self.solvable = False  # whether a split was ever found
        self.seen: set[bytes] = set()
        self.interrupted: Callable[[], bool] = lambda: False
        self.trace: list[TraceRow] = []

    # -- values -------------------------------------------------------------------------------

    @property
    def ceiling(self) -> float:
        """No optimal value lies above: the incumbent's, or just over that of pruning everything."""
        if np.isfinite(self.value):
            return float(self.value)
        every = self.problem.prune_all
        return every + 1e-6 * (abs(every) + abs(every - self.floor)) + 1e-300

    @property
    def target(self) -> float:
        """Solutions of this value or more are not looked for at present."""
        return min(self.level, self.ceiling)

    @property
    def tolerance(self) -> float:
        """Absolute gap that counts as closed: the one asked for, or what rounding leaves."""
        rounding = 4.0 * self.quadratic.rounding(self.ceiling)
        return max(self.gap * max(self.ceiling - self.floor, 0.0), rounding)

    @property
    def closed(self) -> bool:
        """Whether the gap asked for is reached."""
        return bool(np.isfinite(self.value) and self.value - self.lower <= self.tolerance)

    def record(self) -> None:
        """A row of the trace."""
        self.trace.append(TraceRow(self.clock.elapsed, self.lower, float(self.value)))

    def raise_proven(self, value: float) -> None:
        """A better bound from our own witnesses."""
        self.proven = max(self.proven, value)
        if self.proven > self.lower:
            self.lower = self.proven
            self.record()

    # -- incumbents ---------------------------------------------------------------------------

    def offer_support(self, support: Array) -> None:
        """Look at a support that a bound was rounded to."""
        mask = np.zeros(self.problem.p, dtype=bool)
        mask[support] = True
        self.offer(mask, admitted=False)

    def offer(self, mask: Array, *, admitted: bool) -> bool:
        """Solve exactly on a mask, improve it by swaps; whether the incumbent got better."""
        key = mask.tobytes()
        if key in self.seen or not self.problem.supports.contains(torch.from_numpy(mask)):
            return False
        self.seen.add(key)
        w = self.weights_on(mask)
        start = Solution(self.problem, torch.from_numpy(w), "mask", Status.FEASIBLE)
        value, before = start.objective, self.value
        if value < self.value and (admitted or self.admits(mask)):
            self.take(mask, w, value)
        if value < self.value + _NEAR * abs(self.value - self.floor):
            swapped = local_search(
                self.problem, start=start, max_rounds=3, time_limit=self.clock.remaining
            )
            other = swapped.mask.cpu().numpy()
            better = swapped.objective < self.value - 1e-12 * abs(self.value)
            if better and self.admits(other):
                self.take(other, swapped.w.cpu().numpy(), swapped.objective)
            if swapped.status is Status.INTERRUPTED:  # the swaps kept what they had; so do we
                raise KeyboardInterrupt
        return bool(self.value < before)

    def weights_on(self, mask: Array) -> Array:
        """The best weights (p,) on a mask."""
        w, support = np.zeros(self.problem.p), np.flatnonzero(mask)
        w[support] = self.quadratic.solve(support)[0]
        return w

    def take(self, mask: Array, w: Array, value: float) -> None:
        """Make it the incumbent."""
        self.mask, self.w, self.value = mask.copy(), w, value
        self.record()

    def admits(self, mask: Array) -> bool:
        """Whether the side constraints allow a mask of the family."""
        return not self.side or self.master.admits(mask)

    # -- root ---------------------------------------------------------------------------------

    def prepare(self, start: Solution | None) -> None:
        """Incumbent, root bound, fixings and the first cuts."""
        if start is not None:
            check_start(self.problem, start)
            if not self.admits(start.mask.cpu().numpy()):
                raise MethodError("the start does not satisfy the side constraints; leave it out")
            self.take(start.mask.cpu().numpy(), start.w.cpu().numpy(), start.objective)
        limit = None if self.clock.remaining is None else 0.2 * self.clock.remaining
        first = start or heuristic(self.problem, time_limit=limit)
        self.offer(first.mask.cpu().numpy(), admitted=False)
        span = self.problem.prune_all - self.floor
        self.scale = max(self.ceiling - self.floor, 1e-9 * span) or 1.0
        self.reduce()
        self.bound = root_witness(self.problem, self.quadratic, self.ceiling)
        if self.bound is not None:
            self.raise_proven(min(self.bound.value, self.target))
        if not self.solvable and not self.closed:
            raise CurvatureError(
                "the curvature plus the ridge is not positive definite; raise the ridge rho"
            )

    def reduce(self) -> None:
        """Bound what is open against the target and fix what that decides; then a cut of it."""
        while self.lower < self.target:
            before, target = int((self.node.state == FREE).sum()), self.target
            is_open = self.bound_node()
            left = int((self.node.state == FREE).sum())
            if not is_open or (left == before and not self.target < target):
                break
        self.publish()
        if self.lower < self.target:
            self.cut_at(self.node.z, None)

    def bound_node(self) -> bool:
        """Bound what is open, fix, look at the supports; False if nothing is left to search."""
        target = self.target
        outcome = self.solver.process(
            self.node, target, self.ceiling - self.floor, lambda: self.clock.expired
        )
        self.node = outcome.node
        self.maker.state = self.node.state
        self.raise_proven(min(outcome.lower, target))
        for support in outcome.supports[-2:]:
            self.offer_support(support)
        self.solvable |= outcome.branch < 0 or bool(self.node.d.any())
        return outcome.branch >= 0

    def publish(self) -> None:
        """Tell the master what is fixed; fixings against the incumbent hold for good."""
        self.master.fix(self.node.state)
        if self.level >= self.ceiling:
            self.base = self.node.copy()

    # -- cuts ---------------------------------------------------------------------------------

    def cut_at(self, z: Array, mask: Array | None) -> DualCut | None:
        """The highest cut at z, and with the same split the one that touches at ``mask``."""
        d = self.maker.sharp_split(z)
        if d is None:
            return None
        highest = self.maker.cut(d, self.maker.weights(z, d))
        self.add(highest)
        self.screen(highest)
        if mask is not None:
            self.add(self.maker.cut(d, self.weights_on(mask)))
        return highest

    def add(self, cut: DualCut) -> None:
        """Clean a cut for the solver and add it."""
        slopes = cut.slopes
        passing = (self.node.state == OUT) & (self.base.state != OUT)
        if passing.any():  # left out of the cut for now: it says nothing of masks that keep them
            slopes = np.where(passing, max(cut.constant - self.lower, 0.0), slopes)
        shifted = DualCut(cut.constant - self.floor, slopes)
        self.master.add(cleaned(shifted, floor=self.lower - self.floor, scale=self.scale))

    def screen(self, cut: DualCut) -> None:
        """Fix the weights whose other value this cut proves no better than the incumbent."""
        state = self.node.state
        free = np.flatnonzero(state == FREE)
        if not len(free):
            return
        s = cut.slopes[free]
        restricted = self.family.restrict(state, free)
        mask, best = restricted.best(s)
        low = cut.constant - float(cut.slopes[state == IN].sum()) - best
        low -= self.quadratic.rounding(best)
        self.raise_proven(min(low, self.target))
        decided = low + restricted.exchange(s, mask) >= self.target
        if decided.any():
            state[free[decided & mask]], state[free[decided & ~mask]] = IN, OUT
            self.fixed_more()

    def fixed_more(self) -> None:
        """Draw conclusions from new fixings and tell the master; none left means proven."""
        if not self.family.propagate(self.node.state):
            self.raise_proven(self.target)
            return
        self.publish()
        if not (self.node.state == FREE).any():
            self.bound_node()

    def cover(self, mask: Array, cut: DualCut) -> None:
        """A cover of what a mask prunes, at the present level."""
        state, level = self.node.state, self.target
        out = np.flatnonzero((state == FREE) & ~mask)
        if not len(out):
            return
        order = out[np.argsort(-cut.slopes[out], kind="stable")]
        held = shortest_cover(
            order,
            lambda pruned: self.covers.excluded(
                self.node, pruned, level, self.ceiling - self.floor
            ),
            lambda: self.clock.expired,
        )
        if held is None:
            return
        self.cover_count += 1
        if len(held) == 1:
            state[held] = IN
            self.fixed_more()
            self.reduce()
            return
        slopes = np.zeros(self.problem.p)
        slopes[held] = max(level - self.lower, 0.0)
        self.add(DualCut(level, slopes))

    # -- rounds -------------------------------------------------------------------------------

    def run(self, round_limit: int) -> Status:
        """Solve the master, cut, until the gap is closed or a limit comes."""
        while not self.closed:
            if self.interrupted():
                return Status.INTERRUPTED
            if self.clock.expired:
                return Status.TIME_LIMIT
            if self.rounds >= round_limit:
                return Status.ITERATION_LIMIT
            if self.lower >= self.target or (self.late and not np.isfinite(self.level)):
                self.next_level()
                continue
            found = self.solve_master()
            if found.status == "interrupted":
                return Status.INTERRUPTED
            if found.status == "infeasible":
                self.nothing_below_the_level()
            elif found.masks:
                if not self.learn(found.masks):
                    return Status.OPTIMAL if self.closed else Status.ITERATION_LIMIT
            elif found.status == "time_limit":
                return Status.TIME_LIMIT
            else:
                raise MethodError(f"HiGHS stopped with {found.status}")
        return Status.OPTIMAL

    def solve_master(self) -> Round:
        """One round; bounds and times go to the trace."""
        begin = self.clock.elapsed
        self.master.cut_off((self.target - self.floor) / self.scale * (1.0 + 1e-9))
        start = None
        if self.mask is not None and self.level >= self.ceiling:
            start = (self.mask, (self.value - self.floor) / self.scale)
        left = self.clock.remaining
        seconds = np.inf if left is None else left
        found = self.master.solve(start, seconds, gap=0.3 * self.tolerance / self.scale)
        self.rounds += 1
        self.nodes += found.nodes
        rows = [*found.trace, (self.clock.elapsed - begin, found.lower)]
        for seconds, t in rows if found.status != "infeasible" else []:
            value = min(self.floor + self.scale * t, self.target)
            if value > self.lower:
                self.lower = value
                self.trace.append(TraceRow(begin + seconds, value, float(self.value)))
        return found

    @property
    def late(self) -> bool:
        """Whether half of the time has gone: a part of the gap is now worth more than a chance."""
        return self.clock.limit is not None and self.clock.elapsed > 0.5 * self.clock.limit

    def next_level(self) -> None:
        """Aim at the incumbent, or late only part of the way to it; start from what holds there."""
        missing = self.ceiling - self.lower
        whole = not self.late or missing < 4.0 * self.tolerance or self.mask is None
        self.level = 1e300 if whole else self.lower + _SHARE * missing
        self.node = self.base.copy()
        self.maker.state = self.node.state
        self.reduce()

    def nothing_below_the_level(self) -> None:
        """The master says that no mask is better than the level."""
        if self.mask is None:
            raise MethodError("no mask satisfies the family together with the side constraints")
        self.lower = self.target
        self.record()

    def learn(self, masks: list[Array]) -> bool:
        """Incumbents, cuts and covers from a round's masks, best first; False if none was new."""
        new = False
        for mask in masks[: -_MASKS - 1 : -1]:
            key = repr(self.target).encode() + mask.tobytes()
            if key in self.seen:
                continue
            self.seen.add(key)
            new = True
            if not self.problem.supports.contains(torch.from_numpy(mask)):
                self.master.forbid(mask)
                continue
            if self.offer(mask, admitted=True):
                self.reduce()
            z = _TOWARDS_MASK * mask + (1.0 - _TOWARDS_MASK) * self.node.z
            cut = None if self.closed else self.cut_at(z, mask)
            if cut is not None and not self.closed:
                self.cover(mask, cut)
        return new

    def result(self, status: Status) -> OuterApproximation:
        """What is known now."""
        seconds, solution = self.clock.elapsed, None
        if self.w is not None:
            solution = Solution(
                self.problem, torch.from_numpy(self.w), "outer_approximation", status, seconds
            )
        upper = np.inf if solution is None else solution.objective
        mask = None if self.mask is None else torch.from_numpy(self.mask)
        return OuterApproximation(
            self.problem, solution, mask, min(self.lower, upper), min(self.proven, upper),
            self.bound, status, self.rounds, self.master.cuts, self.cover_count, self.nodes,
            int((self.base.state != FREE).sum()), seconds, tuple(self.trace),
        )  # fmt: skip
