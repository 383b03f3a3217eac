r"""Newton systems of the smoothed dual, one for every shape of factor.

The Newton matrix at a point with indicators z and free set :math:`\mathcal F=\{0<z_j<1\}` is

.. math:: M=I+F\,\mathrm{diag}(z/d)\,F^\top+\sum_P X_P^\top\Big(\mathrm{diag}(h_P)
          -\frac{h_Ph_P^\top}{\mathbf 1^\top h_P}\Big)X_P,

where the rows of :math:`X` are :math:`(c_j/d_j)f_j^\top`, :math:`h=1/\epsilon`, and P runs over the
pools of free weights that share a multiplier (weights of no pool are not centred).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
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
from chita_opt.supports.base import SmoothedMaximum

Map = Callable[[Tensor], Tensor]

# Change of z / d, relative to its largest value, that may wait: in a Newton step M only steers a
# direction that is searched exactly.
_STALE = 0.1
_DIRECTION = 1e-4  # residual of a Newton direction, which is searched exactly
_BLOCK = 4096  # columns copied at a time
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

    @classmethod
    def of(cls, inner: SmoothedMaximum, slope: Tensor, epsilon: Tensor) -> FreePart:
        """The weights with 0 < z < 1, ``slope = c / d`` and ``epsilon`` for all weights."""
        z = inner.z
        index = ((z > 1e-9) & (z < 1.0 - 1e-9)).nonzero().squeeze(1)
        epsilon = epsilon.expand(len(z))[index]
        if inner.bundle is None:
            return cls(index, slope[index], 1.0 / epsilon, inner.pool[index])
        _, labels = inner.bundle[index].unique(return_inverse=True)
        count = int(labels.max()) + 1 if len(labels) else 0
        total = epsilon.new_zeros(count).index_add_(0, labels, epsilon)
        pool = inner.pool.new_zeros(count).index_copy_(0, labels, inner.pool[index])
        if inner.share is None:
            return BundledPart(index, slope[index], 1.0 / total, pool, labels)
        # in units of its share of the row, a bundle is like those that take 1
        share = inner.share[index]
        size = total.new_ones(count).index_copy_(0, labels, share)
        return BundledPart(index, slope[index] / share, size.square() / total, pool, labels)

    def centred_product(self, y: Tensor) -> Tensor:
        """The middle matrix times the free entries of ``F' v``, scaled back by the slopes."""
        u = self.slope * y
        labels = self.pool - int(self.pool.min())
        count = int(labels.max()) + 1
        mass = u.new_zeros(count).index_add_(0, labels, self.stiffness)
        mean = u.new_zeros(count).index_add_(0, labels, self.stiffness * u) / mass.clamp_min(1e-300)
        centred = torch.where(self.pool >= 0, u - mean[labels], u)
        return self.slope * self.stiffness * centred


