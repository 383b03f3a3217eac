"""How many weights each layer keeps, searched by the held-out loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.trust.competition import Candidate
from chita_opt.solution import Clock

Counts = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BudgetSearch:
    """How layer budgets are searched.

    Attributes
    ----------
    factors : tuple of float
        A layer's budget is multiplied and divided by each in turn while the loss falls.
    sweeps : int
        Times all layers are tried for a factor, at most.
    time_limit : float, optional
        Seconds after which no further budget is tried.
    """

    factors: tuple[float, ...] = (1.4, 1.2)
    sweeps: int = 3
    time_limit: float | None = None


def layer_counts(mask: Tensor, layer_map: LayerMap) -> Counts:
    """Kept weights of each layer of a mask (p,)."""
    return tuple(int(part.sum()) for part in mask.split(layer_map.sizes))


def search_budgets(
    prune: Callable[[Mapping[str, int]], Candidate],
    start: Counts,
    layer_map: LayerMap,
    search: BudgetSearch | None = None,
) -> Candidate:
    """Change one layer's budget at a time, the total kept, while the held-out loss falls.

    Parameters
    ----------
    prune : callable
        Prunes to a count for each layer name, and measures.
    start : tuple of int
        First budgets, in the order of ``layer_map``.
    layer_map : LayerMap
        The layers; with one layer there is nothing to search.
    search : BudgetSearch, optional
        Factors and limits.

    Returns
    -------
    Candidate
        The lowest found; ``start`` is among the tried.
    """
    search = search or BudgetSearch()
    clock = Clock(search.time_limit)
    tried: dict[Counts, Candidate] = {}

    def at(counts: Counts) -> Candidate:
        if counts not in tried:
            tried[counts] = prune(dict(zip(layer_map.names, counts, strict=True)))
        return tried[counts]

    counts, best = start, at(start)
    for factor in search.factors:
        for _ in range(search.sweeps):
            before = best.loss
            for layer in range(len(layer_map)):
                for change in (factor, 1.0 / factor):
                    trial = shifted(counts, layer, change, layer_map.sizes)
                    if clock.expired or trial is None:
                        continue
                    if at(trial).loss < best.loss:
                        counts, best = trial, at(trial)
            if best.loss >= before or clock.expired:
                break
    return best


def shifted(counts: Counts, layer: int, factor: float, sizes: Counts) -> Counts | None:
    """One layer's count times a factor; the others share the difference in proportion.

    None where the total cannot be kept, or nothing changes.
    """
    total = sum(counts)
    others = total - counts[layer]
    wanted = min(sizes[layer], max(1, round(counts[layer] * factor)))
    if wanted == counts[layer] or others == 0 or wanted >= total:
        return None
    scale = (total - wanted) / others
    new = [
        wanted if i == layer else min(sizes[i], max(1, round(c * scale)))
        for i, c in enumerate(counts)
    ]
    rest = total - sum(new)  # rounding: the largest other layer takes it
    largest = max((i for i in range(len(new)) if i != layer), key=lambda i: new[i])
    new[largest] += rest
    if not 0 < new[largest] <= sizes[largest]:
        return None
    return tuple(new)


__all__ = ["BudgetSearch", "Counts", "layer_counts", "search_budgets", "shifted"]
