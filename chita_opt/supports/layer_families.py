"""Each layer with a family of its own, the layers' weights one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SmoothedMaximum, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows, side_by_side


@dataclass(frozen=True, eq=False)
class LayerFamilies(SupportFamily):
    """The product of families over consecutive ranges of weights.

    A mask is allowed where each layer's part is; oracle, rows and bounds are those of the layers
    side by side, and as exact and tight as the weakest of them. Where every layer has a budget on a
    partition, :func:`join_layers` gives one budget, which more methods know.

    Attributes
    ----------
    parts : tuple of SupportFamily
        One family a layer.

    Raises
    ------
    SupportError
        If there is no layer.
    """

    parts: tuple[SupportFamily, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise SupportError("there is no layer; give one family for each")

    @cached_property
    def slices(self) -> list[slice]:
        """Range of each layer's weights."""
        ends = np.cumsum([0, *(part.size for part in self.parts)]).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return self.slices[-1].stop

    @property
    def name(self) -> str:
        """The layers' names, in short where there are many."""
        names = [part.name for part in self.parts]
        shown = names if len(names) <= 3 else [*names[:2], f"… {len(names) - 2} more"]
        return f"layers({', '.join(shown)})"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description."""
        layers = [dict(part.specification) for part in self.parts]
        return {"family": "layers", "name": self.name, "size": self.size, "layers": layers}

    @property
    def is_exact(self) -> bool:  # type: ignore[override]
        """Whether every layer's oracle is."""
        return all(part.is_exact for part in self.parts)

    @property
    def rows_are_tight(self) -> bool:  # type: ignore[override]
        """Whether every layer's rows are."""
        return all(part.rows_are_tight for part in self.parts)

    @property
    def binary_auxiliary(self) -> bool:  # type: ignore[override]
        """Whether some layer needs binary auxiliary variables."""
        return any(part.binary_auxiliary for part in self.parts)

    @property
    def is_laminar(self) -> bool:
        """Whether every layer has thresholds."""
        return all(part.is_laminar for part in self.parts)

    @property
    def is_smooth(self) -> bool:
        """Whether every layer has a smoothed maximum."""
        return all(part.is_smooth for part in self.parts)

    @property
    def max_count(self) -> int:
        """Sum of the layers'."""
        return sum(part.max_count for part in self.parts)

    # -- oracle ---------------------------------------------------------------------------

    def best_support(self, scores: Tensor) -> Tensor:
        """Layer by layer."""
        own = self._split(self.check_scores(scores))
        return torch.cat([part.best_support(s) for part, s in own])

    def contains(self, mask: Tensor) -> bool:
        """Layer by layer."""
        return all(part.contains(z) for part, z in self._split(self.check_mask(mask)))

    def value_bound(self, scores: Tensor) -> float:
        """Sum of the layers'."""
        return float(sum(part.value_bound(s) for part, s in self._split(scores)))

    def rows(self) -> LinearRows:
        """The layers' rows, one after the other."""
        return side_by_side([part.rows() for part in self.parts])

    def auxiliary(self, mask: Tensor) -> Array:
        """The layers' values, one after the other."""
        return np.concatenate([part.auxiliary(z) for part, z in self._split(mask)])

    def multipliers(self, scores: Tensor) -> Array:
        """The layers' multipliers, one after the other."""
        return np.concatenate([part.multipliers(s) for part, s in self._split(scores)])

    def exchange_costs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Layer by layer: an exchange stays in its layer."""
        own = zip(self.parts, self.slices, strict=True)
        return torch.cat([part.exchange_costs(scores[s], mask[s]) for part, s in own])

    def exchange_margins(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Layer by layer."""
        own = zip(self.parts, self.slices, strict=True)
        return torch.cat([part.exchange_margins(scores[s], mask[s]) for part, s in own])

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Within a layer what it allows; between layers where the incoming weight may be added."""
        allowed = torch.zeros(len(outgoing), len(incoming), dtype=torch.bool, device=mask.device)
        for part, s in zip(self.parts, self.slices, strict=True):
            out = ((outgoing >= s.start) & (outgoing < s.stop)).nonzero().squeeze(1)
            into = ((incoming >= s.start) & (incoming < s.stop)).nonzero().squeeze(1)
            if not len(into):
                continue
            z = mask[s]
            allowed[:, into] = _addable(part, z, incoming[into] - s.start)[None, :]
            if len(out):
                own = part.can_swap(z, outgoing[out] - s.start, incoming[into] - s.start)
                allowed[out[:, None], into[None, :]] = True if own is None else own
        return allowed

    # -- smoothing ------------------------------------------------------------------------

    def smoothed_maximum(
        self, gains: Tensor, centre: Tensor, epsilon: Tensor, warm: Tensor | None = None
    ) -> SmoothedMaximum:
        """Layer by layer; multipliers lie one after the other, labels of pools don't meet."""
        found, pools, bundles, first, above = [], [], [], 0, 0
        lengths = self._warm_lengths if warm is not None else [0] * len(self.parts)
        starts = [None] * len(self.parts) if warm is None else list(warm.split(lengths))
        every = epsilon.expand(self.size)
        for part, s, start in zip(self.parts, self.slices, starts, strict=True):
            own = part.smoothed_maximum(gains[s], centre[s], every[s], start)
            found.append(own)
            pools.append(torch.where(own.pool >= 0, own.pool + first, -1))
            first += int(own.pool.max()) + 2
            bundles.append(_bundle(own) + above)
            above += int(bundles[-1].max()) + 1 - above
        self._warm_lengths[:] = [len(own.multipliers) for own in found]
        return SmoothedMaximum(
            torch.cat([own.z for own in found]), torch.cat(pools),
            torch.cat([own.multipliers for own in found]),
            torch.cat(bundles) if any(own.bundle is not None for own in found) else None,
            torch.cat([torch.ones_like(own.z) if own.share is None else own.share
                       for own in found]),
        )  # fmt: skip

    def smoothing_scale(self, gains: Tensor) -> Tensor:
        """Layer by layer."""
        own = self._split(gains)
        return torch.cat([part.smoothing_scale(g).expand(part.size) for part, g in own])

    @cached_property
    def _warm_lengths(self) -> list[int]:
        return []

    def laminar_part(self, mask: Tensor) -> Budget | None:
        """The layers' laminar parts as one budget; None where some layer has none."""
        found = [part.laminar_part(z) for part, z in self._split(mask)]
        budgets = [part for part in found if isinstance(part, Budget) and part.total is None]
        return _one_budget(budgets) if len(budgets) == len(found) else None

    def _split(self, values: Tensor) -> list[tuple[SupportFamily, Tensor]]:
        own = zip(self.parts, self.slices, strict=True)
        return [(part, values[s]) for part, s in own]


