"""Rows that shared one H, each less a diagonal of its own: what splits by row leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.base import MatrixCurvature, SeparablePart, SupportSolver
from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.curvature.factors import OwnRowFactor
from chita_opt.curvature.shared_rows import SharedRows
from chita_opt.errors import CurvatureError


@dataclass(frozen=True, eq=False)
class SplitRows(MatrixCurvature):
    r"""C = I_rows ⊗ H - diag(e), positive definite in every row.

    No :class:`SharedRows`, so that nothing takes H for the matrix of its rows.

    Attributes
    ----------
    whole : SharedRows
        The rows before the split.
    e : Tensor
        (rows, d) what is taken from the diagonal of each row; proven by
        :func:`chita_opt.bounds.safe_split`.

    Raises
    ------
    CurvatureError
        If e has another shape.
    """

    whole: SharedRows
    e: Tensor

    def __post_init__(self) -> None:
        shape = (self.whole.rows, self.whole.width)
        if self.e.shape != shape:
            raise CurvatureError(f"e is {tuple(self.e.shape)}; give one diagonal a row, {shape}")

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights."""
        return self.whole.size

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.whole.device

    @property
    def specification(self) -> Mapping[str, Any]:
        """Form and sizes."""
        return {"form": "split_rows", "rows": self.whole.rows, "width": self.whole.width}

    def arrays(self) -> dict[str, Tensor]:
        """The matrix and the diagonals."""
        return {"H": self.whole.H, "e": self.e}

    def factor(self) -> OwnRowFactor:
        """A Cholesky factor of every row, made once."""
        return self._factor

    @cached_property
    def _factor(self) -> OwnRowFactor:
        H = self.whole.H
        parts = [torch.linalg.cholesky(H - torch.diag(own), upper=True) for own in self.e]
        return OwnRowFactor(torch.stack(parts), self.whole.rows, H, self.e)

    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """Row by row ``H x_r - e_r x_r``."""
        Cx = self.whole.pullback(image) - image * self.e.reshape(-1)
        return Cx if index is None else Cx[index]

    def image_of_dual(self, r: Tensor) -> Tensor:
        """``x = F^-1 r``."""
        return self._factor.pseudo_inverse(r)

    def diagonal(self) -> Tensor:
        """``diag(H)`` less every row's own."""
        return self.whole.diagonal() - self.e.reshape(-1)

    def cross(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Entries where both weights lie in one row, else 0."""
        own = torch.where(rows[:, None] == cols[None, :], self.e.reshape(-1)[rows][:, None], 0.0)
        return self.whole.cross(rows, cols) - own

    def support_solver(
        self, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> SupportSolver:
        """Cholesky of the principal sub-matrix."""
        return CholeskySupport.solve(self, part, mask)

    def to(self, device: torch.device | str) -> SplitRows:
        """The same curvature on another device."""
        return SplitRows(self.whole.to(device), self.e.to(device))


__all__ = ["SplitRows"]
