"""Curvature from per-sample gradients, C = scale * A'A, without ever forming C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt.curvature.base import Curvature, SeparablePart, SupportSolver
from chita_opt.curvature.checks import finite
from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.curvature.factors import ColumnFactor, eigen_factor, pseudo_inverse
from chita_opt.curvature.woodbury import WoodburySupport
from chita_opt.errors import CurvatureError


@dataclass(frozen=True, eq=False)
class LowRank(Curvature):
    r"""C = scale · A'A for A (n, p) with one gradient a row (CHITA, ICML 2023, eq. of the
    Hessian-free form; scale = 1/n is the empirical Fisher matrix).

    The columns are stored contiguously, because methods read a few columns far more often than
    all. If ``A`` is the transpose of a contiguous (p, n) tensor, nothing is copied.

    Parameters
    ----------
    A : Tensor
        (n, p) float32 or float64.
    scale : float
        Positive factor on A'A.

    Raises
    ------
    CurvatureError
        If A is not a finite matrix or the scale is not positive.
    """  # noqa: D205

    A: Tensor
    scale: float

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or 0 in self.A.shape:
            raise CurvatureError(f"A has shape {tuple(self.A.shape)}; give (samples, weights)")
        if self.A.dtype not in (torch.float32, torch.float64):
            raise CurvatureError(f"A has type {self.A.dtype}; give float32 or float64")
        if not 0.0 < self.scale < float("inf"):
            raise CurvatureError(f"scale is {self.scale}; it must be positive and finite")
        finite(self.A, "A")
        object.__setattr__(self, "A", self.A.T.contiguous().T)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return self.A.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of A."""
        return self.A.device

    @property
    def specification(self) -> Mapping[str, Any]:
        """Form, sizes and scale."""
        return {"form": "low_rank", "n": self.A.shape[0], "p": self.size, "scale": self.scale}

    def arrays(self) -> dict[str, Tensor]:
        """The column store (p, n)."""
        return {"columns": self.A.T}

    def factor(self) -> ColumnFactor:
        """sqrt(scale) A, or a smaller factor of C where there are more gradients than weights."""
        return self._compressed if self.size < self.A.shape[0] else self.factor_of_rows

    @cached_property
    def factor_of_rows(self) -> ColumnFactor:
        """sqrt(scale) A, which images live in, also where :meth:`factor` is smaller."""
        return ColumnFactor(self.A.T, self.scale)

    @cached_property
    def _compressed(self) -> ColumnFactor:
        return ColumnFactor(eigen_factor(self.dense()).T.contiguous())

    @property
    def image_size(self) -> int:
        """Number of gradients n."""
        return self.A.shape[0]

    def image(self, x: Tensor, *, exact: bool = True) -> Tensor:
        """``sqrt(scale) A x``: half a pass over A."""
        return self.factor_of_rows.forward(x, exact=exact)

    def pullback(self, image: Tensor, *, index: Tensor | None = None, exact: bool = True) -> Tensor:
        """``sqrt(scale) A' r``: half a pass, or only the columns at ``index``."""
        if index is not None:
            return self.factor_of_rows.adjoint_at(index, image, exact=exact)
        return self.factor_of_rows.adjoint(image, exact=exact)

    def energy(self, image: Tensor) -> float:
        """``|r|^2 / 2``."""
        return 0.5 * float(image @ image)

    def image_of_dual(self, r: Tensor) -> Tensor:
        """R itself, unless the factor was compressed."""
        if self.size < self.A.shape[0]:
            return self.image(pseudo_inverse(self._compressed, r))
        return r

    def dual_of_image(self, image: Tensor) -> Tensor:
        """The image itself, unless the factor was compressed."""
        if self.size < self.A.shape[0]:
            F = self._compressed
            norms = F.columns.square().sum(0).clamp_min(1e-300)
            return F.forward(self.pullback(image), exact=True) / norms
        return image

    def cut(self, start: int, stop: int) -> LowRank:
        """The block of neighbouring weights; its columns are not copied."""
        return LowRank(self.A[:, start:stop], self.scale)

    def diagonal(self) -> Tensor:
        """Squared column norms times the scale."""
        return self._diagonal

    @cached_property
    def _diagonal(self) -> Tensor:
        return self.factor_of_rows.column_norms()

    def cross(self, rows: Tensor, cols: Tensor) -> Tensor:
        """``scale A_rows' A_cols``."""
        left, right = (
            self.factor_of_rows.select(rows).double(),
            self.factor_of_rows.select(cols).double(),
        )
        return (left @ right.T) * self.scale

    def support_solver(
        self, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> SupportSolver:
        """Woodbury in the n-dimensional sample space, or Cholesky of H_SS for smaller supports.

        Below half of n the float64 sub-matrix is cheaper than the n-by-n system; in between both
        serve, and a zero ridge leaves Cholesky alone.
        """
        n, kept = self.A.shape[0], int(mask.sum())
        if kept > n or (2 * kept > n and float(part.rho.min()) > 0.0):
            return WoodburySupport.solve(self.factor_of_rows, part, mask, exact=exact)
        return CholeskySupport.solve(self, part, mask, exact=exact)

    def to(self, device: torch.device | str) -> LowRank:
        """The same curvature on another device."""
        return LowRank(self.A.to(device), self.scale)
