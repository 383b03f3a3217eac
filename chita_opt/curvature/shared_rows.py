"""One H for all rows of a layer: the curvature of layer-wise reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.base import Curvature, SeparablePart, SupportSolver
from chita_opt.curvature.checks import positive_semidefinite
from chita_opt.curvature.cholesky import cholesky
from chita_opt.curvature.factors import RowFactor, eigen_factor
from chita_opt.errors import CurvatureError

_BATCH_ENTRIES = 2**25  # float64 entries of sub-matrices factored at a time (256 MiB)


@dataclass(frozen=True, eq=False)
class SharedRows(Curvature):
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

    @property
    def image_size(self) -> int:
        """Images are displacements: p."""
        return self.size

    def image(self, x: Tensor, *, exact: bool = True) -> Tensor:
        """X itself."""
        return x

    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """Row by row ``H x_r``."""
        Cx = (image.reshape(self.rows, -1) @ self.H).reshape(-1)
        return Cx if index is None else Cx[index]

    def energy(self, image: Tensor) -> float:
        """``x'Cx / 2``."""
        return 0.5 * float(image @ self.pullback(image))

    def image_of_dual(self, r: Tensor) -> Tensor:
        """``x = F^+ r``; the rows of F are orthogonal."""
        return self._factor.pseudo_inverse(r)

    def dual_of_image(self, image: Tensor) -> Tensor:
        """``r = F x``."""
        return self._factor.forward(image, exact=True)

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

    @classmethod
    def solve(cls, curvature: SharedRows, part: SeparablePart, mask: Tensor) -> RowBatchSupport:
        """Solve ``H_SS x_S = -g_S + H_SO w_O`` in every row (O: pruned weights)."""
        d, rows = curvature.width, curvature.rows
        x = torch.where(mask, torch.zeros_like(part.w_bar), -part.w_bar)
        rhs = torch.where(mask, -part.g - curvature.product(x), torch.zeros_like(x))
        solved = torch.empty(rows, d, dtype=torch.float64, device=x.device)
        for batch in _batches(rows, d):
            L = _row_factors(curvature, part, mask, torch.arange(rows)[batch].to(x.device))
            solved[batch] = torch.cholesky_solve(rhs.reshape(rows, d)[batch, :, None], L)[:, :, 0]
        x = torch.where(mask, solved.reshape(-1), x)
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
        out = torch.empty(rows, d, dtype=torch.float64, device=index.device)
        needed = (index // d).unique()
        for chunk in needed.split(max(1, _BATCH_ENTRIES // (d * d))):
            L = _row_factors(self.curvature, self.part, self.mask, chunk)
            out[chunk] = torch.cholesky_inverse(L).diagonal(dim1=1, dim2=2)
        return out.reshape(-1)[index]

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
        kept = self.mask.reshape(self.curvature.rows, -1)[row]
        L = _row_factors(self.curvature, self.part, self.mask, row.reshape(1))[0]
        rhs = self.curvature.H[:, cols] * kept[:, None]
        return torch.linalg.solve_triangular(L, rhs, upper=False)


def _batches(rows: int, d: int) -> list[slice]:
    step = max(1, _BATCH_ENTRIES // (d * d))
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def _row_factors(curvature: SharedRows, part: SeparablePart, mask: Tensor, rows: Tensor) -> Tensor:
    """Cholesky factors of the kept sub-matrices of some rows, padded with the identity."""
    kept = mask.reshape(curvature.rows, -1)[rows]
    H = curvature.H * (kept[:, :, None] & kept[:, None, :])
    rho = part.rho.reshape(curvature.rows, -1)[rows]
    H.diagonal(dim1=1, dim2=2).add_(torch.where(kept, rho, torch.ones_like(rho)))
    return cholesky(H, "the curvature of a row plus the ridge")
