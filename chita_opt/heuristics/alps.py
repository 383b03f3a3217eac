r"""ALPS: operator splitting over the weights and a projected copy, then conjugate gradients.

With the copy D in the family and the multipliers V,

.. math::
    W\leftarrow(M+\rho I)^{-1}(M\hat W-V+\rho D),\quad
    D\leftarrow P_{\mathcal S}(W+V/\rho),\quad V\leftarrow V+\rho(W-D),

where one eigendecomposition of M serves every penalty ρ, and all rows of a layer move in two matrix
products. ρ grows by how much the support still changes. Weights are scaled by
:math:`\mathrm{diag}(M)^{1/2}` first, so that the projection sees their own curvature; afterwards a
few steps of conjugate gradients on the support (Meng, Behdin, Wang and Mazumder, ALPS, NeurIPS
2024, §3.2 and §3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.row_systems import RowSystem, row_systems
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_MANY, _SOME = 0.1, 0.005  # changed shares of the support that set the growth of the penalty
_LOWERED = 8  # times that a penalty under which nothing moves is divided by five
_SETTLED = 30  # iterations after which a change below `tol` ends it


@dataclass(frozen=True, kw_only=True)
class PenaltySchedule:
    """How the penalty of :func:`alps` grows.

    Attributes
    ----------
    first : float
        ρ at the start; the scaled curvature has a diagonal of ones. Where the support does not
        move under it, it is divided by five until it does, as in the published code.
    growth : tuple of float
        Factors where at least a tenth, at least 0.5 % and less of the support changed since the
        last look. The paper's are (1.3, 1.2, 1.1); slower growth finds better supports.
    every : int
        Iterations between looks.
    max_iter : int
        Iterations in all.
    tol : float
        After 30 iterations, the changed share of the support that ends it; no change always does.
    """

    first: float = 0.03
    growth: tuple[float, float, float] = (1.2, 1.12, 1.05)
    every: int = 3
    max_iter: int = 300
    tol: float = 3e-4


PAPER = PenaltySchedule(first=0.1, growth=(1.3, 1.2, 1.1))
"""The published schedule."""


def alps(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    schedule: PenaltySchedule | None = None,
    cg_steps: int = 10,
    exact: bool = False,
) -> Solution:
    """ALPS (NeurIPS 2024) for every family that has an oracle.

    The iterations run in float32 (they only choose a support), everything after in float64. Unlike
    the published text the budget is the number of weights kept, and the ridge is the problem's
    own.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; the iterations begin from ``start``'s weights. ``seed`` is unused.
    schedule : PenaltySchedule, optional
        How the penalty grows; :data:`PAPER` is the published one.
    cg_steps : int
        Steps of conjugate gradients on the support.
    exact : bool
        Solve exactly on the support afterwards; without it the weights are those of the conjugate
        gradients, as in the paper: within 1e-4 of exact ones on the layers of the benchmark.

    Raises
    ------
    MethodError
        If a row is too wide for its matrix.
    """
    best = Incumbent(problem, time_limit, start)
    stats: dict[str, object] = {}
    settled = False
    with best.until_interrupt():
        mask = problem.supports.best_support(problem.scores)
        w = torch.where(mask, problem.w_bar, 0.0)
        best.offer(w, problem.objective(w))
        systems = row_systems(problem)
        splitting = Splitting(problem, systems, start)
        settled = splitting.run(schedule or PenaltySchedule(), best)
        stats |= {"iterations": splitting.iterations, "penalty": splitting.penalty}
        w = splitting.weights(problem)
        for system in systems:
            w[system.index] = conjugate_rows(system, w[system.index], cg_steps)
        best.offer(w, problem.objective(w))
    status = Status.STATIONARY if settled else Status.ITERATION_LIMIT
    return best.finish("alps", status, stats=stats, backsolve=exact)


class Splitting:
    """The iterates of all rows; :meth:`run` moves them until the support settles."""

    def __init__(
        self, problem: Problem, systems: list[RowSystem], start: Solution | None = None
    ) -> None:
        self.supports = problem.supports
        self.parts = [_ScaledRows(system) for system in systems]
        self.iterations, self.penalty = 0, 0.0
        if start is not None:
            for part in self.parts:
                part.Z = (start.w[part.index] * part.scale).float()
        self.project()
        for part in self.parts:
            part.Z = part.D  # no multipliers yet

    def run(self, schedule: PenaltySchedule, best: Incumbent) -> bool:
        """Iterate; whether the support settled before the limits."""
        size = max(self.supports.max_count, 1)
        self.penalty, lowered, moved = schedule.first, 0, False
        while self.iterations < schedule.max_iter and not best.clock.expired:
            previous = self.mask
            for _ in range(schedule.every):
                self.step()
            changed = int((previous != self.mask).sum())
            moved |= changed > 0
            if not moved and lowered < _LOWERED:
                lowered += 1
                self._grow(0.2)
                continue
            few = self.iterations > _SETTLED and changed < schedule.tol * size
            if changed == 0 or few:
                return True
            fast, middle, slow = schedule.growth
            share = changed / size
            self._grow(fast if share >= _MANY else middle if share >= _SOME else slow)
        return False

    def _grow(self, factor: float) -> None:
        self.penalty *= factor
        for part in self.parts:
            part.rescale(factor)

    def step(self) -> None:
        """One iteration of all three updates."""
        for part in self.parts:
            part.minimise(self.penalty)
        self.project()
        self.iterations += 1

    def project(self) -> None:
        """The copies of the weights in the family, nearest in the scaled norm."""
        pieces = [part.Z.square() for part in self.parts]
        scores = pieces[0].reshape(-1)  # one system holds all weights in their order
        if len(pieces) > 1:
            scores = scores.new_empty(self.supports.size)
            for part, piece in zip(self.parts, pieces, strict=True):
                scores[part.index] = piece
        self.mask = self.supports.best_support(scores)
        for part in self.parts:
            mask = self.mask.reshape(part.Z.shape) if len(pieces) == 1 else self.mask[part.index]
            part.D = torch.where(mask, part.Z, 0.0)

    def weights(self, problem: Problem) -> Tensor:
        """The projected copy, in the problem's own units (p,) float64."""
        w = torch.zeros_like(problem.w_bar)
        for part in self.parts:
            w[part.index] = part.D.double() / part.scale
        return w


