r"""Caps on sets of weights that are nested or disjoint: a laminar matroid of any depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows


@dataclass(frozen=True, eq=False)
class LaminarBudget(SupportFamily):
    """At most ``cap`` kept weights in each of some sets, any two of them nested or disjoint.

    A laminar matroid: the oracle keeps the best of each set, from the smallest set on, and is
    exact; the rows are totally unimodular. Built by
    :func:`~chita_opt.supports.intersections.intersection`.

    Attributes
    ----------
    size : int
        Number of weights p.
    sets : tuple of (ndarray, int)
        Members and cap of each set, from the smallest on.
    """

    size: int
    sets: tuple[tuple[Array, int], ...]

    @property
    def name(self) -> str:
        """Number of sets."""
        return f"laminar budget of {len(self.sets)} sets"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description; the exact rows are in :meth:`rows`."""
        caps = [cap for _, cap in self.sets]
        return {"family": "laminar budget", "size": self.size, "caps": caps}

    def best_support(self, scores: Tensor) -> Tensor:
        """Best of each set, smallest sets first; ties go to the lowest index."""
        s = self.check_scores(scores).double().cpu().numpy()
        mask = np.ones(self.size, dtype=bool)
        for members, cap in self.sets:
            live = members[mask[members]]
            mask[live[np.argsort(-s[live], kind="stable")[cap:]]] = False
        return torch.from_numpy(mask).to(scores.device)

    def contains(self, mask: Tensor) -> bool:
        """Whether every set is within its cap."""
        kept = self.check_mask(mask).cpu().numpy()
        return all(int(kept[members].sum()) <= cap for members, cap in self.sets)

    def rows(self) -> LinearRows:
        """One row a set."""
        row = np.repeat(np.arange(len(self.sets)), [len(members) for members, _ in self.sets])
        column = np.concatenate([members for members, _ in self.sets] or [np.zeros(0, int)])
        G = csr_array((np.ones(len(row)), (row, column)), shape=(len(self.sets), self.size))
        return LinearRows.plain(G, np.array([cap for _, cap in self.sets], dtype=np.float64))


def tight_sets(budgets: Sequence[Budget]) -> list[tuple[Array, int]]:
    """Members and cap of every row that can bind, from the smallest set on; equal sets once."""
    found: dict[bytes, tuple[Array, int]] = {}
    for budget in budgets:
        rows = budget.rows()
        for i, cap in enumerate(rows.h):
            members = np.sort(rows.G.indices[rows.G.indptr[i] : rows.G.indptr[i + 1]])
            key = members.tobytes()
            if len(members) > cap and (key not in found or found[key][1] > cap):
                found[key] = (members.astype(np.int64), int(cap))
    return sorted(found.values(), key=lambda pair: len(pair[0]))


def are_laminar(sets: Sequence[tuple[Array, int]]) -> bool:
    """Whether any two sets are nested or disjoint; sets come from the smallest on."""
    if not sets:
        return True
    size = 1 + max(int(members.max()) for members, _ in sets)
    owner = np.full(size, -1)  # the largest set so far that holds a weight
    sizes = [len(members) for members, _ in sets]
    for name, (members, _) in enumerate(sets):
        inside, counts = np.unique(owner[members], return_counts=True)
        if any(o >= 0 and n < sizes[o] for o, n in zip(inside, counts, strict=True)):
            return False
        owner[members] = name
    return True
