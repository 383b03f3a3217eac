"""Exported networks back into models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from chita_opt.errors import DataError, LayerError
from chita_opt.nn.darb.darb_file import DARB_FORMAT, load_darb
from chita_opt.nn.export.compact_file import COMPACT_FORMAT, load_compact
from chita_opt.nn.export.sources import Source, check_fit, check_masks, network_of
from chita_opt.nn.masks import to_torch_prune_
from chita_opt.nn.weight_files import SavedWeights, load_tensors, load_weights

TORCH_FORMAT = "chita-opt state 1"
TORCH_SUFFIXES = (".pt", ".pth")


def load_export(path: str | os.PathLike[str]) -> SavedWeights:
    """Read any file of weights that :func:`chita_opt.nn.export.export` writes.

    Those are safetensors (plain, bitmap, csr, 2:4, DARB), told apart by their headers, and torch's
    own files (``.pt``, ``.pth``), of which only plain tensors are read. An ONNX file is for other
    programs.

    Raises
    ------
    DataError
        If the file is missing or damaged, or masks and weights contradict each other.
    """
    file = Path(path)
    if file.suffix in TORCH_SUFFIXES:
        found = _load_torch(file)
    else:
        header = load_tensors(file)[0].get("chita_opt", "")
        if f'"{COMPACT_FORMAT}"' in header:
            found = load_compact(file)
        elif f'"{DARB_FORMAT}"' in header:
            found = _of_darb(file)
        else:
            found = load_weights(file)
    try:
        check_masks(found)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return found


def restore_(model: nn.Module, source: Source, *, partial: bool = False) -> dict[str, Tensor]:
    """Write exported weights into a model, in place, and return their masks.

    Parameters
    ----------
    model : torch.nn.Module
        A model of the same parameters, tied in the same way.
    source : path, SavedWeights, PrunedWeights or torch.nn.Module
        What was exported.
    partial : bool
        Whether the model may have tensors that the source lacks; they stay as they are.

    Returns
    -------
    dict of str to Tensor
        Boolean masks by parameter name, for :class:`chita_opt.nn.MaskKeeper`.

    Raises
    ------
    LayerError
        If names, shapes or types differ, the source is not whole, or it holds two values for a
        tied parameter; the model is then unchanged.
    DataError
        If a file is damaged.
    """
    weights, own = network_of(source), dict(model.state_dict())
    check_fit(weights.state, own)
    missing = [name for name in own if name not in weights.state]
    if missing and not partial:
        raise LayerError(
            f"nothing is given for {', '.join(missing)}; export with model=..., or pass "
            "partial=True to leave them as they are"
        )
    first: dict[tuple[int, torch.Size], str] = {}  # one entry a tied tensor, none of empty ones
    for name, tensor in weights.state.items():
        place = own[name].data_ptr(), own[name].shape
        other = first.setdefault(place, name) if own[name].numel() else name
        if other != name and not torch.equal(weights.state[other], tensor):
            raise LayerError(
                f"{other!r} and {name!r} are tied in the model, and differ in the source"
            )
    model.load_state_dict(weights.state, strict=False)
    return dict(weights.masks)


def to_torch_prune(model: nn.Module, source: Source) -> nn.Module:
    """Hand a pruned network to ``torch.nn.utils.prune``, in place, and return the model.

    Each pruned parameter becomes ``NAME_orig`` and ``NAME_mask``, as by ``prune.custom_from_mask``;
    for the way back, give the model to :func:`chita_opt.nn.export.export` or
    :func:`chita_opt.nn.from_torch_prune`.

    Parameters
    ----------
    model : torch.nn.Module
        A model of the parameters that were pruned; others stay as they are.
    source : PrunedWeights, SavedWeights or path
        What was pruned.

    Raises
    ------
    LayerError
        If the model does not have the pruned parameters; it is then unchanged.
    """
    to_torch_prune_(model, restore_(model, source, partial=True))
    return model


def torch_content(weights: SavedWeights) -> dict[str, object]:
    """What a ``.pt`` file holds: plain tensors and text, for ``torch.load(weights_only=True)``."""
    return {
        "format": TORCH_FORMAT,
        "state_dict": {name: t.detach().cpu() for name, t in weights.state.items()},
        "masks": {name: m.detach().cpu() for name, m in weights.masks.items()},
        "notes": json.dumps(weights.metadata, sort_keys=True),
    }


def _load_torch(file: Path) -> SavedWeights:
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["format"] != TORCH_FORMAT:
            raise DataError(f"{file} has format {content['format']!r}, expected {TORCH_FORMAT!r}")
        state, masks = dict(content["state_dict"]), dict(content["masks"])
        notes = dict(json.loads(content["notes"]))
    except DataError:
        raise
    except Exception as error:  # torch.load raises errors of every kind on damaged files
        raise DataError(f"{file} is no state that was exported: {error}") from error
    if not all(isinstance(t, Tensor) for t in (*state.values(), *masks.values())):
        raise DataError(f"{file} holds something other than tensors")
    return SavedWeights(state, {name: mask.bool() for name, mask in masks.items()}, notes)


def _of_darb(file: Path) -> SavedWeights:
    found = load_darb(file)
    state = found.state
    names = [*found.matrices, *(a for a, n in found.aliases.items() if n in found.matrices)]
    return SavedWeights(state, {name: state[name] != 0 for name in names}, dict(found.notes))


__all__ = ["TORCH_SUFFIXES", "load_export", "restore_", "to_torch_prune", "torch_content"]
