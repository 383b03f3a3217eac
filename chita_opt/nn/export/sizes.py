"""How much a pruned network takes in each format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from chita_opt.nn.darb.matrix import DarbMatrix
from chita_opt.nn.darb.storage_sizes import storage_bits
from chita_opt.nn.export.matrices import rows_cols
from chita_opt.nn.export.two_four import is_two_of_four
from chita_opt.nn.weight_files import SavedWeights, untied

FORMATS = ("dense", "bitmap", "csr", "darb", "2:4")


@dataclass(frozen=True)
class LayerSizes:
    """One pruned weight.

    Attributes
    ----------
    name, shape : str, tuple of int
        The parameter.
    kept : int
        Weights that its mask keeps.
    bits : Mapping
        Bits by format, of those that fit: every index takes the fewest bits that can hold it; see
        :func:`chita_opt.nn.darb.storage_bits`.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    bits: Mapping[str, int]


def layer_sizes(weights: SavedWeights) -> tuple[LayerSizes, ...]:
    """Sizes of every weight with a mask; a tied one counts once."""
    tensors, _ = untied(weights.state)
    return tuple(
        _sizes(name, weight, weights.masks[name].cpu())
        for name, weight in tensors.items()
        if name in weights.masks
    )


def totals(layers: Iterable[LayerSizes]) -> dict[str, int]:
    """Bits of all layers by format; a format that does not fit one of them is left out."""
    rows = list(layers)
    return {
        name: sum(row.bits[name] for row in rows)
        for name in FORMATS
        if rows and all(name in row.bits for row in rows)
    }


def _sizes(name: str, weight: Tensor, mask: Tensor) -> LayerSizes:
    shape = tuple(weight.shape)
    matrix = weight.reshape(rows_cols(shape))
    bits = storage_bits(matrix, DarbMatrix.from_dense(matrix))
    if is_two_of_four(mask):  # half of the values, and two bits for the place of each
        bits["2:4"] = weight.numel() // 2 * (8 * weight.element_size() + 2)
    return LayerSizes(name, shape, int(mask.sum()), {f: bits[f] for f in FORMATS if f in bits})


__all__ = ["FORMATS", "LayerSizes", "layer_sizes", "totals"]
