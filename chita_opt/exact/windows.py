"""Which weights an exact search over a window decides anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from chita_opt.problem import Problem
from chita_opt.solution import Solution
from chita_opt.supports.base import Array

KINDS = ("undecided", "correlated", "neighbours", "random")
_POOL = 8  # sizes of a window among the least certain weights that windows are drawn from


@dataclass(eq=False)
class Windows:
    """Draws windows among the weights whose fate is least certain, kind after kind.

    ======================  =====================================================================
    undecided               the least certain weights, then more of them at random
    correlated              those that the curvature couples most with one of the least certain
    neighbours              those next to it in the flat vector: its row, its layer
    random                  any of the pool
    ======================  =====================================================================

    Parameters
    ----------
    problem : Problem
        What is searched.
    costs : ndarray
        (p,) what deciding each weight the other way is known to cost at least, or looks like.
    draw : numpy.random.Generator
        Where chance comes from.
    """

    problem: Problem
    costs: Array
    draw: np.random.Generator
    turn: int = 0

    def next(self, size: int) -> tuple[str, Array]:
        """The next kind and its window, a sorted index array of at most ``size`` weights."""
        size = min(size, self.problem.p)
        kind = KINDS[self.turn % len(KINDS)]
        first, self.turn = self.turn == 0, self.turn + 1
        pool = self._pool(size)
        choose: dict[str, Callable[[Array, int], Array]] = {
            "undecided": self._undecided,
            "correlated": self._correlated,
            "neighbours": self._neighbours,
            "random": self._random,
        }
        chosen = pool[:size] if first else choose[kind](pool, size)
        return kind, np.sort(chosen)

    def _pool(self, size: int) -> Array:
        """The least certain weights, least certain first."""
        count = min(_POOL * size, self.problem.p)
        pool = np.argpartition(self.costs, count - 1)[:count]
        return np.asarray(pool[np.lexsort((pool, self.costs[pool]))])

    def _undecided(self, pool: Array, size: int) -> Array:
        weight = 1.0 / (np.arange(len(pool)) + size)
        return self.draw.choice(pool, size, replace=False, p=weight / weight.sum())

    def _random(self, pool: Array, size: int) -> Array:
        return self.draw.choice(pool, size, replace=False)

    def _seed(self, pool: Array, size: int) -> int:
        return int(self.draw.choice(pool[: max(size, 1)]))

    def _correlated(self, pool: Array, size: int) -> Array:
        curvature, device = self.problem.curvature, self.problem.device
        seed = torch.tensor([self._seed(pool, size)], device=device)
        every = torch.from_numpy(pool).to(device)
        coupling = curvature.cross(seed, every)[0].abs() / curvature.diagonal()[every].sqrt()
        coupling[every == seed] = torch.inf
        order = coupling.nan_to_num(0.0, posinf=torch.inf).argsort(descending=True, stable=True)
        return pool[order[:size].cpu().numpy()]

    def _neighbours(self, pool: Array, size: int) -> Array:
        distance = np.abs(pool - self._seed(pool, size))
        return pool[np.argsort(distance, kind="stable")[:size]]


def apparent_costs(problem: Problem, solution: Solution) -> Array:
    """(p,) rough cost of exchanging each weight of a solution, where no bound says more.

    A kept weight is worth about :math:`w_j^2H_{jj}/2`, a pruned one its gain
    :math:`c_j^2/2H_{jj}`.
    """
    H = (problem.curvature.diagonal() + problem.rho).clamp_min(1e-300)
    slope = problem.gradient(solution.w)
    mask = solution.mask
    worth = 0.5 * torch.where(mask, solution.w.square() * H, slope.square() / H)
    return problem.supports.exchange_margins(worth, mask).abs().cpu().numpy()


__all__ = ["KINDS", "Windows", "apparent_costs"]