@dataclass(frozen=True, eq=False)
class BundledPart(FreePart):
    """Free weights that move in bundles, as groups kept whole do.

    ``stiffness`` and ``pool`` are of the bundles (b,).

    Attributes
    ----------
    bundle : Tensor
        (f,) int64, 0 … b-1.
    """

    bundle: Tensor

    def centred_product(self, y: Tensor) -> Tensor:
        """The same with one row for each bundle: the sum of its weights'."""
        u = self.stiffness.new_zeros(len(self.stiffness))
        u.index_add_(0, self.bundle, self.slope * y)
        whole = FreePart(self.pool, torch.ones_like(u), self.stiffness, self.pool)
        return self.slope * whole.centred_product(u)[self.bundle]

    def centred_rows(self, factor: ColumnFactor) -> Tensor:
        r"""(b, n) rows whose Gram matrix is the free part: :math:`\sqrt h` times centred sums."""
        X = factor.select(self.index[:0]).new_zeros(len(self.stiffness), factor.dual_size)
        for part in torch.arange(len(self.index), device=X.device).split(_BLOCK):
            rows = factor.select(self.index[part])
            rows.mul_((self.slope[part] * factor.root).to(X.dtype)[:, None])
            X.index_add_(0, self.bundle[part], rows)
        X, h, labels = X.double(), self.stiffness, self.pool - int(self.pool.min())
        count = int(labels.max()) + 1
        mass = h.new_zeros(count).index_add_(0, labels, h)
        mean = X.new_zeros(count, X.shape[1]).index_add_(0, labels, h[:, None] * X)
        mean /= mass.clamp_min(1e-300)[:, None]
        held = (self.pool >= 0).to(X.dtype)
        return h.sqrt()[:, None] * (X - held[:, None] * mean[labels])


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
        if isinstance(free, BundledPart):
            self._update(weights, _STALE, None)
            self.system = self._system(symmetric_product(free.centred_rows(self.factor)))
            return True
        bend = free.stiffness * free.slope.square()
        rest = weights[free.index] - self.held[free.index]
        waits = rest > -_STALE * bend  # their share of the Gram matrix goes with the free part
        self._update(weights, _STALE, free.index[waits])
        rest = (weights[free.index] - self.held[free.index]).clamp_min(0.0)
        try:
            self.system = self._system(self._free_gram(free, bend, rest))
        except CurvatureError:
            self._update(weights, _STALE, None)
            self.system = self._system(None)
            return False
        return True

    def solve(self, rhs: Tensor) -> Tensor:
        """Two triangular solves, refined where the factor is float32."""
        assert self.system is not None
        return self.system.solve(rhs, tol=self.accuracy)

    def _system(self, free: Tensor | None) -> SampleSystem:
        M = self.gram.clone() if free is None else self.gram + free
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

    def _free_gram(self, free: FreePart, bend: Tensor, rest: Tensor) -> Tensor:
        r"""The free part: the z/d that the Gram matrix lacks, and h centred.

        In a pool with D = diag(rest + h s^2), t = h s and u = D^{-1/2} t / sqrt(1'h), the middle
        matrix is :math:`D^{1/2}(I-uu^\top)D^{1/2}`, and :math:`I-uu^\top=(I-\beta
        \hat u\hat u^\top)^2` with :math:`\beta=1-\sqrt{1-|u|^2}`: nothing large cancels. Pools are
        taken a few thousand columns at a time.
        """
        D = (rest + bend).sqrt()
        pool, order = free.pool.sort(stable=True)
        _, labels, sizes = pool.unique_consecutive(return_inverse=True, return_counts=True)
        zero = D.new_zeros(len(sizes))
        mass = zero.index_add(0, labels, free.stiffness[order])
        u = (free.stiffness * free.slope / D.clamp_min(1e-150))[order]
        u = torch.where(pool >= 0, u / mass[labels].sqrt(), 0.0)
        size = zero.index_add(0, labels, u.square())
        beta = (1.0 - (1.0 - size.clamp_max(1.0)).sqrt()) / size.clamp_min(1e-300)
        rows = _CentredRows(
            self.factor, free.index[order], D[order] * self.factor.root, labels, u, beta
        )
        total = torch.zeros_like(self.gram)
        for start, stop in _sections(sizes, max(_BLOCK, 2 * self.factor.dual_size)):
            rows.add_gram(start, stop, total)
        return total


@dataclass(frozen=True, eq=False)
class _CentredRows:
    """Rows Y = (I - beta u u') diag(scale) X in every pool, X the columns at ``index``.

    Rows are ordered by ``labels``.
    """

    factor: ColumnFactor
    index: Tensor
    scale: Tensor
    labels: Tensor
    u: Tensor
    beta: Tensor

    def add_gram(self, start: int, stop: int, total: Tensor) -> None:
        """Add Y'Y of a section, which holds whole pools, to ``total``."""
        spans = [(i, min(i + _BLOCK, stop)) for i in range(start, stop, _BLOCK)]
        if stop - start <= 2 * self.factor.dual_size:
            spans = [(start, stop)]
        first, pools = self.labels[start], int(self.labels[stop - 1] - self.labels[start]) + 1
        mean = self.factor.columns.new_zeros(pools, self.factor.dual_size)
        for span in spans:
            X, u, labels = self._scaled(*span, first)
            mean.index_add_(0, labels, X * u[:, None])
        for span in spans:
            if len(spans) > 1:
                X, u, labels = self._scaled(*span, first)
            shift = self.beta[first + labels].to(X.dtype) * u
            Y = X.sub_(mean[labels].mul_(shift[:, None]))
            # float32 products lose about 1e-7 of the trace: too much once that rivals the identity
            fine = len(Y) <= 2 * Y.shape[1] and len(spans) == 1
            fine = fine and float(torch.linalg.vector_norm(Y)) ** 2 >= _SAFE_SINGLE
            total += symmetric_product(Y.double() if fine else Y)

    def _scaled(self, start: int, stop: int, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        X = self.factor.select(self.index[start:stop])
        X.mul_(self.scale[start:stop].to(X.dtype)[:, None])
        return X, self.u[start:stop].to(X.dtype), self.labels[start:stop] - first


def _sections(sizes: Tensor, most: int) -> Iterator[tuple[int, int]]:
    """Cut consecutive pools into sections of about ``most`` rows; a larger pool is one alone."""
    ends = sizes.cumsum(0)
    start, total = 0, int(ends[-1])
    while start < total:
        reach = torch.searchsorted(ends, start + most, right=True)  # pools that end by then
        stop = int(ends[reach - 1]) if int(reach) else 0
        if stop <= start:
            stop = int(ends[reach])
        yield start, stop
        start = stop


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
