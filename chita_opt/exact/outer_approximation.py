"""``outer_approximation``: HiGHS proves the optimum over the indicators, by dual cuts in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from chita_opt.bounds import Bound
from chita_opt.errors import CurvatureError, MethodError, ProblemError
from chita_opt.exact.allowed import allowed
from chita_opt.exact.node import Node, NodeSolver
from chita_opt.exact.outer_approximation_cuts import CutMaker
from chita_opt.exact.outer_approximation_master import Master, Round
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.formulations.dual_cuts import DualCut, cleaned
from chita_opt.formulations.model_parts import SideConstraint
from chita_opt.heuristics.incumbent import check_start
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.methods import solve as heuristic
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

MAX_SIZE = 1000  # weights up to which dense cuts and matrices are sensible
_TOWARDS_MASK = 0.1  # where between the relaxation's optimum and the mask a cut is made sharpest
_MASKS = 3  # masks of a round that get cuts


@dataclass(frozen=True, eq=False)
class OuterApproximation:
    """The best weights found, and what is known about the optimum from whom.

    Attributes
    ----------
    problem : Problem
        What was solved.
    solution : Solution or None
        The incumbent, its objective recomputed from the data; None if side constraints allowed no
        mask that was found in time.
    mask : Tensor or None
        (p,) bool, the incumbent's indicators; side constraints speak of these.
    lower : float
        The best lower bound: of the rounds, as HiGHS reports it, or ``proven`` if that is higher.
    proven : float
        The best lower bound without HiGHS: from dual witnesses with weights fixed by screening,
        re-evaluated in float64 with an allowance for rounding.
    bound : Bound or None
        One witness that proves nearly as much without any fixing;
        :func:`chita_opt.bounds.dual_point` reproduces its value. None for curvature forms whose
        rows or blocks must share a split.
    status : Status
        OPTIMAL where the gap asked for is closed; otherwise which limit came first.
    rounds, cuts, nodes : int
        Masters solved, cuts in the last, nodes of all their trees.
    fixed : int
        Weights that screening fixed.
    seconds : float
        Wall time.
    trace : tuple of (float, float, float)
        Seconds since the start, lower bound, objective of the incumbent.
    """

    problem: Problem
    solution: Solution | None
    mask: torch.Tensor | None
    lower: float
    proven: float
    bound: Bound | None
    status: Status
    rounds: int
    cuts: int
    nodes: int
    fixed: int
    seconds: float
    trace: tuple[tuple[float, float, float], ...] = field(repr=False)

    @property
    def upper(self) -> float:
        """Objective of the incumbent; infinite without one."""
        return float("inf") if self.solution is None else self.solution.objective

    @property
    def gap(self) -> float:
        """(upper - lower) relative to the incumbent's increase over the dense minimum."""
        if self.solution is None:
            return float("inf")
        increase = self.upper - self.problem.dense_minimum
        missing = max(self.upper - self.lower, 0.0)
        return missing / increase if increase > 0.0 else float(np.inf if missing else 0.0)

    @property
    def word(self) -> str:
        """Whose word ``lower`` is: "HiGHS" or "dual witness"."""
        return "HiGHS" if self.lower > self.proven else "dual witness"

    def __str__(self) -> str:
        return (
            f"outer approximation: {self.status}, objective {self.upper:.6g}, bound "
            f"{self.lower:.6g} ({self.word}; {self.proven:.6g} by witness), gap "
            f"{100 * self.gap:.3g} %, {self.rounds} rounds, {self.cuts} cuts, {self.seconds:.2f} s"
        )


