"""Curvature as an explicit matrix H."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.base import MatrixCurvature, SeparablePart, SupportSolver
from chita_opt.curvature.checks import positive_semidefinite
from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.curvature.factors import ColumnFactor, eigen_factor, pseudo_inverse


@dataclass(frozen=True, eq=False)
class Dense(MatrixCurvature):
    """C = H (p, p), symmetric positive semidefinite; kept in float64.

    Raises
    ------
    CurvatureError
        If H is not square, finite, symmetric and positive semidefinite (to float32 rounding).
    """

    H: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "H", positive_semidefinite(self.H, "H"))

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.H)

    @property
    def device(self) -> torch.device:
        """Device of H."""
        return self.H.device

    @property
    def specification(self) -> Mapping[str, Any]:
        """Form and size."""
        return {"form": "dense", "p": self.size}

    def arrays(self) -> dict[str, Tensor]:
        """The matrix."""
        return {"H": self.H}

    def factor(self) -> ColumnFactor:
        """From the eigendecomposition, made once."""
        return self._factor

    @cached_property
    def _factor(self) -> ColumnFactor:
        return ColumnFactor(eigen_factor(self.H).T.contiguous())

    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """``H x``."""
        Cx = self.H @ image
        return Cx if index is None else Cx[index]

    def image_of_dual(self, r: Tensor) -> Tensor:
        """``x = F^+ r``; the rows of F are orthogonal."""
        return pseudo_inverse(self._factor, r)

    def diagonal(self) -> Tensor:
        """``diag(H)``."""
        return self.H.diagonal().clone()

    def cross(self, rows: Tensor, cols: Tensor) -> Tensor:
        """``H[rows][:, cols]``, a copy."""
        return self.H[rows[:, None], cols[None, :]]

    def support_solver(
        self, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> SupportSolver:
        """Cholesky of the principal sub-matrix."""
        return CholeskySupport.solve(self, part, mask)

    def to(self, device: torch.device | str) -> Dense:
        """The same curvature on another device."""
        return Dense(self.H.to(device))
