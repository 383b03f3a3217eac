"""DARB weights as a file: values, packed offsets and one width code a row.

The file is in safetensors form. For each weight NAME it holds

``NAME/widths``
    uint8 (rows,): log2 of the row's block width; 255 for a row without weights.
``NAME/B/values``
    (blocks, rows of width B), the rows in ascending order: step j of all rows, then step j + 1.
``NAME/B/offsets``
    uint8: the offsets in the same order, log2(B) bits each, the lowest bit first.

and any other tensors of the network under their own names. The header's one entry ``chita_opt`` is
JSON: ``format``, ``layers``, NAME to the shape of the parameter and the type of its values, and
where there are any ``aliases``, further names of tied tensors, and ``notes``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from chita_opt.errors import DataError, LayerError
from chita_opt.files import write_atomically
from chita_opt.nn.darb.matrix import MAX_WIDTH, VALUE_TYPES, DarbMatrix, RowGroup
from chita_opt.nn.darb.offset_bits import pack_offsets, unpack_offsets
from chita_opt.nn.layered_header import LayeredHeader
from chita_opt.nn.weight_files import load_tensors

DARB_FORMAT = "chita-opt darb 1"
_NO_WEIGHTS = 255
_TYPES = {str(dtype).removeprefix("torch."): dtype for dtype in VALUE_TYPES}


@dataclass(frozen=True, eq=False)
class DarbWeights:
    """What a file holds.

    Attributes
    ----------
    matrices : Mapping
        Block-regular weights by parameter name.
    dense : Mapping
        The other tensors of the network by name.
    aliases : Mapping
        Further names of tied tensors.
    notes : Mapping
        Text by name.
    """

    matrices: Mapping[str, DarbMatrix]
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], regular: Iterable[str]) -> Self:
        """Split a state dict: the named weights by blocks, the widest that fit, the others dense.

        Raises
        ------
        LayerError
            If a name is unknown or has no rows.
        """
        names = list(regular)
        unknown = [name for name in names if name not in state]
        if unknown:
            raise LayerError(f"the state has no {', '.join(unknown)}; it has {', '.join(state)}")
        matrices = {name: DarbMatrix.from_dense(state[name]) for name in names}
        return cls(matrices, {name: t for name, t in state.items() if name not in matrices})

    @property
    def state(self) -> dict[str, Tensor]:
        """For ``model.load_state_dict``: every tensor with its zeros."""
        state = dict(self.dense) | {name: m.to_dense() for name, m in self.matrices.items()}
        return state | {alias: state[name] for alias, name in self.aliases.items()}


def save_darb(path: str | os.PathLike[str], weights: DarbWeights) -> None:
    """Write block-regular weights, whole or not at all; the same weights give the same bytes.

    Raises
    ------
    DataError
        If a name holds a slash or occurs twice.
    OSError
        If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.dense.items():
        if "/" in name or name in weights.matrices:
            raise DataError(f"the name {name!r} holds a slash, or is that of a regular weight too")
        tensors[name] = tensor.detach().cpu().contiguous()
    for name, matrix in weights.matrices.items():
        if "/" in name or not name:
            raise DataError(f"the name {name!r} is empty or holds a slash")
        tensors |= _tensors(name, matrix)
    layers = {
        name: {"shape": list(matrix.shape), "type": str(matrix.dtype).removeprefix("torch.")}
        for name, matrix in weights.matrices.items()
    }
    header = LayeredHeader(layers, weights.aliases, weights.notes).metadata(DARB_FORMAT)
    write_atomically(path, save(tensors, metadata=header), make_folder=True)


def load_darb(path: str | os.PathLike[str]) -> DarbWeights:
    """Read a file of :func:`save_darb`; the values are those that were written, to the bit.

    Raises
    ------
    DataError
        If the file is missing, damaged, of another format, or its parts do not fit each other; the
        message names the file and the weight.
    """
    file = Path(path)
    metadata, tensors = load_tensors(file)
    header = LayeredHeader.read(file, metadata, DARB_FORMAT)
    matrices = {}
    for name, layer in header.layers.items():
        try:
            matrices[name] = _matrix(name, layer, tensors)
        except (DataError, LayerError) as error:
            raise DataError(f"{file}, weight {name!r}: {error}") from error
    header.check_names(file, {*matrices, *tensors})
    return DarbWeights(matrices, tensors, header.aliases, header.notes)


def is_darb_file(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file says that it is one of :func:`save_darb`.

    Raises
    ------
    DataError
        If the file is missing or damaged.
    """
    return f'"{DARB_FORMAT}"' in load_tensors(path)[0].get("chita_opt", "")


def _tensors(name: str, matrix: DarbMatrix) -> dict[str, Tensor]:
    codes = torch.full((matrix.shape[0],), _NO_WEIGHTS, dtype=torch.uint8)
    found = {f"{name}/widths": codes}
    for group in matrix.groups:
        codes[group.rows] = group.offset_bits
        key = f"{name}/{group.width}"
        found[f"{key}/values"] = group.values.contiguous()
        found[f"{key}/offsets"] = pack_offsets(group.offsets, group.offset_bits)
    return found


def _matrix(name: str, layer: Mapping[str, Any], tensors: dict[str, Tensor]) -> DarbMatrix:
    """Take a weight's tensors out of ``tensors`` and put them together."""
    shape, dtype = layer.get("shape"), _TYPES.get(str(layer.get("type")))
    if dtype is None:
        raise DataError(f"type {layer.get('type')!r} is none of {', '.join(_TYPES)}")
    if not isinstance(shape, list) or len(shape) < 2 or any(type(n) is not int for n in shape):
        raise DataError(f"shape {shape!r} is no list of two or more whole numbers")
    codes = _taken(tensors, f"{name}/widths", torch.uint8)
    if codes.shape != (shape[0],):
        raise DataError(f"{tuple(codes.shape)} width codes for {shape[0]} rows")
    groups = []
    for code in sorted(set(codes.tolist()) - {_NO_WEIGHTS}):
        if 1 << code > MAX_WIDTH:
            raise DataError(f"width code {code} means blocks of {1 << code}, over {MAX_WIDTH}")
        values = _taken(tensors, f"{name}/{1 << code}/values")
        packed = _taken(tensors, f"{name}/{1 << code}/offsets", torch.uint8)
        offsets = unpack_offsets(packed, code, values.numel()).reshape(values.shape)
        rows = (codes == code).nonzero().flatten()
        groups.append(RowGroup(1 << code, rows, values, offsets))
    return DarbMatrix(tuple(shape), dtype, tuple(groups))


def _taken(tensors: dict[str, Tensor], key: str, dtype: torch.dtype | None = None) -> Tensor:
    if key not in tensors:
        raise DataError(f"there is no tensor {key!r}")
    tensor = tensors.pop(key)
    if dtype is not None and tensor.dtype != dtype:
        raise DataError(f"{key!r} is {tensor.dtype}, expected {dtype}")
    return tensor


__all__ = ["DARB_FORMAT", "DarbWeights", "is_darb_file", "load_darb", "save_darb"]
