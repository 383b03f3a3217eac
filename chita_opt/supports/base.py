"""The one protocol that every constraint family answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.errors import SupportError

Array = np.ndarray


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
    """

    z: Tensor
    pool: Tensor
    multipliers: Tensor


class SupportFamily(ABC):
    r"""A set :math:`\mathcal S` of masks, closed under removing weights.

    One class answers every question that methods, bounds and formulations ask:

    * ``best_support(scores)``: a mask in the family with the largest sum of scores. It is the
      projection of iterative hard thresholding (scores :math:`v_j^2`), the inner maximum of the
      dual bound (scores :math:`c_j^2/2d_j`) and magnitude pruning (scores :math:`\bar w_j^2`).
    * ``contains(mask)``.
    * ``rows()``: a matrix G and a vector h with :math:`Gz \le h` for every mask in the family, for
      Pyomo, cvxpy and the solver-free check of a certificate.

    Only these and ``size``, ``name`` and ``specification`` must be written for a new family. The
    rest has working, slower defaults.
    """

    size: int

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
    def rows(self) -> tuple[csr_array, Array]:
        """Linear rows ``G z <= h``, G with entries >= 0, valid for every mask in the family."""

    @property
    def is_laminar(self) -> bool:
        """Whether ``smoothed_maximum`` is available (exact, by thresholds)."""
        return False

    @property
    def max_count(self) -> int:
        """Largest number of weights that a mask of the family keeps."""
        return int(self.best_support(torch.ones(self.size, dtype=torch.float64)).sum())

    def best_value(self, scores: Tensor) -> float:
        """Sum of ``scores`` over the best support, in float64."""
        return float(scores.double()[self.best_support(scores)].sum())

    def multipliers(self, scores: Tensor) -> Array:
        r"""Row multipliers y >= 0 that bound the best value without a solver.

        For any y >= 0, :math:`\max_{z\in\mathcal S} s^\top z \le h^\top y + \sum_j (s - G^\top
        y)_j^+`. The default solves the linear program; families with tight rows override it.
        """
        G, h = self.rows()
        s = scores.double().cpu().numpy()
        scale = float(s.max(initial=0.0)) or 1.0
        solved = linprog(-s / scale, A_ub=G, b_ub=h, bounds=(0, 1), method="highs")
        if solved.status != 0:
            raise SupportError(f"the linear program of {self.name} failed: {solved.message}")
        return scale * np.maximum(-solved.ineqlin.marginals, 0.0)

    def exchange_costs(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Loss of best value when weight j is forced against ``mask`` (the best support).

        Entry j is the loss when a kept weight is forced out, or a pruned one forced in. The
        default asks the oracle p times.
        """
        s = scores.double()
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

    def exchange_margins(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Rough loss from exchanging weight j, for any mask; negative where it looks like a gain.

        Used to choose candidates for exchanges, never to decide one. The default looks at the
        scores alone.
        """
        return torch.where(mask, scores, -scores)

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Whether weight i may leave ``mask`` and weight j enter, for all pairs.

        Boolean (len(outgoing), len(incoming)); None stands for "always".
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
