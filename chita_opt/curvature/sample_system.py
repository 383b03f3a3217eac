"""Positive definite n-by-n systems of the sample space, factored in float32 where that suffices."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.errors import CurvatureError

_REFINEMENTS = 6
_GOAL = 1e-11


class SampleSystem:
    """M = LL' for a float64 M; a float32 factor is refined against M, or replaced if too coarse.

    A float32 factorisation takes half the time. Solutions are brought to 1e-11 of the right-hand
    side by refinement; where that does not converge (condition above about 1e6) the factor is
    made again in float64.

    Parameters
    ----------
    M : Tensor
        (n, n) float64, symmetric.
    single : bool
        Whether to try float32 first.

    Raises
    ------
    CurvatureError
        If M is not positive definite in float64 either.
    """

    def __init__(self, M: Tensor, *, single: bool = True) -> None:
        self.M = M
        self.L: Tensor | None = None
        if single:
            L, info = torch.linalg.cholesky_ex(M.float())
            self.L = L if int(info) == 0 else None
        if self.L is None:
            self._factor_double()

    @property
    def is_single(self) -> bool:
        """Whether the factor in use is float32."""
        return self._factor.dtype == torch.float32

    def solve(self, rhs: Tensor, *, tol: float = _GOAL) -> Tensor:
        """``M^-1 rhs`` for a vector, float64; its residual at most ``tol`` of the right side."""
        x = self.precondition(rhs)
        if not self.is_single:
            return x
        goal = tol * float(rhs.norm())
        last = float("inf")
        for _ in range(_REFINEMENTS):
            residual = rhs - self.M @ x
            size = float(residual.norm())
            if size <= goal:
                return x
            if size > 0.5 * last:
                break
            last = size
            x = x + self.precondition(residual)
        self._factor_double()
        return self.precondition(rhs)

    def precondition(self, rhs: Tensor) -> Tensor:
        """One application of the factor at hand, float64 in and out."""
        L = self._factor
        return torch.cholesky_solve(rhs.to(L.dtype)[:, None], L).squeeze(1).double()

    def half(self, columns: Tensor) -> Tensor:
        """``L^-1 columns`` in the type of ``columns``."""
        return torch.linalg.solve_triangular(self._factor.to(columns.dtype), columns, upper=False)

    @property
    def _factor(self) -> Tensor:
        assert self.L is not None
        return self.L

    def _factor_double(self) -> None:
        L, info = torch.linalg.cholesky_ex(self.M)
        if int(info) != 0:
            raise CurvatureError(
                "I + F F'/rho is not positive definite in float64: the ridge is too small for "
                "these gradients; raise rho"
            )
        self.L = L