class _ScaledRows:
    """Rows that share M, scaled to a unit diagonal, in float32.

    With the multipliers over ρ, U = V/ρ, the copy D is the projection of Z = W + U, and U = Z - D.
    """

    def __init__(self, system: RowSystem) -> None:
        self.index, self.scale = system.index, system.M.diagonal().sqrt()
        M = system.M / self.scale[:, None] / self.scale
        values, vectors = torch.linalg.eigh(M)
        self.values, self.Q = values.float(), vectors.float()
        self.target = ((system.centre * self.scale) @ M @ vectors).float()  # in eigenvectors
        self.Z = self.D = (system.centre * self.scale).float()

    def minimise(self, rho: float) -> None:
        """Z = W + U, with W by the eigendecomposition."""
        right = torch.addmm(self.target, 2.0 * self.D - self.Z, self.Q, alpha=rho)
        right /= self.values + rho
        self.Z = torch.addmm(self.Z - self.D, right, self.Q.T)

    def rescale(self, factor: float) -> None:
        """Keep V where the penalty grows by ``factor``."""
        self.Z = self.D + (self.Z - self.D) / factor


def conjugate_rows(system: RowSystem, w: Tensor, steps: int) -> Tensor:
    """Jacobi-preconditioned conjugate gradients on the supports of w (rows, d), row by row."""
    mask, scale = w != 0, 1.0 / system.M.diagonal()
    residual = torch.where(mask, (system.centre - w) @ system.M, 0.0)
    z = residual * scale
    direction, rz = z, (residual * z).sum(1)
    for _ in range(steps):
        bent = torch.where(mask, direction @ system.M, 0.0)
        curve = (direction * bent).sum(1)
        step = torch.where(curve > 0, rz / curve, 0.0)[:, None]
        w, residual = w + step * direction, residual - step * bent
        z = residual * scale
        new = (residual * z).sum(1)
        direction = z + torch.where(rz > 0, new / rz, 0.0)[:, None] * direction
        rz = new
    return w


__all__ = ["PAPER", "PenaltySchedule", "Splitting", "alps", "conjugate_rows"]
