r"""Newton systems of curvatures that fall into blocks: rows of a layer, and blocks of any form.

With B the weight-space middle of the Newton matrix (see :mod:`chita_opt.bounds.newton`) and S its
support, the weights with z > 0,

.. math:: M^{-1}=(I+FBF^\top)^{-1}=I-F_S\big(B_S^{-1}+F_S^\top F_S\big)^{-1}F_S^\top .

For rows of a layer, :math:`F_S^\top F_S` is a sub-matrix of the matrix that they share, so a row
costs one Cholesky factorisation of the order of its own support and no product; so does a row of
that matrix less a diagonal. B is diagonal but for the pools, and :math:`D^{1/2}(I-uu^\top)D^{1/2}`
has the inverse :math:`D^{-1/2}(I+uu^\top/(1-|u|^2))D^{-1/2}`, where :math:`1-|u|^2` is a sum of
positive terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.bounds.newton import (
    BundledPart,
    FreePart,
    NewtonSystem,
    apply_newton,
    conjugate_gradients,
)
from chita_opt.curvature.factors import BlockFactor, Factor, RowFactor
from chita_opt.curvature.shared_rows import batch_end

_BATCH_ENTRIES = 2**24  # float64 entries of the sub-matrices factored at a time (128 MiB)
_TINY = 1e-300


class RowNewton(NewtonSystem):
    """All rows of a layer in batches; pools must lie inside one row."""

    def __init__(self, factor: RowFactor) -> None:
        self.factor = factor
        d = factor.width
        self.H = torch.zeros(d + 1, d + 1, dtype=torch.float64, device=factor.F.device)
        self.H[:d, :d] = factor.common  # the last row and column pad supports
        self.batches: list[_Batch] = []

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Factor every row on its support; rows of like size share a batch."""
        if free is None or not len(free.index):
            return self._factor(weights, None)
        D = weights.clone()
        D[free.index] += free.stiffness * free.slope.square()
        if self._factor(D, _pool_vectors(weights, D, free)):
            return True
        self._factor(weights, None)
        return False

    def solve(self, rhs: Tensor) -> Tensor:
        """Row by row ``rhs - F_S (B_S^-1 + H_SS)^-1 F_S' rhs``."""
        rows = self.factor.rows
        pulled = _padded(self.factor.adjoint(rhs), rows)
        x = torch.zeros_like(pulled)
        for batch in self.batches:
            part = pulled[batch.rows].gather(1, batch.index)
            solved = torch.cholesky_solve(part[:, :, None], batch.L)[:, :, 0]
            own = torch.zeros(len(part), x.shape[1], dtype=x.dtype, device=x.device)
            x[batch.rows] = own.scatter_(1, batch.index, solved)
        return rhs - self.factor.forward(x[:, :-1].reshape(-1))

    def _factor(self, D: Tensor, pools: tuple[Tensor, Tensor] | None) -> bool:
        """Cholesky factors of ``1/D + y y' (within pools) + H`` on the support of D, in batches."""
        table = _padded(D, self.factor.rows)
        used = table > 0
        counts = used.sum(1)
        by_size = counts.argsort()
        sizes = counts[by_size].tolist()
        self.batches, start = [], 0
        while start < len(sizes):
            stop = batch_end(sizes, start, _BATCH_ENTRIES)
            chosen, width = by_size[start:stop], sizes[stop - 1]
            order = used[chosen].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
            valid = torch.arange(width, device=D.device) < counts[chosen, None]
            index = torch.where(valid, order, len(self.H) - 1)
            A = self.H[index[:, :, None], index[:, None, :]]
            inverse = 1.0 / table[chosen].gather(1, index)
            if self.factor.less is not None:
                inverse -= _padded(self.factor.less, self.factor.rows)[chosen].gather(1, index)
            A.diagonal(dim1=1, dim2=2).add_(torch.where(valid, inverse, 1.0))
            if pools is not None and width:
                y, pool = (_padded(v, self.factor.rows)[chosen].gather(1, index) for v in pools)
                _add_pools(A, y, pool)
            L, info = torch.linalg.cholesky_ex(A)
            if bool((info != 0).any()):
                return False
            self.batches.append(_Batch(chosen, index, L))
            start = stop
        return True


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows factored together, padded to the largest support with the identity."""

    rows: Tensor
    index: Tensor
    L: Tensor


def _padded(values: Tensor, rows: int) -> Tensor:
    """A vector of weights as a table of rows, with a column of zeros to the right."""
    return torch.nn.functional.pad(values.reshape(rows, -1), (0, 1))


def _add_pools(A: Tensor, y: Tensor, pool: Tensor) -> None:
    """Add y y' to A within each pool; y is zero outside of pools."""
    first = pool.amax(1, keepdim=True)
    if bool(((pool == first) | (y == 0)).all()):  # one pool a row
        A.baddbmm_(y[:, :, None], y[:, None, :])
    else:
        A += y[:, :, None] * y[:, None, :] * (pool[:, :, None] == pool[:, None, :])


