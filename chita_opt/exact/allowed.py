"""A support family seen from a node: what is still allowed, its rows and its oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from chita_opt.exact import laminar
from chita_opt.exact.quadratic import FREE, IN, OUT
from chita_opt.supports import Budget, SupportFamily
from chita_opt.supports.base import Array

_MAX_ROWS = 400  # rows of a family without thresholds that enter the barrier


@dataclass(eq=False)
class Rows:
    """Rows ``G z <= h`` over a node's free weights, each with its number in the whole family."""

    G: Array
    h: Array
    names: Array


class Allowed(ABC):
    """Questions that the search asks a family about a state in {FREE, OUT, IN}^p."""

    row_count: int

    @abstractmethod
    def propagate(self, state: Array) -> bool:
        """Fix out what no mask with the kept weights can hold; False if there is no such mask."""

    @abstractmethod
    def everything(self, state: Array) -> bool:
        """Whether all free weights may be kept together."""

    @abstractmethod
    def rows(self, state: Array, free: Array) -> Rows:
        """Rows that can bind on the free weights."""

    @abstractmethod
    def best(self, state: Array, free: Array, s: Array) -> tuple[Array, float]:
        """Best mask over the free weights for scores s >= 0, and the sum of its scores."""

    @abstractmethod
    def exchange(self, state: Array, free: Array, s: Array, mask: Array) -> Array:
        """Loss of the best value when a free weight is forced against the best ``mask``."""


class BudgetAllowed(Allowed):
    """Cardinality, N:M, per block, per row and their nested totals: counts decide everything."""

    def __init__(self, family: Budget) -> None:
        self.labels = family.labels.cpu().numpy()
        self.caps = family.caps.cpu().numpy()
        every = int(self.caps.sum())
        self.total = every if family.total is None else min(family.total, every)
        self.row_count = len(self.caps) + 1

    def _left(self, state: Array) -> tuple[Array, int]:
        kept = self.labels[state == IN]
        return self.caps - np.bincount(kept, minlength=len(self.caps)), self.total - len(kept)

    def propagate(self, state: Array) -> bool:
        """Full groups, or a full total, fix out the rest."""
        caps, total = self._left(state)
        if total < 0 or bool((caps < 0).any()):
            return False
        full = (caps == 0)[self.labels] if total else np.ones(len(state), dtype=bool)
        state[(state == FREE) & full] = OUT
        return True

    def everything(self, state: Array) -> bool:
        """Whether no count is exceeded with all free weights kept."""
        caps, total = self._left(state)
        count = np.bincount(self.labels[state == FREE], minlength=len(caps))
        return bool((count <= caps).all()) and int(count.sum()) <= total

    def rows(self, state: Array, free: Array) -> Rows:
        """One row a group that can bind, and the total where it can."""
        caps, total = self._left(state)
        labels = self.labels[free]
        count = np.bincount(labels, minlength=len(caps))
        names = np.flatnonzero(count > caps)
        G = (labels[None, :] == names[:, None]).astype(np.float64)
        h = caps[names].astype(np.float64)
        if total < int(np.minimum(count, caps).sum()):
            G = np.vstack([G, np.ones(len(free))])
            h = np.append(h, float(total))
            names = np.append(names, len(self.caps))
        if len(names) == 2 and names[1] == len(self.caps) and len(self.caps) == 1:
            G, h, names = G[1:], h[1:], names[1:]
        return Rows(np.ascontiguousarray(G), h, names)

    def best(self, state: Array, free: Array, s: Array) -> tuple[Array, float]:
        """Greedy, which is exact."""
        caps, total = self._left(state)
        mask = np.empty(len(free), dtype=bool)
        return mask, laminar.best_budget(s, self.labels[free], caps, total, mask)

    def exchange(self, state: Array, free: Array, s: Array, mask: Array) -> Array:
        """Difference to the weight that would leave or enter."""
        caps, total = self._left(state)
        return laminar.exchange_costs(s, self.labels[free], caps, total, mask)


class OracleAllowed(Allowed):
    """Any family with an oracle: kept weights get a score that always wins, those out none."""

    def __init__(self, family: SupportFamily) -> None:
        self.family = family
        G, h = family.rows()
        self.G = G.toarray() if G.shape[0] <= _MAX_ROWS else np.ones((1, family.size))
        self.h = h if G.shape[0] <= _MAX_ROWS else np.array([float(family.max_count)])
        self.row_count = len(self.h)

    def _holds(self, mask: Array) -> bool:
        return self.family.contains(torch.from_numpy(mask))

    def propagate(self, state: Array) -> bool:
        """Ask about each free weight added to the kept ones."""
        kept = state == IN
        if not self._holds(kept):
            return False
        for j in np.flatnonzero(state == FREE):
            kept[j] = True
            if not self._holds(kept):
                state[j] = OUT
            kept[j] = False
        return True

    def everything(self, state: Array) -> bool:
        """Ask about the mask of all weights not out."""
        return self._holds(state != OUT)

    def rows(self, state: Array, free: Array) -> Rows:
        """The family's own rows less what the kept weights use."""
        G = self.G[:, free]
        h = self.h - self.G[:, state == IN].sum(1)
        names = np.flatnonzero(G.sum(1) > h)
        return Rows(np.ascontiguousarray(G[names]), np.maximum(h[names], 0.0), names)

    def best(self, state: Array, free: Array, s: Array) -> tuple[Array, float]:
        """The oracle on scores that force the state."""
        chosen = self._oracle(state, free, s)
        if chosen is None:
            return np.zeros(len(free), dtype=bool), 0.0
        mask = chosen[free] & (s > 0.0)
        return mask, float(s[mask].sum())

    def _oracle(self, state: Array, free: Array, s: Array) -> Array | None:
        """Best mask with all kept weights, or None where the oracle finds none."""
        scores = np.zeros(len(state))
        scores[free] = s
        kept = state == IN
        scores[kept] = 2.0 * float(s.sum()) or 1.0
        chosen = self.family.best_support(torch.from_numpy(scores)).numpy()
        return chosen if bool(chosen[kept].all()) else None

    def exchange(self, state: Array, free: Array, s: Array, mask: Array) -> Array:
        """One oracle call for every free weight."""
        best = float(s[mask].sum())
        costs = np.empty(len(free))
        forced = state.copy()
        for i, j in enumerate(free):
            rest = np.delete(np.arange(len(free)), i)
            forced[j] = OUT if mask[i] else IN
            chosen = self._oracle(forced, free[rest], s[rest])
            if chosen is None:
                costs[i] = np.inf
            else:
                inside = chosen[free[rest]]
                costs[i] = best - float(s[rest][inside].sum()) - (0.0 if mask[i] else s[i])
            forced[j] = state[j]
        return np.maximum(costs, 0.0)


def allowed(family: SupportFamily) -> Allowed:
    """The fast path for budgets, the oracle for all others."""
    return BudgetAllowed(family) if isinstance(family, Budget) else OracleAllowed(family)
