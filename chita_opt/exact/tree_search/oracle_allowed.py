"""A family without thresholds, seen from a node: by its oracle, or by its rows alone."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array

from chita_opt.exact.quadratic import FREE, IN, OUT
from chita_opt.exact.tree_search.restricted import Allowed, Restricted
from chita_opt.supports import LinearRows, SupportFamily
from chita_opt.supports.base import Array

_MAX_ROWS = 400  # rows of a family without thresholds that enter the barrier
_SAFE = 1e-9  # relative allowance for what a linear program returns


class OracleAllowed(Allowed):
    """Any family: kept weights get a score that always wins, those out none.

    Parameters
    ----------
    family : SupportFamily
        Answers ``contains``, and ``best_support`` unless ``by_rows``.
    by_rows : bool
        Bound best values by the linear program of the rows: for an oracle that is not exact, and
        for proofs that a replay checks, which cannot ask an oracle.
    """

    def __init__(self, family: SupportFamily, *, by_rows: bool = False) -> None:
        self.family, self.by_rows = family, by_rows
        self.rows = family.rows()
        self.G, self.h = _barrier_rows(self.rows, family)
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
        return (_RestrictedRows if self.by_rows else _RestrictedOracle)(self, state, free)


def _barrier_rows(rows: LinearRows, family: SupportFamily) -> tuple[Array, Array]:
    """Rows on the masks alone; the largest count where there are none, or too many."""
    own = np.diff(rows.E.indptr) == 0 if rows.q else np.ones(len(rows.h), dtype=bool)
    own &= np.diff(rows.G.indptr) > 0
    if 0 < int(own.sum()) <= _MAX_ROWS:
        return rows.G[np.flatnonzero(own)].toarray(), rows.h[own]
    return np.ones((1, family.size)), np.array([float(family.max_count)])


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


class _RestrictedRows(_RestrictedOracle):
    """Values by the linear program of the rows; the oracle still names the masks."""

    def __init__(self, whole: OracleAllowed, state: Array, free: Array) -> None:
        super().__init__(whole, state, free)
        rows = whole.rows
        held = np.asarray(rows.G[:, np.flatnonzero(state == IN)].sum(1)).ravel()
        self.rows = LinearRows(csr_array(rows.G[:, free]), rows.h - held, rows.E)
        self.joint = self.rows.joint

    def best(self, s: Array) -> tuple[Array, float]:
        """A mask, and a bound on the best value."""
        chosen = self._oracle(self.state == IN, s)
        mask = np.zeros(len(s), dtype=bool) if chosen is None else chosen & (s > 0.0)
        return mask, self.rows.bound(s, self._prices(s)) * (1.0 + _SAFE)

    def exchange(self, s: Array, mask: Array) -> Array:
        """Reduced costs at the prices."""
        return self.rows.exchange_costs(s, self._prices(s), mask)

    def _prices(self, s: Array) -> Array:
        scale = float(s.max(initial=0.0)) or 1.0
        cost = np.concatenate([-s / scale, np.zeros(self.rows.q)])
        found = linprog(cost, A_ub=self.joint, b_ub=self.rows.h, bounds=(0, 1), method="highs")
        if found.status != 0:  # no price proves anything here: pay for every weight in full
            return np.zeros(len(self.rows.h))
        return scale * np.maximum(-found.ineqlin.marginals, 0.0)
