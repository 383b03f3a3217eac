r"""Newton systems of the smoothed dual, one for every shape of factor.

The Newton matrix at a point with indicators z and free set :math:`\mathcal F=\{0<z_j<1\}` is

.. math:: M=I+F\,\mathrm{diag}(z/d)\,F^\top+\sum_P X_P^\top\Big(\mathrm{diag}(h_P)
          -\frac{h_Ph_P^\top}{\mathbf 1^\top h_P}\Big)X_P,

where the rows of :math:`X` are :math:`(c_j/d_j)f_j^\top`, :math:`h=1/\epsilon`, and P runs over the
pools of free weights that share a multiplier (weights of no pool are not centred).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.curvature.factors import (
    ColumnFactor,
    Factor,
    symmetric_product,
)
from chita_opt.curvature.sample_system import SampleSystem
from chita_opt.errors import CurvatureError

Map = Callable[[Tensor], Tensor]

# Change of z / d, relative to its largest value, that may wait: in a Newton step M only steers a
# direction that is searched exactly.
_STALE = 0.1
_DIRECTION = 1e-4  # residual of a Newton direction, which is searched exactly
_SAFE_SINGLE = 1e6  # trace of the centred part up to which float32 products are accurate enough


@dataclass(frozen=True, eq=False)
class FreePart:
    """The free weights of a Newton step.

    Attributes
    ----------
    index : Tensor
        (f,) int64, sorted.
    slope : Tensor
        (f,) ``c_j / d_j``.
    stiffness : Tensor
        (f,) ``h_j = 1 / epsilon_j``.
    pool : Tensor
        (f,) labels; -1 for weights that no tight row holds.
    """

    index: Tensor
    slope: Tensor
    stiffness: Tensor
    pool: Tensor

    def centred_product(self, y: Tensor) -> Tensor:
        """The middle matrix times the free entries of ``F' v``, scaled back by the slopes."""
        u = self.slope * y
        labels = self.pool - int(self.pool.min())
        count = int(labels.max()) + 1
        mass = u.new_zeros(count).index_add_(0, labels, self.stiffness)
        mean = u.new_zeros(count).index_add_(0, labels, self.stiffness * u) / mass.clamp_min(1e-300)
        centred = torch.where(self.pool >= 0, u - mean[labels], u)
        return self.slope * self.stiffness * centred


