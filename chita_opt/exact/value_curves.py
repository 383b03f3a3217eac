r"""What every number of kept weights is worth to a block: its best value, and a bound.

For a block (a row, a layer) :math:`\phi(\kappa)` is its optimum with at most :math:`\kappa`
weights. A curve holds an upper and a lower value of :math:`\phi` on a list of counts; both fall.
Small blocks are solved exactly for every count; larger ones get heuristic weights and dual bounds
on a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from chita_opt.bounds import dual_bound
from chita_opt.errors import ProblemError
from chita_opt.exact.engines import ParallelEngine
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.path import k_path
from chita_opt.exact.result import PathProof, relative_gap
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Status
from chita_opt.supports import Budget
from chita_opt.supports.base import Array


@dataclass(frozen=True, eq=False)
class ValueCurve:
    """Best value and bound of a block for a list of counts.

    Attributes
    ----------
    ks : ndarray
        (K,) increasing counts. The last one stands for all larger ones: make it the block's cap.
    upper, lower : ndarray
        (K,) objective of the best weights with at most ``ks`` kept, and bound; both fall with k.
    w : ndarray or None
        (K, p) the weights.
    floor : float
        The block's dense minimum, which relative gaps refer to.
    status : Status
        OPTIMAL where the gap asked for is closed for every count.
    nodes : int
        Nodes of the trees.
    proof : PathProof or None
        On request, the logs that prove ``lower``.

    Raises
    ------
    ProblemError
        If the counts do not increase, or a value rises with the count or lies below its bound.
    """

    ks: Array
    upper: Array
    lower: Array
    w: Array | None = None
    floor: float = 0.0
    status: Status = Status.FEASIBLE
    nodes: int = 0
    proof: PathProof | None = None

    def __post_init__(self) -> None:
        if not len(self.ks) or self.ks[0] < 0 or bool((np.diff(self.ks) <= 0).any()):
            raise ProblemError(f"the counts of a curve are {self.ks}; give increasing ones >= 0")
        if len(self.upper) != len(self.ks) or len(self.lower) != len(self.ks):
            raise ProblemError(
                f"a curve of {len(self.ks)} counts has {len(self.upper)} values and "
                f"{len(self.lower)} bounds; give one for each count"
            )
        steps = np.concatenate([np.diff(self.upper), np.diff(self.lower)])
        if bool((steps > 0.0).any()) or bool((self.lower > self.upper).any()):
            raise ProblemError("values and bounds of a curve must fall, no bound above its value")

    @property
    def gaps(self) -> Array:
        """(K,) relative gap of every count, on the increase over the dense minimum.

        Zero where both values agree to the rounding of the terms that they are sums of.
        """
        terms = abs(self.upper[0]) + abs(self.floor)
        rounding = 256.0 * np.finfo(np.float64).eps * int(self.ks[-1]) * terms
        found = [
            relative_gap(low, up, up - self.floor) if up - low > rounding else 0.0
            for low, up in zip(self.lower.tolist(), self.upper.tolist(), strict=True)
        ]
        return np.array(found)

    def place(self, count: int) -> int:
        """Number of the largest count of the curve that is at most ``count``."""
        return int(np.searchsorted(self.ks, count, side="right")) - 1

    @property
    def bounded_from(self) -> Array:
        """(K,) the least count that each bound is about: one more than the count before."""
        return np.concatenate([[0], self.ks[:-1] + 1])


@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """How curves are made.

    Attributes
    ----------
    exact_size : int
        Weights up to which a block is solved exactly for every count.
    tree : TreeOptions
        Gap and limits of those searches; its time limit is of one block, its workers are not used.
    grid : int
        Counts of a larger block, beside 0: spread evenly over its logarithm.
    method : str
        Heuristic of larger blocks.
    time_limit : float or None
        Seconds over all blocks.
    """

    exact_size: int = 60
    tree: TreeOptions = field(default_factory=lambda: TreeOptions(gap=1e-6))
    grid: int = 16
    method: str = "auto"
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.grid < 1 or self.exact_size < 0:
            raise ProblemError(
                f"grid is {self.grid} and exact_size {self.exact_size}; give grid >= 1 and "
                "exact_size >= 0"
            )


def value_curve(
    problem: Problem, *, ks: Sequence[int] | None = None, options: CurveOptions | None = None
) -> ValueCurve:
    """The curve of one block.

    Parameters
    ----------
    problem : Problem
        Under a budget.
    ks : sequence of int, optional
        Counts; 0 and the family's largest are added. All of them by default where the block is
        solved exactly, else a grid.
    options : CurveOptions, optional
        What is solved exactly, and limits.

    Raises
    ------
    ProblemError
        If the family is no budget, or a count lies outside it.
    """
    options = options or CurveOptions()
    if not isinstance(problem.supports, Budget):
        raise ProblemError(f"a curve needs a budget family; {problem.supports.name} is none")
    top = problem.supports.max_count
    if ks is not None and not all(0 <= k <= top for k in ks):
        raise ProblemError(f"the counts of a curve must lie in [0, {top}]; got {list(ks)}")
    if problem.p > options.exact_size:
        counts = _grid(top, options.grid) if ks is None else ks
        return _bounded_curve(problem, sorted({0, top, *counts}), options)
    tree = replace(options.tree, workers=1)
    if options.time_limit is not None:
        own = options.time_limit if tree.time_limit is None else tree.time_limit
        tree = replace(tree, time_limit=min(own, options.time_limit))
    path = k_path(problem, ks=None if ks is None else sorted({0, top, *ks}), options=tree)
    if path.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    lower = np.maximum(path.lower, proven_floor(problem))
    return ValueCurve(
        path.ks, *_falling(path.upper, lower), path.w, problem.dense_minimum, path.status,
        path.nodes, path.proof,
    )  # fmt: skip


def proven_floor(problem: Problem) -> float:
    """The dense minimum, less its rounding: a bound for every count."""
    if not bool(problem.g.any()):
        return 0.0
    low = problem.dense_minimum
    return low - 1e-9 * (abs(low) + abs(problem.prune_all))


def _falling(upper: Array, lower: Array) -> tuple[Array, Array]:
    """A value serves larger counts and a bound smaller ones; a bound never exceeds its value."""
    upper = np.minimum.accumulate(upper)
    lower = np.maximum.accumulate(np.minimum(lower, upper)[::-1])[::-1]
    return upper, np.minimum(lower, upper)


def _grid(top: int, size: int) -> list[int]:
    return np.unique(np.geomspace(1, max(top, 1), size).round().astype(int)).tolist()


def _bounded_curve(problem: Problem, ks: Sequence[int], options: CurveOptions) -> ValueCurve:
    """Heuristic weights and dual bounds, the largest count first; one time for each."""
    family, clock = problem.supports, Clock(options.time_limit)
    assert isinstance(family, Budget)
    base = replace(family, total=None, _cache={})
    upper, lower = np.full(len(ks), problem.prune_all), np.full(len(ks), proven_floor(problem))
    w = np.zeros((len(ks), problem.p))
    status = Status.FEASIBLE
    for i in range(len(ks) - 1, 0, -1):  # of count 0 all is known
        if clock.expired:
            status = Status.TIME_LIMIT
            break
        own = problem.with_supports(Budget.nested(base, ks[i]))
        limit = None if clock.remaining is None else clock.remaining / (2 * i)
        found = solve(own, options.method, time_limit=limit)
        upper[i], w[i] = found.objective, found.w.cpu().numpy()
        lower[i] = dual_bound(own, start=found, time_limit=limit).value
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
    lower[0] = problem.prune_all
    for i in range(1, len(ks)):
        if upper[i] > upper[i - 1]:
            upper[i], w[i] = upper[i - 1], w[i - 1]
    return ValueCurve(np.array(ks), *_falling(upper, lower), w, problem.dense_minimum, status)


def value_curves(
    problems: Sequence[Problem],
    *,
    ks: Sequence[int] | None = None,
    options: CurveOptions | None = None,
    engine: ParallelEngine | None = None,
) -> tuple[ValueCurve, ...]:
    """The curves of several blocks, such as those of :func:`chita_opt.exact.split_into_blocks`.

    Parameters
    ----------
    problems : sequence of Problem
        The blocks.
    ks, options
        As for :func:`value_curve`; the time limit is over all blocks, in even shares.
    engine : ParallelEngine, optional
        Where the blocks are solved; here, one after the other, by default. The curves do not
        depend on it unless a time limit ends a search.

    Returns
    -------
    tuple of ValueCurve
        After Ctrl-C, blocks that were not done keep nothing, with the dense minimum as bound.
    """
    options, engine = options or CurveOptions(), engine or ParallelEngine()
    if options.time_limit is not None:
        rounds = -(-len(problems) // engine.workers)
        options = replace(options, time_limit=options.time_limit / max(rounds, 1))
    found = [_nothing(problem) for problem in problems]
    try:
        engine.map(partial(_curve_of, ks, options), problems, on_result=found.__setitem__)
    except KeyboardInterrupt:
        pass  # a bound and weights are at hand for every block
    return tuple(found)


def _curve_of(ks: Sequence[int] | None, options: CurveOptions, problem: Problem) -> ValueCurve:
    return value_curve(problem, ks=ks, options=options)


def _nothing(problem: Problem) -> ValueCurve:
    """What is known for free: pruning everything, and the dense minimum for every count."""
    upper, floor = problem.prune_all, proven_floor(problem)
    return ValueCurve(
        np.array([0, max(problem.supports.max_count, 1)]), np.array([upper, upper]),
        np.array([upper, min(floor, upper)]), np.zeros((2, problem.p)), floor, Status.INTERRUPTED,
    )  # fmt: skip


__all__ = ["CurveOptions", "ValueCurve", "proven_floor", "value_curve", "value_curves"]
