"""Weights and masks in one safetensors file: plain tensors, nothing that runs on loading."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from chita_opt.errors import DataError, LayerError
from chita_opt.files import write_atomically
from chita_opt.nn.masks import paired_masks

WEIGHTS_FORMAT = "chita-opt weights 1"
_MASK = "mask/"
_OWN_KEYS = ("chita_opt", "aliases")


@dataclass(frozen=True, eq=False)
class SavedWeights:
    """What a file holds.

    Attributes
    ----------
    state : dict of str to Tensor
        For ``model.load_state_dict``; names of a tied parameter share one tensor.
    masks : dict of str to Tensor
        Boolean masks by parameter name; true keeps the weight.
    metadata : dict of str to str
        The notes given on saving.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    metadata: dict[str, str]


def save_weights(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    masks: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save the state of a model, and masks beside it, as a safetensors file.

    Each tensor is stored under its name in ``model.state_dict()``, a mask under ``"mask/" + name``
    and tied parameters once, with their further names in the header. Other programs read the file
    with ``safetensors.torch.load_file``. It is written beside ``path`` first and then moved there.

    Parameters
    ----------
    path : path
        File to write or replace.
    model : torch.nn.Module
        Its state dict must hold tensors only.
    masks : mapping of str to Tensor, optional
        As for :func:`chita_opt.nn.apply_masks_`; checked against the model.
    metadata : mapping of str to str, optional
        Notes to keep with the weights.

    Raises
    ------
    LayerError
        If a mask does not fit, or the state dict holds something other than a tensor.
    DataError
        If a note is not text or uses a reserved name.
    """
    paired_masks(model, masks or {})
    write_state(path, SavedWeights(model.state_dict(), dict(masks or {}), dict(metadata or {})))


def write_state(path: str | os.PathLike[str], weights: SavedWeights) -> None:
    """Write a state dict, masks and notes as :func:`save_weights` does, without a model.

    Raises
    ------
    LayerError
        If the state holds something other than a tensor.
    DataError
        If a note is not text or uses a reserved name.
    """
    notes = _checked_notes(weights.metadata)
    tensors, aliases = untied(weights.state)
    for name, mask in weights.masks.items():
        tensors[_MASK + name] = mask.detach().to("cpu", torch.bool, copy=True).contiguous()
    header = {**notes, "chita_opt": WEIGHTS_FORMAT, "aliases": json.dumps(aliases, sort_keys=True)}
    write_atomically(path, save(tensors, metadata=header), make_folder=True)


def load_weights(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> SavedWeights:
    """Read a file written by :func:`save_weights`, or any other safetensors file of weights.

    Parameters
    ----------
    path : path
        The file.
    device : torch.device or str
        Where to put the tensors.

    Raises
    ------
    DataError
        If the file is missing or damaged, or is of a later format.
    """
    file = Path(path)
    header, tensors = load_tensors(file, device=device)
    if header.get("chita_opt", WEIGHTS_FORMAT) != WEIGHTS_FORMAT:
        raise DataError(
            f"{file} has format {header['chita_opt']!r}; this version reads {WEIGHTS_FORMAT}"
        )
    masks = {
        name.removeprefix(_MASK): mask.to(torch.bool)
        for name, mask in tensors.items()
        if name.startswith(_MASK)
    }
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_MASK)}
    for alias, name in _aliases(file, header).items():
        if name not in state or alias in state:
            raise DataError(f"{file} ties {alias!r} to {name!r}, which does not fit its tensors")
        state[alias] = state[name]
    notes = {key: value for key, value in header.items() if key not in _OWN_KEYS}
    return SavedWeights(state, masks, notes)


def load_tensors(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the header and all tensors of any safetensors file.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    try:
        with safe_open(file, framework="pt", device=str(device)) as archive:
            header = archive.metadata() or {}
            return header, {name: archive.get_tensor(name) for name in archive.keys()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not a readable safetensors file: {error}") from error


def untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state dict into tensors stored once, on the CPU, and further names of the same ones.

    Raises
    ------
    LayerError
        If it holds something other than a tensor, or a name that is reserved for masks.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise LayerError(f"the state dict holds {name!r}, a {type(value).__name__}: not saved")
        if name.startswith(_MASK):
            raise LayerError(f"the name {name!r} is reserved for masks")
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        owner = first.setdefault(place, name) if value.numel() else name
        if owner != name:
            aliases[name] = owner
        else:
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors, aliases


def _checked_notes(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if key in _OWN_KEYS:
            raise DataError(f"the metadata name {key!r} is used by the file format")
        if not isinstance(key, str) or not isinstance(value, str):
            raise DataError(f"metadata must be text, got {key!r}: {value!r}")
    return dict(metadata)


def _aliases(file: Path, header: Mapping[str, str]) -> dict[str, str]:
    try:
        return checked_texts(file, "aliases", json.loads(header.get("aliases", "{}")))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: the list of aliases is damaged: {error}") from error


def checked_texts(file: Path, what: str, found: object) -> dict[str, str]:
    """Refuse what is no mapping of texts.

    Raises
    ------
    DataError
        If it is none.
    """
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise DataError(f"{file}: the list of {what} is damaged")
    return found
