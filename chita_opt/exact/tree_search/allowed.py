"""A support family seen from a node: what is still allowed, its rows and its oracle."""

from __future__ import annotations

import numpy as np

from chita_opt.exact.quadratic import FREE, IN, OUT
from chita_opt.exact.tree_search import laminar
from chita_opt.exact.tree_search.groups_allowed import GroupsAllowed
from chita_opt.exact.tree_search.oracle_allowed import OracleAllowed
from chita_opt.exact.tree_search.restricted import Allowed, Restricted
from chita_opt.supports import Budget, SupportFamily, WholeGroups
from chita_opt.supports.base import Array


class BudgetAllowed(Allowed):
    """Cardinality, N:M, per block, per row and their nested totals: counts decide everything."""

    def __init__(self, family: Budget) -> None:
        self.labels = family.labels.cpu().numpy()
        self.caps = family.caps.cpu().numpy()
        every = int(self.caps.sum())
        self.total = every if family.total is None else min(family.total, every)
        self.row_count = len(self.caps) + 1
        self.has_total = len(self.caps) == 1 or family.total is not None

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

    def free_count(self, state: Array) -> int | None:
        """What the total leaves, where it is a row and no group's cap is reached before it."""
        caps, total = self.left(state)
        count = np.bincount(self.labels[state == FREE], minlength=len(caps))
        total = min(total, int(count.sum()))
        return total if self.has_total and bool((np.minimum(count, total) <= caps).all()) else None

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


def allowed(family: SupportFamily, *, proof: bool = False, idle: Array | None = None) -> Allowed:
    """The fast paths for budgets and whole groups, the oracle for all others.

    With ``proof`` no more is claimed than the family's rows prove, weight by weight. ``idle``
    weights (p,) are out from the start.
    """
    if isinstance(family, Budget):
        return BudgetAllowed(family)
    if isinstance(family, WholeGroups) and not proof:
        return GroupsAllowed(family, np.zeros(family.size, dtype=bool) if idle is None else idle)
    by_rows = not family.is_exact or (proof and not family.rows_are_tight)
    return OracleAllowed(family, by_rows=by_rows)


__all__ = ["Allowed", "BudgetAllowed", "Restricted", "allowed"]
