"""Whole groups seen from a node: the weights of a group stand or fall together.

An allowed mask stays allowed, and its objective does not rise, when the groups that it holds alive
are filled up. So there is an optimum with every group whole, and a state decides groups.
"""

from __future__ import annotations

import numpy as np
import torch

from chita_opt.exact.quadratic import IN, OUT
from chita_opt.exact.tree_search.restricted import Allowed, Restricted
from chita_opt.supports.base import Array
from chita_opt.supports.whole_groups import WholeGroups

_MAX_WEIGHTS = 400  # free weights up to which each gets a row of its own in the barrier


class GroupsAllowed(Allowed):
    """Groups of limited total cost, each kept whole or dropped whole.

    Parameters
    ----------
    family : WholeGroups
        The groups and their costs.
    idle : ndarray
        (p,) weights that are out from the start, whatever becomes of their groups.
    """

    def __init__(self, family: WholeGroups, idle: Array) -> None:
        self.labels, self.active = family.labels.cpu().numpy(), ~idle
        self.costs, self.budget = family.group_costs, int(family.budget)
        self.row_count = len(self.labels) + 1

    def left(self, state: Array) -> int:
        """Cost that the kept groups leave."""
        return self.budget - int(self.costs[np.unique(self.labels[state == IN])].sum())

    def propagate(self, state: Array) -> bool:
        """Groups become whole; those that no longer fit go."""
        kept, out = (self._touched(state, value) for value in (IN, OUT))
        if bool((kept & out).any()):
            return False
        left = self.budget - int(self.costs[kept].sum())
        if left < 0:
            return False
        out |= ~kept & (self.costs > left)
        state[kept[self.labels] & self.active], state[out[self.labels]] = IN, OUT
        return True

    def holds(self, state: Array) -> bool:
        """Whether the groups alive fit, whole or not."""
        return self.left(state) >= 0

    def everything(self, state: Array) -> bool:
        """Whether all groups that are not out fit together."""
        return int(self.costs[np.unique(self.labels[state != OUT])].sum()) <= self.budget

    def restrict(self, state: Array, free: Array) -> Restricted:
        """The free groups, and what the kept ones leave."""
        return _RestrictedGroups(self, free, self.left(state))

    def _touched(self, state: Array, value: int) -> Array:
        """(groups,) whether some weight of a group has a value."""
        own = self.labels[(state == value) & self.active]
        return np.bincount(own, minlength=len(self.costs)) > 0


class _RestrictedGroups(Restricted):
    """Rows: no weight of a group without its first one, and the first ones' costs.

    These describe the hull of whole groups (of equal cost) on the masks alone. With too many of
    them for the barrier the number of weights is limited instead.
    """

    def __init__(self, whole: GroupsAllowed, free: Array, left: int) -> None:
        live, first, self.labels = np.unique(
            whole.labels[free], return_index=True, return_inverse=True
        )
        self.costs, self.left = whole.costs[live], left
        n = len(free)
        own = np.setdiff1d(np.arange(n), first) if n <= _MAX_WEIGHTS else np.arange(0)
        self.G = np.zeros((len(own) + 1, n))
        self.G[np.arange(len(own)), own] = 1.0
        self.G[np.arange(len(own)), first[self.labels[own]]] = -1.0
        if n <= _MAX_WEIGHTS:
            self.G[-1, first] = self.costs
        else:
            self.G[-1] = (self.costs / np.bincount(self.labels))[self.labels]
        self.h = np.append(np.zeros(len(own)), float(left))
        self.names = np.append(free[own], len(whole.labels))

    def best(self, s: Array) -> tuple[Array, float]:
        """The best groups by their sums; exact."""
        sums = np.bincount(self.labels, weights=s)
        kept = self._chosen(sums, self.left)
        mask = kept[self.labels] & (s > 0.0)
        return mask, float(s[mask].sum())

    def exchange(self, s: Array, mask: Array) -> Array:
        """What forcing a weight's group the other way loses."""
        sums = np.bincount(self.labels, weights=s)
        kept = np.bincount(self.labels[mask], minlength=len(sums)) > 0
        best = float(sums[kept].sum())
        costs = np.empty(len(sums))
        for g, cost in enumerate(self.costs):
            rest = sums.copy()
            rest[g] = 0.0
            left = self.left - (0 if kept[g] else int(cost))
            own = 0.0 if kept[g] else float(sums[g])
            costs[g] = best - own - float(rest[self._chosen(rest, left)].sum())
        return np.maximum(costs, 0.0)[self.labels]

    def _chosen(self, sums: Array, left: int) -> Array:
        """(groups,) the groups of largest total within a cost, by the family's oracle."""
        whole = WholeGroups(torch.arange(len(sums)), left, torch.from_numpy(self.costs))
        return whole.best_support(torch.from_numpy(sums)).numpy()


__all__ = ["GroupsAllowed"]
