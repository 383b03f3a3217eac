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


class RowNewton(NewtonSystem):
    """All rows of a layer in batches; pools must lie inside one row."""

    def __init__(self, factor: RowFactor) -> None:
        self.factor = factor
        self.L: Tensor | None = None

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Batched ``I + F diag(s) F'`` less the pools' rank-one terms."""
        F, rows = self.factor.F, self.factor.rows
        s = weights.clone()
        if free is not None and len(free.index):
            s[free.index] += free.stiffness * free.slope.square()
        M = self._assemble(s.reshape(rows, -1))
        if free is not None and len(free.index):
            self._subtract_pools(M, free)
            self.L, info = torch.linalg.cholesky_ex(M)
            if not bool((info != 0).any()):
                return True
            M = self._assemble(weights.reshape(rows, F.shape[1]))
        self.L = torch.linalg.cholesky(M)
        return free is None or not len(free.index)

    def solve(self, rhs: Tensor) -> Tensor:
        """Batched triangular solves."""
        assert self.L is not None
        b = rhs.reshape(self.factor.rows, -1, 1)
        return torch.cholesky_solve(b, self.L).reshape(-1)

    def _assemble(self, s: Tensor) -> Tensor:
        F = self.factor.F
        M = torch.empty(len(s), len(F), len(F), dtype=torch.float64, device=F.device)
        for r in range(len(s)):
            torch.mm(F * s[r], F.T, out=M[r])
        M.diagonal(dim1=1, dim2=2).add_(1.0)
        return M

    def _subtract_pools(self, M: Tensor, free: FreePart) -> None:
        F, d = self.factor.F, self.factor.F.shape[1]
        held = free.pool >= 0
        index, pool = free.index[held], free.pool[held]
        if not len(index):
            return
        names, place = pool.unique(return_inverse=True)
        h = free.stiffness[held]
        mass = h.new_zeros(len(names)).index_add_(0, place, h)
        T = h.new_zeros(len(names), len(F))
        T.index_add_(0, place, F.T[index % d] * (h * free.slope[held])[:, None])
        T /= mass.sqrt()[:, None]
        row = torch.zeros_like(names).scatter_(0, place, index // d)
        for r in row.unique():
            mine = T[row == r]
            M[r] -= mine.T @ mine


class CoupledNewton(NewtonSystem):
    """Blocks solved exactly; pools that cross blocks join by conjugate gradients.

    The crossing pools change M by as many rank-one terms as there are pools, so preconditioned by
    the blocks the iteration ends after about that many steps.
    """

    def __init__(self, factor: Factor, children: list[NewtonSystem], sizes: list[int]) -> None:
        self.factor, self.children = factor, children
        self.ends = torch.tensor(sizes).cumsum(0).tolist()
        self.weights: Tensor | None = None
        self.free: FreePart | None = None
        self.crossing = False

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Prepare every block with the pools that it holds alone."""
        self.weights, self.crossing = weights, False
        self.free = free if free is not None and len(free.index) else None
        local = None if self.free is None else self._localise(self.free)
        complete, start = True, 0
        for child, end in zip(self.children, self.ends, strict=True):
            part = None
            if local is not None:
                here = (local.index >= start) & (local.index < end)
                part = FreePart(local.index[here] - start, local.slope[here],
                                local.stiffness[here], local.pool[here])  # fmt: skip
            complete &= child.prepare(weights[start:end], part)
            start = end
        if not complete:
            self.free, self.crossing = None, False
            start = 0
            for child, end in zip(self.children, self.ends, strict=True):
                child.prepare(weights[start:end], None)
                start = end
        return complete

    def solve(self, rhs: Tensor) -> Tensor:
        """Block solves alone, or as the preconditioner."""
        if not self.crossing:
            return self._blocks(rhs)
        return conjugate_gradients(self._apply, rhs, self._blocks, tolerance=1e-8, limit=100)

    def _localise(self, free: FreePart) -> FreePart:
        """Labels of pools that lie inside one block; -1 for the crossing ones."""
        ends = torch.tensor(self.ends, device=free.index.device)
        block = torch.bucketize(free.index, ends, right=True)
        if isinstance(self.factor, RowFactor):
            block = free.index // self.factor.F.shape[1]
        labels = free.pool + 1
        low = torch.full((int(labels.max()) + 1,), 2**62, device=labels.device)
        low = low.scatter_reduce_(0, labels, block, "amin")
        high = torch.zeros_like(low).scatter_reduce_(0, labels, block, "amax")
        crosses = (low != high)[labels] & (free.pool >= 0)
        self.crossing = bool(crosses.any())
        pool = torch.where(crosses, -1, free.pool)
        return FreePart(free.index, free.slope, free.stiffness, pool)

    def _apply(self, v: Tensor) -> Tensor:
        assert self.weights is not None
        return apply_newton(self.factor, self.weights, self.free, v)

    def _blocks(self, rhs: Tensor) -> Tensor:
        if len(self.children) == 1:
            return self.children[0].solve(rhs)
        assert isinstance(self.factor, BlockFactor)
        parts = zip(self.children, self.factor.split_dual(rhs), strict=True)
        return torch.cat([child.solve(part) for child, part in parts])


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
