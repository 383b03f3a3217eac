r"""What it costs to remove a weight when the others adapt: the statistic of Optimal Brain Surgeon.

At the minimiser w over the weights of a support S, removing weight q alone and moving the others
of S to their new minimum raises the objective by

.. math:: s_q = \frac{w_q^2}{2\,[H_{SS}^{-1}]_{qq}},\qquad H=C+\mathrm{diag}(\rho).

Without a linear term and with S all weights, w is the dense ``w_bar`` (WoodFisher, NeurIPS 2020,
§3); with one it is ``w_bar - H^-1 g``, which makes it the WoodTaylor statistic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.curvature import BlockDiagonal, Curvature, SeparablePart, SupportSolver

_CHUNK = 8192  # weights asked for at once: memory for n times as many numbers


@dataclass(frozen=True, eq=False)
class DenseMinimum:
    """The minimiser over all weights and the diagonal of the inverse Hessian there.

    Attributes
    ----------
    weights : Tensor
        (p,) the minimiser ``w_bar - H^-1 g``.
    inverse : Tensor
        (p,) ``diag(H^-1)``.
    """

    weights: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, curvature: Curvature, part: SeparablePart) -> DenseMinimum:
        """Block by block where the curvature has blocks, so one block's work is held at a time."""
        if isinstance(curvature, BlockDiagonal):
            pieces = [cls.of(block, part.restrict(s)) for block, s in curvature.slices()]
            return cls(
                torch.cat([piece.weights for piece in pieces]),
                torch.cat([piece.inverse for piece in pieces]),
            )
        every = torch.ones(curvature.size, dtype=torch.bool, device=curvature.device)
        solver = curvature.support_solver(part, every, exact=False)
        index = torch.arange(curvature.size, device=curvature.device)
        return cls(solver.weights, inverse_diagonal(solver, index))

    @property
    def costs(self) -> Tensor:
        """(p,) cost of removing each weight alone."""
        return 0.5 * self.weights.square() / self.inverse


def inverse_diagonal(solver: SupportSolver, index: Tensor) -> Tensor:
    """``[H_SS^-1]_jj`` for the j of an index into the solver's support, some at a time."""
    return torch.cat([solver.inverse_diagonal(part) for part in index.split(_CHUNK)])


def cheapest_removed(
    solver: SupportSolver, rho: Tensor, keep: Callable[[Tensor], Tensor]
) -> Tensor:
    r"""The mask ``keep(costs)`` for the exact removal costs of the solver's support.

    ``keep`` takes costs (p,), zero off the support, and returns the mask that it would leave, whose
    kept weights cost most. Since :math:`[H_{SS}^{-1}]_{jj}\le1/\rho_j`, a weight's cost is at least
    :math:`\rho_jw_j^2/2`; exact costs are computed only for weights that these bounds, or exact
    costs, would remove. The mask is that of all exact costs: raising the costs of what stays
    changes nothing.
    """
    costs = torch.where(solver.mask, 0.5 * rho * solver.weights.square(), 0.0)
    unknown = solver.mask.clone()
    while True:
        mask = keep(costs) & solver.mask
        asked = (unknown & ~mask).nonzero().squeeze(1)
        if not len(asked):
            return mask
        costs[asked] = 0.5 * solver.weights[asked].square() / inverse_diagonal(solver, asked)
        unknown[asked] = False


def removed_one_by_one(curvature: Curvature, part: SeparablePart, mask: Tensor) -> Tensor:
    r"""Weights after the published joint update, which adds the updates of single removals.

    From the dense minimiser w, :math:`w-\sum_{q\notin S}\tfrac{w_q}{[H^{-1}]_{qq}}H^{-1}e_q`, then
    the weights off S are set to zero (WoodFisher and M-FAC as released). The sum forgets that one
    removal changes what the next one needs; the exact update is the minimiser on S.
    """
    dense = DenseMinimum.of(curvature, part)
    pushes = torch.where(mask, 0.0, dense.weights / dense.inverse)
    every = torch.ones_like(mask)
    linear = SeparablePart(torch.zeros_like(part.w_bar), -pushes, part.rho)
    moves = curvature.support_solver(linear, every, exact=False).weights
    return torch.where(mask, dense.weights - moves, 0.0)
