"""The minimiser on a support through the Cholesky factor of the principal sub-matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.curvature.base import Curvature, SeparablePart, SupportSolver
from chita_opt.errors import CurvatureError


def cholesky(H: Tensor, what: str) -> Tensor:
    """Lower Cholesky factor (batched), or an error that names the cure."""
    L, info = torch.linalg.cholesky_ex(H)
    if bool((info != 0).any()):
        raise CurvatureError(f"{what} is not positive definite; raise the ridge rho above zero")
    return L


@dataclass(frozen=True, eq=False)
class CholeskySupport(SupportSolver):
    """H_SS = LL' formed in float64; for small supports of any curvature form."""

    curvature: Curvature
    part: SeparablePart
    mask: Tensor
    index: Tensor
    L: Tensor
    weights: Tensor
    pull: Tensor
    value: float
    exact: bool

    @classmethod
    def solve(
        cls, curvature: Curvature, part: SeparablePart, mask: Tensor, *, exact: bool = True
    ) -> CholeskySupport:
        """Factor H_SS and solve ``H_SS x_S = -g_S + [C (w_bar off S)]_S``, w = w_bar + x."""
        S = mask.nonzero().squeeze(1)
        H = curvature.submatrix(S)
        H.diagonal().add_(part.rho[S])
        L = cholesky(H, f"the curvature on {len(S)} kept weights plus the ridge")
        x = torch.where(mask, torch.zeros_like(part.w_bar), -part.w_bar)
        image = curvature.image(x, exact=exact)
        rhs = -part.g[S] - curvature.pullback(image, index=S)
        kept = torch.zeros_like(x)
        kept[S] = torch.cholesky_solve(rhs[:, None], L).squeeze(1)
        x, image = x + kept, image + curvature.image(kept, exact=exact)
        pull = part.rho * part.w_bar - part.g - curvature.pullback(image, exact=exact)
        value = curvature.energy(image) + part.value(x)
        weights = torch.where(mask, part.w_bar + x, torch.zeros_like(x))
        return cls(curvature, part, mask, S, L, weights, pull, value, exact)

    def moved(self, mask: Tensor, *, exact: bool = False) -> CholeskySupport:
        """A fresh factorisation."""
        return CholeskySupport.solve(self.curvature, self.part, mask, exact=exact)

    def inverse_diagonal(self, index: Tensor) -> Tensor:
        """Squared norms of columns of L^-1."""
        place = torch.searchsorted(self.index, index.contiguous())
        unit = torch.zeros(len(self.index), len(index), dtype=torch.float64, device=index.device)
        unit[place, torch.arange(len(index), device=index.device)] = 1.0
        return torch.linalg.solve_triangular(self.L, unit, upper=False).square().sum(0)

    def schur_diagonal(self, index: Tensor) -> Tensor:
        """``H_jj`` less the squared norm of ``L^-1 H_Sj``."""
        Y = self._half(index)
        return self.curvature.diagonal()[index] + self.part.rho[index] - Y.square().sum(0)

    def reduced(self, index: Tensor) -> Tensor:
        """``H_CC - Y'Y`` with ``Y = L^-1 H_SC``."""
        Y = self._half(index)
        Q = self.curvature.submatrix(index) - Y.T @ Y
        Q.diagonal().add_(self.part.rho[index])
        return Q

    def _half(self, index: Tensor) -> Tensor:
        rhs = self.curvature.cross(self.index, index)
        return torch.linalg.solve_triangular(self.L, rhs, upper=False)
