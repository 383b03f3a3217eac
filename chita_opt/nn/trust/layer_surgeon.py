r"""The support of one layer by a few rounds of optimal brain surgeon, then least squares on it.

For a row of the layer with damping :math:`\delta`, dense weights :math:`\bar w` and target t,
the fit on a support S minimises
:math:`\tfrac12 v^\top(H+\delta)v-v^\top(t+\delta\bar w)`, and removing weight j alone costs
:math:`v_j^2/2[(H_{SS}+\delta)^{-1}]_{jj}`, in the same units in every row of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.curvature.cholesky import cholesky
from chita_opt.nn.trust.moments import LayerMoments
from chita_opt.supports.thresholds import largest


@dataclass(frozen=True, eq=False)
class LayerFit:
    """Least squares on a support, and what removing each of its weights would cost."""

    mask: Tensor
    weights: Tensor
    costs: Tensor


class LayerSurgeon:
    """Supports and weights of one layer for any number of kept weights.

    The rounds remove the same share of the weights each, from all of them downwards. They do not
    depend on the number asked for, so that a second number costs one round more.

    Parameters
    ----------
    moments : LayerMoments
        Of the layer's inputs.
    damping : float
        Ridge towards the dense weights, relative to the mean of H's diagonal.
    share : float
        Share of the weights that a round leaves, in (0, 1).
    """

    def __init__(self, moments: LayerMoments, *, damping: float = 1e-2, share: float = 0.6) -> None:
        self.moments, self.share = moments, share
        diagonal = moments.H.diagonal(dim1=1, dim2=2)
        self._ridge = (damping * diagonal.mean(1)).clamp_min(1e-12)
        self._H = moments.H.clone()
        self._H.diagonal(dim1=1, dim2=2).add_(self._ridge[:, None])
        spread = self._ridge.repeat_interleave(len(moments.weight) // len(self._H))
        self._rhs = moments.target + spread[:, None] * moments.weight
        self._rounds: list[LayerFit] = []

    def prune(self, count: int) -> tuple[Tensor, Tensor]:
        """The mask and the weights, (rows, d) each, with ``count`` weights kept."""
        size = self.moments.weight.numel()
        if not self._rounds:
            self._rounds.append(self._first())
        level = 0
        while int(self.share * int(self._rounds[level].mask.sum())) > count:
            if level + 1 == len(self._rounds):
                kept = int(self.share * int(self._rounds[level].mask.sum()))
                self._rounds.append(self._round(self._rounds[level], kept))
            level += 1
        if count >= size:
            return self._rounds[0].mask, self._rounds[0].weights
        mask = self._keep(self._rounds[level], count)
        return mask, self.refit(mask)

    def refit(self, mask: Tensor) -> Tensor:
        """Least squares on a support (rows, d)."""
        return self._fit(mask, costs=False).weights

    def _first(self) -> LayerFit:
        """All weights kept: rows of a group share one inverse."""
        mask = torch.ones_like(self._rhs, dtype=torch.bool)
        L = cholesky(self._H, "the input moments of a layer plus damping")
        rhs = self._rhs.unflatten(0, (len(L), -1))
        weights = torch.cholesky_solve(rhs.mT, L).mT
        diagonal = torch.cholesky_inverse(L).diagonal(dim1=1, dim2=2)
        costs = weights.square() / diagonal[:, None]
        return LayerFit(mask, weights.flatten(0, 1), costs.flatten(0, 1))

    def _round(self, fit: LayerFit, count: int) -> LayerFit:
        return self._fit(self._keep(fit, count), costs=True)

    def _keep(self, fit: LayerFit, count: int) -> Tensor:
        costs = torch.where(fit.mask, fit.costs, -1.0)
        return largest(costs.flatten(), count).reshape(costs.shape)

    def _fit(self, mask: Tensor, *, costs: bool) -> LayerFit:
        weights, saved = torch.zeros_like(self._rhs), torch.zeros_like(self._rhs)
        per_group = len(self._rhs) // len(self._H)
        for row, kept in enumerate(mask):
            S = kept.nonzero().squeeze(1)
            if not len(S):
                continue
            H = self._H[row // per_group][S[:, None], S[None, :]]
            L = cholesky(H, "the input moments of a layer plus damping")
            v = torch.cholesky_solve(self._rhs[row, S, None], L).squeeze(1)
            weights[row, S] = v
            if costs:
                saved[row, S] = v.square() / torch.cholesky_inverse(L).diagonal()
        return LayerFit(mask, weights, saved)


__all__ = ["LayerFit", "LayerSurgeon"]
