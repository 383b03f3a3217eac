r"""A density-adaptive regular-block matrix: one weight a block, one block width a row.

Row r is cut into blocks of :math:`B_r` consecutive weights, a power of two (the last block may be
shorter), and holds one weight a block. Element j of the row lies in column
:math:`jB_r+o_j`, so that :math:`\log_2B_r` bits, the offset, place it: no row pointers, no sums of
earlier entries. Rows of one width form a group and are decoded in lock-step: step j of a group
holds the j-th weight of each of its rows.

DARB is due to Ren et al., "DARB: A Density-Adaptive Regular-Block Pruning for Deep Neural Networks"
(AAAI 2020); it prints no file format, and the one of :mod:`chita_opt.nn.darb.darb_file` is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from chita_opt.errors import LayerError

MAX_WIDTH = 256
"""Widest block; offsets then fit a byte."""

VALUE_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class RowGroup:
    """All rows of one block width, in the order in which they are decoded.

    Attributes
    ----------
    width : int
        B, a power of two from 1 to ``MAX_WIDTH``.
    rows : Tensor
        (r,) int64 row numbers, ascending.
    values : Tensor
        (blocks, r): step j holds the j-th weight of every row; 0 where a block keeps none.
    offsets : Tensor
        (blocks, r) uint8, the place of each weight in its block; 0 where a block keeps none.
    """

    width: int
    rows: Tensor
    values: Tensor
    offsets: Tensor

    @property
    def offset_bits(self) -> int:
        """Bits of one offset, log2 of the width."""
        return self.width.bit_length() - 1


@dataclass(frozen=True, eq=False)
class DarbMatrix:
    """A weight whose rows hold one value a block.

    Attributes
    ----------
    shape : tuple of int
        Shape of the parameter, at least two numbers; as a matrix it has ``shape[0]`` rows.
    dtype : torch.dtype
        Of the values.
    groups : tuple of RowGroup
        Ascending in width. A row in no group is all zero and takes no space but its width code.

    Raises
    ------
    LayerError
        If groups overlap or do not fit the shape, or a weight lies outside of its row.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    groups: tuple[RowGroup, ...]

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1 or self.dtype not in VALUE_TYPES:
            raise LayerError(
                f"a weight of shape {self.shape} and type {self.dtype} has no regular blocks; need "
                "two or more dimensions, none empty, of floating numbers"
            )
        widths = [group.width for group in self.groups]
        if widths != sorted(set(widths)):
            raise LayerError(f"groups of widths {widths} must be ascending, each width once")
        for group in self.groups:
            check_width(group.width)
            self._check_group(group)
        taken = torch.cat([torch.zeros(0, dtype=torch.int64), *(g.rows for g in self.groups)])
        if len(taken.unique()) != len(taken):
            raise LayerError("a row belongs to two groups")

    @classmethod
    def from_dense(cls, weight: Tensor, widths: Tensor | None = None) -> Self:
        """Read a pruned weight.

        Parameters
        ----------
        weight : Tensor
            (rows, ...) with exact zeros where it is pruned.
        widths : Tensor, optional
            (rows,) block width of each row, powers of two, 0 for a row without weights; by default
            the widest that fit (:func:`widest_widths`).

        Raises
        ------
        LayerError
            If two weights of a row lie in one block; the message names them.
        """
        if weight.ndim < 2:
            raise LayerError(f"a weight of shape {tuple(weight.shape)} has no rows to cut")
        flat = weight.detach().cpu().flatten(1)
        if widths is None:
            widths = widest_widths(flat != 0)
        if widths.shape != (len(flat),):
            raise LayerError(
                f"widths of shape {tuple(widths.shape)} were given for {len(flat)} rows"
            )
        groups = []
        for width in sorted(set(widths.tolist())):
            rows = (widths == width).nonzero().flatten()
            if width == 0:
                _check_empty(flat, rows)
                continue
            groups.append(_group(flat, rows, check_width(width)))
        return cls(tuple(weight.shape), weight.dtype, tuple(groups))

    def to_dense(self) -> Tensor:
        """The weight with zeros, of the parameter's shape and type."""
        rows, columns = self.rows_cols
        dense = torch.zeros(rows, columns, dtype=self.dtype)
        for group in self.groups:
            starts = group.width * torch.arange(len(group.values))[:, None]
            dense[group.rows.expand_as(group.values), starts + group.offsets] = group.values
        return dense.reshape(self.shape)

    @property
    def rows_cols(self) -> tuple[int, int]:
        """Shape as a matrix."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def widths(self) -> Tensor:
        """(rows,) int64 block width of every row; 0 for a row without weights."""
        widths = torch.zeros(self.shape[0], dtype=torch.int64)
        for group in self.groups:
            widths[group.rows] = group.width
        return widths

    @property
    def stored(self) -> int:
        """Number of stored values: one a block, also where the block keeps nothing."""
        return sum(group.values.numel() for group in self.groups)

    def _check_group(self, group: RowGroup) -> None:
        rows, columns = self.rows_cols
        blocks, r = -(-columns // group.width), len(group.rows)
        what = f"group of width {group.width}"
        if not r or group.values.shape != (blocks, r) or group.offsets.shape != (blocks, r):
            raise LayerError(
                f"{what}: values {tuple(group.values.shape)} and offsets "
                f"{tuple(group.offsets.shape)} must be ({blocks}, {r}), with at least one row"
            )
        if group.values.dtype != self.dtype or group.offsets.dtype != torch.uint8:
            raise LayerError(f"{what}: values must be {self.dtype}, offsets uint8")
        ascending = bool((group.rows[1:] > group.rows[:-1]).all())
        if not ascending or int(group.rows[0]) < 0 or int(group.rows[-1]) >= rows:
            raise LayerError(f"{what}: rows must ascend from 0 or more to {rows - 1} or less")
        last = columns - (blocks - 1) * group.width
        if int(group.offsets.max()) >= group.width or int(group.offsets[-1].max()) >= last:
            raise LayerError(f"{what}: an offset points outside of its block or row")


def check_width(width: int) -> int:
    """Refuse a block width that is no power of two from 1 to ``MAX_WIDTH``."""
    if not 1 <= width <= MAX_WIDTH or width & (width - 1):
        raise LayerError(f"block width {width} is no power of two from 1 to {MAX_WIDTH}")
    return width


def widest_widths(mask: Tensor, *, limit: int = MAX_WIDTH) -> Tensor:
    """Widest block width of each row at which no block keeps two weights.

    Parameters
    ----------
    mask : Tensor
        (rows, cols) bool.
    limit : int
        No width beyond this power of two.

    Returns
    -------
    Tensor
        (rows,) int64; 0 for a row that keeps nothing.
    """
    check_width(limit)
    rows, columns = mask.shape
    widths = torch.ones(rows, dtype=torch.int64)
    width = 2
    while width <= limit and width < 2 * columns:
        most = blocks_of(mask, width).sum(2).amax(1)
        widths[most <= 1] = width  # blocks are nested: what fits here fitted all before
        width *= 2
    return widths.where(mask.any(1), 0)


def blocks_of(matrix: Tensor, width: int) -> Tensor:
    """Cut the rows of a matrix into (rows, blocks, width), the last block filled with zeros."""
    return pad(matrix, (0, -matrix.shape[1] % width)).unflatten(1, (-1, width))


def _group(flat: Tensor, rows: Tensor, width: int) -> RowGroup:
    blocks = blocks_of(flat[rows], width)
    kept = blocks != 0
    many = (kept.sum(2) > 1).nonzero()
    if len(many):
        row, block = many[0].tolist()
        raise LayerError(
            f"row {int(rows[row])} keeps {int(kept[row, block].sum())} weights in block {block} of "
            f"{width}; there may be one: take a smaller width for this row"
        )
    offsets = kept.to(torch.uint8).argmax(2)
    values = blocks.gather(2, offsets[:, :, None])[:, :, 0]
    lock_step = values.t().contiguous(), offsets.t().to(torch.uint8).contiguous()
    return RowGroup(width, rows, *lock_step)


def _check_empty(flat: Tensor, rows: Tensor) -> None:
    held = (flat[rows] != 0).any(1).nonzero().flatten()
    if len(held):
        raise LayerError(f"row {int(rows[held[0]])} has width 0 but keeps weights")


__all__ = [
    "MAX_WIDTH",
    "VALUE_TYPES",
    "DarbMatrix",
    "RowGroup",
    "blocks_of",
    "check_width",
    "widest_widths",
]
