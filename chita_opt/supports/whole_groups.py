r"""Groups kept or dropped whole: blocks, rows, columns, filters, channels.

.. math::
    \mathcal S=\Big\{z:\ z_j\le u_{g(j)},\ \ \sum_gc_gu_g\le K,\ \ u\in\{0,1\}^q\Big\}

The groups g partition the weights and cost :math:`c_g`, by default their size, so that K is the
number of weights that may be kept. A group that is kept may hold zeros.

Oracle: the best groups by the sum of their scores where all cost the same, and then the rows are
integral. Costs that differ make it a knapsack, solved exactly by dynamic programming; the linear
program of the rows is then above it by less than the value of one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, vstack
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SmoothedMaximum, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.knapsack import Choice, best_choice
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.thresholds import largest

_MAX_STEPS = 200


@dataclass(frozen=True, eq=False)
class WholeGroups(SupportFamily):
    """Groups of total cost at most ``budget`` hold all kept weights.

    Use the constructors: :meth:`blocks`, :meth:`matrix_rows`, :meth:`matrix_columns`,
    :meth:`filters`, :meth:`channels`; or give labels.

    Attributes
    ----------
    labels : Tensor
        (p,) int64, the group of every weight, 0 … groups-1.
    budget : int
        K.
    costs : Tensor or None
        (groups,) int64 >= 1; the groups' sizes if absent.
    title : str
        What people call this family.

    Raises
    ------
    SupportError
        If labels, costs or budget do not fit each other.
    """

    labels: Tensor
    budget: int
    costs: Tensor | None = None
    title: str = "groups"
    _cost: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = self.labels
        if labels.ndim != 1 or len(labels) == 0 or labels.dtype != torch.int64:
            raise SupportError("labels must be a non-empty (p,) int64 tensor, one group per weight")
        sizes = torch.bincount(labels) if int(labels.min()) >= 0 else torch.zeros(1)
        if int(sizes.min()) == 0:
            raise SupportError("labels must be 0 … groups-1, and every group hold a weight")
        costs = sizes if self.costs is None else self.costs
        if costs.shape != sizes.shape or costs.dtype != torch.int64 or int(costs.min()) < 1:
            raise SupportError(f"costs must be ({len(sizes)},) int64 >= 1, one for each group")
        if self.budget < 0 or int(self.budget) != self.budget:
            raise SupportError(f"budget is {self.budget}; it must be a whole number >= 0")
        object.__setattr__(self, "_cost", costs.cpu().numpy())

    # -- constructors ---------------------------------------------------------------------

    @classmethod
    def blocks(cls, shape: tuple[int, int], block: tuple[int, int], k: int) -> WholeGroups:
        """Blocks of r x c weights of a rows-by-cols matrix, at most k weights in them.

        Blocks at the right and lower edge are smaller where the shape is no multiple.
        """
        (rows, cols), (r, c) = shape, block
        if r < 1 or c < 1:
            raise SupportError(f"blocks are {r}x{c}; give sides of at least 1")
        across = -(-cols // c)
        down, right = torch.arange(rows) // r, torch.arange(cols) // c
        labels = (down[:, None] * across + right[None, :]).reshape(-1)
        return cls(labels, k, title=f"blocks {r}x{c} ({rows}x{cols})")

    @classmethod
    def matrix_rows(cls, shape: tuple[int, int], keep: int) -> WholeGroups:
        """At most ``keep`` rows of a matrix (output neurons) hold weights."""
        rows, cols = shape
        labels = torch.arange(rows).repeat_interleave(cols)
        return cls(labels, keep * cols, title=f"rows whole ({rows}x{cols})")

    @classmethod
    def matrix_columns(cls, shape: tuple[int, int], keep: int) -> WholeGroups:
        """At most ``keep`` columns of a matrix (input neurons) hold weights."""
        rows, cols = shape
        labels = torch.arange(cols).repeat(rows)
        return cls(labels, keep * rows, title=f"columns whole ({rows}x{cols})")

    @classmethod
    def filters(cls, shape: tuple[int, ...], keep: int) -> WholeGroups:
        """At most ``keep`` output filters of a convolution's weight (out, in, …) hold weights."""
        return cls.matrix_rows((shape[0], int(np.prod(shape[1:]))), keep)

    @classmethod
    def channels(cls, shape: tuple[int, ...], keep: int) -> WholeGroups:
        """At most ``keep`` input channels of a convolution's weight (out, in, …) hold weights."""
        out, channels, area = shape[0], shape[1], int(np.prod(shape[2:]))
        labels = torch.arange(channels).repeat_interleave(area).repeat(out)
        return cls(labels, keep * out * area, title=f"channels whole ({channels})")

    # -- description ----------------------------------------------------------------------

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.labels)

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self._cost)

    @property
    def name(self) -> str:
        """Short name with the budget."""
        return f"{self.title}, at most {self.budget}"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description."""
        return {
            "family": "whole_groups", "name": self.name, "size": self.size, "groups": self.count,
            "budget": int(self.budget),
        }  # fmt: skip

    @property
    def group_costs(self) -> Array:
        """(groups,) int64."""
        return self._cost

    @property
    def uniform(self) -> bool:
        """Whether all groups cost the same."""
        return bool((self._cost == self._cost[0]).all())

    @property
    def rows_are_tight(self) -> bool:  # type: ignore[override]
        """With equal costs, or a budget that binds nothing."""
        return self.uniform or self.budget >= int(self._cost.sum())

    # -- oracle ---------------------------------------------------------------------------

    def best_support(self, scores: Tensor) -> Tensor:
        """The best groups by their sums; exact."""
        sums = self._sums(self.check_scores(scores))
        if self.uniform:
            kept = largest(sums, self.budget // int(self._cost[0]))
        else:
            kept = torch.from_numpy(self._knapsack(sums).option > 0).to(scores.device)
        return kept[self.labels.to(scores.device)]

    def contains(self, mask: Tensor) -> bool:
        """Whether the groups that hold kept weights are within the budget."""
        live = self.labels[self.check_mask(mask).cpu()].unique().numpy()
        return int(self._cost[live].sum()) <= self.budget

    def rows(self) -> LinearRows:
        r"""``z_j - u_g <= 0`` for every weight, and the budget.

        Integral where all groups cost the same.
        """
        p, q = self.size, self.count
        each = np.arange(p)
        G = csr_array(coo_array((np.ones(p), (each, each)), shape=(p + 1, p)))
        covers = coo_array((-np.ones(p), (each, self.labels.numpy())), shape=(p, q))
        E = vstack([covers, csr_array(self._limits()[0][None, :])], format="csr")
        return LinearRows(G, np.append(np.zeros(p), self._limits()[1]), csr_array(E))

    def auxiliary(self, mask: Tensor) -> Array:
        """1 for the groups that hold kept weights."""
        live = torch.zeros(self.count, dtype=torch.float64)
        live[self.labels[mask.cpu()]] = 1.0
        return live.numpy()

    def multipliers(self, scores: Tensor) -> Array:
        """The budget's price, shared out to the weights of each group by their scores."""
        s = self.check_scores(scores).double().cpu()
        sums = self._sums(s)
        cost, limit = self._limits()
        if self.uniform:
            ranked = sums.sort(descending=True).values
            price = float(ranked[int(limit)]) if limit < self.count else 0.0
        else:
            price = self._knapsack(sums).price
        share = (price * torch.from_numpy(cost) / sums.clamp_min(1e-300)).clamp_max(1.0)
        return torch.cat([s * share[self.labels], s.new_tensor([price])]).numpy()

    def exchange_costs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """From the sums of the groups that would enter or leave; O(p) where costs are equal."""
        if not self.uniform:
            return super().exchange_costs(scores, mask)
        s, labels = scores.double(), self.labels.to(scores.device)
        sums, inf = self._sums(s), torch.inf
        kept = largest(sums, self.budget // int(self._cost[0]))
        entering = sums[~kept].max() if not bool(kept.all()) else s.new_tensor(0.0)
        leaving = sums[kept].min() if bool(kept.any()) else s.new_tensor(inf)
        out = torch.minimum(s, (sums - entering)[labels].clamp_min(0.0))
        return torch.where(mask, out, (leaving - sums)[labels].clamp_min(0.0))

    def exchange_margins(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Weights of groups that are alive may enter for nothing, others not by themselves."""
        return self.laminar_part(mask).exchange_margins(scores, mask)

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Within a group always; else where the groups then alive are within the budget."""
        labels, cost = self.labels.to(mask.device), torch.from_numpy(self._cost).to(mask.device)
        held = torch.bincount(labels[mask], minlength=self.count)
        a, b = labels[outgoing], labels[incoming]
        freed = torch.where(held[a] == 1, cost[a], 0)
        added = torch.where(held[b] == 0, cost[b], 0)
        now = int(cost[held > 0].sum())
        after = now - freed[:, None] + added[None, :]
        return (after <= self.budget) | (a[:, None] == b[None, :])

    def laminar_part(self, mask: Tensor) -> Budget:
        """Everything inside the groups that a mask holds alive."""
        live = torch.from_numpy(self.auxiliary(mask)).to(torch.int64)
        sizes = torch.bincount(self.labels)
        return Budget(self.labels, live * sizes, title=f"{self.title}, groups given")

    # -- smoothing ------------------------------------------------------------------------

    @property
    def is_smooth(self) -> bool:
        """Always: one price decides all groups. The hull is that of the rows."""
        return True

    def smoothed_maximum(
        self, gains: Tensor, centre: Tensor, epsilon: Tensor, warm: Tensor | None = None
    ) -> SmoothedMaximum:
        r"""Maximise :math:`z^\top g-\tfrac12\sum_j\epsilon_j(z_j-z^0_j)^2` over whole groups.

        Over :math:`z_j=u_{g(j)}`, the maximal points of the rows, which is where the maximum lies
        for gains >= 0. With the groups' sums S of :math:`g+\epsilon z^0` and E of
        :math:`\epsilon`, :math:`u_g=\mathrm{clip}((S_g-\lambda c_g)/E_g,0,1)` with one price
        :math:`\lambda\ge0` of the budget.
        """
        every = epsilon.expand(self.size)
        labels = self.labels.to(gains.device)
        total = self._sums(every)
        cost, limit = self._limits()
        c = torch.from_numpy(cost).to(gains.device)
        base = self._sums(gains + every * centre)
        price = _price(base, total, c, limit, None if warm is None else float(warm))
        u = ((base - price * c) / total).clamp(0.0, 1.0)
        pool = torch.full_like(labels, 0 if price > 0.0 else -1)
        return SmoothedMaximum(u[labels], pool, u.new_tensor([price]), labels, c[labels])

    def smoothing_scale(self, gains: Tensor) -> Tensor:
        """The price of each group, shared by its weights."""
        sums, cost = self._sums(gains), torch.from_numpy(self._limits()[0]).to(gains.device)
        rate = sums / cost
        ranked, order = rate.sort(descending=True)
        fits = cost[order].cumsum(0) <= self._limits()[1]
        last = int(fits.sum()) - 1
        level = max(float(ranked[max(last, 0)]), 0.05 * float(rate.mean()))
        sizes = torch.bincount(self.labels).to(gains.device)
        return (level * cost / sizes)[self.labels.to(gains.device)]

    def _sums(self, scores: Tensor) -> Tensor:
        out = torch.zeros(self.count, dtype=torch.float64, device=scores.device)
        return out.index_add_(0, self.labels.to(scores.device), scores.double())

    def _knapsack(self, sums: Tensor) -> Choice:
        values = np.stack([np.zeros(self.count), sums.cpu().numpy()], axis=1)
        costs = np.stack([np.zeros_like(self._cost), self._cost], axis=1)
        return best_choice(values, costs, int(self.budget))

    def _limits(self) -> tuple[Array, float]:
        """Costs and budget of the row; equal costs become counts, rounded down."""
        if self.uniform:
            return np.ones(self.count), float(self.budget // int(self._cost[0]))
        return self._cost.astype(np.float64), float(self.budget)


def _price(base: Tensor, total: Tensor, cost: Tensor, limit: float, warm: float | None) -> float:
    """Smallest price >= 0 at which the clipped groups are within the limit."""
    low, high = 0.0, max(float((base / cost).max()), 0.0)
    price = min(max(warm or 0.0, low), high)
    for _ in range(_MAX_STEPS):
        v = (base - price * cost) / total
        excess = float(cost @ v.clamp(0.0, 1.0)) - limit
        if abs(excess) <= 1e-12 * limit or (excess <= 0.0 and price == 0.0):
            return price
        low, high = (price, high) if excess > 0.0 else (low, price)
        slope = float((cost.square() / total)[(v > 0.0) & (v < 1.0)].sum())
        step = price + excess / slope if slope > 0.0 else -1.0
        inside = low < step < high or (step <= 0.0 and low == 0.0 and slope > 0.0)
        after = max(step, 0.0) if inside else 0.5 * (low + high)
        if after == price:
            break
        price = after
    return high


__all__ = ["WholeGroups"]