def _pool_vectors(weights: Tensor, D: Tensor, free: FreePart) -> tuple[Tensor, Tensor]:
    """Vectors y (p,) with B^-1 = 1/D + y y' inside every pool, and the pools' labels (p,)."""
    held = free.pool >= 0
    index, h, slope = free.index[held], free.stiffness[held], free.slope[held]
    pool = torch.full((len(D),), -1, dtype=torch.int64, device=D.device)
    y = torch.zeros_like(D)
    if not len(index):
        return y, pool
    labels = free.pool[held]
    count = int(labels.max()) + 1
    zero = h.new_zeros(count)
    mass = zero.index_add(0, labels, h)
    settled = weights[index] / D[index].clamp_min(_TINY)  # 1 - h s^2 / D
    left = zero.index_add(0, labels, h * settled) / mass.clamp_min(_TINY)  # 1 - |u|^2
    scale = (mass * left).clamp_min(_TINY).sqrt()[labels]
    y[index] = h * slope / (D[index].clamp_min(_TINY) * scale)
    pool[index] = labels
    return y, pool


class CoupledNewton(NewtonSystem):
    """Blocks solved exactly; pools that cross blocks are joined to them.

    The crossing pools change M by as many rank-one terms as there are pools, so conjugate gradients
    preconditioned by the blocks end after about that many steps.
    """

    def __init__(self, factor: Factor, children: list[NewtonSystem], sizes: list[int]) -> None:
        self.factor, self.children = factor, children
        self.ends = torch.tensor(sizes).cumsum(0).tolist()
        self.weights: Tensor | None = None
        self.free: FreePart | None = None
        self.crossing: Tensor | None = None

    def prepare(self, weights: Tensor, free: FreePart | None) -> bool:
        """Prepare every block with the pools that it holds alone."""
        self.weights, self.crossing = weights, None
        self.free = free if free is not None and len(free.index) else None
        local = None if self.free is None else self._localise(self.free)
        if isinstance(self.free, BundledPart):  # conjugate gradients join all bundles
            local, self.crossing = None, self.free.pool
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
            self.free, self.crossing = None, None
            start = 0
            for child, end in zip(self.children, self.ends, strict=True):
                child.prepare(weights[start:end], None)
                start = end
        return complete

    def solve(self, rhs: Tensor) -> Tensor:
        """Block solves alone, or joined."""
        if self.crossing is None:
            return self._blocks(rhs)
        return conjugate_gradients(self._apply, rhs, self._blocks, tolerance=1e-8, limit=100)

    def _localise(self, free: FreePart) -> FreePart:
        """Labels of pools that lie inside one block; -1 for the crossing ones."""
        ends = torch.tensor(self.ends, device=free.index.device)
        block = torch.bucketize(free.index, ends, right=True)
        if isinstance(self.factor, RowFactor):
            block = free.index // self.factor.width
        labels = free.pool + 1
        low = torch.full((int(labels.max()) + 1,), 2**62, device=labels.device)
        low = low.scatter_reduce_(0, labels, block, "amin")
        high = torch.zeros_like(low).scatter_reduce_(0, labels, block, "amax")
        crosses = (low != high)[labels] & (free.pool >= 0)
        self.crossing = free.pool[crosses].unique() if bool(crosses.any()) else None
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
