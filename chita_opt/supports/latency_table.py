r"""A limit on the sum of latencies, read from a measured table of each layer."""

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
from chita_opt.supports.knapsack import best_choice
from chita_opt.supports.linear_rows import LinearRows


@dataclass(frozen=True)
class Levels:
    """What one layer may keep and how long it then takes.

    Attributes
    ----------
    counts : tuple of int
        Kept weights, rising.
    times : tuple of int
        Latency of a layer with at most so many, rising strictly after the clean-up: a level that
        keeps less and is no faster serves nobody.
    """

    counts: tuple[int, ...]
    times: tuple[int, ...]

    @classmethod
    def of(cls, counts: Sequence[int], times: Sequence[int], size: int) -> Levels:
        """Check and clean one layer's table."""
        if not counts or len(counts) != len(times):
            raise SupportError(f"{len(counts)} counts and {len(times)} latencies: give as many")
        whole = all(int(x) == x and x >= 0 for x in (*counts, *times))
        if not whole or list(counts) != sorted(set(counts)) or counts[-1] > size:
            raise SupportError(
                f"counts {tuple(counts)} must rise within 0..{size}, and latencies be whole "
                "numbers >= 0, such as microseconds"
            )
        best = np.minimum.accumulate(np.asarray(times, dtype=np.int64)[::-1])[::-1]
        last = np.append(best[1:] > best[:-1], True)  # of levels of equal time the largest count
        return cls(
            tuple(int(n) for n, keep in zip(counts, last, strict=True) if keep),
            tuple(int(t) for t, keep in zip(best, last, strict=True) if keep),
        )

    def at_least(self, count: int) -> int | None:
        """Smallest latency that holds ``count`` weights, or None."""
        fits = [t for n, t in zip(self.counts, self.times, strict=True) if n >= count]
        return fits[0] if fits else None


