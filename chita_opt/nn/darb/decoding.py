"""Matrix-vector products that decode a pruned weight as they go, by storage format.

A product object holds a weight in one format. Calling it with an input gives the output; the same
output array is returned every time, so that a measurement is of decoding and not of memory.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import bsr_array, csr_array
from torch import Tensor
from torch.nn.functional import pad

from chita_opt.errors import LayerError
from chita_opt.nn.darb.matrix import DarbMatrix
from chita_opt.nn.darb.offset_bits import pack_offsets
from chita_opt.nn.darb.storage_sizes import RUN_BITS, TILE

Array = NDArray[Any]


class Product(Protocol):
    """W x for one W."""

    def __call__(self, x: Array) -> Array:
        """Return W x, (rows,), of x (columns,); both in the type of W."""
        ...


class DarbProduct:
    """Index-free decoding, the rows of one width in lock-step (compiled).

    Parameters
    ----------
    matrix : DarbMatrix
        The weight, in single or double precision.
    packed : bool
        Decode the offsets from their few bits, as they are stored; otherwise each is a byte.
    """

    def __init__(self, matrix: DarbMatrix, *, packed: bool = False) -> None:
        from chita_opt.nn.darb.kernels import darb_product, packed_darb_product

        dtype = _numpy_type(matrix)
        rows, self._columns = matrix.rows_cols
        self._kernel = packed_darb_product if packed else darb_product
        self._groups = []
        for group in matrix.groups:
            offsets = group.offsets
            if packed:
                offsets = pad(pack_offsets(offsets, group.offset_bits), (0, 2))
            arrays = group.values.numpy(), offsets.numpy(), group.offset_bits, group.rows.numpy()
            self._groups.append((arrays, np.empty(len(group.rows), dtype)))
        self._y = np.zeros(rows, dtype)

    def __call__(self, x: Array) -> Array:
        """Return W x; see :class:`Product`."""
        _check_length(x, self._columns)
        for arrays, sums in self._groups:
            self._kernel(*arrays, x, sums, self._y)
        return self._y


class TorchDarbProduct(torch.nn.Module):
    """The same with torch: one gather within blocks and one sum for each width.

    Buffers move with the module; inputs may have leading dimensions and need gradients.
    """

    def __init__(self, matrix: DarbMatrix) -> None:
        super().__init__()
        self.rows, self.columns = matrix.rows_cols
        self._widths = [group.width for group in matrix.groups]
        for group in matrix.groups:
            self.register_buffer(f"values_{group.width}", group.values)
            self.register_buffer(f"offsets_{group.width}", group.offsets.long())
            self.register_buffer(f"rows_{group.width}", group.rows)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W', (..., rows), of x (..., columns)."""
        if x.shape[-1] != self.columns:
            raise LayerError(f"an input of {x.shape[-1]} columns; the weight has {self.columns}")
        y = x.new_zeros(*x.shape[:-1], self.rows)
        for width in self._widths:
            values, offsets = self._of("values", width), self._of("offsets", width)
            blocks = pad(x, (0, -self.columns % width)).unflatten(-1, (-1, width))
            picked = blocks.gather(-1, offsets.expand(*x.shape[:-1], *offsets.shape))
            y = y.index_copy(-1, self._of("rows", width), (picked * values).sum(-2))
        return y

    def _of(self, what: str, width: int) -> Tensor:
        return self.get_buffer(f"{what}_{width}")


class CsrProduct:
    """Compressed sparse rows, by our compiled kernel; ``runs`` stores runs of zeros in 4 bits."""

    def __init__(self, weight: Tensor, *, runs: bool = False) -> None:
        from chita_opt.nn.darb.kernels import csr_product, csr_runs_product

        dense = weight.flatten(1).numpy()
        self._kernel = csr_runs_product if runs else csr_product
        sparse = csr_array(dense)
        values, columns, pointers = sparse.data, sparse.indices, sparse.indptr
        if runs:
            values, columns, pointers = _with_runs(sparse)
        self._arrays = values, columns, pointers
        self._columns = dense.shape[1]
        self._y = np.zeros(len(dense), dense.dtype)

    def __call__(self, x: Array) -> Array:
        """Return W x; see :class:`Product`."""
        _check_length(x, self._columns)
        self._kernel(*self._arrays, x, self._y)
        return self._y


class TileProduct:
    """Whole 4x4 blocks, by our compiled kernel."""

    def __init__(self, weight: Tensor) -> None:
        from chita_opt.nn.darb.kernels import tile_product

        self._kernel = tile_product
        rows, columns = weight.flatten(1).shape
        filled = pad(weight.flatten(1), (0, -columns % TILE, 0, -rows % TILE)).numpy()
        sparse = bsr_array(filled, blocksize=(TILE, TILE))
        self._arrays = sparse.data, sparse.indices, sparse.indptr
        self._x = np.zeros(filled.shape[1], filled.dtype)
        self._y, self._shape = np.zeros(len(filled), filled.dtype), (rows, columns)

    def __call__(self, x: Array) -> Array:
        """Return W x; see :class:`Product`."""
        _check_length(x, self._shape[1])
        self._x[: self._shape[1]] = x
        self._kernel(*self._arrays, self._x, self._y)
        return self._y[: self._shape[0]]


def _with_runs(sparse: csr_array) -> tuple[Array, Array, Array]:
    """Values, runs of zeros before them (0 to 15) and row pointers, filling entries included."""
    longest = (1 << RUN_BITS) - 1
    before = np.concatenate([[-1], sparse.indices[:-1]])
    before[sparse.indptr[:-1][np.diff(sparse.indptr) > 0]] = -1  # each row begins anew
    fills, rest = np.divmod(sparse.indices - before - 1, longest + 1)
    ends = np.cumsum(fills + 1)  # one past the place of each kept entry
    count = int(ends[-1]) if len(ends) else 0
    values, runs = np.zeros(count, sparse.dtype), np.full(count, longest, np.uint8)
    values[ends - 1], runs[ends - 1] = sparse.data, rest
    return values, runs, np.concatenate([[0], ends])[sparse.indptr].astype(np.int32)


def _check_length(x: Array, columns: int) -> None:
    if x.shape != (columns,):  # the kernels do not look
        raise LayerError(f"an input of shape {x.shape}; the weight has {columns} columns")


def _numpy_type(matrix: DarbMatrix) -> Any:
    if matrix.dtype not in (torch.float32, torch.float64):
        raise LayerError(f"compiled products are of float32 and float64, not {matrix.dtype}")
    return np.float32 if matrix.dtype == torch.float32 else np.float64


__all__ = ["CsrProduct", "DarbProduct", "Product", "TileProduct", "TorchDarbProduct"]
