r"""OBC: greedy removal in every row by exact costs, the rows' traces merged over a layer.

Removing weight q from a row with the inverse :math:`P=M^{-1}` costs :math:`w_q^2/2P_{qq}`; then
:math:`w\leftarrow w-P_{\cdot q}w_q/P_{qq}` and :math:`P\leftarrow P-P_{\cdot q}P_{q\cdot}/P_{qq}`.
Choosing the cheapest weight each time is a pivoted Cholesky factorisation of P, so removals are
gathered in panels and P shrinks to the weights that are left: :math:`d^3/3` multiply-adds a row,
nearly all of them in matrix products (Frantar, Singh and Alistarh, Optimal Brain Compression,
NeurIPS 2022, algorithms 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from chita_opt.errors import MethodError
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.quotas import RowQuota, RowQuotas
from chita_opt.heuristics.row_systems import row_systems
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports.base import Array

_PANEL = 48  # removals between two products


def obc(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    block: int = 1,
) -> Solution:
    r"""ExactOBS (NeurIPS 2022, §4): row-wise greedy removal, global merge, exact solve.

    Each row is pruned to nothing (to its groups' caps, for families such as N:M) and every weight
    is rated by the loss at its removal; the family keeps the best ratings. Losses of a row need
    not rise, so the ratings are the slopes of the convex hull of the row's trace: sorting the
    losses themselves, as the published code does, counts steps that are cheap only after dear
    ones. The weights of all rows are solved on the final support.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; ``seed`` is unused.
    block : int
        Remove so many consecutive weights of a row at a time, with the cost
        :math:`w_B^\top(P_{BB})^{-1}w_B/2`.

    Raises
    ------
    MethodError
        If a row is too wide for its matrix, or ``block`` does not divide the rows.
    """
    best = Incumbent(problem, time_limit, start)
    status = Status.FEASIBLE
    with best.until_interrupt():
        mask = problem.supports.best_support(problem.scores)
        w = torch.where(mask, problem.w_bar, 0.0)
        best.offer(w, problem.objective(w))
        ratings = removal_ratings(problem, best, block)
        if ratings is None:
            status = Status.TIME_LIMIT
        else:
            mask = problem.supports.best_support(ratings)
            solver = problem.curvature.support_solver(problem.separable, mask)
            best.offer(solver.weights, solver.value)
    return best.finish("obc", status)


def removal_ratings(problem: Problem, best: Incumbent, block: int = 1) -> Tensor | None:
    """What each weight cost when its row gave it up (p,); None when the time was too short."""
    systems = [system.to("cpu") for system in row_systems(problem)]
    quotas = RowQuotas(problem.supports, systems)
    ratings = torch.zeros(problem.p, dtype=torch.float64)
    for system in systems:
        d = system.index.shape[1]
        if d % block:
            raise MethodError(f"block is {block}, but a row holds {d} weights; give a divisor")
        for index, centre in zip(system.index, system.centre, strict=True):
            quota = quotas.of(index.numpy())
            trace = _trace(system.inverse, centre.numpy(), quota, block)
            ratings[index] = torch.from_numpy(_rated(trace, d))
            if best.clock.expired:
                return None
    return ratings.to(problem.device)


@dataclass(frozen=True, eq=False)
class RemovalTrace:
    """Weights of a row in the order of their removal, the losses, and which had to leave."""

    order: Array
    loss: Array
    forced: Array


def _rated(trace: RemovalTrace, d: int) -> Array:
    """Slopes of the trace's hull, rising along the order; zero where a group was over its cap."""
    ratings = np.full(d, np.inf)
    free = ~trace.forced
    ratings[trace.order[trace.forced]] = 0.0
    if free.any():
        slopes = isotonic_regression(trace.loss[free]).x
        slopes = np.maximum.accumulate(slopes * (1.0 + 1e-12 * np.arange(len(slopes))))
        ratings[trace.order[free]] = slopes
    highest = ratings[np.isfinite(ratings)].max(initial=0.0)
    return np.where(np.isfinite(ratings), ratings, 1.0 + 2.0 * highest)


def _trace(inverse: Tensor, centre: Array, quota: RowQuota, block: int) -> RemovalTrace:
    """Remove the weights of a row one by one, or block by block."""
    from chita_opt.heuristics import sweeps

    V, u, alive, group = -inverse, centre.copy(), np.arange(len(centre)), quota.group
    room = quota.caps - np.bincount(group, minlength=len(quota.caps))
    pieces = [(alive[:0], u[:0], np.zeros(0, bool))]
    while len(alive) and not (quota.closed and (room >= 0).all()):
        n = len(alive)
        size = min(max(_PANEL // block, 1) * block, n)
        R, p, forced, inside = (
            np.empty((size, n)),
            np.empty(size),
            np.zeros(size, bool),
            np.ones(n, bool),
        )
        order, loss = np.empty(size, np.int64), np.empty(size)
        state = (V.diagonal().numpy().copy(), u, inside)
        if block == 1:
            rules = (group, room, order, loss, forced)
            t = sweeps.remove_panel(V.numpy(), R, p, *state, *rules)
        else:
            B = _diagonal_blocks(V, block)
            t = sweeps.remove_block_panel(V.numpy(), B, R, p, *state, order, loss)
        pieces.append((alive[order[:t]], loss[:t], forced[:t]))
        V = _remaining(V, R[:t], p[:t], inside)
        u, alive, group = u[inside], alive[inside], group[inside]
    return RemovalTrace(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def _diagonal_blocks(V: Tensor, block: int) -> Array:
    """The blocks of -V on its diagonal, (blocks, c, c)."""
    count = len(V) // block
    cut = V.reshape(count, block, count, block).diagonal(dim1=0, dim2=2)
    return np.ascontiguousarray(-cut.permute(2, 0, 1).numpy())


def _remaining(V: Tensor, R: Array, p: Array, inside: Array) -> Tensor:
    """The tableau of the weights that are left, the panel applied."""
    left = torch.from_numpy(np.flatnonzero(inside))
    panel = torch.from_numpy(R)[:, left]
    V = V[left][:, left]
    return V.addmm_((panel / torch.from_numpy(p)[:, None]).T, panel, alpha=-1.0)
