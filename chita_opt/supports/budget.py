r"""Budgets on a partition, with an optional total: the laminar families of depth two.

.. math::
    \mathcal S=\Big\{z\in\{0,1\}^p:\ \sum_{j\in G} z_j\le m_G\ \ \forall G,\quad
    \sum_j z_j\le k\Big\}

where the groups G partition the weights and the total k may be absent. Cardinality, a count per
layer or per row, N:M, at most m in every block, and a total over any of these are all of this
form. The rows are totally unimodular, so conv(family) is described by them exactly, and greedy
selection is an exact oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports import thresholds
from chita_opt.supports.base import Array, SmoothedMaximum, SupportFamily
from chita_opt.supports.linear_rows import LinearRows


@dataclass(frozen=True, eq=False)
class Budget(SupportFamily):
    """At most ``caps[G]`` kept weights in every group G, and at most ``total`` in all.

    Use the constructors: :meth:`cardinality`, :meth:`n_of_m`, :meth:`per_block`,
    :meth:`per_row`, :meth:`per_layer`, and :meth:`nested` to put a total over any of them.

    Attributes
    ----------
    labels : Tensor
        (p,) int64, the group of every weight, 0 … groups-1.
    caps : Tensor
        (groups,) int64.
    total : int or None
        Cap over all weights.
    title : str
        What people call this family.
    """

    labels: Tensor
    caps: Tensor
    total: int | None = None
    title: str = "budget"
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        labels, caps = self.labels, self.caps
        if labels.ndim != 1 or len(labels) == 0 or labels.dtype != torch.int64:
            raise SupportError("labels must be a non-empty (p,) int64 tensor, one group per weight")
        if caps.ndim != 1 or caps.dtype != torch.int64 or int(caps.min()) < 0:
            raise SupportError("caps must be a (groups,) int64 tensor of counts >= 0")
        if int(labels.min()) < 0 or int(labels.max()) >= len(caps):
            raise SupportError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, "
                f"but there are {len(caps)} caps; give one cap per group"
            )
        over = caps > torch.bincount(labels, minlength=len(caps))
        if bool(over.any()):
            group = int(over.nonzero()[0])
            size = int((labels == group).sum())
            raise SupportError(
                f"group {group} has {size} weights but its cap is {int(caps[group])}; lower the cap"
            )
        if self.total is not None and not 0 <= self.total <= int(caps.sum()):
            raise SupportError(
                f"total is {self.total}; it must lie in [0, {int(caps.sum())}], the sum of the caps"
            )

    # -- constructors ---------------------------------------------------------------------

    @classmethod
    def cardinality(cls, p: int, k: int) -> Budget:
        """At most k of p weights."""
        _check_count("k", k, p)
        labels = torch.zeros(int(p), dtype=torch.int64)
        return cls(labels, torch.tensor([int(k)]), title=f"cardinality(k={k})")

    @classmethod
    def n_of_m(cls, p: int, n: int, m: int) -> Budget:
        """At most n of every m consecutive weights; p must be a multiple of m."""
        _check_count("n", n, m)
        if m < 1 or p % m:
            raise SupportError(
                f"{p} weights do not split into groups of {m}; prune layers whose rows have a "
                f"multiple of {m} weights, or exclude the others"
            )
        caps = torch.full((p // m,), int(n), dtype=torch.int64)
        return cls(torch.arange(p) // m, caps, title=f"{n}:{m}")

    @classmethod
    def per_block(
        cls, labels: Tensor | Sequence[int], caps: Tensor | Sequence[int] | int
    ) -> Budget:
        """At most ``caps[b]`` (or the same count) weights in every labelled block."""
        label = torch.as_tensor(labels, dtype=torch.int64, device="cpu").clone()
        blocks = int(label.max()) + 1 if len(label) else 0
        counts = [caps] * blocks if isinstance(caps, int) else caps
        return cls(label, torch.as_tensor(counts, dtype=torch.int64), title=f"blocks({blocks})")

    @classmethod
    def per_row(cls, rows: int, cols: int, k: int | Sequence[int]) -> Budget:
        """At most k weights (or ``k[r]``) in each row of a rows-by-cols matrix."""
        counts = [k] * rows if isinstance(k, int) else list(k)
        if len(counts) != rows:
            raise SupportError(f"there are {rows} rows but {len(counts)} counts")
        labels = torch.arange(rows).repeat_interleave(cols)
        return cls(labels, torch.tensor(counts, dtype=torch.int64), title=f"rows({rows}x{cols})")

    @classmethod
    def per_layer(cls, sizes: Sequence[int], ks: Sequence[int]) -> Budget:
        """At most ``ks[l]`` weights in layer l, the layers concatenated."""
        if len(sizes) != len(ks):
            raise SupportError(f"there are {len(sizes)} layers but {len(ks)} counts")
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)))
        counts = torch.tensor(list(ks), dtype=torch.int64)
        return cls(labels, counts, title=f"layers({len(sizes)})")

    @classmethod
    def nested(cls, budget: Budget, total: int) -> Budget:
        """The same groups and a cap of ``total`` over all of them."""
        if budget.total is not None:
            raise SupportError(f"{budget.name} already has a total of {budget.total}")
        return replace(budget, total=int(total), _cache={})

    # -- description ----------------------------------------------------------------------

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.labels)

    @property
    def name(self) -> str:
        """Short name, with the total where there is one."""
        return self.title if self.total is None else f"{self.title} with total {self.total}"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description; the exact rows are in :meth:`rows`."""
        return {
            "family": "budget",
            "name": self.name,
            "size": self.size,
            "groups": len(self.caps),
            "total": self.total,
        }

    @property
    def is_laminar(self) -> bool:
        """Always: thresholds solve the smoothed problem exactly."""
        return True

    @property
    def max_count(self) -> int:
        """Largest number of kept weights."""
        every = int(self.caps.sum())
        return every if self.total is None else min(every, self.total)

    # -- oracle ---------------------------------------------------------------------------

    def best_support(self, scores: Tensor) -> Tensor:
        """Top-cap in every group, then top-total of those; exact because the rows are laminar."""
        s = self.check_scores(scores)
        groups = self._groups(s.device)
        mask = thresholds.top_mask(s, groups)
        if self.total is not None and self.total < int(self.caps.sum()):
            chosen = torch.where(mask, s, -torch.ones_like(s))
            mask = thresholds.largest(chosen, self.total)
        return mask

    def contains(self, mask: Tensor) -> bool:
        """Whether every group count and the total are within their caps."""
        kept = self._groups(mask.device).count(self.check_mask(mask))
        over = bool((kept > self._groups(mask.device).caps).any())
        return not over and (self.total is None or int(kept.sum()) <= self.total)

    def rows(self) -> LinearRows:
        """One row a group, and one for the total where there is one."""
        labels = self.labels.numpy()
        columns = np.arange(self.size)
        blocks, h = [labels], [self.caps.numpy()]
        if self.total is not None:
            blocks.append(np.full(self.size, len(self.caps)))
            h.append(np.array([self.total]))
        bounds = np.concatenate(h).astype(np.float64)
        index = (np.concatenate(blocks), np.tile(columns, len(blocks)))
        G = csr_array((np.ones(len(index[0])), index), shape=(len(bounds), self.size))
        return LinearRows.plain(G, bounds)

    def multipliers(self, scores: Tensor) -> Array:
        """Tight row multipliers: the first pruned score of each group, less the total's."""
        s = self.check_scores(scores).double()
        groups = self._groups(s.device)
        mask = thresholds.top_mask(s, groups)
        level = groups.maximum(torch.where(mask, torch.zeros_like(s), s)).clamp_min(0.0)
        if self.total is None:
            return level.cpu().numpy()
        tau = s.new_zeros(())
        if int(mask.sum()) > self.total:
            chosen = s[mask]
            tau = chosen.kthvalue(len(chosen) - self.total).values
        y = torch.cat([(level - tau).clamp_min(0.0), tau.reshape(1)])
        return y.cpu().numpy()

    def exchange_costs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Difference to the weight that would leave or enter in exchange, in O(p)."""
        return self.exchange_margins(scores, mask).clamp_min(0.0)

    def exchange_margins(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The same difference for any mask; negative where an exchange would gain."""
        s = self.check_scores(scores).double()
        groups = self._groups(s.device)
        full = groups.count(mask) >= groups.caps
        inf = torch.full_like(s, torch.inf)
        weakest = groups.minimum(torch.where(mask, s, inf))
        strongest = groups.maximum(torch.where(mask, -inf, s))
        if self.total is None:
            overall_in = s.new_zeros(())
            overall_out = s.new_zeros(())
        else:
            binding = int(mask.sum()) >= self.total
            overall_in = s[mask].min() if binding and bool(mask.any()) else s.new_zeros(())
            loose = groups.spread(~full) & ~mask
            overall_out = s[loose].max() if bool(loose.any()) else s.new_zeros(())
        leaving = torch.where(full, weakest, overall_in)
        entering = torch.maximum(strongest, overall_out).clamp_min(0.0)
        into = groups.spread(leaving) - s
        into = torch.where(groups.spread(groups.caps == 0), inf, into)
        if self.total == 0:
            into = inf
        return torch.where(mask, s - groups.spread(entering), into)

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Same group, or the incoming weight's group has room."""
        if len(self.caps) == 1:
            return None
        groups = self._groups(mask.device)
        room = groups.count(mask) < groups.caps
        a, b = groups.labels[outgoing], groups.labels[incoming]
        return (a[:, None] == b[None, :]) | room[b][None, :]

    def laminar_part(self, mask: Tensor) -> Budget:
        """The family itself: it has nothing else to decide."""
        return self

    # -- smoothing ------------------------------------------------------------------------

    def smoothed_maximum(
        self, gains: Tensor, centre: Tensor, epsilon: Tensor, warm: Tensor | None = None
    ) -> SmoothedMaximum:
        r"""Maximise :math:`z^\top g-\tfrac12\sum_j\epsilon_j(z_j-z^0_j)^2` over the relaxed rows.

        The maximiser is :math:`z_j = \mathrm{clip}((g_j + \epsilon_j z^0_j -
        \max(\theta_G,\tau))/\epsilon_j, 0, 1)`: one threshold a group from its own cap, and one
        overall threshold that matters only where it is the larger.
        """
        groups = self._groups(gains.device)
        base = gains + epsilon * centre
        count = len(self.caps)
        start = None if warm is None else warm[:count]
        theta = thresholds.group_thresholds(base, epsilon, groups, start)
        level, tau = theta, theta.new_zeros(())
        if self.total is not None:
            first = None if warm is None else warm[count]
            tau = thresholds.total_threshold(base, epsilon, groups, theta, self.total, first)
            level = torch.maximum(theta, tau)
        z = ((base - groups.spread(level)) / epsilon).clamp(0.0, 1.0)
        own = torch.where(theta > 0, torch.arange(count, device=z.device), -1)
        owner = torch.where(theta > tau, own, count if float(tau) > 0 else -1)
        return SmoothedMaximum(z, groups.spread(owner), torch.cat([theta, tau.reshape(1)]))

    def smoothing_scale(self, gains: Tensor) -> Tensor:
        """Threshold gain of each weight's group, floored at 5 % of the mean; (1,) for one group."""
        groups = self._groups(gains.device)
        mask = thresholds.top_mask(gains, groups)
        kept = torch.where(mask, gains, torch.full_like(gains, torch.inf))
        level = groups.minimum(kept)
        level = torch.where(torch.isfinite(level), level, groups.maximum(gains))
        level = level.clamp_min(0.05 * float(level.mean()))
        if self.total and int(mask.sum()) > self.total:
            level = level.clamp_min(float(gains[self.best_support(gains)].min()))
        return level if len(level) == 1 else groups.spread(level)

    def _groups(self, device: torch.device) -> thresholds.Groups:
        if device not in self._cache:
            self._cache[device] = thresholds.Groups.of(self.labels, self.caps, device)
        return self._cache[device]


def _check_count(letter: str, value: int, limit: int) -> None:
    if int(value) != value or not 0 <= value <= limit:
        raise SupportError(
            f"{letter} is {value}; it must be a whole number in [0, {limit}] "
            "(use keep_count to turn a sparsity into a count)"
        )
