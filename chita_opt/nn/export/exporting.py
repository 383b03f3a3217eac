"""One front door: a pruned network to a file of any format."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.files import write_atomically
from chita_opt.nn.darb.darb_file import DarbWeights, save_darb
from chita_opt.nn.darb.matrix import DarbMatrix
from chita_opt.nn.export.card import model_card
from chita_opt.nn.export.compact_file import ENCODINGS, save_compact
from chita_opt.nn.export.loading import TORCH_SUFFIXES, restore_, torch_content
from chita_opt.nn.export.sizes import LayerSizes, layer_sizes, totals
from chita_opt.nn.export.sources import Source, network_of
from chita_opt.nn.weight_files import SavedWeights, untied, write_state

_SUFFIXES = {
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".darb": "darb",
    ".json": "card",
    ".md": "card",
    **dict.fromkeys(TORCH_SUFFIXES, "torch"),
}


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes
    ----------
    path, format : Path, str
        The file.
    size : int
        Its bytes: all tensors of the network with the headers.
    layers : tuple of LayerSizes
        Every pruned weight, with its bits in each format.
    """

    path: Path
    format: str
    size: int
    layers: tuple[LayerSizes, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Bits of the pruned weights together, by format."""
        return totals(self.layers)

    def __str__(self) -> str:
        weights = sum(torch.Size(row.shape).numel() for row in self.layers)
        kept = sum(row.kept for row in self.layers)
        sizes = ", ".join(f"{name} {bits / 8192:.4g} KiB" for name, bits in self.totals.items())
        return (
            f"{self.path} ({self.format}): {self.size:,} bytes; {kept:,} of {weights:,} weights in "
            f"{len(self.layers)} pruned layers, which take {sizes}"
        )


def export(
    source: Source,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    model: nn.Module | None = None,
    example: Tensor | None = None,
) -> ExportReport:
    """Write a pruned network to a file.

    Parameters
    ----------
    source : PrunedWeights, SavedWeights, torch.nn.Module or path
        A result of :func:`chita_opt.prune` or of its relatives, a pruned model (its zeros, or the
        masks of ``torch.nn.utils.prune``, are what is pruned), or a file that was exported before.
    path : path
        File to write or replace.
    format : str, optional
        ``"safetensors"`` or ``"torch"`` (state dict and masks), ``"bitmap"``, ``"csr"``, ``"2:4"``
        or ``"darb"`` (compact), ``"onnx"``, ``"card"`` (JSON and Markdown, beside each other); by
        default what the suffix says: .safetensors, .pt, .pth, .darb, .onnx, .json, .md.
    model : torch.nn.Module, optional
        The model that was pruned, for its other parameters and buffers; without it a result's file
        holds the pruned parameters alone. ONNX needs it.
    example : Tensor, optional
        (samples, ...) inputs; for ONNX.

    Returns
    -------
    ExportReport
        The file's size, and the size of the pruned weights in each format.

    Raises
    ------
    DataError
        If the format is unknown or lacks what it needs, or a file is damaged.
    LayerError
        If weights do not fit the model, or a format.
    MissingDependencyError
        If ONNX is asked for and its packages are not installed.
    """
    target = Path(path)
    chosen = _SUFFIXES.get(target.suffix) if format is None else format
    if chosen not in FORMATS:
        raise DataError(
            f"format {format!r} of {target.name} is none of {', '.join(FORMATS)}; name one"
        )
    weights = network_of(source, model)
    if chosen == "onnx":
        _write_onnx(target, weights, source, model, example)
    else:
        _WRITERS[chosen](target, weights)
    return ExportReport(target, chosen, target.stat().st_size, layer_sizes(weights))


def _write_onnx(
    path: Path,
    weights: SavedWeights,
    source: Source,
    model: nn.Module | None,
    example: Tensor | None,
) -> None:
    from chita_opt.nn.export.onnx_file import save_onnx

    model = source if model is None and isinstance(source, nn.Module) else model
    if model is None or example is None:
        raise DataError("ONNX needs the model (model=...) and inputs of its shape (example=...)")
    pruned = copy.deepcopy(model)
    restore_(pruned, weights)
    save_onnx(path, pruned, example, masks=weights.masks, notes=weights.metadata)


def _write_torch(path: Path, weights: SavedWeights) -> None:
    buffer = io.BytesIO()
    torch.save(torch_content(weights), buffer)
    write_atomically(path, buffer.getvalue(), make_folder=True)


def _write_darb(path: Path, weights: SavedWeights) -> None:
    tensors, aliases = untied(weights.state)
    regular = {n: DarbMatrix.from_dense(t) for n, t in tensors.items() if n in weights.masks}
    dense = {name: tensor for name, tensor in tensors.items() if name not in regular}
    save_darb(path, DarbWeights(regular, dense, aliases, weights.metadata))


def _write_card(path: Path, weights: SavedWeights) -> None:
    model_card(weights).save(path)


def _compact(encoding: str) -> Callable[[Path, SavedWeights], None]:
    return lambda path, weights: save_compact(path, weights, encoding)


_WRITERS: Mapping[str, Callable[[Path, SavedWeights], None]] = {
    "safetensors": write_state,
    "torch": _write_torch,
    **{name: _compact(name) for name in ENCODINGS},
    "darb": _write_darb,
    "card": _write_card,
}
FORMATS = (*_WRITERS, "onnx")


__all__ = ["FORMATS", "ExportReport", "export"]
