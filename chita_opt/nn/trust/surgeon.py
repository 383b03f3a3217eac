"""Prune a set of weights down to an allowed support by optimal brain surgeon, and solve on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from chita_opt.nn.trust.expansion import Expansion
from chita_opt.supports import SupportFamily


def surgeon_support(
    model: Expansion, index: Tensor, supports: SupportFamily, ridge: float, rounds: int = 1
) -> Tensor:
    """The allowed support (p,) bool within the weights at ``index``.

    Each round solves on the weights that are left and drops the cheapest; all rounds but the last
    drop single weights whatever the family, the last obeys it.
    """
    kept = torch.ones(len(index), dtype=torch.bool, device=index.device)
    first, last = len(index), min(supports.max_count, len(index))
    for done in range(1, rounds + 1):
        inside, extra = model.restricted(kept)
        solved = next(inside.solve((ridge,), extra))
        costs = torch.full((len(index),), -1.0, dtype=torch.float64, device=index.device)
        costs[kept] = inside.removal_costs(solved, ridge)
        if done < rounds:
            count = round(first * (last / first) ** (done / rounds)) if last else 0
            kept = torch.zeros_like(kept).index_fill(0, costs.topk(count).indices, True)
            continue
        scores = torch.zeros(supports.size, dtype=torch.float64, device=index.device)
        scores[index] = costs.clamp_min(0.0)
        allowed = torch.zeros(supports.size, dtype=torch.bool, device=index.device)
        allowed[index] = kept
        return supports.best_support(scores) & allowed
    raise ValueError(f"rounds is {rounds}; it must be at least 1")


def solved_after_surgery(
    model: Expansion,
    index: Tensor,
    support: Tensor,
    ridges: Sequence[float],
) -> Iterator[Tensor]:
    """Weights (p,) that minimise the expansion on a support within ``index``, for each ridge."""
    inside, extra = model.restricted(support[index])
    place = support.nonzero().squeeze(1)
    for weights in inside.solve(ridges, extra):
        yield torch.zeros(len(support), dtype=torch.float64, device=index.device).index_copy(
            0, place, weights
        )


__all__ = ["solved_after_surgery", "surgeon_support"]
