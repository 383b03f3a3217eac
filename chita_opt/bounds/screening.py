r"""Safe screening: what every optimal solution keeps or prunes.

If forcing one weight against the oracle's answer lowers the best value by :math:`\Delta_j`, then
every solution with that weight so forced costs at least :math:`\mathrm{LB}+\Delta_j`; above the
incumbent's value no optimal solution can do it (Atamtürk & Gómez, ICML 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.bounds.dual import Bound, dual_point
from chita_opt.problem import Problem


@dataclass(frozen=True, eq=False)
class Screening:
    """Weights whose fate is proven, and the gap in units that people can picture.

    Attributes
    ----------
    kept, pruned : Tensor
        (p,) bool: in every optimal solution the weight is kept, or pruned.
    threshold_gain : float
        Gain of the weakest kept weight (loss units).
    gap_in_gains : float
        (upper - lower) over that: the answer is certified to within about so many exchanges.
    """

    kept: Tensor
    pruned: Tensor
    threshold_gain: float
    gap_in_gains: float

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of weights proven kept and proven pruned."""
        return {"kept": int(self.kept.sum()), "pruned": int(self.pruned.sum())}


def screen(problem: Problem, bound: Bound, upper: float) -> Screening:
    """Fix what the bound's witness and an incumbent's value prove.

    ``upper`` must be the objective of a feasible solution. A relative rounding margin of 1e-12 of
    the terms' size is kept on the safe side.
    """
    point = dual_point(problem, bound.witness, bound.split)
    costs = problem.supports.exchange_costs(point.gains, point.mask)
    margin = 1e-12 * (float(point.gains.sum()) + abs(point.value) + abs(upper))
    fixed = point.value + costs > upper + margin
    kept_gains = point.gains[point.mask]
    threshold = float(kept_gains.min()) if len(kept_gains) else 0.0
    gap = max(upper - point.value, 0.0)
    ratio = gap / threshold if threshold > 0 else (0.0 if gap == 0 else float("inf"))
    return Screening(fixed & point.mask, fixed & ~point.mask, threshold, ratio)


def fixed_share(screening: Screening) -> float:
    """Share of all weights that are fixed."""
    both = torch.logical_or(screening.kept, screening.pruned)
    return float(both.double().mean())
