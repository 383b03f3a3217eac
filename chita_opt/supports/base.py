"""The one protocol that every constraint family answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.linear_rows import Array, LinearRows

_FEW = 256  # weights up to which exchanges are asked one by one


@dataclass(frozen=True, eq=False)
class SmoothedMaximum:
    r"""Maximiser of the smoothed inner problem and the structure of its free coordinates.

    Attributes
    ----------
    z : Tensor
        (p,) float64, the maximiser.
    pool : Tensor
        (p,) int64. Free coordinates (0 < z < 1) that share one multiplier carry the same label:
        raising one of them lowers the others. Coordinates that no tight row holds carry -1.
    multipliers : Tensor
        Warm start for the next call; opaque to the caller.
    bundle : Tensor or None
        (p,) int64 where weights of one label move as one; None where each moves by itself.
    share : Tensor or None
        (p,) what raising a bundle by one takes of its pool's row; 1 if absent.
    """

    z: Tensor
    pool: Tensor
    multipliers: Tensor
    bundle: Tensor | None = None
    share: Tensor | None = None


class SupportFamily(ABC):
    r"""A set :math:`\mathcal S` of masks, closed under removing weights.

    One class answers every question that methods, bounds and formulations ask:

    * ``best_support(scores)``: a mask in the family with the largest sum of scores. It is the
      projection of iterative hard thresholding (scores :math:`v_j^2`), the inner maximum of the
      dual bound (scores :math:`c_j^2/2d_j`) and magnitude pruning (scores :math:`\bar w_j^2`).
    * ``contains(mask)``.
    * ``rows()``: linear rows that every mask in the family satisfies, for Pyomo, cvxpy and the
      solver-free check of a certificate (see :class:`LinearRows`).

    Only these and ``size``, ``name`` and ``specification`` must be written for a new family, and
    ``auxiliary`` where the rows have auxiliary variables. The rest has working, slower defaults.

    Attributes
    ----------
    size : int
        Number of weights p.
    is_exact : bool
        Whether ``best_support`` is the maximum. Where it is only a good mask, ``value_bound`` is
        above the maximum, and every bound uses it.
    rows_are_tight : bool
        Whether the rows describe the convex hull of the family, so that their linear program has
        the oracle's value. Where they don't, proofs that a replay checks rest on the rows alone.
    binary_auxiliary : bool
        Whether a model must hold the auxiliary variables binary; False where binary z suffice.
    """

    size: int
    is_exact: bool = True
    rows_are_tight: bool = True
    binary_auxiliary: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name with the parameters, as a person would say it."""

    @property
    @abstractmethod
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description for reports and certificates."""

    @abstractmethod
    def best_support(self, scores: Tensor) -> Tensor:
        """Mask in the family with the largest sum of ``scores`` (p,), which are >= 0.

        Ties go to the lowest index. The mask lies on the device of ``scores``.
        """

    @abstractmethod
    def contains(self, mask: Tensor) -> bool:
        """Whether ``mask`` (p,) bool belongs to the family."""

    @abstractmethod
    def rows(self) -> LinearRows:
        """Linear rows ``G z + E u <= h``, valid for every mask in the family with some u."""

    def auxiliary(self, mask: Tensor) -> Array:
        """Values u (q,) in {0, 1} that satisfy the rows with a mask of the family."""
        if self.rows().q:
            raise SupportError(f"{self.name} has auxiliary variables, but no auxiliary method")
        return np.empty(0)

    @property
    def is_laminar(self) -> bool:
        """Whether the family is a set of nested budgets, with thresholds for all questions."""
        return False

    @property
    def is_smooth(self) -> bool:
        """Whether ``smoothed_maximum`` is available (exact, by thresholds)."""
        return self.is_laminar

    @property
    def max_count(self) -> int:
        """Largest number of weights that a mask of the family keeps."""
        ones = torch.ones(self.size, dtype=torch.float64)
        return int(self.value_bound(ones) * (1.0 + 1e-9))

    def best_value(self, scores: Tensor) -> float:
        """Sum of ``scores`` over the best support, in float64."""
        return float(scores.double()[self.best_support(scores)].sum())

    def value_bound(self, scores: Tensor) -> float:
        """Not below the largest sum of ``scores``; the best value where the oracle is exact."""
        if self.is_exact:
            return self.best_value(scores)
        s = scores.double().cpu().numpy()
        return self.rows().bound(s, self.multipliers(scores)) * (1.0 + 1e-12)

    def bound_at(self, scores: Tensor, mask: Tensor) -> float:
        """``value_bound`` where the oracle's ``mask`` for the scores is at hand."""
        return float(scores[mask].sum()) if self.is_exact else self.value_bound(scores)

    def multipliers(self, scores: Tensor) -> Array:
        r"""Row multipliers y >= 0 that bound the best value without a solver.

        Any y >= 0 serves (see :meth:`LinearRows.bound`). The default solves the linear program of
        the rows; large families override it.
        """
        rows = self.rows()
        s = scores.double().cpu().numpy()
        scale = float(s.max(initial=0.0)) or 1.0
        cost = np.concatenate([-s / scale, np.zeros(rows.q)])
        solved = linprog(cost, A_ub=rows.joint, b_ub=rows.h, bounds=(0, 1), method="highs")
        if solved.status != 0:
            raise SupportError(f"the linear program of {self.name} failed: {solved.message}")
        return scale * np.maximum(-solved.ineqlin.marginals, 0.0)

    def exchange_costs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Loss of best value when weight j is forced against ``mask`` (the best support).

        Entry j is not above the loss when a kept weight is forced out, or a pruned one forced in.
        The default asks an exact oracle p times where p is small, and reads the multipliers of the
        rows elsewhere.
        """
        s = scores.double()
        if not self.is_exact or self.size > _FEW:
            return self._priced_exchange(s, mask)
        best = float(s[mask].sum())
        large = 1.0 + 2.0 * float(s.sum())
        costs = torch.empty_like(s)
        for j in range(self.size):
            forced = s.clone()
            forced[j] = 0.0 if mask[j] else large
            chosen = self.best_support(forced)
            if not mask[j] and not chosen[j]:
                costs[j] = torch.inf  # no mask of the family keeps j
                continue
            chosen[j] = not mask[j]
            costs[j] = best - float(s[chosen].sum())
        return costs

    def _priced_exchange(self, s: Tensor, mask: Tensor) -> Tensor:
        """Reduced costs of the rows, less what their bound lies above the family's own."""
        values, rows, y = s.cpu().numpy(), self.rows(), self.multipliers(s)
        costs = rows.exchange_costs(values, y, mask.cpu().numpy())
        excess = rows.bound(values, y) - self.bound_at(s, mask)
        return torch.from_numpy(np.maximum(costs - max(excess, 0.0), 0.0)).to(s.device)

    def exchange_margins(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Rough loss from exchanging weight j, for any mask; negative where it looks like a gain.

        Used to choose candidates for exchanges, never to decide one. The default looks at the
        scores alone.
        """
        return torch.where(mask, scores, -scores)

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Whether weight i may leave ``mask`` and weight j enter, for all pairs.

        Boolean (len(outgoing), len(incoming)); None stands for "always". False may also be said of
        swaps that a family would rather leave to its oracle.
        """
        allowed = torch.zeros(len(outgoing), len(incoming), dtype=torch.bool, device=mask.device)
        trial = mask.clone()
        for a, i in enumerate(outgoing.tolist()):
            trial[i] = False
            for b, j in enumerate(incoming.tolist()):
                trial[j] = True
                allowed[a, b] = self.contains(trial)
                trial[j] = False
            trial[i] = True
        return allowed

    def smoothed_maximum(
        self, gains: Tensor, centre: Tensor, epsilon: Tensor, warm: Tensor | None = None
    ) -> SmoothedMaximum:
        r"""Maximise :math:`z^\top g - \tfrac12\sum_j\epsilon_j(z_j-z^0_j)^2` over conv(family)."""
        raise SupportError(f"{self.name} has no smoothed maximum; use its oracle")

    def smoothing_scale(self, gains: Tensor) -> Tensor:
        """Per-weight natural scale of the smoothing: the gain at the family's threshold (p,)."""
        raise SupportError(f"{self.name} has no smoothing scale; use its oracle")

    def laminar_part(self, mask: Tensor) -> SupportFamily | None:
        """A smaller family with thresholds that holds ``mask``, such as its widths; or None."""
        return None

    def check_scores(self, scores: Tensor) -> Tensor:
        """Refuse scores of the wrong shape or with NaN."""
        if scores.shape != (self.size,):
            raise SupportError(
                f"scores have shape {tuple(scores.shape)}; {self.name} needs ({self.size},)"
            )
        if bool(torch.isnan(scores).any()):
            raise SupportError("scores hold NaN; check the gradients and weights for NaN or inf")
        return scores

    def check_mask(self, mask: Tensor) -> Tensor:
        """Refuse masks of the wrong shape or type."""
        if mask.shape != (self.size,) or mask.dtype != torch.bool:
            raise SupportError(
                f"mask has shape {tuple(mask.shape)} and type {mask.dtype}; "
                f"{self.name} needs ({self.size},) bool"
            )
        return mask
