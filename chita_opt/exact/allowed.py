"""A support family seen from a node: what is still allowed, its rows and its oracle."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from chita_opt.exact import laminar
from chita_opt.exact.quadratic import FREE, IN, OUT
from chita_opt.supports import Budget, SupportFamily
from chita_opt.supports.base import Array

_MAX_ROWS = 400  # rows of a family without thresholds that enter the barrier


class Restricted(ABC):
    """A family on a node's free weights.

    Attributes
    ----------
    G, h : ndarray
        (m, n) and (m,): rows ``G z <= h`` that can bind on the free weights.
    names : ndarray
        (m,) number of each row in the whole family.
    """

    G: Array
    h: Array
    names: Array

    @abstractmethod
    def best(self, s: Array) -> tuple[Array, float]:
        """Best mask for scores s >= 0, and the sum of its scores."""

    @abstractmethod
    def exchange(self, s: Array, mask: Array) -> Array:
        """Loss of the best value when a weight is forced against the best ``mask``."""


class Allowed(ABC):
    """Questions that the search asks a family about a state in {FREE, OUT, IN}^p."""

    row_count: int

    @abstractmethod
    def propagate(self, state: Array) -> bool:
        """Fix out what no mask with the kept weights can hold; False if there is no such mask."""

    def holds(self, state: Array) -> bool:
        """Whether the family allows the mask of the kept weights of a state without free ones."""
        return self.propagate(state.copy())

    @abstractmethod
    def everything(self, state: Array) -> bool:
        """Whether all free weights may be kept together."""

    @abstractmethod
    def restrict(self, state: Array, free: Array) -> Restricted:
        """The family on the free weights (index array)."""


class BudgetAllowed(Allowed):
    """Cardinality, N:M, per block, per row and their nested totals: counts decide everything."""

    def __init__(self, family: Budget) -> None:
        self.labels = family.labels.cpu().numpy()
        self.caps = family.caps.cpu().numpy()
        every = int(self.caps.sum())
        self.total = every if family.total is None else min(family.total, every)
        self.row_count = len(self.caps) + 1

    def left(self, state: Array) -> tuple[Array, int]:
        """Counts that the kept weights leave: per group and in all."""
        kept = self.labels[state == IN]
        return self.caps - np.bincount(kept, minlength=len(self.caps)), self.total - len(kept)

    def propagate(self, state: Array) -> bool:
        """Full groups, or a full total, fix out the rest."""
        caps, total = self.left(state)
        if total < 0 or bool((caps < 0).any()):
            return False
        full = (caps == 0)[self.labels] if total else np.ones(len(state), dtype=bool)
        state[(state == FREE) & full] = OUT
        return True

    def everything(self, state: Array) -> bool:
        """Whether no count is exceeded with all free weights kept."""
        caps, total = self.left(state)
        count = np.bincount(self.labels[state == FREE], minlength=len(caps))
        return bool((count <= caps).all()) and int(count.sum()) <= total

    def restrict(self, state: Array, free: Array) -> Restricted:
        """One row a group that can bind, and the total where it can."""
        caps, total = self.left(state)
        return _RestrictedBudget(self.labels[free], caps, total)


class _RestrictedBudget(Restricted):
    def __init__(self, labels: Array, caps: Array, total: int) -> None:
        self.labels, self.caps, self.total = labels, caps, total
        count = np.bincount(labels, minlength=len(caps))
        names = np.flatnonzero(count > caps)
        rows = [labels == name for name in names]
        if total < int(np.minimum(count, caps).sum()):
            if len(caps) == 1:  # the total is the tighter of two rows over the same weights
                rows, names = [], names[:0]
            rows.append(np.ones(len(labels), dtype=bool))
            names = np.append(names, len(caps))
        self.G = np.array(rows, dtype=np.float64).reshape(len(rows), len(labels))
        self.h = np.append(caps, total)[names].astype(np.float64)
        self.names = names

    def best(self, s: Array) -> tuple[Array, float]:
        """Greedy, which is exact."""
        mask = np.empty(len(s), dtype=bool)
        return mask, laminar.best_budget(s, self.labels, self.caps, self.total, mask)

    def exchange(self, s: Array, mask: Array) -> Array:
        """Difference to the weight that would leave or enter."""
        return np.asarray(laminar.exchange_costs(s, self.labels, self.caps, self.total, mask))


class OracleAllowed(Allowed):
    """Any family with an oracle: kept weights get a score that always wins, those out none."""

    def __init__(self, family: SupportFamily) -> None:
        self.family = family
        G, h = family.rows()
        few = G.shape[0] <= _MAX_ROWS
        self.G = G.toarray() if few else np.ones((1, family.size))
        self.h = h if few else np.array([float(family.max_count)])
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

    def restrict(self, state: Array, free: Array) -> Restricted:
        """The family's own rows less what the kept weights use."""
        return _RestrictedOracle(self, state, free)


class _RestrictedOracle(Restricted):
    def __init__(self, whole: OracleAllowed, state: Array, free: Array) -> None:
        self.family, self.state, self.free = whole.family, state.copy(), free
        G = whole.G[:, free]
        h = whole.h - whole.G[:, state == IN].sum(1)
        self.names = np.flatnonzero(G.sum(1) > h)
        self.G = np.ascontiguousarray(G[self.names])
        self.h = np.maximum(h[self.names], 0.0)

    def best(self, s: Array) -> tuple[Array, float]:
        """The oracle on scores that force the state."""
        chosen = self._oracle(self.state == IN, s)
        assert chosen is not None  # the kept weights alone are a member
        mask = chosen & (s > 0.0)
        return mask, float(s[mask].sum())

    def _oracle(self, kept: Array, s: Array) -> Array | None:
        """Best mask over the free weights with all ``kept`` ones, or None where there is none."""
        scores = np.zeros(len(self.state))
        scores[self.free] = s
        scores[kept] = 2.0 * float(s.sum()) or 1.0
        chosen = self.family.best_support(torch.from_numpy(scores)).numpy()
        return chosen[self.free] if bool(chosen[kept].all()) else None

    def exchange(self, s: Array, mask: Array) -> Array:
        """One oracle call for every free weight."""
        best = float(s[mask].sum())
        costs = np.empty(len(s))
        kept = self.state == IN
        for i, j in enumerate(self.free):
            rest = s.copy()
            rest[i] = 0.0
            kept[j] = not mask[i]
            chosen = self._oracle(kept, rest)
            kept[j] = False
            own = 0.0 if mask[i] else float(s[i])
            costs[i] = np.inf if chosen is None else best - own - float(rest[chosen].sum())
        return np.maximum(costs, 0.0)


def allowed(family: SupportFamily) -> Allowed:
    """The fast path for budgets, the oracle for all others."""
    return BudgetAllowed(family) if isinstance(family, Budget) else OracleAllowed(family)
