"""What pruning a network returns: masks, weights, a table of layers and the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from chita_opt import __version__
from chita_opt.certificates import Certificate
from chita_opt.certificates.verification import SCOPE
from chita_opt.nn.gap_shares import gap_shares
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruned_weights import PrunedWeights
from chita_opt.nn.trust.verdict import TrustReport
from chita_opt.solution import Solution
from chita_opt.supports import KeepCount


@dataclass(frozen=True)
class LayerReport:
    """One row of the table of layers.

    Attributes
    ----------
    name, shape : str, tuple of int
        The parameter.
    size, kept : int
        Weights in all, and kept.
    gap_share : float or None
        Share of the certified gap that arises at this layer's weights; see ``gap_shares``.
    aliases : tuple of str
        Further names of a tied parameter.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    kept: int
    gap_share: float | None
    aliases: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of pruned weights."""
        return 1.0 - self.kept / self.size


@dataclass(frozen=True, eq=False)
class PruningResult(PrunedWeights):
    """A pruned network that has not been touched yet: call :meth:`apply_`.

    Attributes
    ----------
    layer_map : LayerMap
        Where each parameter lies in the flat vector of the solution.
    keep : KeepCount
        Requested and realised sparsity over the selected weights.
    solution : Solution
        The pruned weights as :meth:`apply_` writes them (rounded to the parameters' types) with
        their problem.
    certificate : Certificate or None
        Bound and gap over all selected weights.
    layer_certificates : Mapping
        One by layer name, where the layers are independent problems; else empty.
    dtypes : Mapping
        Type of each parameter by name.
    seconds : Mapping
        Wall time of "curvature", "solve", "certify" and in "total".
    notes : Mapping
        How the curvature was measured.
    trust : TrustReport or None
        What held-out samples say about these weights; None where nothing was held out, for the
        reason in ``notes["trust"]``.
    """

    layer_map: LayerMap
    keep: KeepCount
    solution: Solution
    certificate: Certificate | None
    layer_certificates: Mapping[str, Certificate] = field(repr=False)
    dtypes: Mapping[str, torch.dtype] = field(repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    trust: TrustReport | None = None

    @property
    def objective(self) -> float:
        """Objective of the quadratic problem at the pruned weights."""
        return self.solution.objective

    @property
    def w(self) -> Tensor:
        """The pruned weights as one vector, (p,) float64."""
        return self.solution.w

    @cached_property
    def layers(self) -> tuple[LayerReport, ...]:
        """The table of layers, in the order of the flat vector."""
        shares: Mapping[str, float] = {}
        if self.certificate is not None:
            shares = gap_shares(self.certificate, self.layer_map)
        mask = self.solution.mask
        return tuple(
            LayerReport(
                item.name,
                item.shape,
                item.size,
                int(mask[item.start : item.stop].sum()),
                shares.get(item.name),
                item.aliases,
            )
            for item in self.layer_map
        )

    def report(self) -> dict[str, Any]:
        """Everything about the result but the tensors, as JSON-able values."""
        claims, history = None, {"incumbent": self.solution.history, "bound": []}
        if self.certificate is not None:
            claims = {k: v for k, v in self.certificate.claims().items() if k != "problem"}
            history = claims.pop("history")
        return {
            "version": __version__,
            "objective": self.objective,
            "method": self.solution.method,
            "status": str(self.solution.status),
            "requested_sparsity": self.keep.requested,
            "realised_sparsity": self.solution.sparsity,
            "p": self.solution.problem.p,
            "nnz": self.solution.nnz,
            "support": self.solution.problem.supports.name,
            "seconds": dict(self.seconds),
            "solve_passes": self.solve_passes(),
            "notes": dict(self.notes),
            "trust": None if self.trust is None else self.trust.to_json(),
            "certificate": claims,
            "history": history,
            "layer_gaps": {k: c.relative_gap for k, c in self.layer_certificates.items()},
            "layers": [{**asdict(row), "sparsity": row.sparsity} for row in self.layers],
            "left_alone": [asdict(left) for left in self.layer_map.left_alone],
            "scope": f"objective, bound and gap are {SCOPE}",
        }

    def solve_passes(self) -> float:
        """Seconds of solving over those of one pass over the curvature's data (A x, then A'y).

        The pass is measured on the first call.
        """
        unit = self.solution.problem.curvature.pass_seconds
        return self.seconds.get("solve", 0.0) / unit

    @property
    def summary(self) -> str:
        """A few lines for people."""
        s = self.solution
        asked = f"{s.problem.p - self.keep.k:,} asked for by sparsity {self.keep.requested:g}"
        lines = [
            f"{s.method} pruned {s.problem.p - s.nnz:,} of {s.problem.p:,} weights "
            f"(sparsity {s.sparsity:.6g}; {asked}), {s.problem.supports.name}, {s.status}",
            self._proof(),
            self._trust(),
            *(self._row(row) for row in self.layers),
        ]
        if self.certificate is not None and len(self.layers) > 1:
            joint = 1.0 - sum(row.gap_share or 0.0 for row in self.layers)
            lines.append(f"  the layers together: {100 * joint:.1f} % of the gap")
        if self.layer_map.left_alone:
            lines.append(f"  left alone: {self._left_alone()}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary

    def _proof(self) -> str:
        if self.certificate is None:
            return f"objective {self.objective:.6g}, not certified; it is {SCOPE}"
        c = self.certificate
        return (
            f"objective {c.upper:.6g}, proven lower bound {c.lower:.6g}, "
            f"gap {100 * c.relative_gap:.4g} % ({c.proof}): {SCOPE}"
        )

    def _trust(self) -> str:
        if self.trust is not None:
            return self.trust.summary
        return f"trust: not measured ({self.notes.get('trust', 'no samples were held out')})"

    def _left_alone(self) -> str:
        left = self.layer_map.left_alone
        counts = Counter(item.reason for item in left)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        values = sum(item.size for item in left)
        return f"{values:,} values of {len(left)} parameters ({reasons})"

    def _row(self, row: LayerReport) -> str:
        own = self.layer_certificates.get(row.name)
        note = "" if row.gap_share is None else f", {100 * row.gap_share:.1f} % of the gap"
        note += "" if own is None else f", own gap {100 * own.relative_gap:.4g} %"
        shape = "x".join(map(str, row.shape))
        tied = f" (also {', '.join(row.aliases)})" if row.aliases else ""
        return (
            f"  {row.name}{tied} {shape}: {row.kept:,} of {row.size:,} kept "
            f"(sparsity {row.sparsity:.4g}){note}"
        )


__all__ = ["LayerReport", "PruningResult"]