def outer_approximation(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    gap: float = 1e-4,
    side_constraints: Sequence[SideConstraint] = (),
    round_limit: int = 10_000,
) -> OuterApproximation:
    r"""Minimise over the supports of ``problem`` and any linear side constraints with HiGHS.

    Rounds of a mixed-integer linear program in the indicators
    (:func:`chita_opt.formulations.dual_cuts_milp`), solved through Pyomo, each followed by cuts at
    the masks that it found: tight at the mask, with the split that is best at a point between the
    mask and the optimum of the relaxation with the best split (:mod:`.outer_approximation_split`).
    Before the first round and after each better incumbent, weights whose other value is proven
    worse are fixed, those kept are eliminated by a Schur complement and those pruned dropped, which
    makes every later split stronger.

    Parameters
    ----------
    problem : Problem
        Any family with an oracle; H = C + diag(rho) must be positive definite, and is formed as a
        dense matrix.
    start : Solution, optional
        First incumbent; otherwise the default heuristic finds one.
    time_limit : float, optional
        Seconds over the whole call.
    gap : float
        Relative gap at which to stop, on the increase over the dense minimum.
    side_constraints : sequence of callables
        Each receives the Pyomo model and adds linear constraints on ``model.z`` (1 keeps), with
        variables of its own if it likes: :func:`chita_opt.formulations.cost_budget`,
        :func:`chita_opt.formulations.block_widths`, or the user's.
    round_limit : int
        Rounds.

    Returns
    -------
    OuterApproximation
        On Ctrl-C too: the incumbent and a valid bound.

    Raises
    ------
    ProblemError
        If there are more than 1,000 weights, or an option is out of range.
    CurvatureError
        If H is not positive definite.
    MethodError
        If no mask satisfies family and side constraints, or ``start`` does not.

    References
    ----------
    Bertsimas & Van Parys, "Sparse high-dimensional regression: exact scalable algorithms and phase
    transitions", Annals of Statistics 48 (2020); Ben-Ameur & Neto, "Acceleration of cutting-plane
    and column generation algorithms", Networks 49 (2007).
    """
    if problem.p > MAX_SIZE:
        raise ProblemError(
            f"the problem has {problem.p} weights; the outer approximation forms dense cuts and "
            f"stops at {MAX_SIZE}. Use branch_and_bound or dual_bound"
        )
    if not 0.0 <= gap < 1.0:
        raise ProblemError(f"gap is {gap}; give a relative gap in [0, 1)")
    search = _Search(problem, Clock(time_limit), gap, side_constraints)
    status = Status.ITERATION_LIMIT
    try:
        search.prepare(start)
        status = search.run(round_limit)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return search.result(status)


