r"""The minimiser on a large support through an n-by-n system in the sample space.

With F = sqrt(scale) A and r = F(w - w_bar), the optimum on S has
:math:`w_S = c_S/\rho_S`, :math:`c = \rho\bar w - g - F^\top r` and

.. math:: (I + F_S\,\mathrm{diag}(1/\rho_S)\,F_S^\top)\, r
          = -F_S (g_S/\rho_S) - F_{\bar S}\bar w_{\bar S}.

The matrix is formed in float32 and summed in float64. Its Cholesky factor then preconditions a
conjugate gradient iteration whose residuals are taken in float64 from the data, so the answer is
exact to float64 at any ridge, at the cost of a few passes over the kept columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.curvature.base import SeparablePart, SupportSolver
from chita_opt.curvature.cholesky import cholesky
from chita_opt.curvature.factors import ColumnFactor
from chita_opt.errors import CurvatureError

_TOLERANCE = 1e-13  # relative residual of the exact solve
_MAX_REFINEMENTS = 12


@dataclass(frozen=True, eq=False)
class WoodburySupport(SupportSolver):
    """Minimiser on S, the Gram matrix of its columns and the Cholesky factor of M."""

    factor: ColumnFactor
    part: SeparablePart
    mask: Tensor
    gram: Tensor
    L: Tensor
    weights: Tensor
    r: Tensor
    value: float
    exact: bool

    @classmethod
    def solve(
        cls,
        factor: ColumnFactor,
        part: SeparablePart,
        mask: Tensor,
        *,
        exact: bool = True,
        gram: Tensor | None = None,
    ) -> WoodburySupport:
        """Form M (or take the Gram matrix ``gram`` of this support) and solve."""
        if float(part.rho.min()) <= 0.0:
            raise CurvatureError(
                f"rho is {float(part.rho.min())} for some weight; {int(mask.sum())} weights on "
                f"{factor.dual_size} gradient rows need rho > 0"
            )
        S = mask.nonzero().squeeze(1)
        inverse = 1.0 / part.rho[S]
        G = factor.gram(S, inverse) if gram is None else gram
        L = _factorise(G)
        x = torch.where(mask, -part.g / part.rho, -part.w_bar)
        rhs = factor.forward(x, exact=exact)
        r = torch.cholesky_solve(rhs[:, None], L).squeeze(1)
        if exact and factor.columns.dtype != torch.float64:
            r, converged = _refine(factor, S, inverse, L, rhs, r)
            if not converged:  # float32 products are too coarse for this ridge
                L = _factorise(factor.gram(S, inverse, exact=True))
                r = torch.cholesky_solve(rhs[:, None], L).squeeze(1)
                r, _ = _refine(factor, S, inverse, L, rhs, r)
        weights = torch.zeros_like(part.w_bar)
        kept = part.rho * part.w_bar - part.g
        weights[S] = (kept[S] - factor.adjoint_at(S, r, exact=exact)) * inverse
        value = 0.5 * float(r @ r) + part.value(weights - part.w_bar)
        return cls(factor, part, mask, G, L, weights, r, value, exact)

    @cached_property
    def pull(self) -> Tensor:  # type: ignore[override]
        """``rho w_bar - g - F' r``, half a pass, on first use."""
        part = self.part
        return part.rho * part.w_bar - part.g - self.factor.adjoint(self.r, exact=self.exact)

    def moved(self, mask: Tensor) -> WoodburySupport:
        """The minimiser on another support; the Gram matrix is updated by changed columns."""
        added = (mask & ~self.mask).nonzero().squeeze(1)
        dropped = (self.mask & ~mask).nonzero().squeeze(1)
        changed = torch.cat([added, dropped])
        sign = torch.cat([torch.ones(len(added)), -torch.ones(len(dropped))]).to(changed.device)
        if len(changed) >= int(mask.sum()):
            return WoodburySupport.solve(self.factor, self.part, mask, exact=False)
        change = self.factor.gram(changed, sign.double() / self.part.rho[changed])
        gram = self.gram + change
        return WoodburySupport.solve(self.factor, self.part, mask, exact=False, gram=gram)

    def polished(self) -> WoodburySupport:
        """The same support solved to float64, reusing the Gram matrix."""
        return WoodburySupport.solve(self.factor, self.part, self.mask, gram=self.gram)

    def inverse_diagonal(self, index: Tensor) -> Tensor:
        """``(1 - h_j)/rho_j`` with the leverage ``h_j = f_j' M^-1 f_j / rho_j``."""
        rho = self.part.rho[index]
        return (1.0 - self._norms(index) / rho).clamp_min(1e-12) / rho

    def schur_diagonal(self, index: Tensor) -> Tensor:
        """``rho_j + f_j' M^-1 f_j``."""
        return self.part.rho[index] + self._norms(index)

    def reduced(self, index: Tensor) -> Tensor:
        """``diag(rho_C) + F_C' M^-1 F_C``."""
        Y = self._half(index).double()
        Q = Y.T @ Y
        Q.diagonal().add_(self.part.rho[index])
        return Q

    def _norms(self, index: Tensor) -> Tensor:
        return self._half(index).square().sum(0).double()

    def _half(self, index: Tensor) -> Tensor:
        columns = self.factor.columns.index_select(0, index).T * self.factor.root
        return torch.linalg.solve_triangular(self.L.to(columns.dtype), columns, upper=False)


def _factorise(gram: Tensor) -> Tensor:
    M = gram.clone()
    M.diagonal().add_(1.0)
    return cholesky(M, "I + F_S F_S' / rho")


def _refine(
    factor: ColumnFactor, S: Tensor, inverse: Tensor, L: Tensor, rhs: Tensor, r: Tensor
) -> tuple[Tensor, bool]:
    """Preconditioned conjugate gradients on M r = rhs with float64 products."""
    part = ColumnFactor(factor.columns.index_select(0, S), factor.scale)

    def apply(v: Tensor) -> Tensor:
        return v + part.forward(inverse * part.adjoint(v, exact=True), exact=True)

    residual = rhs - apply(r)
    target = _TOLERANCE * float(rhs.norm())
    z = torch.cholesky_solve(residual[:, None], L).squeeze(1)
    direction, rz = z, float(residual @ z)
    for _ in range(_MAX_REFINEMENTS):
        if float(residual.norm()) <= target:
            return r, True
        Md = apply(direction)
        step = rz / float(direction @ Md)
        r, residual = r + step * direction, residual - step * Md
        z = torch.cholesky_solve(residual[:, None], L).squeeze(1)
        new = float(residual @ z)
        direction, rz = z + (new / rz) * direction, new
    return r, float(residual.norm()) <= 1e3 * target