@dataclass(frozen=True, eq=False)
class LatencyTable(SupportFamily):
    r"""Each layer takes the time that its table says, together at most a limit.

    .. math:: \sum_lT_l(n_l)\le L,\qquad n_l=\sum_{j\in l}z_j,\qquad
              T_l(n)=\min\{t_{li}:m_{li}\ge n\}

    Tables of hardware are steps, not lines: a layer of 30 % kept weights may be as slow as a dense
    one. The oracle chooses one level of each layer, a multiple-choice knapsack, exactly (see
    :mod:`chita_opt.supports.knapsack`). The rows choose levels by binary variables; their linear
    program is above the oracle.

    Use :meth:`of_tables`.
    """

    layers: Tensor
    levels: tuple[Levels, ...]
    limit: int
    rows_are_tight = False
    binary_auxiliary = True

    def __post_init__(self) -> None:
        least = sum(own.times[0] for own in self.levels)
        if self.limit < least:
            raise SupportError(
                f"limit is {self.limit}; the fastest levels already take {least}; raise the limit "
                "or add levels that keep less"
            )

    @classmethod
    def of_tables(
        cls,
        sizes: Sequence[int],
        tables: Sequence[tuple[Sequence[int], Sequence[int]]],
        limit: int,
    ) -> LatencyTable:
        """Layers of ``sizes[l]`` weights with a table (counts, latencies) each.

        Parameters
        ----------
        sizes : sequence of int
            Weights of each layer, in order.
        tables : sequence of pairs
            Rising counts of kept weights, and whole latencies; a layer that keeps n weights takes
            the smallest latency among counts >= n.
        limit : int
            Largest sum of latencies.

        Raises
        ------
        SupportError
            If a table is malformed, or no levels meet the limit.
        """
        if len(sizes) != len(tables):
            raise SupportError(f"there are {len(sizes)} layers but {len(tables)} tables")
        levels = tuple(Levels.of(*t, size) for t, size in zip(tables, sizes, strict=True))
        layers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)))
        return cls(layers, levels, int(limit))

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.layers)

    @property
    def name(self) -> str:
        """The limit and the layers."""
        return f"latency {self.limit} over {len(self.levels)} layers"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description, with the tables as they are used."""
        tables = [[list(own.counts), list(own.times)] for own in self.levels]
        return {"family": "latency", "size": self.size, "limit": self.limit, "tables": tables}

    @cached_property
    def _starts(self) -> Array:
        sizes = torch.bincount(self.layers, minlength=len(self.levels)).numpy()
        return np.concatenate([[0], sizes.cumsum()])

    def best_support(self, scores: Tensor) -> Tensor:
        """Best level of each layer, exact; equal values take the faster levels."""
        s = self.check_scores(scores).double().cpu().numpy()
        mask = np.zeros(self.size, dtype=bool)
        orders, gains = [], []
        for own, first, stop in zip(self.levels, self._starts, self._starts[1:], strict=False):
            order = first + np.argsort(-s[first:stop], kind="stable")
            sums = np.concatenate([[0.0], s[order].cumsum()])
            orders.append(order)
            gains.append(sums[list(own.counts)])
        for order, own, choice in zip(orders, self.levels, self._choose(gains), strict=True):
            mask[order[: own.counts[choice]]] = True
        return torch.from_numpy(mask).to(scores.device)

    def _choose(self, gains: list[Array]) -> list[int]:
        """Level of each layer with the largest sum of gains within the limit."""
        shape = len(gains), max(map(len, gains))
        values, times = np.full(shape, -np.inf), np.zeros(shape, dtype=np.int64)
        for row, (own, gain) in enumerate(zip(self.levels, gains, strict=True)):
            values[row, : len(gain)], times[row, : len(gain)] = gain, own.times
        return [int(o) for o in best_choice(values, times, self.limit).option]

    def contains(self, mask: Tensor) -> bool:
        """Whether the levels that the counts need are fast enough together."""
        kept = torch.bincount(self.layers[self.check_mask(mask).cpu()], minlength=len(self.levels))
        needs = [own.at_least(n) for own, n in zip(self.levels, kept.tolist(), strict=True)]
        known = [t for t in needs if t is not None]
        return len(known) == len(needs) and sum(known) <= self.limit

    def laminar_part(self, mask: Tensor) -> Budget:
        """The counts of the levels that a mask needs."""
        kept = torch.bincount(self.layers[mask.cpu()], minlength=len(self.levels)).tolist()
        pairs = zip(self.levels, kept, strict=True)
        counts = [own.counts[int(np.searchsorted(own.counts, n))] for own, n in pairs]
        return Budget(self.layers, torch.tensor(counts), title="levels given")

    def rows(self) -> LinearRows:
        r"""Rows with a binary :math:`u_{li}` for each level above the fastest.

        :math:`\sum_{j\in l}z_j-\sum_i(m_{li}-m_{l0})u_{li}\le m_{l0}`, :math:`\sum_iu_{li}\le1`,
        :math:`\sum_{li}(t_{li}-t_{l0})u_{li}\le L-\sum_lt_{l0}`.
        """
        p, count = self.size, len(self.levels)
        place = self._level_layers
        q = len(place)
        G = csr_array((np.ones(p), (self.layers.numpy(), np.arange(p))), shape=(2 * count + 1, p))
        more = np.concatenate([np.array(own.counts[1:]) - own.counts[0] for own in self.levels])
        slower = np.concatenate([np.array(own.times[1:]) - own.times[0] for own in self.levels])
        row = np.concatenate([place, place + count, np.full(q, 2 * count)])
        values = np.concatenate([-more, np.ones(q), slower])
        E = csr_array((values, (row, np.tile(np.arange(q), 3))), shape=(2 * count + 1, q))
        spare = self.limit - sum(own.times[0] for own in self.levels)
        first = [own.counts[0] for own in self.levels]
        return LinearRows(G, np.array([*first, *np.ones(count), spare], dtype=np.float64), E)

    @property
    def _level_layers(self) -> Array:
        """(q,) layer of each level above the fastest."""
        return np.repeat(np.arange(len(self.levels)), [len(own.counts) - 1 for own in self.levels])

    def auxiliary(self, mask: Tensor) -> Array:
        """The fastest level that holds what each layer keeps."""
        kept = torch.bincount(self.layers[mask.cpu()], minlength=len(self.levels)).tolist()
        parts = [np.zeros(len(own.counts) - 1) for own in self.levels]
        for part, own, n in zip(parts, self.levels, kept, strict=True):
            level = int(np.searchsorted(own.counts, n))
            if level:
                part[level - 1] = 1.0
        return np.concatenate(parts)
