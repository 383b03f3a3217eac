"""Newton systems of curvatures that fall into blocks: rows of a layer, and blocks of any form."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.bounds.newton import FreePart, NewtonSystem, apply_newton, conjugate_gradients
from chita_opt.curvature.factors import BlockFactor, Factor, RowFactor


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
