"""Compact weights as a file: kept values and their places in one safetensors file.

For each compact weight NAME the file holds ``NAME/values`` and the tensors that say where they lie
(``NAME/bits``, ``NAME/pointers`` and ``NAME/columns``, or ``NAME/codes``; see
:mod:`chita_opt.nn.export.matrices` and :mod:`chita_opt.nn.export.two_four`), and any other tensor
of the network under its own name. The header's one entry ``chita_opt`` is JSON: ``format``,
``layers`` (NAME to encoding and shape), and where there are any ``aliases`` (further names of tied
tensors) and ``notes``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from chita_opt.errors import DataError, LayerError
from chita_opt.files import write_atomically
from chita_opt.nn.export.matrices import BitmapMatrix, CompactMatrix, CsrMatrix
from chita_opt.nn.export.two_four import TwoFourMatrix
from chita_opt.nn.layered_header import LayeredHeader
from chita_opt.nn.weight_files import SavedWeights, load_tensors, untied

COMPACT_FORMAT = "chita-opt compact 1"
ENCODINGS: dict[str, type[CompactMatrix]] = {
    kind.encoding: kind for kind in (BitmapMatrix, CsrMatrix, TwoFourMatrix)
}


def save_compact(path: str | os.PathLike[str], weights: SavedWeights, encoding: str) -> None:
    """Write a network with its masked weights in compact form, whole or not at all.

    The same weights give the same bytes.

    Parameters
    ----------
    path : path
        File to write or replace.
    weights : SavedWeights
        The network: state, masks and notes.
    encoding : {"bitmap", "csr", "2:4"}
        How the weights with a mask are stored.

    Raises
    ------
    LayerError
        If a weight does not fit the encoding; the message names it.
    DataError
        If a name holds a slash.
    """
    kind, (tensors, aliases) = ENCODINGS[encoding], untied(weights.state)
    layers: dict[str, dict[str, Any]] = {}
    for name in [name for name in tensors if name in weights.masks]:
        try:
            matrix = kind.from_dense(tensors.pop(name), weights.masks[name].cpu())
        except LayerError as error:
            raise LayerError(f"{name!r}: {error}") from error
        layers[name] = {"encoding": encoding, "shape": list(matrix.shape)}
        parts = {"values": matrix.values, **matrix.places()}
        tensors |= {f"{name}/{part}": tensor.contiguous() for part, tensor in parts.items()}
    odd = [name for name in weights.state if "/" in name]
    if odd:
        raise DataError(f"the name {odd[0]!r} holds a slash, which the file keeps for parts")
    header = LayeredHeader(layers, aliases, weights.metadata).metadata(COMPACT_FORMAT)
    write_atomically(path, save(tensors, metadata=header), make_folder=True)


def load_compact(path: str | os.PathLike[str]) -> SavedWeights:
    """Read a file of :func:`save_compact`; weights and masks are those that were written.

    Raises
    ------
    DataError
        If the file is missing, damaged, of another format, or its parts do not fit each other; the
        message names the file and the weight.
    """
    found = read_compact(path)
    matrices, aliases = found.matrices, found.aliases
    state = {**found.dense, **{name: matrix.to_dense() for name, matrix in matrices.items()}}
    masks = {name: matrix.dense_mask() for name, matrix in matrices.items()}
    state |= {alias: state[name] for alias, name in aliases.items()}
    masks |= {alias: masks[name] for alias, name in aliases.items() if name in masks}
    return SavedWeights(state, masks, dict(found.notes))


@dataclass(frozen=True, eq=False)
class CompactWeights:
    """What a compact file holds, as it is stored.

    Attributes
    ----------
    matrices : Mapping
        Compact weights by parameter name.
    dense : Mapping
        The other tensors of the network.
    aliases : Mapping
        Further names of tied tensors.
    notes : Mapping
        Text by name.
    """

    matrices: Mapping[str, CompactMatrix]
    dense: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    notes: Mapping[str, str]


def read_compact(path: str | os.PathLike[str]) -> CompactWeights:
    """Read a file of :func:`save_compact` without unfolding its weights.

    Raises
    ------
    DataError
        As for :func:`load_compact`.
    """
    file = Path(path)
    metadata, tensors = load_tensors(file)
    header = LayeredHeader.read(file, metadata, COMPACT_FORMAT)
    matrices = {name: _matrix(file, name, v, tensors) for name, v in header.layers.items()}
    header.check_names(file, {*matrices, *tensors})
    return CompactWeights(matrices, tensors, header.aliases, header.notes)


def _matrix(
    file: Path, name: str, layer: Mapping[str, Any], tensors: dict[str, Tensor]
) -> CompactMatrix:
    """Take a weight's tensors out of ``tensors`` and put them together."""
    kind, shape = ENCODINGS.get(str(layer.get("encoding"))), layer.get("shape")
    if kind is None:
        raise DataError(f"{file}, weight {name!r}: encoding {layer.get('encoding')!r} is unknown")
    if not isinstance(shape, list) or not shape or any(type(n) is not int or n < 1 for n in shape):
        raise DataError(f"{file}, weight {name!r}: shape {shape!r} is no list of sizes")
    prefix = f"{name}/"
    keys = [key for key in tensors if key.startswith(prefix)]
    parts = {key.removeprefix(prefix): tensors.pop(key) for key in keys}
    try:
        values = parts.pop("values")
        if not values.is_floating_point():
            raise DataError(f"values are {values.dtype}, expected floating numbers")
        matrix = kind.from_parts(tuple(shape), values, parts)
        if set(parts) != set(matrix.places()):
            raise DataError(f"there are parts {sorted(parts)}, expected {sorted(matrix.places())}")
    except KeyError as error:
        raise DataError(f"{file}, weight {name!r}: there is no tensor {error}") from error
    except DataError as error:
        raise DataError(f"{file}, weight {name!r}: {error}") from error
    return matrix


__all__ = ["COMPACT_FORMAT", "CompactWeights", "load_compact", "read_compact", "save_compact"]
