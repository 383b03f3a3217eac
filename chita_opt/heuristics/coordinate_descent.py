"""CHITA-CD: exact minimisation over one block of kept weights after another."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.curvature.cholesky import cholesky
from chita_opt.heuristics.iht import IhtPoint
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.magnitude import simple_supports
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_FACTOR_BYTES = 2**28


def coordinate_descent(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    sweeps: int = 20,
    block: int = 512,
    tol: float = 1e-9,
) -> Solution:
    """CHITA-CD: cyclic exact minimisation over blocks of the support's weights.

    ``block=1`` is the paper's coordinate descent; larger blocks converge in fewer sweeps at the
    same cost. Supports are the backsolve's, or the ``start``'s. The published code's iteration
    does nothing without a linear term, because it starts from the residual of the dense weights;
    here it starts from the pruned ones.
    """
    best = Incumbent(problem, time_limit, start)
    status, done = Status.ITERATION_LIMIT, 0
    with best.until_interrupt():
        for mask in simple_supports(problem) if start is None else [start.mask]:
            w = start.w if start is not None else torch.where(mask, problem.w_bar, 0.0)
            point = IhtPoint.at(problem, w)
            best.offer(point.w, point.value)
            settled, count = _sweeps(problem, point, best, mask, (sweeps, block, tol))
            status, done = Status.STATIONARY if settled else status, done + count
            if best.clock.expired:
                break
    return best.finish("coordinate_descent", status, stats={"sweeps": done}, backsolve=False)


def _sweeps(
    problem: Problem,
    point: IhtPoint,
    best: Incumbent,
    mask: Tensor,
    limits: tuple[int, int, float],
) -> tuple[bool, int]:
    """Sweeps on one support; (whether they converged, their number)."""
    sweeps, block, tol = limits
    blocks = SweptBlocks(problem, mask.nonzero().squeeze(1), block)
    for count in range(1, sweeps + 1):
        previous = point.value
        blocks.sweep(point)
        best.offer(point.w, point.value)
        if previous - point.value <= tol * problem.increase(point.value):
            return True, count
        if best.clock.expired:
            return False, count
    return False, sweeps


class SweptBlocks:
    """The blocks of a support, each minimised exactly while the others are fixed.

    Parameters
    ----------
    problem : Problem
        What is minimised.
    index : Tensor
        (k,) the kept weights.
    block : int
        Weights in a block. Factors are kept between passes where they take at most 256 MB.
    """

    def __init__(self, problem: Problem, index: Tensor, block: int) -> None:
        self.problem, self.parts = problem, index.split(block)
        self.keeps = 8 * len(index) * block <= _FACTOR_BYTES
        self.factors: dict[int, Tensor] = {}

    def sweep(self, point: IhtPoint) -> None:
        """One pass over the blocks."""
        problem, w, image = self.problem, point.w.clone(), point.image
        for i, part in enumerate(self.parts):
            x = w[part] - problem.w_bar[part]
            gradient = problem.curvature.pullback(image, index=part) + problem.g[part]
            gradient += problem.rho[part] * x
            change = torch.zeros_like(w)
            change[part] = -torch.cholesky_solve(gradient[:, None], self._factor(i)).squeeze(1)
            w += change
            image = image + problem.curvature.image(change)
        point.w, point.image = w, image
        point.value = problem.curvature.energy(image) + problem.separable.value(w - problem.w_bar)

    def _factor(self, i: int) -> Tensor:
        if i in self.factors:
            return self.factors[i]
        part = self.parts[i]
        H = self.problem.curvature.submatrix(part)
        H.diagonal().add_(self.problem.rho[part])
        L = cholesky(H, f"the curvature of {len(part)} weights plus the ridge")
        if self.keeps:
            self.factors[i] = L
        return L
