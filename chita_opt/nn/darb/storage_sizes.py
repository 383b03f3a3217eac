r"""How many bits a pruned weight takes in each format, counted from its real mask.

With n kept values of v bits in a matrix of R rows and C columns:

===========  ======================================================================================
dense        :math:`RCv`
bitmap       :math:`RC+nv`
csr          :math:`n(v+\lceil\log_2C\rceil)+(R+1)\lceil\log_2(n+1)\rceil`
csr_runs     an entry is v bits and the run of zeros before it in 4 bits; a run of 16 or more takes
             filling entries (Han et al. 2016, "EIE"); one pointer a row as in csr
blocks_4x4   each 4x4 block that keeps a weight: 16v bits and its block column; pointers of the
             block rows
darb         :math:`\sum_r\lceil C/B_r\rceil(v+\log_2B_r)+8R`
===========  ======================================================================================

Every index takes the fewest bits that can hold it: a courtesy to the other formats, whose indices
are often whole bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.nn.darb.matrix import DarbMatrix, blocks_of

RUN_BITS = 4
TILE = 4
_WIDTH_CODE_BITS = 8


def storage_bits(weight: Tensor, matrix: DarbMatrix | None = None) -> dict[str, int]:
    """Bits of a pruned weight by format; "darb" where its block-regular form is given.

    Parameters
    ----------
    weight : Tensor
        (rows, ...) with exact zeros where it is pruned.
    matrix : DarbMatrix, optional
        The same weight.

    Returns
    -------
    dict of str to int
        Bits by format, as in the table above.
    """
    mask = (weight.detach().cpu() != 0).flatten(1)
    rows, columns = mask.shape
    kept, v = int(mask.sum()), 8 * weight.element_size()
    tiles = tile_mask(mask)
    sizes = {
        "dense": rows * columns * v,
        "bitmap": rows * columns + kept * v,
        "csr": kept * (v + _bits(columns)) + (rows + 1) * _bits(kept + 1),
        "csr_runs": _csr_runs(mask, v),
        "blocks_4x4": int(tiles.sum()) * (TILE * TILE * v + _bits(tiles.shape[1]))
        + (len(tiles) + 1) * _bits(int(tiles.sum()) + 1),
    }
    return sizes if matrix is None else sizes | {"darb": darb_bits(matrix)}


def darb_bits(matrix: DarbMatrix) -> int:
    """Bits of the block-regular form; its file rounds each group's offsets up to a byte."""
    v = 8 * matrix.dtype.itemsize
    entries = sum(g.values.numel() * (v + g.offset_bits) for g in matrix.groups)
    return entries + _WIDTH_CODE_BITS * matrix.shape[0]


def tile_mask(mask: Tensor) -> Tensor:
    """(block rows, block columns) bool: which 4x4 blocks keep a weight; edges may be smaller."""
    return blocks_of(blocks_of(mask, TILE).any(2).t(), TILE).any(2).t()


def run_entries(mask: Tensor) -> Tensor:
    """(rows,) entries of each row when runs of zeros take 4 bits, the filling ones included."""
    columns = torch.arange(mask.shape[1]).expand(mask.shape)
    last = torch.where(mask, columns, -1).cummax(1).values
    before = torch.cat([torch.full((len(mask), 1), -1), last[:, :-1]], 1)
    runs = torch.where(mask, columns - before - 1, 0)
    return (mask + runs // (1 << RUN_BITS)).sum(1)


def _csr_runs(mask: Tensor, v: int) -> int:
    entries = int(run_entries(mask).sum())
    return entries * (v + RUN_BITS) + (len(mask) + 1) * _bits(entries + 1)


def _bits(count: int) -> int:
    """Bits that tell so many numbers, from 0 on, apart."""
    return (count - 1).bit_length()


__all__ = ["RUN_BITS", "TILE", "darb_bits", "run_entries", "storage_bits", "tile_mask"]
