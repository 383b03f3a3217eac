r"""The quadratic model around a pruned network's weights, on a set of weights, for several ridges.

In units of the loss, with m-sample rows A restricted to the set:

.. math:: q(d)=g^\top d+\tfrac{m}{2n}\|Ad\|^2+\tfrac\mu2\|d\|^2,\qquad g=\tfrac1nA^\top 1 .
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.curvature.cholesky import cholesky
from chita_opt.curvature.factors import symmetric_product


@dataclass(frozen=True, eq=False)
class Expansion:
    """Rows and weights of a set of s weights.

    Attributes
    ----------
    columns : Tensor
        (s, n) gradient rows, one weight's gradients contiguous.
    w : Tensor
        (s,) float64 weights that the rows were measured at.
    batch_size : int
        Samples of a row, m.
    """

    columns: Tensor
    w: Tensor
    batch_size: int

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        return self.columns.shape[1]

    @cached_property
    def g(self) -> Tensor:
        """Mean gradient, (s,) float64."""
        return self.columns.mean(1).double()

    @cached_property
    def diagonal(self) -> Tensor:
        """Diagonal of the curvature, (s,) float64."""
        return self.columns.square().sum(1).double() * (self.batch_size / self.rows)

    @property
    def is_primal(self) -> bool:
        """Whether the system over weights is smaller than the one over rows."""
        return len(self.w) <= self.rows

    @cached_property
    def gram(self) -> Tensor:
        """``(m/n) A'A`` (s, s) or ``(m/n) AA'`` (n, n), whichever is smaller; float64."""
        rows = self.columns.T if self.is_primal else self.columns
        return symmetric_product(rows).double() * (self.batch_size / self.rows)

    def restricted(self, kept: Tensor) -> tuple[Expansion, Tensor]:
        """The expansion on kept weights (s,) bool, and the linear term that removing adds to it."""
        scale = self.batch_size / self.rows
        inside = Expansion(self.columns[kept], self.w[kept], self.batch_size)
        gone = self.columns[~kept]
        image = self.w[~kept].to(gone.dtype) @ gone
        return inside, (inside.columns @ image).double() * -scale

    def solve(self, ridges: Sequence[float], extra: Tensor | None = None) -> Iterator[Tensor]:
        """The minimiser for each ridge, (s,) float64; ``extra`` is added to the linear term."""
        g = self.g if extra is None else self.g + extra
        scale = self.batch_size / self.rows
        for ridge in ridges:
            L = self._factor(ridge)
            if self.is_primal:
                yield self.w - torch.cholesky_solve(g[:, None], L).squeeze(1)
                continue
            image = (g.to(self.columns.dtype) @ self.columns).double()
            inner = torch.cholesky_solve(image[:, None], L).squeeze(1)
            back = (self.columns @ inner.to(self.columns.dtype)).double() * scale
            yield self.w - (g - back) / ridge

    def removal_costs(self, w: Tensor, ridge: float) -> Tensor:
        r"""Optimal brain surgeon: :math:`w_j^2/[(H+\mu)^{-1}]_{jj}`, (s,)."""
        L = self._factor(ridge)
        if self.is_primal:
            return w.square() / torch.cholesky_inverse(L).diagonal()
        eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
        half = torch.linalg.solve_triangular(L, eye, upper=False).to(self.columns.dtype)
        norms = (self.columns @ half.T).square().sum(1).double()
        leverage = norms * (self.batch_size / self.rows)
        return w.square() * ridge / (1.0 - leverage).clamp_min(1e-12)

    def _factor(self, ridge: float) -> Tensor:
        M = self.gram.clone()
        M.diagonal().add_(ridge)
        return cholesky(M, "the curvature of the rows plus the ridge")


__all__ = ["Expansion"]
