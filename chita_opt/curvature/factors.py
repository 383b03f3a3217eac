r"""Factors F of a curvature C = F'F: the space in which the dual problem lives.

The dual of the perspective relaxation has one variable for every row of F, so a curvature made of
n gradients has an n-dimensional dual whatever p is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GATHERED = 0.3  # share of columns up to which gathering them costs less than reading all in order
_BLOCK = 4096  # columns in one float32 Gram product
_CACHED = 2 << 20  # bytes of gathered or widened columns that stay in a processor's cache
_LAUNCHED = 256 << 20  # the same where every product is a launch on an accelerator


class Factor(ABC):
    """A matrix F (dual_size, p) that is only multiplied with."""

    size: int
    dual_size: int

    @abstractmethod
    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """``F x`` (dual_size,) float64; only the columns of non-zero entries are read."""

    @abstractmethod
    def adjoint(self, r: Tensor, *, exact: bool = False) -> Tensor:
        """``F' r`` (p,) float64."""

    def column_norms(self) -> Tensor:
        """Squared norm of every column, which is ``diag(C)`` (p,) float64."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ColumnFactor(Factor):
    r"""F = sqrt(scale) A with the columns of A stored contiguously.

    Attributes
    ----------
    columns : Tensor
        (p, n), row j is column j of A; float32 or float64.
    scale : float
        Factor on A'A.
    """

    columns: Tensor
    scale: float = 1.0

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return self.columns.shape[0]

    @property
    def dual_size(self) -> int:  # type: ignore[override]
        """Number of rows n."""
        return self.columns.shape[1]

    @property
    def root(self) -> float:
        """Square root of the scale."""
        return self.scale**0.5

    @property
    def cached(self) -> int:
        """Columns that stay in cache when they are gathered or widened."""
        limit = _CACHED if self.columns.device.type == "cpu" else _LAUNCHED
        return max(32, limit // (8 * self.dual_size))

    @property
    def whole(self) -> int:
        """Columns of one product over all: all of them, where they lie in memory."""
        return self.size

    def pieces(self, index: Tensor | None, count: int) -> Iterator[tuple[slice, Tensor]]:
        """Places in ``index`` (all columns for None), ``count`` at a time, and those columns."""
        total = self.size if index is None else len(index)
        for start in range(0, total, count):
            place = slice(start, start + count)
            if index is None:
                yield place, self.columns[place]
            else:
                yield place, self.columns.index_select(0, index[place])

    def select(self, index: Tensor) -> Tensor:
        """A copy of the columns at ``index`` (len(index), n); for few."""
        return self.columns.index_select(0, index)

    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """``sqrt(scale) A x``; reads the columns of non-zero entries only."""
        used = x.nonzero().squeeze(1)
        if len(used) <= (0.7 if exact else GATHERED) * self.size:
            return self.forward_at(used, x[used], exact=exact)
        return self.forward_at(None, x, exact=exact)

    def forward_at(self, index: Tensor | None, x: Tensor, *, exact: bool = False) -> Tensor:
        """``sqrt(scale) A x`` for x given at the columns of ``index`` (None for all) alone."""
        out = torch.zeros(self.dual_size, dtype=torch.float64, device=x.device)
        count = self.whole if index is None and not exact else self.cached
        for place, part in self.pieces(index, count):
            v = x[place] if exact else x[place].to(part.dtype)
            out += v @ part.double() if exact else (v @ part).double()
        return out * self.root

    def adjoint(self, r: Tensor, *, exact: bool = False) -> Tensor:
        """``sqrt(scale) A' r`` for every column."""
        return self.adjoint_at(None, r, exact=exact)

    def adjoint_at(self, index: Tensor | None, r: Tensor, *, exact: bool = True) -> Tensor:
        """``sqrt(scale) A' r`` for the given columns (None for all)."""
        total = self.size if index is None else len(index)
        out = torch.empty(total, dtype=torch.float64, device=r.device)
        v = r if exact else r.to(self.columns.dtype)
        count = self.whole if index is None and not exact else self.cached
        for place, part in self.pieces(index, count):
            out[place] = (part.double() if exact else part) @ v
        return out.mul_(self.root)

    def normal_at(self, index: Tensor, weights: Tensor, v: Tensor) -> Tensor:
        """``F_S diag(weights) F_S' v`` in float64, each column read once."""
        out = torch.zeros_like(v)
        for place, part in self.pieces(index, self.cached):
            wide = part.double()
            out += (weights[place] * (wide @ v)) @ wide
        return out * self.scale

    def gram(
        self,
        index: Tensor,
        weights: Tensor | None = None,
        *,
        exact: bool = False,
        onto: Tensor | None = None,
    ) -> Tensor:
        r"""``sum_j weights_j f_j f_j'`` over the selected columns, (n, n) float64.

        Products of a block are taken in the data's type, or in float64 if ``exact``; blocks are
        summed in float64, in place on ``onto`` where that is given.
        """
        n = self.dual_size
        if onto is None:
            onto = torch.zeros(n, n, dtype=torch.float64, device=self.columns.device)
        if weights is None:
            weights = torch.ones(len(index), dtype=torch.float64, device=index.device)
        for sign in (1.0, -1.0):
            chosen = sign * weights > 0
            side, roots = index[chosen], (sign * self.scale * weights[chosen]).sqrt()
            for place, part in self.pieces(side, _BLOCK):
                part = part.double() if exact else part
                part.mul_(roots[place].to(part.dtype)[:, None])
                onto.add_(symmetric_product(part), alpha=sign)
        return onto

    def square_norms(self, index: Tensor | None = None) -> Tensor:
        """``diag(C)`` (or its entries at ``index``) at the data's precision."""
        pieces = self.pieces(index, self.whole if index is None else self.cached)
        norms = [torch.linalg.vector_norm(part, dim=1) for _, part in pieces]
        return torch.cat(norms).square().double() * self.scale

    def column_norms(self) -> Tensor:
        """Squared column norms times the scale."""
        pieces = self.pieces(None, self.cached)
        return torch.cat([part.double().square().sum(1) for _, part in pieces]) * self.scale


