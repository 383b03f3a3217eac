"""A curvature without the coupling between blocks of consecutive weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chita_opt.curvature.base import Curvature
from chita_opt.curvature.block_diagonal import BlockDiagonal
from chita_opt.curvature.dense import Dense
from chita_opt.curvature.low_rank import LowRank
from chita_opt.curvature.shared_rows import SharedRows
from chita_opt.errors import CurvatureError


def without_coupling(curvature: Curvature, block: int | Sequence[int]) -> BlockDiagonal:
    r"""The diagonal blocks :math:`C_{bb}` of a curvature; what lies between blocks is dropped.

    The block-wise approximation of WoodFisher (NeurIPS 2020, §3) and of CHITA's block solver.
    Gradients are cut by columns and not copied. Blocks that the curvature has already, and the
    rows of a layer, are cut further where they are larger than ``block``; none is joined.

    Parameters
    ----------
    curvature : Curvature
        Any form, over p weights.
    block : int or sequence of int
        Weights in a block (the last one of each part may have fewer), or the size of every block
        of a curvature that is one part.

    Raises
    ------
    CurvatureError
        If a size is not positive, or sizes do not sum to p.
    """
    if isinstance(curvature, BlockDiagonal) and isinstance(block, int):
        parts = [without_coupling(part, block).blocks for part in curvature.blocks]
        return BlockDiagonal([b for blocks in parts for b in blocks])
    if isinstance(curvature, SharedRows) and isinstance(block, int):
        return _cut_rows(curvature, block)
    blocks, start = [], 0
    for size in _sizes(curvature.size, block):
        blocks.append(_cut(curvature, start, start + size))
        start += size
    return BlockDiagonal(blocks)


def _sizes(p: int, block: int | Sequence[int]) -> list[int]:
    if isinstance(block, int):
        if block < 1:
            raise CurvatureError(f"block is {block}; give at least one weight a block")
        return [block] * (p // block) + ([p % block] if p % block else [])
    sizes = list(block)
    if any(size < 1 for size in sizes) or sum(sizes) != p:
        raise CurvatureError(
            f"block sizes sum to {sum(sizes)}, the smallest is {min(sizes, default=0)}; "
            f"give positive sizes with the sum {p}"
        )
    return sizes


def _cut(curvature: Curvature, start: int, stop: int) -> Curvature:
    if isinstance(curvature, LowRank):
        return curvature.cut(start, stop)
    return Dense(curvature.submatrix(torch.arange(start, stop, device=curvature.device)))


def _cut_rows(curvature: SharedRows, block: int) -> BlockDiagonal:
    """Rows have no coupling with each other; only rows longer than a block are cut."""
    if block >= curvature.width:
        return BlockDiagonal([curvature])
    row = without_coupling(Dense(curvature.H), block).blocks
    return BlockDiagonal(list(row) * curvature.rows)
