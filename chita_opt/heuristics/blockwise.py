"""CHITA's stratified block-wise approximation, and what mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from chita_opt.curvature import BlockDiagonal, without_coupling
from chita_opt.heuristics.coordinate_descent import SweptBlocks
from chita_opt.heuristics.iht import IhtPoint
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.magnitude import simple_supports
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget


def blockwise(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    block: int | Sequence[int] = 500,
    sweeps: int = 1,
    as_published: bool = False,
) -> Solution:
    r"""Solve every block of consecutive weights alone, then put the answers together.

    CHITA's solver for large networks (ICML 2023, §3.3 and the released ``Heuristic_LSBlock``): the
    blocks' budgets are what the magnitude support keeps in them (with a linear term also what
    :func:`simple_supports` says of the whole and of the blocks alone, if it ends lower), and the
    backsolve of a block does not see the others. Only the columns of one block are held in float64
    at a time.

    Blocks that each gain the whole linear term for themselves gain it many times together: with a
    first-order term the released code can end above pruning nothing. Here the joined move from
    the pruned dense weights is shortened by the exact line search, and then the blocks are
    minimised one after another with the others' moves in sight, ``sweeps`` times. Both only lower
    the objective; neither changes the support.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; a ``start``'s support is taken instead.
    block : int or sequence of int
        Weights in a block, or all block sizes.
    sweeps : int
        Passes over the blocks with their coupling; 0 for none.
    as_published : bool
        Put the blocks' answers together as they are: no line search and no sweep.
    """
    best = Incumbent(problem, time_limit, start)
    stats: dict[str, object] = {}
    with best.until_interrupt():
        model = without_coupling(problem.curvature, block)
        size = max(b.size for b in model.blocks)
        stats["blocks"] = len(model.blocks)
        for mask in _supports(problem, model) if start is None else [start.mask]:
            w = model.support_solver(problem.separable, mask, exact=False).weights
            if not as_published:
                w, stats["step"] = _shortened(problem, mask, w)
            point = IhtPoint.at(problem, w)
            best.offer(point.w, point.value)
            blocks = SweptBlocks(problem, mask.nonzero().squeeze(1), size)
            for _ in range(0 if as_published else sweeps):
                if best.clock.expired:
                    break
                blocks.sweep(point)
                best.offer(point.w, point.value)
            if as_published or best.clock.expired:
                break
    return best.finish("blockwise", Status.FEASIBLE, stats=stats, backsolve=False)


def _supports(problem: Problem, model: BlockDiagonal) -> Iterator[Tensor]:
    """Those of the whole and, with a linear term, of the blocks without the others in sight.

    The released code steps from the dense weights block by block.
    """
    found = simple_supports(problem)
    yield from found
    if not bool(problem.g.any()):
        return
    sizes = torch.tensor([b.size for b in model.blocks], device=problem.device)
    labels = torch.arange(len(sizes), device=problem.device).repeat_interleave(sizes)
    counts = torch.bincount(labels[found[0]], minlength=len(sizes))
    alone = replace(problem, curvature=model, supports=Budget(labels, counts))
    for mask in simple_supports(alone):
        known = any(mask.equal(other) for other in found)
        if not known and problem.supports.contains(mask):
            yield mask


def _shortened(problem: Problem, mask: Tensor, w: Tensor) -> tuple[Tensor, float]:
    """The lowest point on the way from the pruned dense weights to ``w``, and the step there."""
    begin = torch.where(mask, problem.w_bar, torch.zeros_like(w))
    direction = w - begin
    slope = -float(problem.gradient(begin) @ direction)
    bend = 2.0 * problem.curvature.quadratic(direction)
    bend += float((problem.rho * direction) @ direction)
    step = slope / bend if bend > 0.0 else 0.0
    return begin + step * direction, step
