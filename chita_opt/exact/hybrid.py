"""``hybrid``: exact where it can, fast where it must, and one bound over everything."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from chita_opt.bounds import Bound, dual_bound
from chita_opt.errors import ProblemError
from chita_opt.exact.block_splits import SplitEffort, block_split_bound, falls_into_blocks
from chita_opt.exact.blocks import solve_blocks, split_into_blocks
from chita_opt.exact.neighbourhood import NeighbourhoodOptions, neighbourhood_search
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.reduction import ReducedCosts, reduce_and_search
from chita_opt.exact.result import (
    BlockProof,
    HistoryRow,
    ReductionProof,
    TreeResult,
    relative_gap,
)
from chita_opt.heuristics import solve
from chita_opt.heuristics.incumbent import check_start
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

_STEP_FLOPS = 8.0  # of one Newton step of a split, in cubes of the weights, at a product's speed
_STEPS = 60  # Newton steps that a search should have time for
_SAMPLE = 600  # size of the product by which the machine's speed is measured
_SMALL = 200  # weights up to which the tree needs no help
_FIRST = 0.04  # share of the seconds that the first reduction's root should take
_TREE = 0.4  # share of the seconds left that a reduction gets
_SEARCH = 0.15  # and windows
_KICKS = 0.15  # and swap searches from kicks, before every reduction
_WIDEST, _COUNTS = 40, 2000  # blocks, and counts over all of them, that are solved one by one
_TOO_SOON = 1e-3  # share of the gap below which a rise of the claim counts as none
_GROWTH = 1.1, 1.2  # by which the undecided weights grow after a proof, at least and at most


@dataclass(frozen=True, kw_only=True)
class HybridOptions:
    """How far the hybrid goes.

    Attributes
    ----------
    gap : float
        Relative gap, on the increase over the dense minimum, at which it ends.
    method : str
        What finds first weights: a name of ``METHODS``, or "auto": "best", and for small problems
        the default.
    windows : NeighbourhoodOptions
        Of the exact neighbourhood search.
    undecided : int
        Most weights that a reduction may leave to the tree.
    rounds : int
        Rounds of reduction and search.
    seconds : float
        Over the whole call where no time limit is given.
    """

    gap: float = 1e-6
    method: str = "auto"
    windows: NeighbourhoodOptions = field(default_factory=NeighbourhoodOptions)
    undecided: int = 2000
    rounds: int = 12
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gap < 1.0:
            raise ProblemError(f"gap is {self.gap}; give a relative gap in [0, 1)")
        if self.undecided < 1 or self.rounds < 1 or not self.seconds > 0:
            raise ProblemError("undecided, rounds and seconds must be positive")


def hybrid(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    options: HybridOptions | None = None,
) -> TreeResult:
    """Solve by a heuristic, exact neighbourhood search and reduction in turn, with one bound.

    First the default heuristic and the dual bound. Then, in rounds: windows of undecided weights
    are solved exactly (:func:`neighbourhood_search`); swaps are searched from kicks among the
    undecided; and the weights whose fate the bound proves
    against a cutoff are eliminated, so that a tree with the best diagonal splits is left with the
    undecided ones (:mod:`chita_opt.exact.reduction`). The first cutoff leaves few; it rises with
    every proof as the time left allows, and after a tree that ran out of time lies between what was
    proven and what was asked. A small problem is left to the tree whole, and solved to optimality.

    Parameters
    ----------
    problem : Problem
        Any family and form of curvature with rho > 0, or an explicit positive definite one.
    start : Solution, optional
        Never made worse.
    time_limit : float, optional
        Seconds over the whole call; ``options.seconds`` if absent.
    seed : int
        Of the heuristic and the windows.
    options : HybridOptions, optional
        Limits.

    Returns
    -------
    TreeResult
        Weights, bound and, as its proof, what :func:`chita_opt.certificates.certify` and
        ``save_proof`` take: a :class:`ReductionProof` or :class:`BlockProof`, or None where the
        dual bound's witness alone proves as much. On Ctrl-C too.

    Raises
    ------
    ProblemError
        If no bound can be had for rho = 0.
    """
    options = options or HybridOptions()
    clock = Clock(options.seconds if time_limit is None else time_limit)
    return _Hybrid(problem, clock, seed, options).run(start)


class _Hybrid:
    """The incumbent, the best claim, and the clock."""

    def __init__(self, problem: Problem, clock: Clock, seed: int, options: HybridOptions) -> None:
        self.problem, self.clock, self.seed, self.options = problem, clock, seed, options
        self.best: Solution | None = None
        self.bound: Bound | None = None
        self.proof: ReductionProof | None = None
        self.block_proof: BlockProof | None = None
        self.block_lower = -float("inf")
        self.history: list[HistoryRow] = []
        self.nodes, self.root = 0, -float("inf")
        self.aim: int | None = None  # undecided weights to leave, and the highest cutoff to try
        self.ceiling: float | None = None
        self.stats = {
            "windows": 0.0,
            "helped": 0.0,
            "reductions": 0.0,
            "undecided": 0.0,
        }

    def run(self, start: Solution | None) -> TreeResult:
        """First weights and bound, then rounds; Ctrl-C ends it with what is at hand."""
        status = Status.STATIONARY
        try:
            self._first(start)
            self._blocks()
            self._rounds()
            status = Status.TIME_LIMIT if self.clock.expired else status
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
            if self.best is None:
                nothing = torch.zeros_like(self.problem.w_bar)
                self.best = start or Solution(self.problem, nothing, "hybrid", status)
        return self._result(status)

    # -- what is known --------------------------------------------------------------------------

    @property
    def lower(self) -> float:
        """The best claim."""
        values = [-float("inf")]
        values += [] if self.bound is None else [self.bound.value]
        values += [] if self.proof is None else [self.proof.lower]
        return max([*values, self.block_lower])

    @property
    def log(self) -> ReductionProof | BlockProof | None:
        """The logs that prove most."""
        if self.proof is None or self.proof.lower < self.block_lower:
            return self.block_proof
        return self.proof

    @property
    def gap(self) -> float:
        """Relative gap, on the increase over the dense minimum."""
        assert self.best is not None
        upper = self.best.objective
        return relative_gap(self.lower, upper, upper - self.problem.dense_minimum)

    @property
    def finished(self) -> bool:
        """Whether the gap is closed, or time has run out."""
        return self.clock.expired or self.gap <= self.options.gap

    def _seconds(self, share: float) -> float:
        """A share of the seconds left."""
        return share * (self.clock.remaining or 0.0)

    def _take(self, found: Solution) -> None:
        """Keep weights that are allowed and better; pass an interrupt on."""
        better = self.best is None or found.objective < self.best.objective
        if better and found.is_feasible:
            self.best = found
        self._note()
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt

    def _note(self) -> None:
        if self.best is not None:
            self.history.append(HistoryRow(self.clock.elapsed, self.lower, self.best.objective, 0))

    # -- steps ----------------------------------------------------------------------------------

    def _first(self, start: Solution | None) -> None:
        """First weights and the dual bound."""
        if start is not None:
            check_start(self.problem, start)
            self._take(start)
        method = self.options.method
        if method == "auto" and self.problem.p > _SMALL:
            method = "best"
        limit = self._seconds(0.25)
        found = solve(self.problem, method, start=start, time_limit=limit, seed=self.seed)
        self._take(found)
        self._prove(found)

    def _prove(self, found: Solution) -> None:
        """The dual bound in a quarter of the time, then splits of blocks in half of the rest."""
        self.bound = dual_bound(self.problem, start=found, tol=1e-6, time_limit=self._seconds(0.25))
        if falls_into_blocks(self.problem.curvature) and not self.finished:
            effort = SplitEffort(time_limit=self._seconds(0.5))
            self.bound = block_split_bound(self.problem, found, self.bound, effort)
        self.root = self.bound.value
        self._note()
        if self.bound.stats.get("stopped") == "interrupt":
            raise KeyboardInterrupt

    def _blocks(self) -> None:
        """Small blocks of the curvature are solved one by one, each for the counts that matter."""
        if self.problem.supports.binary_auxiliary or self.finished:
            return
        try:
            blocks = split_into_blocks(self.problem)
        except ProblemError:
            return
        widest = max(block.p for _, block in blocks)
        if widest > _WIDEST or widest * len(blocks) > _COUNTS:
            return
        limits = TreeOptions(gap=self.options.gap, time_limit=self._seconds(_TREE), proof=True)
        found = solve_blocks(self.problem, options=limits)
        self.nodes += found.nodes
        if isinstance(found.proof, BlockProof) and found.lower > self.lower:
            self.block_proof = replace(found.proof, bound=self.bound)
            self.block_lower = found.lower
        self._take(found.solution)

    def _rounds(self) -> None:
        """Windows while they help, and reductions while they raise the claim."""
        search, reduce = True, not self.problem.supports.binary_auxiliary  # which a replay needs
        for round_number in range(self.options.rounds):
            if self.finished or not (search or reduce):
                return
            share = _SEARCH if reduce else 1.0
            search = search and self._search(round_number, share)
            if self.finished:
                return
            reduce = reduce and self._reduce(round_number)

    def _search(self, round_number: int, share: float) -> bool:
        """Exact windows; whether another round of them may help."""
        assert self.best is not None
        found = neighbourhood_search(
            self.problem,
            start=self.best,
            bound=self.bound,
            time_limit=self._seconds(share),
            seed=self.seed + round_number,
            options=self.options.windows,
        )
        self.stats["windows"] += float(str(found.stats["windows"]))
        self.stats["helped"] += float(str(found.stats["helped"]))
        helped = found.objective < self.best.objective
        self._take(found)
        return helped or found.status is Status.TIME_LIMIT  # patience has not ended it

    def _reduce(self, round_number: int) -> bool:
        """One reduction, its cutoff as high as time allows; whether another may prove more."""
        assert self.best is not None and self.bound is not None
        costs, upper = ReducedCosts.of(self.problem, self.bound), self.best.objective
        cutoff = self._cutoff(costs, upper)
        small = _TOO_SOON * (upper - self.lower)
        if cutoff <= self.lower + small:
            return False
        kicks = self._seconds(_KICKS)
        found = reduce_and_search(
            self.problem, self.bound, self.best, cutoff,
            options=TreeOptions(gap=0.0, time_limit=kicks + self._seconds(_TREE)),
            kicks=kicks, seed=self.seed + round_number,
        )  # fmt: skip
        if found is None:
            return False
        self.nodes += found.tree.nodes
        self.stats["reductions"] += 1.0
        self.stats["undecided"] = undecided = float((found.proof.fates < 0).sum())
        if found.proof.lower > self.lower:
            self.proof = found.proof
        self._take(found.solution)
        if found.tree.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if found.proof.lower < cutoff - small:  # the next lies between what was reached and asked
            self.ceiling = 0.5 * (max(found.proof.lower, self.lower) + cutoff)
        else:  # as many more as the time left allows, judging by this one
            grown = (0.5 * self._seconds(_TREE) / max(found.seconds, 1e-3)) ** (1.0 / 3.0)
            self.aim = int(undecided * min(max(grown, _GROWTH[0]), _GROWTH[1])) + 1
        return not self.clock.expired

    def _cutoff(self, costs: ReducedCosts, upper: float) -> float:
        """The highest cutoff that leaves no more than time allows for, elimination included."""
        aim = self.aim or self._affordable
        while True:
            cutoff = costs.cutoff_for(aim, upper)
            if self.ceiling is not None:
                cutoff = min(cutoff, self.ceiling)
            seconds = self._elimination_seconds(costs.fates(cutoff))
            if aim <= 1 or seconds <= self._seconds(0.5):
                return cutoff
            aim //= 2

    @property
    def _affordable(self) -> int:
        """Undecided weights that a tree has time for."""
        flops = self._seconds(_FIRST) * self._speed() / (_STEPS * _STEP_FLOPS)
        return max(1, min(self.options.undecided, max(int(flops ** (1.0 / 3.0)), 64)))

    def _speed(self) -> float:
        """Floating-point operations in a second, as the machine is now."""
        M, seconds = np.ones((_SAMPLE, _SAMPLE)), []
        for _ in range(3):  # the fastest is the least disturbed
            begin = time.perf_counter()
            M @ M
            seconds.append(time.perf_counter() - begin)
        return 2.0 * _SAMPLE**3 / min(seconds)

    def _elimination_seconds(self, fates: Array) -> float:
        """Of forming the undecided weights' quadratic, here and twice in the certificate."""
        kept, undecided = int((fates > 0).sum()), int((fates < 0).sum())
        every = kept + undecided
        inner = min(self.problem.curvature.image_size, self.problem.p)
        flops = 2.0 * every**2 * inner + kept**3 + 4.0 * kept * every * undecided
        return 3.0 * flops / self._speed()

    def _result(self, status: Status) -> TreeResult:
        assert self.best is not None
        if self.bound is None:  # interrupted before there was one
            self.bound = dual_bound(self.problem, start=self.best, time_limit=1e-3)
        if status is not Status.INTERRUPTED and self.gap <= max(self.options.gap, 1e-6):
            status = Status.OPTIMAL
        solution = replace(
            self.best, method="hybrid", status=status, seconds=self.clock.elapsed,
            stats={**self.best.stats, **self.stats}, evidence=self.log or self.bound,
        )  # fmt: skip
        self._note()
        return TreeResult(
            solution, min(self.lower, solution.objective), status, self.nodes, self.clock.elapsed,
            self.root, tuple(self.history), self.log, dict(self.stats),
        )  # fmt: skip


__all__ = ["HybridOptions", "hybrid"]
