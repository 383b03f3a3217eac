"""Progress of a run in stages on disk: one safetensors file, the table as JSON in its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.files import write_atomically
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.stages.options import StageOptions
from chita_opt.nn.stages.result import StageRow
from chita_opt.nn.stages.state import Note, Step
from chita_opt.supports import SupportFamily

_FORMAT = "chita-opt stages 1"
_OPTIONS = (
    "rows", "batch_size", "first_order", "ridge", "ridge_unit", "seed", "curvature", "trust",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a run stands after some whole stages.

    Attributes
    ----------
    weights : Tensor
        (p,) float64.
    rows : tuple of StageRow
        The table so far; the next stage is the one after its last row.
    carry : Mapping
        What the last step asked to be handed on.
    """

    weights: Tensor
    rows: tuple[StageRow, ...] = ()
    carry: Mapping[str, Note] = field(default_factory=dict)


class Checkpoint:
    """The file of one run.

    Parameters
    ----------
    path : path or None
        Without one nothing is written.
    fingerprint : str
        What the run is about; a file with another one is refused.
    """

    def __init__(self, path: str | Path | None, fingerprint: str) -> None:
        self.path = None if path is None else Path(path)
        self.fingerprint = fingerprint

    def save(self, progress: Progress) -> None:
        """Write the progress whole or not at all."""
        if self.path is None:
            return
        state = {"rows": [asdict(row) for row in progress.rows], "carry": dict(progress.carry)}
        header = {
            "chita_opt": _FORMAT,
            "fingerprint": self.fingerprint,
            "state": json.dumps(state),
        }
        tensors = {"weights": progress.weights.cpu().contiguous()}
        write_atomically(self.path, save(tensors, metadata=header))

    def read(self) -> Progress | None:
        """The progress on disk; None where there is no file.

        Raises
        ------
        DataError
            If the file is damaged, or belongs to another run.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as archive:
                header = archive.metadata() or {}
                weights = archive.get_tensor("weights")
            format_, fingerprint = header.get("chita_opt"), header.get("fingerprint")
            state = json.loads(header.get("state", "{}"))
            rows = tuple(StageRow(**row) for row in state["rows"])
            progress = Progress(weights, rows, dict(state["carry"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is not a readable checkpoint of stages: {error}"
            ) from error
        if format_ != _FORMAT or fingerprint != self.fingerprint:
            raise DataError(
                f"{self.path} belongs to another run (model, budget, options or step differ); "
                "remove it, or repeat the call that it was written by"
            )
        return progress


def run_fingerprint(
    model: nn.Module,
    layer_map: LayerMap,
    families: Sequence[SupportFamily],
    options: StageOptions,
    step: Step,
) -> str:
    """SHA-256 over the model's state, what each stage may keep, the options and the step.

    The data are not part of it: the caller gives the same ones again. Held-out samples are: others
    may have served for gradients before.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy().tobytes())
    said = {
        "families": [_told(family) for family in (families[0], families[-1])],
        "counts": [family.max_count for family in families],
        "options": {name: repr(getattr(options, name)) for name in _OPTIONS},
        "holdout": _held_out(options.holdout),
        "weights": [(item.name, tuple(item.shape)) for item in layer_map],
        "step": repr(step) if is_dataclass(step) else getattr(step, "__qualname__", ""),
    }
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _held_out(holdout: Any) -> str:
    """A count, or that the caller's own samples are held out."""
    return repr(holdout) if holdout is None or isinstance(holdout, Integral) else "given"


def _told(family: SupportFamily) -> dict[str, Any]:
    return {"name": family.name, **family.specification}


__all__ = ["Checkpoint", "Progress", "run_fingerprint"]
