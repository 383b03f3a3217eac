"""What pruning in stages returns: masks, weights and a table of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from chita_opt import __version__
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruned_weights import PrunedWeights
from chita_opt.nn.stages.state import Note
from chita_opt.solution import Status
from chita_opt.supports import KeepCount


@dataclass(frozen=True)
class StageRow:
    """One stage as it went.

    Attributes
    ----------
    stage : int
        From 0.
    k, kept : int
        Weights that it might keep, and those that are not zero after it.
    returned : int
        Weights that were pruned before it and are not after it.
    loss : float
        Mean loss of its gradient samples before it.
    gradients, solve : float
        Seconds.
    notes : Mapping
        What the step noted.
    """

    stage: int
    k: int
    kept: int
    returned: int
    loss: float
    gradients: float
    solve: float
    notes: Mapping[str, Note] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StagedResult(PrunedWeights):
    """A network pruned in stages that has not been touched yet: call :meth:`apply_`.

    Attributes
    ----------
    layer_map : LayerMap
        Where each parameter lies in the flat vector of weights.
    keep : KeepCount
        Requested and realised sparsity over the selected weights.
    flat : Tensor
        (p,) float64 weights, rounded to the parameters' types.
    dtypes : Mapping
        Type of each parameter by name.
    stages : tuple of StageRow
        The stages that were completed, those before a resume included.
    planned : int
        Number of stages asked for.
    status : Status
        FEASIBLE after all stages; TIME_LIMIT or INTERRUPTED where the last ones were cut short.
    seconds : float
        Wall time of this call.
    notes : Mapping
        How the curvature was measured, and how a run that was cut short was finished.
    """

    layer_map: LayerMap
    keep: KeepCount
    flat: Tensor = field(repr=False)
    dtypes: Mapping[str, torch.dtype] = field(repr=False)
    stages: tuple[StageRow, ...]
    planned: int
    status: Status
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def w(self) -> Tensor:
        """The pruned weights as one vector, (p,) float64."""
        return self.flat

    @property
    def nnz(self) -> int:
        """Number of weights that are not zero."""
        return int((self.flat != 0).sum())

    @property
    def sparsity(self) -> float:
        """Share of zero weights."""
        return 1.0 - self.nnz / self.layer_map.size

    def report(self) -> dict[str, Any]:
        """Everything about the result but the tensors, as JSON-able values."""
        return {
            "version": __version__,
            "method": "stages",
            "status": str(self.status),
            "requested_sparsity": self.keep.requested,
            "realised_sparsity": self.sparsity,
            "p": self.layer_map.size,
            "nnz": self.nnz,
            "planned_stages": self.planned,
            "seconds": self.seconds,
            "notes": dict(self.notes),
            "stages": [asdict(row) for row in self.stages],
            "layers": [
                {"name": i.name, "size": i.size, "kept": int(self.masks[i.name].sum())}
                for i in self.layer_map
            ],
            "left_alone": [asdict(left) for left in self.layer_map.left_alone],
        }

    @property
    def summary(self) -> str:
        """A few lines for people."""
        p, done = self.layer_map.size, len(self.stages)
        head = (
            f"pruned {p - self.nnz:,} of {p:,} weights (sparsity {self.sparsity:.6g}) in {done} "
            f"of {self.planned} stages, {self.status}, {self.seconds:.2f} s"
        )
        rows = [
            f"  {row.stage}: {row.kept:,} kept, {row.returned:,} returned, loss before "
            f"{row.loss:.4g}, gradients {row.gradients:.2f} s, solve {row.solve:.2f} s"
            for row in self.stages
        ]
        return "\n".join([head, self._trust(), *rows])

    def _trust(self) -> str:
        found = self.notes.get("trust", {})
        if "loss" not in found:
            return f"trust: not measured ({found.get('reason', 'nothing was held out')})"
        line = f"held-out loss {found['dense_loss']:.4g} -> {found['loss']:.4g}"
        if found["accuracy"] is not None:
            line += f", accuracy {found['dense_accuracy']:.2f} -> {found['accuracy']:.2f} %"
        line += f" on {found['samples']:,} samples that no stage used"
        last = found.get("last_stage")
        if last is None:
            return line
        said = "" if last["predicted"] is None else f", its model said {last['predicted']:+.4g}"
        changed = f"loss {last['actual']:+.4g}{said}"
        return "\n".join([line, f"last stage: {last['verdict']}, {changed}", *last["reasons"]])

    def __str__(self) -> str:
        return self.summary


__all__ = ["StageRow", "StagedResult"]