class NewtonSystem(ABC):
    """``prepare`` at a point, then ``solve`` for one or more right-hand sides."""

    @abstractmethod
    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Set up M for ``weights = z / d``; False if the free part had to be left out."""

    @abstractmethod
    def solve(self, rhs: Tensor) -> Tensor:
        """``M^-1 rhs`` (approximately, for the matrix-free system)."""


class SampleSpaceNewton(NewtonSystem):
    """n-by-n Cholesky; the Gram matrix of z is updated by the columns whose z changed."""

    def __init__(self, factor: ColumnFactor) -> None:
        self.factor = factor
        n, device = factor.dual_size, factor.columns.device
        self.gram = torch.zeros(n, n, dtype=torch.float64, device=device)
        self.held = torch.zeros(factor.size, dtype=torch.float64, device=device)
        self.single = factor.columns.dtype == torch.float32
        self.system: SampleSystem | None = None
        self.columns_read = 0
        self.accuracy = 1e-11

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Update the Gram matrix of the settled weights, add the free ones, factor."""
        if free is None or not len(free.index):
            self._update(weights, 1e-12, None)
            self.system, self.accuracy = self._system(None), 1e-11
            return True
        self.accuracy = _DIRECTION
        bend = free.stiffness * free.slope.square()
        rest = weights[free.index] - self.held[free.index]
        waits = rest > -_STALE * bend  # their share of the Gram matrix goes with the free part
        self._update(weights, _STALE, free.index[waits])
        rest = (weights[free.index] - self.held[free.index]).clamp_min(0.0)
        try:
            self.system = self._system(self._free_rows(free, bend, rest))
        except CurvatureError:
            self._update(weights, _STALE, None)
            self.system = self._system(None)
            return False
        return True

    def solve(self, rhs: Tensor) -> Tensor:
        """Two triangular solves, refined where the factor is float32."""
        assert self.system is not None
        return self.system.solve(rhs, tol=self.accuracy)

    def _system(self, rows: Tensor | None) -> SampleSystem:
        M = self.gram.clone() if rows is None else self.gram + symmetric_product(rows)
        M.diagonal().add_(1.0)
        return SampleSystem(M, single=self.single)

    def _update(self, weights: Tensor, stale: float, waiting: Tensor | None) -> None:
        """Bring the Gram matrix to ``weights``, but for small changes and those ``waiting``."""
        change = weights - self.held
        used = weights
        if waiting is not None:
            change = change.index_fill(0, waiting, 0.0)
            used = weights.index_copy(0, waiting, self.held[waiting])
        moved = (change.abs() > stale * weights.abs().max()).nonzero().squeeze(1)
        settled = weights if waiting is None else weights.index_fill(0, waiting, 0.0)
        fresh = settled.nonzero().squeeze(1)
        if len(moved) >= len(fresh):
            self.gram = self.factor.gram(fresh, weights[fresh])
            self.held = settled
            self.columns_read += len(fresh)
        elif len(moved):
            self.factor.gram(moved, change[moved], onto=self.gram)
            self.held = self.held.index_copy(0, moved, used[moved])
            self.columns_read += len(moved)

    def _free_rows(self, free: FreePart, bend: Tensor, rest: Tensor) -> Tensor:
        r"""Rows Y with Y'Y the free part: the z/d that the Gram matrix lacks, and h centred.

        In a pool with D = diag(rest + h s^2), t = h s and u = D^{-1/2} t / sqrt(1'h), the middle
        matrix is :math:`D^{1/2}(I-uu^\top)D^{1/2}`, and :math:`I-uu^\top=(I-\beta
        \hat u\hat u^\top)^2` with :math:`\beta=1-\sqrt{1-|u|^2}`: nothing large cancels.
        """
        X = self.factor.columns.index_select(0, free.index)
        D = (rest + bend).sqrt()
        labels = free.pool + 1
        pools = int(labels.max()) + 1
        zero = D.new_zeros(pools)
        mass = zero.index_add(0, labels, free.stiffness)
        u = free.stiffness * free.slope / (D * mass[labels].sqrt()).clamp_min(1e-300)
        u = torch.where(free.pool >= 0, u, 0.0)
        size = zero.index_add(0, labels, u.square())
        beta = (1.0 - (1.0 - size.clamp_max(1.0)).sqrt()) / size.clamp_min(1e-300)
        X = X * (self.factor.root * D).to(X.dtype)[:, None]
        mean = X.new_zeros(pools, X.shape[1])
        mean.index_add_(0, labels, X * u.to(X.dtype)[:, None])
        Y = X.sub_(mean[labels].mul_((beta[labels] * u).to(X.dtype)[:, None]))
        # float32 products lose about 1e-7 of the trace: too much once that rivals the identity
        coarse = len(Y) > 2 * Y.shape[1] or float(Y.square().sum()) < _SAFE_SINGLE
        return Y if coarse else Y.double()


class MatrixFreeNewton(NewtonSystem):
    """Products only: truncated conjugate gradients, for systems that do not fit in memory."""

    def __init__(self, factor: Factor, *, limit: int = 60) -> None:
        self.factor, self.limit = factor, limit
        self.weights: Tensor | None = None
        self.free: FreePart | None = None

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Keep the point; nothing is formed."""
        self.weights = weights
        self.free = free if free is not None and len(free.index) else None
        return True

    def solve(self, rhs: Tensor) -> Tensor:
        """A direction of ascent after at most ``limit`` passes."""

        def apply(v: Tensor) -> Tensor:
            assert self.weights is not None
            return apply_newton(self.factor, self.weights, self.free, v)

        return conjugate_gradients(apply, rhs, lambda v: v, tolerance=1e-3, limit=self.limit)


def apply_newton(factor: Factor, weights: Tensor, free: FreePart | None, v: Tensor) -> Tensor:
    """``M v`` by one pass over the factor."""
    y = factor.adjoint(v)
    u = weights * y
    if free is not None:
        u[free.index] += free.centred_product(y[free.index])
    return v + factor.forward(u)


def conjugate_gradients(
    apply: Map, rhs: Tensor, precondition: Map, *, tolerance: float, limit: int
) -> Tensor:
    """Preconditioned conjugate gradients from zero; every iterate is a direction of ascent."""
    x = torch.zeros_like(rhs)
    residual = rhs.clone()
    z = precondition(residual)
    direction, rz = z, float(residual @ z)
    goal = tolerance * float(rhs.norm())
    for _ in range(limit):
        if float(residual.norm()) <= goal or rz <= 0.0:
            break
        Md = apply(direction)
        step = rz / float(direction @ Md)
        x = x + step * direction
        residual = residual - step * Md
        z = precondition(residual)
        new = float(residual @ z)
        direction, rz = z + (new / rz) * direction, new
    return x
