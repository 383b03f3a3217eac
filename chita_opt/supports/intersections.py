r"""Several families at once: exact where their groups are laminar, bounded elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import block_diag, csr_array, vstack
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.laminar_budget import LaminarBudget, are_laminar, tight_sets
from chita_opt.supports.linear_rows import LinearRows

_STEPS = 60
_ADDED = 2_000  # weights that the heuristic tries to add, by falling score


def intersection(*families: SupportFamily) -> SupportFamily:
    """The masks that all families allow.

    Budgets whose groups are nested or disjoint, all of them together, give a
    :class:`LaminarBudget` with an exact oracle; everything else an :class:`Intersection`, whose
    oracle is a heuristic with a proven bound.

    Raises
    ------
    SupportError
        If there are no families, or their sizes differ.
    """
    sizes = {family.size for family in families}
    if len(sizes) != 1:
        raise SupportError(f"families over {sorted(sizes)} weights have no intersection")
    if len(families) == 1:
        return families[0]
    budgets = [family for family in families if isinstance(family, Budget)]
    if len(budgets) == len(families):
        sets = tight_sets(budgets)
        if are_laminar(sets):
            return LaminarBudget(sizes.pop(), tuple(sets))
    return Intersection(tuple(families))


@dataclass(frozen=True, eq=False)
class Intersection(SupportFamily):
    r"""The masks that all of several families allow, where no exact oracle is known.

    The bound is the Lagrangian's: for any split of the scores,

    .. math:: \max_{z\in\cap_f\mathcal S_f}s^\top z\le\sum_f\max_{z\in\mathcal S_f}(s^f)^{+\top}z,
              \qquad\sum_fs^f=s,

    improved by subgradient steps, or the linear program of all rows together where that is lower.
    The oracle rounds the linear program and the split's maxima, adds what still fits, and takes the
    best: a heuristic (``is_exact`` is False). For two budgets, such as N:M along both axes, the
    rows are totally unimodular, so that oracle and bound meet.
    """

    families: tuple[SupportFamily, ...]
    is_exact = False

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return self.families[0].size

    @property
    def name(self) -> str:
        """The families."""
        return " and ".join(family.name for family in self.families)

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description; says that the oracle is a heuristic."""
        return {
            "family": "intersection",
            "size": self.size,
            "families": [dict(family.specification) for family in self.families],
            "oracle": "heuristic with a Lagrangian bound",
        }

    @property
    def _budgets_alone(self) -> bool:
        return all(isinstance(family, Budget) for family in self.families)

    @property
    def rows_are_tight(self) -> bool:  # type: ignore[override]
        """For two budgets: the union of two laminar families of rows is totally unimodular."""
        return self._budgets_alone and len(self.families) == 2

    @property
    def binary_auxiliary(self) -> bool:  # type: ignore[override]
        """Whether one of the families needs it."""
        return any(family.binary_auxiliary for family in self.families)

    def best_support(self, scores: Tensor) -> Tensor:
        """The best of several roundings; always allowed by every family."""
        s = self.check_scores(scores).double().cpu()
        starts = [self._rounded(s)]
        if not self.rows_are_tight or not self.contains(starts[0]):
            starts = [start for start in starts if self.contains(start)]
            starts += [self._common(split) for split in (self._even(s), self._lagrangian(s)[1])]
        ends = [self._filled(start, s) for start in starts]
        return max(ends, key=lambda mask: float(s[mask].sum())).to(scores.device)

    def value_bound(self, scores: Tensor) -> float:
        """The lower of the Lagrangian's and the linear program's bound."""
        s = self.check_scores(scores).double().cpu()
        linear = self.rows().bound(s.numpy(), self.multipliers(s))
        return linear if self.rows_are_tight else min(linear, self._lagrangian(s)[0])

    def contains(self, mask: Tensor) -> bool:
        """Whether every family allows the mask."""
        return all(family.contains(mask) for family in self.families)

    @cached_property
    def _all_rows(self) -> LinearRows:
        parts = [family.rows() for family in self.families]
        wide = [part for part in parts if part.q]
        G = csr_array(vstack([part.G for part in parts], format="csr"))
        E = csr_array(block_diag([part.E for part in parts], format="csr")) if wide else (
            csr_array((G.shape[0], 0))
        )  # fmt: skip
        return LinearRows(G, np.concatenate([part.h for part in parts]), E)

    def rows(self) -> LinearRows:
        """The rows of all families, each with its own auxiliary variables."""
        return self._all_rows

    def auxiliary(self, mask: Tensor) -> Array:
        """The families' own, in order."""
        return np.concatenate([family.auxiliary(mask) for family in self.families])

    def _rounded(self, s: Tensor) -> Tensor:
        """A vertex of the linear program, entries of at least one half kept."""
        rows, scale = self.rows(), float(s.max()) or 1.0
        cost = np.concatenate([-s.numpy() / scale, np.zeros(rows.q)])
        found = linprog(cost, A_ub=rows.joint, b_ub=rows.h, bounds=(0, 1), method="highs-ds")
        if found.x is None:
            raise SupportError(f"the linear program of {self.name} failed: {found.message}")
        return torch.from_numpy(found.x[: self.size] > 0.5)

    def _even(self, s: Tensor) -> list[Tensor]:
        return [s / len(self.families)] * len(self.families)

    def _common(self, split: Sequence[Tensor]) -> Tensor:
        """What all families keep of their shares: allowed, as families are closed under removal."""
        mask = torch.ones(self.size, dtype=torch.bool)
        for family, share in zip(self.families, split, strict=True):
            mask &= family.best_support(share.clamp_min(0.0))
        return mask

    def _filled(self, mask: Tensor, s: Tensor) -> Tensor:
        """Add weights by falling score where all families allow it."""
        mask = mask.clone()
        order = s.masked_fill(mask, -1.0).argsort(descending=True, stable=True)
        for j in order[: min(_ADDED, int((~mask).sum()))].tolist():
            mask[j] = True
            mask[j] = self.contains(mask)
        return mask

    def _lagrangian(self, s: Tensor) -> tuple[float, list[Tensor]]:
        """Best bound and its split, by subgradient steps of halving length."""
        split, step = self._even(s), 1.0
        best, kept = np.inf, split
        for _ in range(_STEPS):
            shares = [share.clamp_min(0.0) for share in split]
            pairs = list(zip(self.families, shares, strict=True))
            masks = [family.best_support(share) for family, share in pairs]
            value = sum(f.bound_at(x, m) for (f, x), m in zip(pairs, masks, strict=True))
            if value < best:
                best, kept = value, split
            else:
                step *= 0.7
            chosen = [m & (x > 0.0) for m, x in zip(masks, shares, strict=True)]
            mean = torch.stack(chosen).double().mean(0)
            directions = [mean - m.double() for m in chosen]
            length = sum(float(d.square().sum()) for d in directions)
            if not length or step < 1e-4:
                break
            size = step * 0.1 * float(value) / length
            split = [x + size * d for x, d in zip(kept, directions, strict=True)]
        return float(best), kept
