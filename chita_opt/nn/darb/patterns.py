"""Density-adaptive regular blocks over the layers of a network, at a budget of kept weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from chita_opt.bounds import dual_bound, dual_point
from chita_opt.errors import SupportError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.problem import Problem
from chita_opt.supports import Budget, SupportFamily
from chita_opt.supports.block_widths import BlockWidths
from chita_opt.supports.layer_families import join_layers
from chita_opt.supports.regular_blocks import fixed_widths, kept_by, published_widths

Choice = Literal["published", "exact", "joint"]
_GAINS_TOL = 1e-3  # of the bound: scores need fewer digits than a proof
CHOICES: tuple[Choice, ...] = ("published", "exact", "joint")


def darb_family(
    layer_map: LayerMap,
    k: int,
    scores: Tensor,
    *,
    choice: Choice = "published",
    rounding: str = "nearest",
    widest: int = 16,
) -> SupportFamily:
    """Masks with one weight a block and one block width a row, at most k weights in all.

    Parameters
    ----------
    layer_map : LayerMap
        The layers; the budget is over all of them together.
    k : int
        Weights kept at most.
    scores : Tensor
        (p,) >= 0, what each weight is worth when widths are chosen.
    choice : {"published", "exact", "joint"}
        "published": widths by the density of each row among the largest scores (the paper's rule),
        from as many scores as leave at most k weights. "exact": the widths of largest total score
        under the budget, by a multiple-choice knapsack, which may drop whole rows. "joint": every
        choice of widths belongs to the family, and whoever solves over it decides.
    rounding : {"nearest", "floor", "ceil"}
        Of the exponent in the published rule.
    widest : int
        Largest width, a power of two.

    Raises
    ------
    SupportError
        If an option is not known, or even the widest blocks keep more than k weights in every row.
    """
    if choice not in CHOICES:
        raise SupportError(f"choice is {choice!r}; give one of {', '.join(CHOICES)}")
    if choice == "published":
        widths = fitting_widths(layer_map, k, scores, rounding=rounding, widest=widest)
        return join_layers([fixed_widths(i.rows_cols, widths[i.name]) for i in layer_map])
    powers = tuple(1 << i for i in range(widest.bit_length()))
    family = BlockWidths(tuple(item.rows_cols for item in layer_map), k, powers)
    return family if choice == "joint" else family.laminar_part(family.best_support(scores))


def dual_gains(problem: Problem, k: int, *, time_limit: float | None = None) -> Tensor:
    r"""What keeping each weight is worth at the relaxation of pruning to any k weights.

    The quadratic model couples weights, so no sum of scores is its objective. The dual bound is
    one: at its best witness v, :math:`\mathrm{const}(v)-\sum_{j\text{ kept}}c_j^2/2d_j` (see
    :mod:`chita_opt.bounds.dual`), and these terms are the scores.

    Parameters
    ----------
    problem : Problem
        The quadratic model, with any family.
    k : int
        Weights kept.
    time_limit : float, optional
        Seconds.

    Returns
    -------
    Tensor
        (p,) >= 0.
    """
    irregular = replace(problem, supports=Budget.cardinality(problem.p, k))
    bound = dual_bound(irregular, tol=_GAINS_TOL, time_limit=time_limit)
    return dual_point(irregular, bound.witness, bound.split).gains


def fitting_widths(
    layer_map: LayerMap, k: int, scores: Tensor, *, rounding: str = "nearest", widest: int = 16
) -> dict[str, Tensor]:
    """The published rule on all layers together, from the most scores that leave k weights.

    Returns
    -------
    dict of str to Tensor
        (rows,) int64 block widths by layer.

    Raises
    ------
    SupportError
        If even the widest blocks keep more than k weights.
    """
    order = scores.detach().cpu().double().argsort(descending=True, stable=True)

    def widths(count: int) -> dict[str, Tensor]:
        mask = torch.zeros(layer_map.size, dtype=torch.float64)
        mask[order[:count]] = 1.0
        found = {}
        for item in layer_map:
            own = mask[item.start : item.stop]
            found[item.name] = published_widths(
                own, item.rows_cols, int(own.sum()), rounding=rounding, widest=widest
            )
        return found

    def kept(count: int) -> int:
        found = widths(count)
        return sum(kept_by(found[item.name], item.rows_cols[1]) for item in layer_map)

    low, high = 0, min(k, layer_map.size)
    if kept(low) > k:
        raise SupportError(
            f"blocks of {widest} keep {kept(low)} weights, more than k = {k}; allow wider blocks"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept(middle) <= k else (low, middle - 1)
    return widths(low)


__all__ = ["CHOICES", "Choice", "darb_family", "dual_gains", "fitting_widths"]
