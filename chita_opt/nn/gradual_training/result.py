"""What training with pruning steps returns: the trained network, its masks and its history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt import __version__
from chita_opt.nn.gradual_training.recording import HistoryRow
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruned_weights import PrunedWeights
from chita_opt.nn.weight_files import save_weights
from chita_opt.solution import Status
from chita_opt.supports import KeepCount


@dataclass(frozen=True, eq=False)
class GradualResult(PrunedWeights):
    """A network that was pruned while it trained; the caller's model has not been touched.

    Attributes
    ----------
    network : torch.nn.Module
        The trained network in eval mode, with plain weights. Everything in it may have been
        trained, biases and normalisation too.
    layer_map : LayerMap
        Where each pruned parameter lies in the flat vector of weights.
    keep : KeepCount
        Requested and realised sparsity over the selected weights.
    mask : Tensor
        (p,) bool: what the pruning steps kept. A kept weight may be zero by chance.
    history : tuple of HistoryRow
        Every epoch and pruning step, those before a resume included.
    planned : int
        Number of pruning steps asked for.
    status : Status
        FEASIBLE after the whole run, and where held-out loss ended it early; TIME_LIMIT or
        INTERRUPTED where it was cut short: the network is then as it was at that moment, and the
        sparsity may not be reached.
    seconds : float
        Wall time of this call.
    notes : Mapping
        How it went, with the dense network's held-out loss and accuracy.
    """

    network: nn.Module = field(repr=False)
    layer_map: LayerMap
    keep: KeepCount
    mask: Tensor = field(repr=False)
    history: tuple[HistoryRow, ...]
    planned: int
    status: Status
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def w(self) -> Tensor:
        """The weights as one vector, (p,) float64."""
        return self.layer_map.weights(self.network)

    @cached_property
    def dtypes(self) -> dict[str, torch.dtype]:  # type: ignore[override]
        """Type of each parameter by name."""
        return {i.name: self.layer_map.parameter(self.network, i).dtype for i in self.layer_map}

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Boolean masks keyed as in the state dict; names of a tied parameter share one."""
        return self._by_name(self.layer_map.unflatten(self.mask))

    @property
    def nnz(self) -> int:
        """Number of weights that are not zero."""
        return int((self.w != 0).sum())

    @property
    def sparsity(self) -> float:
        """Share of zero weights."""
        return 1.0 - self.nnz / self.layer_map.size

    def apply_(self, model: nn.Module) -> nn.Module:
        """Write the whole trained state into a model, in place, and return it."""
        model.load_state_dict(self.network.state_dict())
        return model

    def save(self, path: str | Path) -> None:
        """Write the whole state dict, the masks and the report to one safetensors file."""
        masks = self.layer_map.unflatten(self.mask)
        save_weights(
            path, self.network, masks=masks, metadata={"report": json.dumps(self.report())}
        )

    def report(self) -> dict[str, Any]:
        """Everything about the result but the tensors, as JSON-able values."""
        return {
            "version": __version__,
            "method": "gradual training",
            "status": str(self.status),
            "requested_sparsity": self.keep.requested,
            "realised_sparsity": self.sparsity,
            "p": self.layer_map.size,
            "nnz": self.nnz,
            "planned_prunings": self.planned,
            "seconds": self.seconds,
            "notes": dict(self.notes),
            "history": [asdict(row) for row in self.history],
            "layers": [
                {"name": i.name, "size": i.size, "kept": int(self.masks[i.name].sum())}
                for i in self.layer_map
            ],
        }

    @property
    def summary(self) -> str:
        """A few lines for people."""
        p, done = self.layer_map.size, sum(row.event == "pruning" for row in self.history)
        head = (
            f"pruned {p - self.nnz:,} of {p:,} weights (sparsity {self.sparsity:.6g}) in {done} of "
            f"{self.planned} pruning steps while training, {self.status}, {self.seconds:.2f} s"
        )
        rows = [f"  {row.line}" for row in self.history if row.event != "epoch"]
        return "\n".join([head, self._dense_line(), *rows])

    def _dense_line(self) -> str:
        if "dense_loss" not in self.notes:
            return f"nothing was held out ({self.notes.get('held_out', 'switched off')})"
        line = f"  dense: held-out loss {self.notes['dense_loss']:.4g}"
        if self.notes["dense_accuracy"] is not None:
            line += f", accuracy {self.notes['dense_accuracy']:.2f} %"
        return line

    def __str__(self) -> str:
        return self.summary


__all__ = ["GradualResult"]
