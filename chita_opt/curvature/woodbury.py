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

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.curvature.base import SeparablePart, SupportSolver
from chita_opt.curvature.factors import ColumnFactor, symmetric_product
from chita_opt.curvature.sample_system import SampleSystem
from chita_opt.errors import CurvatureError

_TOLERANCE = 1e-13  # relative residual of the exact solve
_MAX_REFINEMENTS = 12


@dataclass(frozen=True, eq=False)
class WoodburySupport(SupportSolver):
    """Minimiser on S, the Gram matrix of its columns and the factored system.

    ``rhs`` is the right-hand side at the precision of the solve, so that a neighbouring support's
    can be had from the changed columns alone.
    """

    factor: ColumnFactor
    part: SeparablePart
    mask: Tensor
    gram: Tensor
    rhs: Tensor
    system: SampleSystem
    weights: Tensor
    r: Tensor
    value: float
    exact: bool
    _halves: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def solve(
        cls,
        factor: ColumnFactor,
        part: SeparablePart,
        mask: Tensor,
        *,
        exact: bool = True,
        gram: Tensor | None = None,
        rhs: Tensor | None = None,
        system: SampleSystem | None = None,
    ) -> WoodburySupport:
        """Form M and the right-hand side, or take those given, and solve."""
        if float(part.rho.min()) <= 0.0:
            raise CurvatureError(
                f"rho is {float(part.rho.min())} for some weight; {int(mask.sum())} weights on "
                f"{factor.dual_size} gradient rows need rho > 0"
            )
        S = mask.nonzero().squeeze(1)
        inverse = 1.0 / part.rho[S]
        G = factor.gram(S, inverse) if gram is None else gram
        single = factor.columns.dtype == torch.float32
        system = system or _system(G, single=single)
        if rhs is None or exact:
            rhs = factor.forward(torch.where(mask, -part.g / part.rho, -part.w_bar), exact=exact)
        r = system.solve(rhs)
        if exact and single:
            r, converged = _refine(factor, S, inverse, system, rhs, r)
            if not converged:  # float32 products are too coarse for this ridge
                system = _system(factor.gram(S, inverse, exact=True), single=False)
                r, _ = _refine(factor, S, inverse, system, rhs, system.solve(rhs))
        weights = torch.zeros_like(part.w_bar)
        kept = part.rho[S] * part.w_bar[S] - part.g[S]
        weights[S] = (kept - factor.adjoint_at(S, r, exact=exact)) * inverse
        value = 0.5 * float(r @ r) + part.value(weights - part.w_bar)
        return cls(factor, part, mask, G, rhs, system, weights, r, value, exact)

    @cached_property
    def pull(self) -> Tensor:  # type: ignore[override]
        """``rho w_bar - g - F' r``, half a pass, on first use."""
        part = self.part
        return part.rho * part.w_bar - part.g - self.factor.adjoint(self.r, exact=self.exact)

    def moved(self, mask: Tensor, *, exact: bool = False) -> WoodburySupport:
        """The minimiser on another support, from the columns that changed."""
        part = self.part
        change = mask.double() - self.mask.double()
        index = change.nonzero().squeeze(1)
        if len(index) >= int(mask.sum()):
            return WoodburySupport.solve(self.factor, part, mask, exact=exact)
        gram = self.factor.gram(index, change[index] / part.rho[index], onto=self.gram.clone())
        rhs = self.rhs + self.factor.forward(change * (part.w_bar - part.g / part.rho))
        return WoodburySupport.solve(self.factor, part, mask, exact=exact, gram=gram, rhs=rhs)

    def swept(self, index: Tensor) -> Tensor:
        """From ``f_i' M^-1 f_j`` for all pairs, in float64."""
        Y = self._half(index).double()
        V = symmetric_product(Y)
        scale = torch.where(self.mask[index], 1.0 / self.part.rho[index], 1.0)
        V.mul_(scale[:, None]).mul_(scale[None, :])
        V.diagonal().add_(torch.where(self.mask[index], -scale, self.part.rho[index]))
        return V

    def polished(self) -> WoodburySupport:
        """The same support solved to float64, reusing the Gram matrix."""
        if self.exact:
            return self
        return WoodburySupport.solve(
            self.factor, self.part, self.mask, gram=self.gram, system=self.system
        )

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

    def prepare(self, index: Tensor) -> None:
        """One triangular solve for all of ``index``."""
        self._halves.update(index=index, half=self._half_of(index))

    def _half(self, index: Tensor) -> Tensor:
        """``L^-1 F`` on the columns of ``index``."""
        known = self._halves.get("index")
        if known is not None and len(known):
            place = torch.searchsorted(known, index.contiguous()).clamp_max(len(known) - 1)
            if bool((known[place] == index).all()):
                return self._halves["half"].index_select(1, place)
        return self._half_of(index)

    def _half_of(self, index: Tensor) -> Tensor:
        columns = self.factor.select(index).mul_(self.factor.root)
        return self.system.half(columns.T)


def _system(gram: Tensor, *, single: bool) -> SampleSystem:
    M = gram.clone()
    M.diagonal().add_(1.0)
    return SampleSystem(M, single=single)


def _refine(
    factor: ColumnFactor,
    S: Tensor,
    inverse: Tensor,
    system: SampleSystem,
    rhs: Tensor,
    r: Tensor,
) -> tuple[Tensor, bool]:
    """Preconditioned conjugate gradients on M r = rhs with float64 products, one read each."""

    def apply(v: Tensor) -> Tensor:
        return v + factor.normal_at(S, inverse, v)

    residual = rhs - apply(r)
    target = _TOLERANCE * float(rhs.norm())
    z = system.precondition(residual)
    direction, rz = z, float(residual @ z)
    for _ in range(_MAX_REFINEMENTS):
        if float(residual.norm()) <= target:
            return r + z, True  # one more correction costs no product
        Md = apply(direction)
        step = rz / float(direction @ Md)
        r, residual = r + step * direction, residual - step * Md
        z = system.precondition(residual)
        new = float(residual @ z)
        direction, rz = z + (new / rz) * direction, new
    return r, float(residual.norm()) <= 1e3 * target
