"""A family seen from some of its weights, the others kept or pruned for good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows


@dataclass(frozen=True, eq=False)
class RestrictedFamily(SupportFamily):
    """The masks on ``index`` that are allowed beside the kept weights; all others are pruned.

    Attributes
    ----------
    whole : SupportFamily
        The family over all p weights; it must hold ``kept`` itself.
    kept : Tensor
        (p,) bool, false on ``index``.
    index : Tensor
        (m,) int64, the weights that are still to be decided.
    """

    whole: SupportFamily
    kept: Tensor
    index: Tensor

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights m."""
        return len(self.index)

    @property
    def is_exact(self) -> bool:  # type: ignore[override]
        """As the whole family."""
        return self.whole.is_exact

    @property
    def rows_are_tight(self) -> bool:  # type: ignore[override]
        """As the whole family: a face of its hull is described by the same rows."""
        return self.whole.rows_are_tight

    @property
    def binary_auxiliary(self) -> bool:  # type: ignore[override]
        """As the whole family."""
        return self.whole.binary_auxiliary

    @property
    def name(self) -> str:
        """The whole family's name and what is left of it."""
        return f"{self.whole.name} on {self.size} weights"

    @property
    def specification(self) -> Mapping[str, Any]:
        """The whole family's, and the sizes."""
        return {
            "family": "restriction",
            "whole": dict(self.whole.specification),
            "size": self.size,
            "kept": int(self.kept.sum()),
        }

    def best_support(self, scores: Tensor) -> Tensor:
        """The whole family's oracle, with a score for kept weights that always wins."""
        s = self.check_scores(scores).double()
        place = self.index.to(s.device)
        every = s.new_zeros(self.whole.size)
        every[self.kept.to(s.device)] = 2.0 * float(s.sum()) + 1.0
        every[place] = s
        mask = self.whole.best_support(every)
        if not bool(mask[self.kept.to(mask.device)].all()):  # an inexact oracle may miss them
            return torch.zeros(self.size, dtype=torch.bool, device=s.device)
        return mask[place] & (s > 0.0)

    def contains(self, mask: Tensor) -> bool:
        """Whether the mask and the kept weights are allowed together."""
        return self.whole.contains(self._joined(self.check_mask(mask)))

    def rows(self) -> LinearRows:
        """The whole family's rows, less what the kept weights take."""
        return self._rows

    @cached_property
    def _rows(self) -> LinearRows:
        rows = self.whole.rows()
        kept = self.kept.cpu().numpy().astype(float)
        index = self.index.cpu().numpy()
        return LinearRows(csr_array(rows.G[:, index]), rows.h - rows.G @ kept, rows.E)

    def auxiliary(self, mask: Tensor) -> Array:
        """The whole family's values for the mask and the kept weights."""
        return self.whole.auxiliary(self._joined(mask))

    def _joined(self, mask: Tensor) -> Tensor:
        every = self.kept.to(mask.device).clone()
        every[self.index.to(mask.device)] = mask
        return every


def restrict(family: SupportFamily, kept: Tensor, index: Tensor) -> SupportFamily:
    """``family`` on the weights of ``index``, those of ``kept`` kept and all others pruned.

    Budgets stay budgets, with what the kept weights leave of every cap.

    Parameters
    ----------
    family : SupportFamily
        Over p weights.
    kept : Tensor
        (p,) bool, false on ``index``.
    index : Tensor
        (m,) int64, sorted, at least one.

    Raises
    ------
    SupportError
        If nothing is left to decide, or the kept weights alone are not allowed.
    """
    if not len(index) or bool(kept[index.to(kept.device)].any()):
        raise SupportError("index must name one weight or more, none of them among the kept ones")
    if not family.contains(kept):
        raise SupportError(
            f"{int(kept.sum())} kept weights are not allowed by {family.name}; keep fewer"
        )
    if isinstance(family, Budget):
        return _rest_of_budget(family, kept.cpu(), index.cpu())
    return RestrictedFamily(family, kept, index)


def _rest_of_budget(family: Budget, kept: Tensor, index: Tensor) -> Budget:
    groups = len(family.caps)
    left = family.caps - torch.bincount(family.labels[kept], minlength=groups)
    names, labels = family.labels[index].unique(return_inverse=True)
    caps = torch.minimum(left[names], torch.bincount(labels, minlength=len(names)))
    total = family.total
    if total is not None:
        total = min(total - int(kept.sum()), int(caps.sum()))
    title = f"{family.title} on {len(index)} weights"
    return replace(family, labels=labels, caps=caps, total=total, title=title, _cache={})


__all__ = ["RestrictedFamily", "restrict"]
