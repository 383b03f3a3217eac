r"""A budget of kept weights and a budget of their costs together: parameters and FLOPs (FALCON)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.two_budgets_oracle import (
    CostClasses,
    TwoBudgetAnswer,
    best_two_budgets,
    lp_prices,
)


@dataclass(frozen=True, eq=False)
class TwoBudgets(SupportFamily):
    r"""At most k kept weights, whose costs together are at most F.

    .. math:: \sum_jz_j\le k,\qquad\sum_jf_jz_j\le F

    With :math:`f_j` the multiplications that weight j does in one forward pass (see
    :func:`chita_opt.nn.count_macs`) this is the family of Meng, Chen, Benbaki & Mazumder,
    "FALCON: FLOP-Aware Combinatorial Optimization for Neural Network Pruning" (AISTATS 2024). The
    oracle solves the integer program: it sorts each class of equal cost, finds the prices of both
    budgets in the linear relaxation and searches the few counts that rounding leaves open (see
    :mod:`chita_opt.supports.two_budgets_oracle`); 50 ms at 268,336 weights of four costs. The rows
    are the two budgets: their linear program may exceed the oracle by at most the two largest
    scores, as a vertex has at most two fractional entries.

    Attributes
    ----------
    costs : Tensor
        (p,) int64, >= 0.
    k : int
        Largest number of kept weights.
    limit : int
        F, the largest sum of costs.

    Raises
    ------
    SupportError
        If costs are not whole numbers >= 0, or a budget is negative or larger than keeping
        everything needs.
    """

    costs: Tensor
    k: int
    limit: int
    rows_are_tight = False

    def __post_init__(self) -> None:
        if self.costs.ndim != 1 or not len(self.costs) or self.costs.dtype != torch.int64:
            raise SupportError(
                "costs must be a non-empty (p,) int64 tensor; count them in a unit in which they "
                "are whole numbers"
            )
        if int(self.costs.min()) < 0:
            raise SupportError(f"the smallest cost is {int(self.costs.min())}; costs are >= 0")
        if not 0 <= self.k <= self.size:
            raise SupportError(f"k is {self.k}; keep between 0 and all {self.size} weights")
        if not 0 <= self.limit <= self.total:
            raise SupportError(
                f"limit is {self.limit}; it must lie in [0, {self.total}], the cost of all weights"
            )

    @classmethod
    def per_layer(
        cls, sizes: Sequence[int], costs: Sequence[int], *, k: int, limit: int
    ) -> TwoBudgets:
        """Layers of ``sizes[l]`` weights, each of which costs ``costs[l]``."""
        if len(sizes) != len(costs):
            raise SupportError(f"there are {len(sizes)} layers but {len(costs)} costs")
        each = torch.tensor(list(costs), dtype=torch.int64)
        return cls(each.repeat_interleave(torch.tensor(list(sizes))), int(k), int(limit))

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.costs)

    @property
    def total(self) -> int:
        """Cost of all weights."""
        return int(self.costs.sum())

    @property
    def name(self) -> str:
        """Both budgets."""
        return f"at most {self.k} weights of cost {self.limit}"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description."""
        return {
            "family": "two budgets",
            "size": self.size,
            "k": self.k,
            "limit": self.limit,
            "total_cost": self.total,
            "costs": self._classes.costs.tolist() if len(self._classes.costs) <= 64 else None,
        }

    @cached_property
    def _classes(self) -> CostClasses:
        return CostClasses.of(self.costs.cpu().numpy())

    @cached_property
    def max_count(self) -> int:
        """Largest number of kept weights: the cheapest ones."""
        paid = np.sort(self.costs.cpu().numpy()).cumsum()
        return min(self.k, int(np.searchsorted(paid, self.limit, side="right")))

    def answer(self, scores: Tensor) -> TwoBudgetAnswer:
        """The oracle's mask with its prices, its proof and its upper bound."""
        s = self.check_scores(scores).double().cpu().numpy()
        return best_two_budgets(s, self._classes, self.k, self.limit)

    def best_support(self, scores: Tensor) -> Tensor:
        """Solution of the integer program; ties within one cost go to the lowest index."""
        return torch.from_numpy(self.answer(scores).mask).to(scores.device)

    def rounded_support(self, scores: Tensor) -> Tensor:
        """FALCON's projection: the linear program's solution without its fractional entries.

        At most two weights short of :meth:`best_support`, and always within both budgets.
        """
        s = self.check_scores(scores).double().cpu().numpy()
        ranking = self._classes.ranked(s)
        counts = lp_prices(ranking, self.k, self.limit)[2]
        return torch.from_numpy(ranking.mask(counts)).to(scores.device)

    def value_bound(self, scores: Tensor) -> float:
        """The best value; where only HiGHS vouches for it, the linear program's bound."""
        return self.answer(scores).upper

    def bound_at(self, scores: Tensor, mask: Tensor) -> float:
        """As :meth:`value_bound`: the mask does not say who vouches for it."""
        return self.value_bound(scores)

    def contains(self, mask: Tensor) -> bool:
        """Whether both budgets hold."""
        kept = self.check_mask(mask)
        costs = self.costs.to(mask.device)
        return int(kept.sum()) <= self.k and int(costs[kept].sum()) <= self.limit

    def rows(self) -> LinearRows:
        """The two budgets."""
        G = csr_array(np.stack([np.ones(self.size), self.costs.cpu().numpy()]).astype(float))
        return LinearRows.plain(G, np.array([self.k, self.limit], dtype=np.float64))

    def multipliers(self, scores: Tensor) -> Array:
        """The prices of the linear relaxation."""
        s = self.check_scores(scores).double().cpu().numpy()
        one, unit, _ = lp_prices(self._classes.ranked(s), self.k, self.limit)
        return np.array([one, unit])

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Whether the cost after the exchange is within the limit."""
        costs = self.costs.to(mask.device)
        room = self.limit - int(costs[mask].sum())
        return costs[incoming][None, :] - costs[outgoing][:, None] <= room

    def laminar_part(self, mask: Tensor) -> Budget:
        """As many weights of every cost as a mask keeps."""
        labels = torch.empty(self.size, dtype=torch.int64)
        for c, own in enumerate(self._classes.members):
            labels[torch.from_numpy(own)] = c
        counts = torch.bincount(labels[mask.cpu()], minlength=len(self._classes.costs))
        return Budget(labels, counts, title="counts of every cost")

    def loosened(self, share: float) -> TwoBudgets:
        """The family of a stage that removes only a ``share`` in [0, 1] of what this one does."""
        k = self.size - int(share * (self.size - self.k))
        limit = self.total - int(share * (self.total - self.limit))
        return TwoBudgets(self.costs, max(k, self.k), max(limit, self.limit))
