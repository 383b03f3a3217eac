"""A run on disk: everything that the next training step depends on, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.files import remove_leftovers, write_atomically
from chita_opt.nn.gradual_training.options import GradualOptions
from chita_opt.nn.gradual_training.recording import HistoryRow
from chita_opt.nn.stages.state import Note, Step
from chita_opt.nn.training_checkpoint import optimizer_tensors, part, restore_optimizer_
from chita_opt.nn.weight_files import load_tensors

_FORMAT = "chita-opt gradual training 1"
_NOT_OF_THE_RUN = {  # what may differ between a run and its continuation
    "checkpoint", "resume", "checkpoint_steps", "checkpoint_seconds", "time_limit", "memory_limit",
    "gradient_file", "progress", "progress_bar", "log_file", "tensorboard",
}  # fmt: skip


@dataclass(eq=False)
class TrainingState:
    """Where a run stands between two training steps; the weights are in the model.

    Attributes
    ----------
    mask : Tensor
        (p,) bool, as the last pruning step left it.
    step, pruned : int
        Training steps and pruning steps that are done.
    total, seen : float, int
        Sum of the losses since the last row of the history, and samples in it.
    history : list of HistoryRow
        So far.
    carry : Mapping
        What the last pruning step handed on.
    best_loss : float or None
        Lowest held-out loss of an epoch since the last pruning step.
    stale : int
        Epochs since then.
    best : Mapping
        The model's state at that epoch; empty without early stopping.
    """

    mask: Tensor
    step: int = 0
    pruned: int = 0
    total: float = 0.0
    seen: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    carry: Mapping[str, Note] = field(default_factory=dict)
    best_loss: float | None = None
    stale: int = 0
    best: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The file of one run.

    Attributes
    ----------
    path : path or None
        Without one nothing is written or read.
    run : Mapping
        What tells this run from another, by name.
    """

    path: str | Path | None
    run: Mapping[str, Any]

    def write(
        self, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the state whole or not at all."""
        if self.path is None:
            return
        tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
        tensors |= optimizer_tensors(optimizer)
        tensors |= {f"best/{name}": value for name, value in state.best.items()}
        tensors["mask"] = state.mask
        own = {
            name: getattr(state, name)
            for name in ("step", "pruned", "total", "seen", "best_loss", "stale")
        }
        own["history"] = [asdict(row) for row in state.history]
        own["carry"] = dict(state.carry)
        header = {"chita_opt": _FORMAT, "run": json.dumps(self.run), "state": json.dumps(own)}
        plain = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        write_atomically(self.path, save(plain, metadata=header), make_folder=True)

    def read(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Take model and optimiser back to the file's state; None where there is no file.

        Raises
        ------
        DataError
            If the file is damaged, or of another run; the message names what differs.
        """
        if self.path is None:
            return None
        remove_leftovers(self.path)
        if not Path(self.path).is_file():
            return None
        header, tensors = load_tensors(self.path)
        if header.get("chita_opt") != _FORMAT:
            raise DataError(f"{self.path} is no file of a training run ({_FORMAT})")
        try:
            self._check(json.loads(header["run"]))
            own = json.loads(header["state"])
            rows = [HistoryRow(**row) for row in own.pop("history")]
            model.load_state_dict(part(tensors, "model/"))
            restore_optimizer_(optimizer, tensors)
            return TrainingState(
                mask=tensors["mask"], history=rows, best=part(tensors, "best/"), **own
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.path} does not fit this run: {error}") from error

    def _check(self, other: Mapping[str, Any]) -> None:
        run = json.loads(json.dumps(self.run))
        differing = [key for key in (*run, *other) if run.get(key) != other.get(key)]
        if differing:
            said = "; ".join(
                f"{key}: {other.get(key)} there, {run.get(key)} here"
                for key in dict.fromkeys(differing)
            )
            raise DataError(
                f"{self.path} is of another run ({said}); repeat the call that wrote it, or "
                "choose another file"
            )


def told_options(options: GradualOptions) -> dict[str, str]:
    """The options on which the result depends, by name, as text."""
    return {
        f.name: repr(getattr(options, f.name))
        for f in fields(options)
        if f.name not in _NOT_OF_THE_RUN and (f.name != "holdout" or _is_count(options.holdout))
    }


def told_step(method: str | Step) -> str:
    """A pruning step's name; of a dataclass with its options."""
    if isinstance(method, str) or is_dataclass(method):
        return str(method)
    return str(getattr(method, "__qualname__", type(method).__qualname__))


def _is_count(holdout: Any) -> bool:
    return holdout is None or isinstance(holdout, Integral)


__all__ = ["RunFile", "TrainingState", "told_options", "told_step"]
