"""Compiled matrix-vector products, one for each storage format; flat arrays in and out.

All write ``y``, which holds zeros before the first call. None allocates.
"""

from __future__ import annotations

from typing import Any

import numba
from numpy.typing import NDArray

Array = NDArray[Any]


@numba.njit(cache=True, boundscheck=False)
def darb_product(  # pragma: no cover - compiled
    values: Array, offsets: Array, shift: int, rows: Array, x: Array, sums: Array, y: Array
) -> None:
    """One row group in lock-step; offsets as bytes.

    The address of a weight is the counter of the step beside its offset: no index is read, nothing
    depends on the entry before. ``sums`` (rows,) is room to add in.
    """
    sums[:] = 0.0
    for step in range(values.shape[0]):
        base = step << shift
        for r in range(values.shape[1]):
            sums[r] += values[step, r] * x[base | offsets[step, r]]
    for r in range(values.shape[1]):
        y[rows[r]] = sums[r]


@numba.njit(cache=True, boundscheck=False)
def packed_darb_product(  # pragma: no cover - compiled
    values: Array, packed: Array, shift: int, rows: Array, x: Array, sums: Array, y: Array
) -> None:
    """The same from packed offsets of ``shift`` bits, with two spare bytes at their end."""
    sums[:] = 0.0
    field, bit = (1 << shift) - 1, 0
    for step in range(values.shape[0]):
        base = step << shift
        for r in range(values.shape[1]):
            byte = bit >> 3
            word = numba.uint32(packed[byte]) | (numba.uint32(packed[byte + 1]) << 8)
            sums[r] += values[step, r] * x[base | ((word >> (bit & 7)) & field)]
            bit += shift
    for r in range(values.shape[1]):
        y[rows[r]] = sums[r]


@numba.njit(cache=True, boundscheck=False)
def csr_product(  # pragma: no cover - compiled
    values: Array, columns: Array, pointers: Array, x: Array, y: Array
) -> None:
    """Compressed sparse rows with absolute columns."""
    for row in range(len(pointers) - 1):
        total = values.dtype.type(0.0)
        for i in range(pointers[row], pointers[row + 1]):
            total += values[i] * x[columns[i]]
        y[row] = total


@numba.njit(cache=True, boundscheck=False)
def csr_runs_product(  # pragma: no cover - compiled
    values: Array, runs: Array, pointers: Array, x: Array, y: Array
) -> None:
    """Compressed sparse rows with runs of zeros: every column is a sum over those before it."""
    for row in range(len(pointers) - 1):
        total, column = values.dtype.type(0.0), -1
        for i in range(pointers[row], pointers[row + 1]):
            column += runs[i] + 1
            total += values[i] * x[column]
        y[row] = total


@numba.njit(cache=True, boundscheck=False)
def tile_product(  # pragma: no cover - compiled
    tiles: Array, columns: Array, pointers: Array, x: Array, y: Array
) -> None:
    """Whole 4x4 blocks; ``x`` and ``y`` are filled up to multiples of 4."""
    for block in range(len(pointers) - 1):
        a = b = c = d = tiles.dtype.type(0.0)
        for i in range(pointers[block], pointers[block + 1]):
            start = 4 * columns[i]
            for j in range(4):
                factor = x[start + j]
                a += tiles[i, 0, j] * factor
                b += tiles[i, 1, j] * factor
                c += tiles[i, 2, j] * factor
                d += tiles[i, 3, j] * factor
        row = 4 * block
        y[row], y[row + 1], y[row + 2], y[row + 3] = a, b, c, d


__all__ = [
    "csr_product",
    "csr_runs_product",
    "darb_product",
    "packed_darb_product",
    "tile_product",
]
