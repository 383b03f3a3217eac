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
    BlockFactor,
    ColumnFactor,
    Factor,
    RowFactor,
    symmetric_product,
)
from chita_opt.curvature.sample_system import SampleSystem
from chita_opt.errors import CurvatureError

Map = Callable[[Tensor], Tensor]

# Change of z / d, relative to its largest value, that may wait: in a Newton step M only steers a
# direction that is searched exactly.
_STALE = 0.1
_SAFE_SINGLE = 1e5  # trace of the centred part up to which float32 products are accurate enough


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


def newton_system(factor: Factor, memory_limit: float) -> NewtonSystem:
    """Pick the system by the factor's shape and the memory it may use (bytes)."""
    from chita_opt.bounds.row_newton import CoupledNewton, RowNewton  # built on this module

    if isinstance(factor, ColumnFactor) and 24.0 * factor.dual_size**2 <= memory_limit:
        return SampleSpaceNewton(factor)
    if isinstance(factor, RowFactor):
        if 24.0 * factor.rows * factor.F.shape[0] ** 2 <= memory_limit:
            return CoupledNewton(factor, [RowNewton(factor)], [factor.size])
    if isinstance(factor, BlockFactor):
        share = memory_limit / len(factor.parts)
        children = [newton_system(f, share) for f in factor.parts]
        return CoupledNewton(factor, children, [f.size for f in factor.parts])
    return MatrixFreeNewton(factor)


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

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Update the Gram matrix, add the centred free part, factor."""
        self._update(weights, _STALE if free is not None else 1e-12)
        M = self.gram.clone()
        M.diagonal().add_(1.0)
        if free is not None and len(free.index):
            X = self._centred(free)
            full = M.add_(symmetric_product(X, X))
            try:
                self.system = SampleSystem(full, single=self.single)
            except CurvatureError:
                M = self.gram.clone()
                M.diagonal().add_(1.0)
                self.system = SampleSystem(M, single=self.single)
                return False
            return True
        self.system = SampleSystem(M, single=self.single)
        return True

    def solve(self, rhs: Tensor) -> Tensor:
        """Two triangular solves, refined where the factor is float32."""
        assert self.system is not None
        return self.system.solve(rhs)

    def _update(self, weights: Tensor, stale: float) -> None:
        change = weights - self.held
        moved = (change.abs() > stale * weights.abs().max()).nonzero().squeeze(1)
        used = weights.nonzero().squeeze(1)
        if len(moved) >= len(used):
            self.gram = self.factor.gram(used, weights[used])
            self.held = weights.clone()
            self.columns_read += len(used)
            return
        if len(moved):
            self.gram += self.factor.gram(moved, change[moved])
            self.held = self.held.index_copy(0, moved, weights[moved])
            self.columns_read += len(moved)

    def _centred(self, free: FreePart) -> Tensor:
        """Rows sqrt(h_j) (x_j - mean of its pool); pools of one weight vanish."""
        X = self.factor.columns.index_select(0, free.index)
        X = X * (self.factor.root * free.slope).to(X.dtype)[:, None]
        labels = free.pool + 1
        pools = int(labels.max()) + 1
        share = free.stiffness.to(X.dtype)
        mass = share.new_zeros(pools).index_add_(0, labels, share)
        mean = X.new_zeros(pools, X.shape[1]).index_add_(0, labels, X * share[:, None])
        mean /= mass.clamp_min(1e-30)[:, None]
        mean[0] = 0.0  # label 0 holds the weights of no pool
        X = (X - mean[labels]) * share.sqrt()[:, None]
        alone = torch.bincount(labels, minlength=pools)[labels] == 1
        X = X[~alone | (labels == 0)]
        # float32 products lose about 1e-7 of the trace: too much once that rivals the identity
        coarse = len(X) > 2 * X.shape[1] or float(X.square().sum()) < _SAFE_SINGLE
        return X if coarse else X.double()


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