@dataclass(frozen=True, eq=False)
class RowFactor(Factor):
    """I_rows (x) F with one small F (m, d) for all rows of a layer."""

    F: Tensor
    rows: int

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights rows * d."""
        return self.rows * self.F.shape[1]

    @property
    def dual_size(self) -> int:  # type: ignore[override]
        """Rows times the rank m."""
        return self.rows * self.F.shape[0]

    @property
    def width(self) -> int:
        """Weights in a row d."""
        return self.size // self.rows

    @property
    def common(self) -> Tensor:
        """(d, d), what the rows' curvatures have in common: ``F'F``."""
        return self.F.T @ self.F

    @property
    def less(self) -> Tensor | None:
        """(rows, d), what each row lacks on the diagonal; None where no row lacks anything."""
        return None

    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Row by row ``F x_r``."""
        return (x.reshape(self.rows, -1) @ self.F.T).reshape(-1)

    def adjoint(self, r: Tensor, *, exact: bool = False) -> Tensor:
        """Row by row ``F' r_r``."""
        return (r.reshape(self.rows, -1) @ self.F).reshape(-1)

    def pseudo_inverse(self, r: Tensor) -> Tensor:
        """The shortest x with ``F x = r``, row by row; the rows of F are orthogonal."""
        norms = self.F.square().sum(1).repeat(self.rows)
        return self.adjoint(torch.where(norms > 0, r / norms, torch.zeros_like(r)))

    def column_norms(self) -> Tensor:
        """Squared column norms, repeated for every row."""
        return self.F.square().sum(0).repeat(self.rows)


@dataclass(frozen=True, eq=False)
class OwnRowFactor(RowFactor):
    """A factor for every row, F (rows, d, d) upper triangular, of ``H - diag(e_r)``.

    Attributes
    ----------
    H : Tensor
        (d, d), what the rows have in common.
    e : Tensor
        (rows, d).
    """

    H: Tensor
    e: Tensor

    @property
    def common(self) -> Tensor:
        """H."""
        return self.H

    @property
    def less(self) -> Tensor | None:
        """The rows' own e."""
        return self.e

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights rows * d."""
        return self.e.numel()

    @property
    def dual_size(self) -> int:  # type: ignore[override]
        """As many."""
        return self.e.numel()

    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Row by row ``F_r x_r``."""
        return torch.bmm(self.F, x.reshape(self.rows, -1, 1)).reshape(-1)

    def adjoint(self, r: Tensor, *, exact: bool = False) -> Tensor:
        """Row by row ``F_r' r_r``."""
        return torch.bmm(r.reshape(self.rows, 1, -1), self.F).reshape(-1)

    def pseudo_inverse(self, r: Tensor) -> Tensor:
        """The x with ``F x = r``."""
        right = r.reshape(self.rows, -1, 1)
        return torch.linalg.solve_triangular(self.F, right, upper=True).reshape(-1)

    def column_norms(self) -> Tensor:
        """``diag(H) - e``."""
        return (self.H.diagonal() - self.e).reshape(-1)


@dataclass(frozen=True, eq=False)
class BlockFactor(Factor):
    """Factors side by side on consecutive slices of the weights."""

    parts: Sequence[Factor]

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights."""
        return sum(f.size for f in self.parts)

    @property
    def dual_size(self) -> int:  # type: ignore[override]
        """Sum of the parts' dual sizes."""
        return sum(f.dual_size for f in self.parts)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Cut a (p,) vector into the parts."""
        return x.split([f.size for f in self.parts])

    def split_dual(self, r: Tensor) -> tuple[Tensor, ...]:
        """Cut a dual vector into the parts."""
        return r.split([f.dual_size for f in self.parts])

    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Part by part."""
        pairs = zip(self.parts, self.split(x), strict=True)
        return torch.cat([f.forward(v, exact=exact) for f, v in pairs])

    def adjoint(self, r: Tensor, *, exact: bool = False) -> Tensor:
        """Part by part."""
        pairs = zip(self.parts, self.split_dual(r), strict=True)
        return torch.cat([f.adjoint(v, exact=exact) for f, v in pairs])

    def column_norms(self) -> Tensor:
        """Part by part."""
        return torch.cat([f.column_norms() for f in self.parts])


def symmetric_product(X: Tensor) -> Tensor:
    """``X'X``, on one thread of a CPU by the symmetric rank-k routine: half the work.

    Numpy finds that routine by itself. With several threads its BLAS and torch's would wait for
    each other's workers, which costs more than it saves.
    """
    if X.device.type != "cpu" or not len(X) or torch.get_num_threads() > 1:
        return X.T @ X
    rows = X.numpy()
    return torch.from_numpy(rows.T @ rows)


def eigen_factor(H: Tensor) -> Tensor:
    """F (m, p) with orthogonal rows and F'F = H up to rounding; rounding-level rows are dropped."""
    values, vectors = torch.linalg.eigh(H)
    floor = len(H) * torch.finfo(torch.float64).eps * float(values.abs().max())
    kept = values > floor
    if not bool(kept.any()):
        return H.new_zeros(1, len(H))
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def pseudo_inverse(factor: ColumnFactor, r: Tensor) -> Tensor:
    """The shortest x with ``F x = r`` for a factor with orthogonal rows (zero rows give zero)."""
    norms = factor.columns.square().sum(0)
    return factor.adjoint(torch.where(norms > 0, r / norms, torch.zeros_like(r)), exact=True)
