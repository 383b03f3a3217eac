"""Pruned weights in compact form: bitmaps and compressed rows.

Every form is made of a weight and its mask and gives both back to the bit. A weight of shape
(out, ...) is a matrix with ``out`` rows, its other dimensions flattened row-major; a vector is one
row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import DataError

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CompactMatrix(ABC):
    """A weight that stores its kept values and where they lie.

    Attributes
    ----------
    shape : tuple of int
        Shape of the parameter.
    values : Tensor
        What is stored of the values, row by row.
    """

    encoding: ClassVar[str]
    shape: Shape
    values: Tensor

    @classmethod
    @abstractmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> Self:
        """Read a weight with zeros outside of its mask, both of one shape."""

    @abstractmethod
    def dense_mask(self) -> Tensor:
        """The mask, of the parameter's shape."""

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The weight with its zeros, of the parameter's shape and type."""

    @abstractmethod
    def places(self) -> dict[str, Tensor]:
        """Tensors that say where the values lie, by name."""

    @classmethod
    @abstractmethod
    def from_parts(cls, shape: Shape, values: Tensor, parts: Mapping[str, Tensor]) -> Self:
        """Put a matrix together from what a file holds.

        Raises
        ------
        DataError
            If the parts do not fit each other.
        """

    @property
    def rows_cols(self) -> tuple[int, int]:
        """Shape as a matrix."""
        return rows_cols(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(t.nbytes for t in (self.values, *self.places().values()))


@dataclass(frozen=True, eq=False)
class BitmapMatrix(CompactMatrix):
    """One bit a weight, and the kept values.

    Attributes
    ----------
    bits : Tensor
        uint8, eight weights a byte, the first in the highest bit; the last byte filled with zeros.
    """

    encoding: ClassVar[str] = "bitmap"
    bits: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> Self:
        """Read a weight with zeros outside of its mask."""
        flat = mask.flatten()
        packed = np.packbits(flat.numpy())
        return cls(tuple(weight.shape), weight.flatten()[flat].clone(), torch.from_numpy(packed))

    def dense_mask(self) -> Tensor:
        """The mask, of the parameter's shape."""
        bits = np.unpackbits(self.bits.numpy(), count=math.prod(self.shape))
        return torch.from_numpy(bits).bool().reshape(self.shape)

    def to_dense(self) -> Tensor:
        """The weight with its zeros."""
        dense = self.values.new_zeros(self.shape)
        dense[self.dense_mask()] = self.values
        return dense

    def places(self) -> dict[str, Tensor]:
        """The bits."""
        return {"bits": self.bits}

    @classmethod
    def from_parts(cls, shape: Shape, values: Tensor, parts: Mapping[str, Tensor]) -> Self:
        """Check and put together."""
        bits, size = parts["bits"], math.prod(shape)
        if bits.dtype != torch.uint8 or bits.shape != (-(-size // 8),):
            raise DataError(f"bits {tuple(bits.shape)} {bits.dtype} do not fit {size} weights")
        kept = int(np.bitwise_count(bits.numpy()).sum())
        own = int(np.unpackbits(bits.numpy(), count=size).sum()) if size else 0
        if values.shape != (kept,) or own != kept:
            raise DataError(f"{kept} bits are set ({own} within) for {tuple(values.shape)} values")
        return cls(shape, values, bits)


@dataclass(frozen=True, eq=False)
class CsrMatrix(CompactMatrix):
    """Compressed sparse rows.

    Attributes
    ----------
    pointers : Tensor
        (rows + 1,) int32, or int64 from 2**31 values on: row r holds the values from
        ``pointers[r]`` to ``pointers[r + 1]``.
    columns : Tensor
        Column of each value, ascending in a row; uint8, uint16 or int32, whichever holds them.
    """

    encoding: ClassVar[str] = "csr"
    pointers: Tensor
    columns: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> Self:
        """Read a weight with zeros outside of its mask."""
        flat = mask.reshape(rows_cols(weight.shape))
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), flat.sum(1).cumsum(0)])
        columns = flat.nonzero()[:, 1].to(_column_type(flat.shape[1]))
        wide = torch.int32 if int(ends[-1]) < 2**31 else torch.int64
        values = weight.reshape(flat.shape)[flat].clone()
        return cls(tuple(weight.shape), values, ends.to(wide), columns)

    @property
    def _rows(self) -> Tensor:
        counts = self.pointers.to(torch.int64).diff()
        return torch.arange(len(counts)).repeat_interleave(counts)

    def dense_mask(self) -> Tensor:
        """The mask, of the parameter's shape."""
        mask = torch.zeros(self.rows_cols, dtype=torch.bool)
        mask[self._rows, self.columns.to(torch.int64)] = True
        return mask.reshape(self.shape)

    def to_dense(self) -> Tensor:
        """The weight with its zeros."""
        dense = torch.zeros(self.rows_cols, dtype=self.values.dtype)
        dense[self._rows, self.columns.to(torch.int64)] = self.values
        return dense.reshape(self.shape)

    def to_torch(self) -> Tensor:
        """The matrix as a tensor of layout ``torch.sparse_csr``, for torch's sparse products."""
        parts = self.pointers.to(torch.int64), self.columns.to(torch.int64)
        with torch.sparse.check_sparse_tensor_invariants():
            return torch.sparse_csr_tensor(*parts, self.values, self.rows_cols)

    def places(self) -> dict[str, Tensor]:
        """Pointers and columns."""
        return {"pointers": self.pointers, "columns": self.columns}

    @classmethod
    def from_parts(cls, shape: Shape, values: Tensor, parts: Mapping[str, Tensor]) -> Self:
        """Check and put together."""
        pointers, columns = parts["pointers"], parts["columns"]
        rows, width = rows_cols(shape)
        if pointers.dtype not in (torch.int32, torch.int64) or pointers.shape != (rows + 1,):
            raise DataError(f"pointers {tuple(pointers.shape)} {pointers.dtype} for {rows} rows")
        if columns.dtype != _column_type(width) or columns.shape != values.shape:
            raise DataError(
                f"columns {tuple(columns.shape)} {columns.dtype} for {tuple(values.shape)} values"
            )
        steps, c = pointers.to(torch.int64).diff(), columns.to(torch.int64)
        if int(pointers[0]) or int(pointers[-1]) != len(values) or bool((steps < 0).any()):
            raise DataError(f"pointers do not rise from 0 to {len(values)} values")
        place = torch.arange(rows).repeat_interleave(steps) * width + c
        if bool((c < 0).any() or (c >= width).any() or (place.diff() <= 0).any()):
            raise DataError(f"columns do not ascend within their rows of {width}")
        return cls(shape, values, pointers, columns)


def rows_cols(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _column_type(columns: int) -> torch.dtype:
    if columns <= 1 << 8:
        return torch.uint8
    return torch.uint16 if columns <= 1 << 16 else torch.int32


__all__ = [
    "BitmapMatrix",
    "CompactMatrix",
    "CsrMatrix",
    "Shape",
    "rows_cols",
]
