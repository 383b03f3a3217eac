r"""Weights in channels in layers, each with a price: nested groups by dynamic programming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, eye_array, vstack
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows

_HALVINGS = 100


@dataclass(frozen=True)
class TreePrices:
    """What keeping costs, in whole units such as bytes.

    Attributes
    ----------
    weight, channel, layer : int
        Of each kept weight, of each channel that keeps any, of each layer that keeps any; >= 0.
    """

    weight: int = 1
    channel: int = 0
    layer: int = 0


@dataclass(frozen=True, eq=False)
class NestedGroups(SupportFamily):
    r"""Weight :math:`\subset` channel :math:`\subset` layer: who keeps anything pays for the rest.

    .. math:: a_w\sum_jz_j+a_c\sum_cu_c+a_l\sum_lv_l\le F,\qquad z_j\le u_{c(j)},\quad
              u_c\le v_{l(c)}

    A price of a channel is its index and its place in memory, a price of a layer its launch. With
    (1, 0, 0) the family is a cardinality, with (0, 1, 0) it keeps F channels whole, with (0, 0, 1)
    F layers. The oracle is exact: dynamic programming over the tree and the budget, in which a
    channel joins in O(F log F) as the sums of its best scores are concave. The linear program of
    the rows has the Lagrangian's value, which lies above the oracle.

    Attributes
    ----------
    channels : Tensor
        (p,) int64, channel of each weight.
    layers : Tensor
        (C,) int64, layer of each channel, rising from 0.
    prices : TreePrices
        :math:`a_w, a_c, a_l`.
    limit : int
        F.

    Raises
    ------
    SupportError
        If the labels are no tree, a price is negative, or all prices are zero.
    """

    channels: Tensor
    layers: Tensor
    prices: TreePrices
    limit: int
    rows_are_tight = False

    def __post_init__(self) -> None:
        for name, labels in (("channels", self.channels), ("layers", self.layers)):
            if labels.ndim != 1 or not len(labels) or labels.dtype != torch.int64:
                raise SupportError(f"{name} must be a non-empty int64 vector")
        if int(self.channels.min()) < 0 or int(self.channels.max()) >= len(self.layers):
            raise SupportError(f"channels must be numbered from 0 to {len(self.layers) - 1}")
        steps = self.layers.diff()
        if int(self.layers[0]) or bool(((steps < 0) | (steps > 1)).any()):
            raise SupportError("layers must rise from 0 without gaps, one number a channel")
        each = self._each
        if min(each) < 0 or max(each) == 0 or self.limit < 0:
            raise SupportError(
                f"prices {each} and limit {self.limit} must be >= 0, one price at least positive"
            )

    @classmethod
    def of_layers(
        cls, shapes: Sequence[tuple[int, int]], prices: TreePrices, limit: int
    ) -> NestedGroups:
        """Layers of ``shape[0]`` channels with ``shape[1]`` consecutive weights each."""
        layers = torch.arange(len(shapes)).repeat_interleave(torch.tensor([c for c, _ in shapes]))
        widths = torch.cat([torch.full((c,), n) for c, n in shapes])
        return cls(torch.arange(len(layers)).repeat_interleave(widths), layers, prices, int(limit))

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.channels)

    @property
    def _each(self) -> tuple[int, int, int]:
        return self.prices.weight, self.prices.channel, self.prices.layer

    @property
    def name(self) -> str:
        """Prices and limit."""
        return f"nested groups at prices {self._each} within {self.limit}"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description."""
        return {
            "family": "nested groups",
            "size": self.size,
            "channels": len(self.layers),
            "layers": int(self.layers[-1]) + 1,
            "prices": list(self._each),
            "limit": self.limit,
        }

    @cached_property
    def _members(self) -> list[Array]:
        order = np.argsort(self.channels.numpy(), kind="stable")
        sizes = torch.bincount(self.channels, minlength=len(self.layers)).numpy()
        return np.split(order, sizes.cumsum()[:-1])

    def best_support(self, scores: Tensor) -> Tensor:
        """Best mask by dynamic programming; ties within a channel go to the lowest index."""
        from chita_opt.supports.nested_kernels import tree_knapsack

        s = self.check_scores(scores).double().cpu().numpy()
        orders = [own[np.argsort(-s[own], kind="stable")] for own in self._members]
        sums = [np.concatenate([[0.0], s[order].cumsum()]) for order in orders]
        starts = np.concatenate([[0], np.cumsum([len(part) for part in sums])])
        unit = gcd(*self._each)
        prices = np.array(self._each) // unit
        limit = min(self.limit, self._used(torch.ones(self.size, dtype=torch.bool))) // unit
        counts = tree_knapsack(np.concatenate(sums), starts, self.layers.numpy(), prices, limit)
        mask = np.zeros(self.size, dtype=bool)
        for order, n in zip(orders, counts.tolist(), strict=True):
            mask[order[: max(n, 0)]] = True
        return torch.from_numpy(mask).to(scores.device)

    def _used(self, mask: Tensor) -> int:
        kept = mask.cpu()
        channels = torch.unique(self.channels[kept])
        layers = torch.unique(self.layers[channels])
        counts = (int(kept.sum()), len(channels), len(layers))
        return sum(price * n for price, n in zip(self._each, counts, strict=True))

    def contains(self, mask: Tensor) -> bool:
        """Whether the price of the mask is within the limit."""
        return self._used(self.check_mask(mask)) <= self.limit

    def laminar_part(self, mask: Tensor) -> Budget:
        """Everything inside the channels that a mask opens, within what they leave of the limit."""
        kept = mask.cpu()
        opened = torch.zeros(len(self.layers), dtype=torch.bool)
        opened[self.channels[kept]] = True
        inside = opened[self.channels]
        room = self.limit - self._used(kept) + self.prices.weight * int(kept.sum())
        count = int(inside.sum())
        if self.prices.weight:
            count = min(count, room // self.prices.weight)
        return Budget((~inside).long(), torch.tensor([count, 0]), title="channels given")

    def rows(self) -> LinearRows:
        """A row a weight, a row a channel, and the budget; u holds channels, then layers."""
        p, count, top = self.size, len(self.layers), int(self.layers[-1]) + 1
        weight, channel, layer = self._each
        budget = csr_array(np.full((1, p), float(weight)))
        G = csr_array(vstack([eye_array(p), csr_array((count, p)), budget], format="csr"))
        G.eliminate_zeros()
        place = np.arange(count)
        prices = np.repeat([float(channel), float(layer)], [count, top])
        row = np.concatenate([np.arange(p), p + place, p + place, np.full(count + top, p + count)])
        owners = [self.channels.numpy(), place, count + self.layers.numpy()]
        column = np.concatenate([*owners, np.arange(count + top)])
        values = np.concatenate([-np.ones(p), np.ones(count), -np.ones(count), prices])
        E = csr_array((values, (row, column)), shape=(p + count + 1, count + top))
        h = np.zeros(p + count + 1)
        h[-1] = self.limit
        return LinearRows(G, h, E)

    def auxiliary(self, mask: Tensor) -> Array:
        """Channels and layers that keep anything."""
        channels = torch.zeros(len(self.layers), dtype=torch.float64)
        channels[self.channels[mask.cpu()]] = 1.0
        layers = torch.zeros(int(self.layers[-1]) + 1, dtype=torch.float64)
        layers[self.layers[channels > 0]] = 1.0
        return torch.cat([channels, layers]).numpy()

    def multipliers(self, scores: Tensor) -> Array:
        """The Lagrangian's price of a unit, and what it leaves to channels and layers."""
        s = self.check_scores(scores).double().cpu().numpy()
        low, high = 0.0, float(s.sum())
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._cost_at(s, middle) > self.limit else (low, middle)
            if high - low <= 1e-15 * high:
                break
        weights, channels, _ = self._profits(s, high)
        return np.concatenate([weights, channels, [high]])

    def _profits(self, s: Array, price: float) -> tuple[Array, Array, Array]:
        """What each weight, channel and layer is worth above its price per unit."""
        weight, channel, layer = self._each
        weights = np.maximum(s - price * weight, 0.0)
        sums = np.bincount(self.channels.numpy(), weights, minlength=len(self.layers))
        channels = np.maximum(sums - price * channel, 0.0)
        layers = np.maximum(np.bincount(self.layers.numpy(), channels) - price * layer, 0.0)
        return weights, channels, layers

    def _cost_at(self, s: Array, price: float) -> int:
        weights, channels, layers = self._profits(s, price)
        open_layers = layers > 0
        open_channels = (channels > 0) & open_layers[self.layers.numpy()]
        kept = (weights > 0) & open_channels[self.channels.numpy()]
        counts = (int(kept.sum()), int(open_channels.sum()), int(open_layers.sum()))
        return sum(a * n for a, n in zip(self._each, counts, strict=True))