class _Search:
    """The state of one call: master, cuts, what is fixed, incumbent and bounds."""

    def __init__(
        self, problem: Problem, clock: Clock, gap: float, side: Sequence[SideConstraint]
    ) -> None:
        self.problem, self.clock, self.gap = problem, clock, gap
        self.quadratic, self.family = Quadratic.of(problem), allowed(problem.supports)
        self.nodes_of = NodeSolver(self.quadratic, self.family)
        self.node: Node = self.nodes_of.root()
        self.floor = problem.dense_minimum
        self.maker = CutMaker(self.quadratic, self.node.state)
        self.side, self.master = side, Master(problem, side)
        self.value, self.w, self.mask = np.inf, None, None
        self.lower = self.proven = self.floor - self.nodes_of.rounding(self.floor)
        self.scale = 1.0
        self.bound: Bound | None = None
        self.rounds = self.nodes = 0
        self.seen: set[bytes] = set()
        self.trace: list[tuple[float, float, float]] = []

    # -- incumbents ---------------------------------------------------------------------------

    @property
    def ceiling(self) -> float:
        """No optimal value lies above: the incumbent's, or just over that of pruning everything."""
        if np.isfinite(self.value):
            return float(self.value)
        every = self.problem.prune_all
        return every + 1e-6 * (abs(every) + abs(every - self.floor)) + 1e-300

    @property
    def closed(self) -> bool:
        """Whether the gap asked for is reached."""
        found = np.isfinite(self.value)
        return bool(found and self.value - self.lower <= self.gap * (self.value - self.floor))

    def offer(self, mask: Array, *, admitted: bool) -> bool:
        """Solve exactly on a mask, improve it by swaps; whether the incumbent got better."""
        if not self.problem.supports.contains(torch.from_numpy(mask)):
            return False
        support = np.flatnonzero(mask)
        w = np.zeros(self.problem.p)
        w[support], value = self.quadratic.solve(support)
        better = value < self.value and (admitted or self.admits(mask))
        if better:
            self.take(mask, w)
        if value < self.value + 0.1 * (self.value - self.floor):
            start = Solution(self.problem, torch.from_numpy(w), "mask", Status.FEASIBLE)
            swapped = local_search(self.problem, start=start, max_rounds=3)
            other = swapped.mask.numpy()
            if swapped.objective < self.value - 1e-12 * abs(self.value) and self.admits(other):
                self.take(other, swapped.w.numpy())
                better = True
        return better

    def take(self, mask: Array, w: Array) -> None:
        """Make it the incumbent."""
        self.mask, self.w = mask.copy(), w
        self.value = self.problem.objective(torch.from_numpy(w))
        self.record()

    def admits(self, mask: Array) -> bool:
        """Whether the side constraints allow a mask of the family."""
        return not self.side or self.master.admits(mask)

    def record(self) -> None:
        """A row of the trace."""
        self.trace.append((self.clock.elapsed, self.lower, float(self.value)))

    # -- root ---------------------------------------------------------------------------------

    def prepare(self, start: Solution | None) -> None:
        """Incumbent, root bound, fixings and the first cuts."""
        if start is not None:
            check_start(self.problem, start)
            if not self.admits(start.mask.numpy()):
                raise MethodError("the start does not satisfy the side constraints; leave it out")
            self.take(start.mask.numpy(), start.w.numpy())
        limit = None if self.clock.remaining is None else 0.2 * self.clock.remaining
        first = start or heuristic(self.problem, time_limit=limit)
        self.offer(first.mask.cpu().numpy(), admitted=False)
        self.scale = max(self.ceiling - self.floor, 1e-9 * (self.problem.prune_all - self.floor))
        self.scale = self.scale or 1.0
        self.reduce()
        if not self.node.d.any() and (self.node.state == FREE).any() and not self.closed:
            raise CurvatureError(
                "the curvature plus the ridge is not positive definite; raise the ridge rho"
            )

    def reduce(self) -> None:
        """Bound what is open against the incumbent and fix what that decides; then a cut of it."""
        while not self.closed:
            before, value = (self.node.state == FREE).sum(), self.value
            outcome = self.nodes_of.process(self.node, self.ceiling)
            self.node = outcome.node
            self.maker.state = self.node.state
            self.raise_proven(min(outcome.lower, self.ceiling))
            for support in outcome.supports[-2:]:
                mask = np.zeros(self.problem.p, dtype=bool)
                mask[support] = True
                self.offer(mask, admitted=False)
            if outcome.branch < 0:
                break
            if (self.node.state == FREE).sum() == before and not self.value < value:
                break
        self.master.fix(self.node.state)
        self.cut_at(self.node.z, None)

    def raise_proven(self, value: float) -> None:
        """A better bound from our own witnesses."""
        self.proven = max(self.proven, value)
        if self.proven > self.lower:
            self.lower = self.proven
            self.record()

    # -- cuts ---------------------------------------------------------------------------------

    def cut_at(self, z: Array, mask: Array | None) -> None:
        """The highest cut at z, and with the same split the one that touches at ``mask``."""
        d = self.maker.sharp_split(z)
        if d is None:
            return
        self.add(self.maker.cut(d, self.maker.weights(z, d)), screen=True)
        if mask is not None:
            w = np.zeros(self.problem.p)
            support = np.flatnonzero(mask)
            w[support] = self.quadratic.solve(support)[0]
            self.add(self.maker.cut(d, w))

    def add(self, cut: DualCut, *, screen: bool = False) -> None:
        """Clean a cut for the solver and add it; fix weights by it."""
        shifted = DualCut(cut.constant - self.floor, cut.slopes)
        self.master.add(cleaned(shifted, floor=self.lower - self.floor, scale=self.scale))
        if screen:
            self.screen(cut)

    def screen(self, cut: DualCut) -> None:
        """Fix the weights whose other value this cut proves no better than the incumbent."""
        state = self.node.state
        free = np.flatnonzero(state == FREE)
        if not len(free):
            return
        s = cut.slopes[free]
        mask, best = self.family.best(state, free, s)
        low = cut.constant - float(cut.slopes[state == IN].sum()) - best
        low -= self.nodes_of.rounding(best)
        self.raise_proven(min(low, self.ceiling))
        decided = low + self.family.exchange(state, free, s, mask) >= self.ceiling
        state[free[decided & mask]], state[free[decided & ~mask]] = IN, OUT
        if decided.any():
            self.family.propagate(state)
            self.master.fix(state)

    # -- rounds -------------------------------------------------------------------------------

    def run(self, round_limit: int) -> Status:
        """Solve the master, cut, until the gap is closed or a limit comes."""
        while not self.closed:
            if self.clock.expired:
                return Status.TIME_LIMIT
            if self.rounds >= round_limit:
                return Status.ITERATION_LIMIT
            found = self.solve_master()
            if found.status == "infeasible":
                self.infeasible()
                return Status.OPTIMAL
            if found.status == "interrupted":
                return Status.INTERRUPTED
            if not found.masks:
                if found.status != "time_limit":
                    raise MethodError(f"HiGHS stopped with {found.status}")
                return Status.TIME_LIMIT
            if not self.learn(found.masks):
                return Status.OPTIMAL if self.closed else Status.ITERATION_LIMIT
        return Status.OPTIMAL

    def solve_master(self) -> Round:
        """One round; bounds and times go to the trace."""
        begin = self.clock.elapsed
        unit = max(self.ceiling - self.floor, 0.0) / self.scale
        self.master.cut_off((self.ceiling - self.floor) / self.scale * (1.0 + 1e-9))
        start = None
        if self.mask is not None:
            start = (self.mask, (self.value - self.floor) / self.scale)
        left = self.clock.remaining
        found = self.master.solve(start, np.inf if left is None else left, gap=0.3 * self.gap * unit)
        self.rounds += 1
        self.nodes += found.nodes
        for seconds, t in [*found.trace, (self.clock.elapsed - begin, found.lower)]:
            value = min(self.floor + self.scale * t, self.ceiling)
            if value > self.lower:
                self.lower = value
                self.trace.append((begin + seconds, value, float(self.value)))
        return found

    def learn(self, masks: list[Array]) -> bool:
        """Incumbents and cuts from a round's masks, best first; False if nothing was new."""
        new = False
        for mask in masks[: -_MASKS - 1 : -1]:
            key = mask.tobytes()
            if key in self.seen:
                continue
            self.seen.add(key)
            new = True
            if not self.problem.supports.contains(torch.from_numpy(mask)):
                self.master.forbid(mask)
                continue
            if self.offer(mask, admitted=True):
                self.reduce()
            if self.closed:
                return True
            z = _TOWARDS_MASK * mask + (1.0 - _TOWARDS_MASK) * self.node.z
            self.cut_at(z, mask)
        return new

    def infeasible(self) -> None:
        """No mask is better than the incumbent, or none exists at all."""
        if self.mask is None:
            raise MethodError("no mask satisfies the family together with the side constraints")
        self.lower = float(self.value)
        self.record()

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
            self.bound, status, self.rounds, self.master.cuts, self.nodes,
            int((self.node.state != FREE).sum()), seconds, tuple(self.trace),
        )  # fmt: skip
