"""Selections and thresholds over a partition, on any torch device.

Groups that are consecutive and of one width (one group, rows, N:M) are handled as a matrix; others
through index operations. All decisions are in the dtype of the input, which callers keep float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MAX_STEPS = 100
_UNTRIED = -float(torch.finfo(torch.float64).tiny)  # a lower end: zero itself is still to be tried
_RESOLUTION = 4.0 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of p weights with a cap each.

    Attributes
    ----------
    labels : Tensor
        (p,) int64.
    caps : Tensor
        (groups,) int64.
    width : int
        Common width if the groups are consecutive and equally wide, else 0.
    """

    labels: Tensor
    caps: Tensor
    width: int

    @classmethod
    def of(cls, labels: Tensor, caps: Tensor, device: torch.device) -> Groups:
        """Recognise the layout and move it to ``device``."""
        p, count = len(labels), len(caps)
        width = p // count if p % count == 0 else 0
        if width and not bool((labels == torch.arange(p, device=labels.device) // width).all()):
            width = 0
        return cls(labels.to(device), caps.to(device), width)

    def spread(self, values: Tensor) -> Tensor:
        """From one value a group to one a weight (a view where possible)."""
        if len(self.caps) == 1:
            return values.expand(len(self.labels))
        return values.repeat_interleave(self.width) if self.width else values[self.labels]

    def sum(self, values: Tensor) -> Tensor:
        """Sum in each group."""
        if self.width:
            return values.reshape(-1, self.width).sum(1)
        out = values.new_zeros(len(self.caps))
        return out.index_add_(0, self.labels, values)

    def count(self, mask: Tensor) -> Tensor:
        """Number of true entries in each group."""
        return self.sum(mask.to(torch.int64))

    def minimum(self, values: Tensor) -> Tensor:
        """Smallest value in each group."""
        if self.width:
            return values.reshape(-1, self.width).amin(1)
        out = values.new_full((len(self.caps),), torch.inf)
        return out.scatter_reduce_(0, self.labels, values, "amin")

    def maximum(self, values: Tensor) -> Tensor:
        """Largest value in each group."""
        if self.width:
            return values.reshape(-1, self.width).amax(1)
        out = values.new_full((len(self.caps),), -torch.inf)
        return out.scatter_reduce_(0, self.labels, values, "amax")


def largest(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest scores; ties go to the lowest index."""
    p = len(scores)
    if k <= 0:
        return torch.zeros(p, dtype=torch.bool, device=scores.device)
    if k >= p:
        return torch.ones(p, dtype=torch.bool, device=scores.device)
    level = _order_statistic(scores, p - k)
    mask = scores > level
    ties = (scores == level).nonzero().squeeze(1)
    mask[ties[: k - int(mask.sum())]] = True
    return mask


def _order_statistic(scores: Tensor, rank: int) -> Tensor:
    """The score of that rank, 0 the lowest; numpy selects many times faster than torch."""
    if scores.device.type != "cpu":
        return scores.kthvalue(rank + 1).values
    return torch.from_numpy(np.partition(scores.numpy(), rank)[rank : rank + 1])[0]


def top_mask(scores: Tensor, groups: Groups) -> Tensor:
    """Mask of the ``caps[G]`` largest scores in every group; ties go to the lowest index."""
    if len(groups.caps) == 1:
        return largest(scores, int(groups.caps[0]))
    if groups.width:
        table = scores.reshape(-1, groups.width)
        order = table.argsort(dim=1, descending=True, stable=True)
        keep = torch.arange(groups.width, device=scores.device) < groups.caps[:, None]
        return torch.zeros_like(keep).scatter_(1, order, keep).reshape(-1)
    order = scores.argsort(descending=True, stable=True)
    order = order[groups.labels[order].argsort(stable=True)]
    sizes = torch.bincount(groups.labels, minlength=len(groups.caps))
    first = (sizes.cumsum(0) - sizes)[groups.labels[order]]
    rank = torch.arange(len(scores), device=scores.device) - first
    keep = rank < groups.caps[groups.labels[order]]
    return torch.zeros_like(keep).scatter_(0, order, keep)


def group_thresholds(base: Tensor, epsilon: Tensor, groups: Groups, start: Tensor | None) -> Tensor:
    r"""Solve :math:`\sum_{j\in G}\mathrm{clip}((b_j-\theta_G)/\epsilon_j,0,1)=m_G`, theta >= 0.

    A safeguarded Newton iteration on the piecewise linear sums, all groups at once. Where the
    sum at zero is within the cap, theta is 0.
    """
    caps = groups.caps.to(base.dtype)
    low, high = torch.full_like(caps, _UNTRIED), groups.maximum(base).clamp_min(0.0)
    theta = 0.5 * high if start is None else torch.minimum(start.clamp_min(0.0), high)
    for _ in range(_MAX_STEPS):
        v = (base - groups.spread(theta)) / epsilon
        z = v.clamp(0.0, 1.0)
        slope = groups.sum(((v > 0) & (v < 1)).to(base.dtype) / epsilon)
        excess = groups.sum(z) - caps
        high = torch.where(excess <= 0, theta, high)
        low = torch.where(excess > 0, theta, low)
        done = (excess.abs() <= 1e-10 * caps.clamp_min(1.0)) | ((excess <= 0) & (theta == 0))
        narrow = high - low <= _RESOLUTION * high  # no number between them is worth a try
        theta = torch.where(narrow & ~done, high, theta)
        done |= narrow
        if bool(done.all()):
            break
        theta = torch.where(done, theta, _newton_step(theta, excess, slope, low, high))
    return theta


def total_threshold(
    base: Tensor, epsilon: Tensor, groups: Groups, theta: Tensor, total: int, start: Tensor | None
) -> Tensor:
    r"""Smallest tau >= 0 that brings the sum of z within the total.

    :math:`z_j=\mathrm{clip}((b_j-\max(\theta_G,\tau))/\epsilon_j,0,1)`.
    """
    low, high = base.new_tensor(_UNTRIED), base.max().clamp_min(0.0)
    tau = base.new_zeros(()) if start is None else torch.minimum(start.clamp_min(0.0), high)
    own = groups.spread(theta)
    for _ in range(_MAX_STEPS):
        v = (base - torch.maximum(own, tau)) / epsilon
        free = (v > 0) & (v < 1) & (own <= tau)
        slope = (free.to(base.dtype) / epsilon).sum()
        excess = v.clamp(0.0, 1.0).sum() - total
        high = torch.where(excess <= 0, tau, high)
        low = torch.where(excess > 0, tau, low)
        if float(excess.abs()) <= 1e-10 * max(total, 1) or (float(excess) <= 0 and float(tau) == 0):
            break
        if float(high - low) <= _RESOLUTION * float(high):
            return high
        tau = _newton_step(tau, excess, slope, low, high)
    return tau


def _newton_step(x: Tensor, excess: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Newton step where it stays inside (low, high], else zero if untried, else bisection."""
    middle = 0.5 * (low + high)
    step = x + excess / slope
    inside = (step > low) & (step <= high)
    edge = (slope > 0) & (step <= 0) & (low < 0)
    return torch.where(inside, step, torch.where(edge, torch.zeros_like(x), middle))
