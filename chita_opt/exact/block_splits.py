r"""Every block by its own best diagonal split, and one dual ascent over all of them.

Where the curvature falls into blocks, :math:`C-\mathrm{diag}(e)\succeq0` does too, and the best
split of a block is a semidefinite program of its own size (see
:mod:`chita_opt.exact.diagonal_split`). Rows that share H in the curvature need not share the split:
which weights are undecided differs from row to row. Each block is given the number of weights that
an incumbent keeps in it, which only steers the choice of its split: any split that leaves a
semidefinite rest proves a bound. The ascent over all blocks then finds the best dual point for
these splits under the family itself, so the answer is a witness like every other one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chita_opt.bounds import Bound, RelaxationOptions, safe_split
from chita_opt.bounds.root_bound import bound_with_split
from chita_opt.curvature import BlockDiagonal, Curvature
from chita_opt.exact.blocks import block_slices
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions, NodeBound
from chita_opt.exact.tree_search.node import root_node
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Trace
from chita_opt.supports import Budget

MAX_BLOCK = 1500
"""Weights of a block up to which its split is searched for."""
_ENTRY_BYTES = 72.0  # the block, its factor, and the ascent's systems, a squared weight
_SHARE = 0.6  # of the seconds, for the splits; the rest is the ascent's
_TRIVIAL = 1e-9  # share of the increase below which a block is left as it is
_ASCENT = AscentOptions(shrink=0.5, inside=0.7, most_steps=100)


@dataclass(frozen=True, kw_only=True)
class SplitEffort:
    """How far to go.

    Attributes
    ----------
    time_limit : float or None
        Seconds; blocks that are not reached keep the split of the bound that is improved.
    work : float
        Sum of the cubes of the sizes of all blocks that are searched: layers are taken from the
        cheapest on as far as they fit, whatever the machine.
    memory_limit : float
        Bytes; the same.
    enough : float
        What a block's split may leave to gain, as a share of the block's gap.
    tol : float
        Of the ascent over all blocks; see ``dual_bound``.
    """

    time_limit: float | None = None
    work: float = float("inf")
    memory_limit: float = 4e9
    enough: float = 0.1
    tol: float = 1e-4


def falls_into_blocks(curvature: Curvature) -> bool:
    """Whether there are several blocks, all small enough to be searched."""
    sizes = [s.stop - s.start for s, _ in block_slices(curvature)]
    return len(sizes) > 1 and max(sizes) <= MAX_BLOCK


def block_split_bound(
    problem: Problem, start: Solution, first: Bound, effort: SplitEffort | None = None
) -> Bound:
    """Raise a dual bound by the blocks' own best splits.

    Parameters
    ----------
    problem : Problem
        Any family; a block-diagonal curvature, or rows that share H.
    start : Solution
        Incumbent; its counts and objective steer the search.
    first : Bound
        The bound that is to be raised, with its split and indicators; of :func:`dual_bound`.
    effort : SplitEffort, optional
        Limits.

    Returns
    -------
    Bound
        ``first`` where nothing was gained. After Ctrl-C ``stats["stopped"]`` is "interrupt".
    """
    effort = effort or SplitEffort()
    clock, found = Clock(effort.time_limit), first
    options = RelaxationOptions(
        tol=effort.tol, incumbent=start.objective, memory_limit=effort.memory_limit
    )
    try:
        e = _splits(problem, start, first, effort)
        if e is not None:
            found = bound_with_split(problem, e, "best of each block", first, options, clock)
        stopped = found.stats.get("stopped", "steps")
    except KeyboardInterrupt:
        stopped = "interrupt"
    best = found if found.value > first.value else first
    return replace(
        best,
        seconds=first.seconds + clock.elapsed,
        trace=Trace((*first.trace.rows, *_later(found, first))),
        stats={**best.stats, "stopped": stopped},
    )


def _later(found: Bound, first: Bound) -> Iterator[tuple[float, float]]:
    """Rows of the second ascent that lie above the first bound."""
    if found is not first:
        for seconds, value in found.trace.rows:
            if value > first.value:
                yield first.seconds + seconds, value


def _splits(problem: Problem, start: Solution, first: Bound, effort: SplitEffort) -> Tensor | None:
    """The blocks' splits, proven; None where no block was reached."""
    clock = Clock(None if effort.time_limit is None else _SHARE * effort.time_limit)
    e = torch.zeros_like(problem.rho) if first.split is None else first.split.clone()
    blocks = [_Block.of(problem, start, *part) for part in _affordable(problem.curvature, effort)]
    total = sum(block.increase for block in blocks)
    reached = False
    for block in sorted(blocks, key=lambda block: -block.increase):
        if clock.expired or block.increase <= _TRIVIAL * total:
            break
        own = block.best_split(clock, effort.enough)
        if own is not None:
            e[block.place], reached = own, True
    return safe_split(problem.curvature, e) if reached else None


def _affordable(curvature: Curvature, effort: SplitEffort) -> Iterator[tuple[slice, Curvature]]:
    """Blocks whose splits may be searched, whole layers of rows from the cheapest on."""
    work = entries = 0.0
    layers = [part for part in _layers(curvature) if _width(part) <= MAX_BLOCK]
    for layer in sorted(layers, key=_work):
        work, entries = work + _work(layer), entries + _work(layer) / _width(layer)
        if work > effort.work or _ENTRY_BYTES * entries > effort.memory_limit:
            return
        yield from layer


def _layers(curvature: Curvature, start: int = 0) -> Iterator[list[tuple[slice, Curvature]]]:
    """Rows that share a matrix together, other blocks alone."""
    if isinstance(curvature, BlockDiagonal):
        for block, s in curvature.slices():
            yield from _layers(block, start + s.start)
    else:
        found = block_slices(curvature)
        yield [(slice(start + s.start, start + s.stop), form) for s, form in found]


def _width(layer: list[tuple[slice, Curvature]]) -> int:
    return layer[0][1].size


def _work(layer: list[tuple[slice, Curvature]]) -> float:
    return float(len(layer)) * _width(layer) ** 3


@dataclass(frozen=True, eq=False)
class _Block:
    """One block under a budget of as many weights as the incumbent keeps in it."""

    place: slice
    problem: Problem
    objective: float
    increase: float

    @classmethod
    def of(cls, whole: Problem, start: Solution, place: slice, curvature: Curvature) -> _Block:
        size = curvature.size
        kept = min(max(int(start.mask[place].sum()), 1), max(size - 1, 1))
        family = Budget.cardinality(size, kept)
        own = Problem(curvature, whole.w_bar[place], whole.rho[place], family, whole.g[place])
        objective = own.objective(start.w[place])
        return cls(place, own, objective, objective - own.dense_minimum)

    def best_split(self, clock: Clock, enough: float) -> Tensor | None:
        """The diagonal to be moved to the ridge, not proven yet; None if no ascent ends in time."""
        quadratic, family = Quadratic.of(self.problem), allowed(self.problem.supports)
        node = root_node(self.problem.p, family.row_count)
        free = np.arange(self.problem.p)
        options = replace(_ASCENT, enough=enough)
        bound = NodeBound(quadratic, node, family.restrict(node.state, free), free, options)
        if bound.ascent is None:
            return None
        bound.stop = lambda: clock.expired
        d, _ = bound.ascend(self.objective, self.increase)
        if clock.expired:  # a split on the way is worse than the simple ones
            return None
        return torch.from_numpy(d).to(self.problem.device) - self.problem.rho


__all__ = ["MAX_BLOCK", "SplitEffort", "block_split_bound", "falls_into_blocks"]
