r"""Regular blocks in the rows of a matrix: block-max masks, DARB with given widths, N:M.

Every row of a rows-by-cols matrix is cut into consecutive blocks, and each block keeps at most m of
its weights; the last block of a row is shorter where the width does not divide ``cols``. These are
budgets on a partition, with all that :class:`Budget` offers.

Source: DARB (Ren et al., AAAI 2020): block-max weight masking keeps the largest weight of every
1 x B block; density-adaptive blocks give each row a power of two as its width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.budget import Budget
from chita_opt.supports.thresholds import largest

Array = np.ndarray
_ROUNDINGS = {"nearest": np.rint, "floor": np.floor, "ceil": np.ceil}


def block_max(shape: tuple[int, int], width: int, keep: int = 1) -> Budget:
    """BMWM: at most ``keep`` weights in every 1 x ``width`` block of every row.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols).
    width : int
        B >= 1.
    keep : int
        m, at most B.

    Raises
    ------
    SupportError
        If width or keep are out of range.
    """
    family = fixed_widths(shape, torch.full((shape[0],), int(width)), keep)
    what = f"bmwm({width})" if keep == 1 else f"bmwm({width}, {keep} a block)"
    return Budget(family.labels, family.caps, title=what)


def fixed_widths(shape: tuple[int, int], widths: Tensor | Sequence[int], keep: int = 1) -> Budget:
    """DARB with given widths: at most ``keep`` weights in every block, row r in blocks of its own.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols).
    widths : Tensor or sequence of int
        (rows,) block width of each row; 0 for a row that keeps nothing.
    keep : int
        Weights that a block keeps at most; a shorter last block at most its size.

    Raises
    ------
    SupportError
        If there are not as many widths as rows, or a width is below 0, or keep out of range.
    """
    rows, cols = shape
    width = torch.as_tensor(widths, dtype=torch.int64).cpu()
    if width.shape != (rows,) or (rows and int(width.min()) < 0):
        raise SupportError(f"widths have shape {tuple(width.shape)}; give {rows} widths >= 0")
    narrowest = int(width[width > 0].min()) if bool((width > 0).any()) else keep
    if not 0 <= keep <= narrowest:
        raise SupportError(f"keep is {keep}; a block of {narrowest} keeps 0 to all of them")
    span = torch.where(width > 0, width, cols)
    count = -(-cols // span)
    first = count.cumsum(0) - count
    labels = (first[:, None] + torch.arange(cols)[None, :] // span[:, None]).reshape(-1)
    limit = torch.where(width > 0, keep, 0).repeat_interleave(count)
    caps = torch.minimum(torch.bincount(labels), limit)
    return Budget(labels, caps, title=f"darb({rows}x{cols}, widths given)")


def published_widths(
    scores: Tensor, shape: tuple[int, int], k: int, *, rounding: str = "nearest", widest: int = 16
) -> Tensor:
    r"""Widths from an irregular pruning: dense rows get narrow blocks, sparse rows wide ones.

    The k largest scores are kept wherever they are; with :math:`d_r` the density of row r,
    :math:`B_r=2^{\mathrm{round}(\log_2 1/d_r)}`, within [1, widest].

    Parameters
    ----------
    scores : Tensor
        (rows * cols,) >= 0, such as squared weights.
    shape : tuple of int
        (rows, cols).
    k : int
        Weights kept by the irregular pruning; :func:`kept_by` tells how many the blocks keep.
    rounding : {"nearest", "floor", "ceil"}
        Of the exponent; the paper does not say which.
    widest : int
        Largest width, a power of two.

    Returns
    -------
    Tensor
        (rows,) int64, powers of two.

    Raises
    ------
    SupportError
        If an argument is out of range.
    """
    rows, cols = shape
    if rounding not in _ROUNDINGS:
        raise SupportError(f"rounding is {rounding!r}; give one of {', '.join(_ROUNDINGS)}")
    if widest < 1 or widest & (widest - 1):
        raise SupportError(f"widest is {widest}; give a power of two")
    if scores.shape != (rows * cols,) or not 0 <= k <= rows * cols:
        raise SupportError(
            f"{tuple(scores.shape)} scores and k = {k} do not fit {rows * cols} weights"
        )
    density = largest(scores, k).reshape(shape).double().mean(1).cpu().numpy()
    exponent = np.log2(1.0 / np.maximum(density, 0.5 / widest))
    power = np.clip(_ROUNDINGS[rounding](exponent), 0, int(np.log2(widest)))
    return torch.from_numpy(2 ** power.astype(np.int64))


def kept_by(widths: Tensor, cols: int, keep: int = 1) -> int:
    """Number of weights that blocks of these widths keep at most, over all rows."""
    used = widths[widths > 0]
    ends = (cols % used).clamp_max(keep)
    return int(((cols // used) * keep + ends).sum())


def n_of_m_along(
    shape: tuple[int, int],
    n: int,
    m: int,
    *,
    axis: int = 1,
    permutation: Tensor | Sequence[int] | None = None,
) -> Budget:
    """At most n of every m weights that follow each other along an axis of a matrix.

    Parameters
    ----------
    shape : tuple of int
        (rows, cols).
    n, m : int
        0 <= n <= m.
    axis : {0, 1}
        1: along the rows of the matrix, as hardware has it; 0: along its columns.
    permutation : Tensor or sequence of int, optional
        Order in which the positions of the axis are grouped; hardware then stores the columns in
        this order (see :func:`permutation_search`).

    Raises
    ------
    SupportError
        If the axis is not a multiple of m, or the permutation is none.
    """
    rows, cols = shape
    length = shape[axis] if axis in (0, 1) else 0
    if axis not in (0, 1) or m < 1 or length % m or not 0 <= n <= m:
        raise SupportError(f"{n}:{m} along axis {axis} does not fit a {rows}x{cols} matrix")
    order = torch.arange(length) if permutation is None else torch.as_tensor(permutation)
    if not torch.equal(order.sort().values, torch.arange(length)):
        raise SupportError(f"permutation must hold each of 0 … {length - 1} once")
    group = torch.empty(length, dtype=torch.int64)
    group[order] = torch.arange(length) // m
    per_line = length // m
    if axis == 1:
        labels = torch.arange(rows)[:, None] * per_line + group[None, :]
    else:
        labels = group[:, None] + per_line * torch.arange(cols)[None, :]
    caps = torch.full((per_line * (rows if axis == 1 else cols),), int(n), dtype=torch.int64)
    return Budget(labels.reshape(-1), caps, title=f"{n}:{m} along axis {axis}")


__all__ = ["block_max", "fixed_widths", "kept_by", "n_of_m_along", "published_widths"]
