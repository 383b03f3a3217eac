r"""Rows of weights that share one matrix: what layer-wise methods work on.

A curvature without coupling between rows splits the problem into

.. math:: \sum_r\tfrac12(w_r-\hat w_r)^\top M(w_r-\hat w_r)+\text{const},\qquad
          M=H+\mathrm{diag}(\rho),\quad \hat w_r=\bar w_r-M^{-1}g_r,

coupled only by the budget. Rows with the same H and the same ridge share M, its inverse and its
eigendecomposition. A curvature of one piece (a matrix, or gradients) is a single row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.curvature import BlockDiagonal, Curvature, SharedRows
from chita_opt.curvature.cholesky import cholesky
from chita_opt.errors import MethodError
from chita_opt.problem import Problem

WIDEST = 8192  # weights in a row whose matrix (512 MiB) is still formed


@dataclass(frozen=True, eq=False)
class RowSystem:
    """Rows that share M.

    Attributes
    ----------
    M : Tensor
        (d, d) float64, H + diag(rho).
    index : Tensor
        (rows, d) int64, the place of every weight in the problem.
    centre : Tensor
        (rows, d) float64, the unconstrained minimisers.
    """

    M: Tensor
    index: Tensor
    centre: Tensor

    @cached_property
    def inverse(self) -> Tensor:
        """M^-1 (d, d)."""
        return torch.cholesky_inverse(cholesky(self.M, "the curvature of a row plus the ridge"))

    def to(self, device: torch.device | str) -> RowSystem:
        """The same rows on another device."""
        return RowSystem(self.M.to(device), self.index.to(device), self.centre.to(device))


def widest_row(curvature: Curvature) -> int:
    """Number of weights in the largest row."""
    if isinstance(curvature, BlockDiagonal):
        return max(widest_row(block) for block in curvature.blocks)
    return curvature.width if isinstance(curvature, SharedRows) else curvature.size


def has_layers(curvature: Curvature) -> bool:
    """Whether the curvature is that of layers: rows that share a matrix, or blocks of such."""
    if isinstance(curvature, BlockDiagonal):
        return all(has_layers(block) for block in curvature.blocks)
    return isinstance(curvature, SharedRows)


def row_systems(problem: Problem) -> list[RowSystem]:
    """Split a problem into its rows.

    Raises
    ------
    MethodError
        If a row is wider than :data:`WIDEST` weights.
    """
    wide = widest_row(problem.curvature)
    if wide > WIDEST:
        raise MethodError(
            f"a row of the curvature holds {wide} weights; layer-wise methods form its matrix, "
            f"for at most {WIDEST}; use chita or local_search"
        )
    systems = []
    for block, start in _pieces(problem.curvature, 0):
        shared = isinstance(block, SharedRows)
        H = block.H if isinstance(block, SharedRows) else block.dense()
        rows = block.rows if isinstance(block, SharedRows) else 1
        index = torch.arange(start, start + rows * len(H), device=problem.device)
        systems += _by_ridge(problem, H, index.reshape(rows, -1), shared)
    return systems


def _pieces(curvature: Curvature, start: int) -> Iterator[tuple[Curvature, int]]:
    """The uncoupled parts of a curvature and where they begin."""
    if not isinstance(curvature, BlockDiagonal):
        yield curvature, start
        return
    for block, s in curvature.slices():
        yield from _pieces(block, start + s.start)


def _by_ridge(problem: Problem, H: Tensor, index: Tensor, shared: bool) -> list[RowSystem]:
    """One system for all rows of a piece, or one for every ridge that occurs in it."""
    ridges = problem.rho[index]
    if not shared or bool((ridges == ridges[0]).all()):
        return [_system(problem, H, index)]
    kinds, label = ridges.unique(dim=0, return_inverse=True)
    return [_system(problem, H, index[label == kind]) for kind in range(len(kinds))]


def _system(problem: Problem, H: Tensor, index: Tensor) -> RowSystem:
    M = H + torch.diag(problem.rho[index[0]])
    centre, g = problem.w_bar[index], problem.g[index]
    if bool(g.any()):
        L = cholesky(M, "the curvature of a row plus the ridge")
        centre = centre - torch.cholesky_solve(g.T, L).T
    return RowSystem(M, index, centre)