def join_layers(families: Sequence[SupportFamily]) -> SupportFamily:
    """One family over all layers: a budget where each layer has one without a total."""
    budgets = [part for part in families if isinstance(part, Budget) and part.total is None]
    if len(families) and len(budgets) == len(families):
        return _one_budget(budgets)
    return LayerFamilies(tuple(families))


def _one_budget(budgets: Sequence[Budget]) -> Budget:
    first = np.cumsum([0, *(len(part.caps) for part in budgets)])[:-1].tolist()
    labels = [part.labels + at for part, at in zip(budgets, first, strict=True)]
    titles = {part.title for part in budgets}
    title = titles.pop() if len(titles) == 1 else f"layers({len(budgets)})"
    return Budget(torch.cat(labels), torch.cat([part.caps for part in budgets]), title=title)


def _bundle(found: SmoothedMaximum) -> Tensor:
    """Labels of weights that move as one; every weight for itself where there are none."""
    alone = torch.arange(len(found.z), device=found.z.device)
    return alone if found.bundle is None else found.bundle


def _addable(part: SupportFamily, mask: Tensor, incoming: Tensor) -> Tensor:
    """Whether each weight may be added to a mask with nothing leaving."""
    allowed = torch.zeros(len(incoming), dtype=torch.bool, device=mask.device)
    trial = mask.clone()
    for b, j in enumerate(incoming.tolist()):
        trial[j] = True
        allowed[b] = part.contains(trial)
        trial[j] = mask[j]
    return allowed


__all__ = ["LayerFamilies", "join_layers"]
