"""Stop a training run after any epoch and go on to the same weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.files import write_atomically
from chita_opt.nn.weight_files import load_tensors

_FORMAT = "chita-opt training 1"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A file that a training run writes after every epoch and begins from where it exists.

    It holds the model, the optimiser's averages and the state of the random numbers: on the CPU a
    run that was stopped and continued ends at the same bits. What is specific to a run is compared
    on loading, so that a file never continues another one.

    Attributes
    ----------
    path : path
        The file (safetensors).
    """

    path: str | os.PathLike[str]

    def write(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        losses: Sequence[float],
        run: str,
    ) -> None:
        """Write the state after an epoch.

        Parameters
        ----------
        model, optimizer, order
            What is trained, by what, and the generator of the order of the samples.
        losses : sequence of float
            Of each finished epoch.
        run : str
            What tells this run from another.
        """
        tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
        tensors |= optimizer_tensors(optimizer)
        tensors["order"], tensors["random"] = order.get_state(), torch.get_rng_state()
        tensors["losses"] = torch.tensor(list(losses), dtype=torch.float64)
        header = json.dumps({"format": _FORMAT, "run": run})
        plain = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        content = save(plain, metadata={"chita_opt": header})
        write_atomically(self.path, content, make_folder=True)

    def read(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator, run: str
    ) -> list[float]:
        """Go back to the last finished epoch, and return the losses so far; none without a file.

        Raises
        ------
        DataError
            If the file is damaged or of another run.
        """
        if not Path(self.path).is_file():
            return []
        text, tensors = load_tensors(self.path)
        try:
            header = json.loads(text.get("chita_opt", "{}"))
        except json.JSONDecodeError:
            header = None
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise DataError(f"{self.path} is no file of a training run ({_FORMAT})")
        if header.get("run") != run:
            raise DataError(
                f"{self.path} is of another run, {header.get('run')}; this one is {run}: delete "
                "the file, or choose another one"
            )
        try:
            model.load_state_dict(part(tensors, "model/"))
            restore_optimizer_(optimizer, tensors)
            order.set_state(tensors["order"])
            torch.set_rng_state(tensors["random"])
            return [float(loss) for loss in tensors["losses"]]
        except (KeyError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.path} does not fit this run: {error}") from error


def digest(model: nn.Module) -> str:
    """A short name of a model's state, the same for the same bits."""
    return tensor_digest(model.state_dict())


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """A short name of named tensors, the same for the same bits."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        found.update(plain.numpy().data)
    return found.hexdigest()[:16]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's averages, named ``optimizer/PARAMETER/AVERAGE``."""
    return {
        f"optimizer/{number}/{key}": torch.as_tensor(value)
        for number, averages in optimizer.state_dict()["state"].items()
        for key, value in averages.items()
        if value is not None
    }


def restore_optimizer_(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the averages that :func:`optimizer_tensors` took from another one."""
    averages: dict[int, dict[str, Tensor]] = {}
    for name, value in part(tensors, "optimizer/").items():
        number, _, key = name.partition("/")
        averages.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": averages, "param_groups": groups})


__all__ = [
    "TrainingCheckpoint",
    "digest",
    "optimizer_tensors",
    "part",
    "restore_optimizer_",
    "tensor_digest",
]
