r"""Budgets that leave every layer a share of its own, so that no layer dies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports import thresholds
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.two_budgets import TwoBudgets


@dataclass(frozen=True, eq=False)
class MinimumKeeps(SupportFamily):
    r"""A budget of which :math:`m_l` weights are set aside for each layer l.

    "At least :math:`m_l` weights of layer l" alone is not closed under removing weights, and a
    weight that is kept may come out as zero. What is closed is that the budget has room for them:

    .. math:: \sum_l\max(n_l,m_l)\le k,\qquad \sum_l f_l\max(n_l,m_l)\le F,\qquad
              n_l=\sum_{j\in l}z_j .

    Every maximal mask keeps at least :math:`m_l` weights of each layer. The oracle takes the
    :math:`m_l` best weights of each layer and the best others under what is left of the budgets;
    this is exact, as weights of one layer cost the same. With a count alone the family is a
    matroid and the rows describe its hull; costs leave the gap of :class:`TwoBudgets`.

    Attributes
    ----------
    budget : TwoBudgets
        The budgets k and F; F = 0 with costs of zero is a count alone (:meth:`of_count`).
    layers : Tensor
        (p,) int64, layer of each weight.
    minima : Tensor
        (L,) int64, :math:`m_l`.

    Raises
    ------
    SupportError
        If a minimum exceeds its layer or all together the budget, or costs differ within a layer.
    """

    budget: TwoBudgets
    layers: Tensor
    minima: Tensor
    rows_are_tight = False

    def __post_init__(self) -> None:
        if self.layers.shape != (self.size,) or self.layers.dtype != torch.int64:
            raise SupportError(f"layers must be ({self.size},) int64, one number a weight")
        if self.minima.dtype != torch.int64 or int(self.minima.min()) < 0:
            raise SupportError("minima must be a (layers,) int64 tensor of counts >= 0")
        if int(self.layers.min()) < 0 or int(self.layers.max()) >= len(self.minima):
            raise SupportError(f"layers must be numbered from 0 to {len(self.minima) - 1}")
        over = (self.minima > self._sizes).nonzero()
        if len(over):
            layer = int(over[0])
            raise SupportError(
                f"layer {layer} has {int(self._sizes[layer])} weights but its minimum is "
                f"{int(self.minima[layer])}; lower it"
            )
        if not torch.equal(self._costs[self.layers], self.budget.costs):
            raise SupportError("weights of one layer must cost the same")
        count, cost = int(self.minima.sum()), int(self.minima @ self._costs)
        if count > self.budget.k or cost > self.budget.limit:
            raise SupportError(
                f"the minima take {count} weights of cost {cost}, the budget is "
                f"{self.budget.k} of cost {self.budget.limit}; lower the minima"
            )

    @classmethod
    def of_count(cls, layers: Tensor, minima: Tensor, k: int) -> MinimumKeeps:
        """At most k weights, without costs."""
        return cls(TwoBudgets(torch.zeros_like(layers), k, 0), layers, minima)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return self.budget.size

    @cached_property
    def _sizes(self) -> Tensor:
        return torch.bincount(self.layers, minlength=len(self.minima))

    @cached_property
    def _costs(self) -> Tensor:
        costs = torch.zeros(len(self.minima), dtype=torch.int64)
        return costs.index_put_((self.layers,), self.budget.costs)

    @cached_property
    def _rest(self) -> TwoBudgets:
        """What the budgets leave once the minima are paid."""
        k = self.budget.k - int(self.minima.sum())
        return TwoBudgets(self.budget.costs, k, self.budget.limit - int(self.minima @ self._costs))

    @property
    def name(self) -> str:
        """The budget and the smallest minimum."""
        return f"{self.budget.name}, {int(self.minima.sum())} of them set aside for layers"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description."""
        return {
            "family": "minimum keeps",
            "size": self.size,
            "budget": dict(self.budget.specification),
            "minima": self.minima.tolist(),
        }

    def best_support(self, scores: Tensor) -> Tensor:
        """The best of each layer up to its minimum, then the best others under the rest."""
        s = self.check_scores(scores)
        groups = thresholds.Groups.of(self.layers, self.minima, s.device)
        own = thresholds.top_mask(s, groups)
        return own | self._rest.best_support(s.masked_fill(own, 0.0))

    def value_bound(self, scores: Tensor) -> float:
        """The best value, as far as :meth:`TwoBudgets.value_bound` is."""
        groups = thresholds.Groups.of(self.layers, self.minima, scores.device)
        own = thresholds.top_mask(scores, groups)
        value = float(scores[own].double().sum())
        return value + self._rest.value_bound(scores.masked_fill(own, 0.0))

    def bound_at(self, scores: Tensor, mask: Tensor) -> float:
        """As :meth:`value_bound`."""
        return self.value_bound(scores)

    def contains(self, mask: Tensor) -> bool:
        """Whether the budgets hold with the minima paid for."""
        kept = torch.bincount(self.layers[self.check_mask(mask).cpu()], minlength=len(self.minima))
        kept = kept.maximum(self.minima)
        fits = int(kept @ self._costs) <= self.budget.limit
        return int(kept.sum()) <= self.budget.k and fits

    def rows(self) -> LinearRows:
        r"""Rows with one slot :math:`u_{li}` for each weight of layer l beyond its minimum.

        :math:`\sum_{j\in l}z_j-\sum_iu_{li}\le m_l` for each layer; the slots keep the rest of both
        budgets.
        """
        p, count = self.size, len(self.minima)
        slots = self._slots
        G = csr_array((np.ones(p), (self.layers.numpy(), np.arange(p))), shape=(count + 2, p))
        q = len(slots)
        places = np.concatenate([slots, np.full(q, count), np.full(q, count + 1)])
        values = np.concatenate([-np.ones(q), np.ones(q), self._costs.numpy()[slots]])
        E = csr_array((values, (places, np.tile(np.arange(q), 3))), shape=(count + 2, q))
        E.eliminate_zeros()
        rest = self._rest
        h = np.concatenate([self.minima.numpy(), [rest.k, rest.limit]]).astype(np.float64)
        return LinearRows(G, h, E)

    @cached_property
    def _slots(self) -> Array:
        """(q,) layer of each slot."""
        return np.repeat(np.arange(len(self.minima)), (self._sizes - self.minima).numpy())

    def auxiliary(self, mask: Tensor) -> Array:
        """As many slots of each layer as it keeps weights beyond its minimum."""
        kept = torch.bincount(self.layers[mask.cpu()], minlength=len(self.minima))
        extra = (kept - self.minima).clamp_min(0)
        free = (self._sizes - self.minima).numpy()
        rank = np.arange(int(free.sum())) - np.repeat(free.cumsum() - free, free)
        return (rank < extra.numpy()[self._slots]).astype(np.float64)

    def multipliers(self, scores: Tensor) -> Array:
        """Prices of the rest of the budgets; a layer's row costs what its next weight is worth."""
        s = self.check_scores(scores).double().cpu()
        own = thresholds.top_mask(s, thresholds.Groups.of(self.layers, self.minima, s.device))
        one, unit = self._rest.multipliers(s.masked_fill(own, 0.0))
        best = torch.zeros(len(self.minima), dtype=torch.float64)
        best.scatter_reduce_(0, self.layers[~own], s[~own], "amax")
        price = one + unit * self._costs.double()
        return np.concatenate([torch.minimum(price, best).numpy(), [one, unit]])

    def laminar_part(self, mask: Tensor) -> Budget:
        """As many weights of every layer as a mask keeps, or the layer's minimum."""
        kept = torch.bincount(self.layers[mask.cpu()], minlength=len(self.minima))
        return Budget(self.layers, kept.maximum(self.minima), title="counts of every layer")

    def loosened(self, share: float) -> MinimumKeeps:
        """The same minima under the budgets of an earlier stage."""
        return MinimumKeeps(self.budget.loosened(share), self.layers, self.minima)
