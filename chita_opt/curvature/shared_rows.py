"""One H for all rows of a layer: the curvature of layer-wise reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.base import MatrixCurvature, SeparablePart, SupportSolver
from chita_opt.curvature.checks import positive_semidefinite
from chita_opt.curvature.cholesky import cholesky
from chita_opt.curvature.factors import RowFactor, eigen_factor
from chita_opt.errors import CurvatureError

_BATCH_ENTRIES = 2**14  # float64 entries of sub-matrices factored together: small rows only


@dataclass(frozen=True, eq=False)
class SharedRows(MatrixCurvature):
    r"""C = I_rows ⊗ H: the weights are a matrix W (rows, d) whose rows share H (d, d).

    For layer inputs x, H = mean of xx' gives :math:`\tfrac12\sum_r (w_r-\bar w_r)^\top H
    (w_r-\bar w_r)`, half the mean squared change of the layer's outputs (OBC, NeurIPS 2022;
    ALPS, NeurIPS 2024). The flat vector runs row by row.

    Raises
    ------
    CurvatureError
        If H is not square, finite, symmetric and positive semidefinite, or rows < 1.
    """

    H: Tensor
    rows: int

    def __post_init__(self) -> None:
        if int(self.rows) != self.rows or self.rows < 1:
            raise CurvatureError(f"rows is {self.rows}; it must be a whole number >= 1")
        object.__setattr__(self, "H", positive_semidefinite(self.H, "H"))

    @property
    def width(self) -> int:
        """Number of inputs d."""
        return len(self.H)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights rows * d."""
        return self.rows * self.width

    @property
    def device(self) -> torch.device:
        """Device of H."""
        return self.H.device

    @property
    def specification(self) -> Mapping[str, Any]:
        """Form and sizes."""
        return {"form": "shared_rows", "rows": self.rows, "width": self.width}

    def arrays(self) -> dict[str, Tensor]:
        """The matrix."""
        return {"H": self.H}

    def factor(self) -> RowFactor:
        """From the eigendecomposition of H, made once."""
        return self._factor

    @cached_property
    def _factor(self) -> RowFactor:
        return RowFactor(eigen_factor(self.H), self.rows)

    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """Row by row ``H x_r``."""
        Cx = (image.reshape(self.rows, -1) @ self.H).reshape(-1)
        return Cx if index is None else Cx[index]

    def image_of_dual(self, r: Tensor) -> Tensor:
        """``x = F^+ r``; the rows of F are orthogonal."""
        return self._factor.pseudo_inverse(r)

    def diagonal(self) -> Tensor:
        """``diag(H)``, repeated for every row."""
        return self.H.diagonal().repeat(self.rows)

    def cross(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries of H where both weights lie in one row, else 0."""
        d = self.width
        same = (rows // d)[:, None] == (cols // d)[None, :]
        return self.H[(rows % d)[:, None], (cols % d)[None, :]] * same

    def support_solver(
        self, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> SupportSolver:
        """All rows at once, in batches that fit in memory."""
        return RowBatchSupport.solve(self, part, mask)

    def to(self, device: torch.device | str) -> SharedRows:
        """The same curvature on another device."""
        return SharedRows(self.H.to(device), self.rows)


@dataclass(frozen=True, eq=False)
class RowBatchSupport(SupportSolver):
    """Rows solved in batches: pruned weights get a unit row and column, so shapes agree."""

    curvature: SharedRows
    part: SeparablePart
    mask: Tensor
    weights: Tensor
    pull: Tensor
    value: float
    exact: bool = True

    @classmethod
    def solve(cls, curvature: SharedRows, part: SeparablePart, mask: Tensor) -> RowBatchSupport:
        """Solve ``H_SS x_S = -g_S + H_SO w_O`` in every row (O: pruned weights)."""
        d, rows = curvature.width, curvature.rows
        x = torch.where(mask, torch.zeros_like(part.w_bar), -part.w_bar)
        rhs = (-part.g - curvature.product(x)).reshape(rows, d)
        solved = torch.zeros(rows, d + 1, dtype=torch.float64, device=x.device)
        for batch in _factored(curvature, part, mask, torch.arange(rows, device=x.device)):
            right = batch.take(rhs)[:, :, None]
            batch.put(solved, torch.cholesky_solve(right, batch.L)[:, :, 0])
        x = torch.where(mask, solved[:, :-1].reshape(-1), x)
        Cx = curvature.product(x)
        pull = part.rho * part.w_bar - part.g - Cx
        value = 0.5 * float(x @ Cx) + part.value(x)
        weights = torch.where(mask, part.w_bar + x, torch.zeros_like(x))
        return cls(curvature, part, mask, weights, pull, value)

    def moved(self, mask: Tensor, *, exact: bool = False) -> RowBatchSupport:
        """A fresh solve."""
        return RowBatchSupport.solve(self.curvature, self.part, mask)

    def inverse_diagonal(self, index: Tensor) -> Tensor:
        """Diagonals of the rows' inverses."""
        d, rows = self.curvature.width, self.curvature.rows
        out = torch.zeros(rows, d + 1, dtype=torch.float64, device=index.device)
        for batch in _factored(self.curvature, self.part, self.mask, (index // d).unique()):
            batch.put(out, torch.cholesky_inverse(batch.L).diagonal(dim1=1, dim2=2))
        return out[:, :-1].reshape(-1)[index]

    def schur_diagonal(self, index: Tensor) -> Tensor:
        """Row by row ``H_jj`` less the squared norm of ``L^-1 H_Sj``."""
        d = self.curvature.width
        out = torch.empty(len(index), dtype=torch.float64, device=index.device)
        row = index // d
        for r in row.unique():
            here = (row == r).nonzero().squeeze(1)
            Y = self._half(r, index[here] % d)
            own = index[here]
            diagonal = self.curvature.H.diagonal()[own % d] + self.part.rho[own]
            out[here] = diagonal - Y.square().sum(0)
        return out

    def reduced(self, index: Tensor) -> Tensor:
        """Block by block of the rows that ``index`` touches."""
        d = self.curvature.width
        Q = self.curvature.submatrix(index)
        Q.diagonal().add_(self.part.rho[index])
        row = index // d
        for r in row.unique():
            here = (row == r).nonzero().squeeze(1)
            Y = self._half(r, index[here] % d)
            Q[here[:, None], here[None, :]] -= Y.T @ Y
        return Q

    def _half(self, row: Tensor, cols: Tensor) -> Tensor:
        (batch,) = _factored(self.curvature, self.part, self.mask, row.reshape(1))
        rhs = self.curvature.H[batch.index[0][:, None], cols]
        return torch.linalg.solve_triangular(batch.L[0], rhs, upper=False)


@dataclass(frozen=True, eq=False)
class _RowBatch:
    """Rows with supports of like size, gathered; shorter ones are padded with the identity.

    ``index`` (rows, width) holds the columns kept, d where it is padded.
    """

    rows: Tensor
    index: Tensor
    L: Tensor

    def take(self, table: Tensor) -> Tensor:
        """Entries of a (all rows, d) table on the supports, zero in the padding."""
        return torch.nn.functional.pad(table[self.rows], (0, 1)).gather(1, self.index)

    def put(self, table: Tensor, values: Tensor) -> None:
        """Write entries on the supports into a (all rows, d + 1) table."""
        own = torch.zeros(len(self.rows), table.shape[1], dtype=table.dtype, device=table.device)
        table[self.rows] = own.scatter_(1, self.index, values)


def _factored(
    curvature: SharedRows, part: SeparablePart, mask: Tensor, rows: Tensor
) -> Iterator[_RowBatch]:
    """Cholesky factors of the kept sub-matrices of some rows, in batches that fit in memory."""
    d = curvature.width
    H = torch.nn.functional.pad(curvature.H, (0, 1, 0, 1))
    kept = mask.reshape(curvature.rows, d)[rows]
    ridge = torch.nn.functional.pad(part.rho.reshape(curvature.rows, d), (0, 1), value=1.0)
    by_size = kept.sum(1).argsort()
    sizes = kept.sum(1)[by_size].tolist()
    start = 0
    while start < len(sizes):
        stop = batch_end(sizes, start, _BATCH_ENTRIES)
        chosen, width = by_size[start:stop], sizes[stop - 1]
        order = kept[chosen].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
        valid = torch.arange(width, device=order.device) < kept[chosen].sum(1, keepdim=True)
        index = torch.where(valid, order, d)
        A = _gathered(H, index)
        A.diagonal(dim1=1, dim2=2).add_(ridge[rows[chosen]].gather(1, index))
        L = cholesky(A, "the curvature of a row plus the ridge")
        yield _RowBatch(rows[chosen], index, L)
        start = stop


def _gathered(H: Tensor, index: Tensor) -> Tensor:
    """The sub-matrices of H on each row of ``index``."""
    if len(index) == 1:  # in two steps: several times faster than by pairs
        return H.index_select(0, index[0]).index_select(1, index[0])[None]
    return H[index[:, :, None], index[:, None, :]]


def batch_end(sizes: list[int], start: int, entries: int) -> int:
    """End of a batch of matrices, their sizes rising, that wastes little and fits in memory."""
    end = start + 1
    while end < len(sizes):
        width = sizes[end]
        if width > 1.25 * sizes[start] + 16 or (end + 1 - start) * width**2 > entries:
            break
        end += 1
    return end
