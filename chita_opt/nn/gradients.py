"""Gradients of the loss, one row per sample or mini-batch: the empirical Fisher's factor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chita_opt.curvature.column_file import MappedColumns, column_writer
from chita_opt.errors import DataError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.row_computation import RowComputation
from chita_opt.nn.row_engines import Loss
from chita_opt.nn.sampling import RowChoice

_WAITING = 1 << 30  # bytes of rows that wait to be written to a file, without a memory limit


@dataclass(frozen=True, eq=False)
class GradientRows:
    """Gradient rows at the current weights of a model.

    Attributes
    ----------
    A : Tensor
        Shape (n, p), float32. Row i is the gradient of the mean loss over the ``batch_size``
        samples of row i. It is the transposed view of a contiguous (p, n) tensor, so a column
        (all gradients of one weight) is contiguous.
    batch_size : int
        Samples per row, m.
    samples : int
        Samples used, n * m.
    loss_mean : float
        Mean loss over all samples used.
    path : str
        How the rows were computed: ``"outer products"``, ``"vmap"`` or ``"loop"``.
    reason : str
        Why a faster path was not taken; empty for outer products.
    """

    A: Tensor
    batch_size: int
    samples: int
    loss_mean: float
    path: str
    reason: str = ""

    @property
    def At(self) -> Tensor:
        """The contiguous (p, n) tensor that ``A`` is a view of."""
        return self.A.t()


def gradient_rows(
    model: nn.Module,
    loss_fn: Loss,
    data: Any,
    layer_map: LayerMap,
    choice: RowChoice,
    *,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    out: Tensor | None = None,
) -> GradientRows:
    r"""Compute gradients of the loss by the selected weights, one row per mini-batch.

    Row i is :math:`a_i = \nabla_w \frac1m \sum_{s \in B_i} \ell_s(w)` at the current weights, for
    mini-batches :math:`B_i` of m samples; ``A'A / n`` is then the empirical Fisher curvature (for
    m > 1: of the mini-batch gradients, which is 1/m of the per-sample one around a stationary
    point). The model runs in eval mode; its parameters, gradients, buffers, training flags and
    the random state are left as they were.

    Parameters
    ----------
    model : torch.nn.Module
        The model, called as ``model(inputs)``.
    loss_fn : callable
        ``loss_fn(output, target)`` returns the mean loss over the batch, or one loss per sample
        (which is then averaged).
    data : (inputs, targets), Dataset, DataLoader or iterable of batches
        Pairs of tensors whose leading index is the sample. A loader or another iterable is read
        in its own order, and only as far as needed.
    layer_map : LayerMap
        The weights to differentiate by, from :func:`chita_opt.nn.select_layers`.
    choice : RowChoice
        How many rows of how many samples, which samples, and the gradients of which weights:
        p is their number.
    memory_limit : int, optional
        Bytes that the result and the working memory together may take (on the model's device;
        the working memory is an estimate). The rows are computed in chunks that fit.
    progress : callable, optional
        Called as ``progress(rows_done, rows)`` after each chunk.
    out : Tensor, optional
        Memory for the result, (p, n) float32 on the model's device, such as ``At`` of earlier rows
        that are no longer needed: fresh memory costs as much time as a good part of the rows.

    Returns
    -------
    GradientRows
        The rows and how they were computed.

    Raises
    ------
    DataError
        If there are too few samples, the data are malformed or a gradient is not finite.
    MemoryLimitError
        If the result and one row of working memory exceed ``memory_limit``.
    LayerError
        If the model does not fit ``layer_map``.

    Notes
    -----
    Where every selected layer is a ``Linear`` or convolution called once in a forward pass, rows
    are batched outer products of its inputs and output derivatives. Otherwise ``torch.func.vmap``
    is used, and a loop over rows where ``vmap`` cannot follow the model. Either is first compared
    with plain autograd on two rows, in double precision where the model allows it (in single
    precision a ReLU at its kink may differ), and used only if it agrees to 1e-5 of the largest
    entry of each layer.
    """
    with RowComputation.prepared(model, loss_fn, data, layer_map, choice) as computation:
        p, n = computation.width, computation.source.rows
        chunk = computation.chunk(memory_limit, held=4 * n * p)
        rows_t = _result(out, p, n, computation.device)
        for start, count in computation.chunks(chunk):
            computation.write(rows_t[:, start : start + count], progress)
        computation.check(rows_t)
    return _rows(computation, rows_t)


def gradient_file(
    model: nn.Module,
    loss_fn: Loss,
    data: Any,
    layer_map: LayerMap,
    choice: RowChoice,
    *,
    path: str | os.PathLike[str],
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GradientRows:
    """Compute the same rows as :func:`gradient_rows` into a file, for nets larger than memory.

    The file is a ``.npy`` of float32 (p, n), written whole or not at all;
    :func:`chita_opt.open_gradients` makes a curvature of it within a memory limit.

    Parameters
    ----------
    model, loss_fn, data, layer_map, choice, progress
        As for :func:`gradient_rows`.
    path : str or path
        File to write or replace.
    memory_limit : int, optional
        Bytes of working memory: rows that wait to be written, a GB of them without a limit, and
        what computing some takes (an estimate). The whole file is visited each time that rows are
        written, so a large limit is faster.

    Returns
    -------
    GradientRows
        ``A`` is mapped from the file.

    Raises
    ------
    MemoryLimitError
        If one row exceeds ``memory_limit``.
    DataError
        As for :func:`gradient_rows`, or if the disk has no room for the file.
    """
    with RowComputation.prepared(model, loss_fn, data, layer_map, choice) as computation:
        p, n = computation.width, computation.source.rows
        chunk = computation.chunk(memory_limit, row=4 * p)
        room = _WAITING if memory_limit is None else memory_limit - chunk * computation.row_bytes
        room = min(n, max(chunk, room // (4 * p) // chunk * chunk))
        block = _result(None, p, room, computation.device)
        with column_writer(path, p, n) as writer:
            for start, count in computation.chunks(chunk):
                place = start % room
                computation.write(block[:, place : place + count], progress)
                if place + count == room or start + count == n:
                    rows_t = block[:, : place + count]
                    computation.check(rows_t, start - place)
                    writer.write(start - place, rows_t)
    return _rows(computation, MappedColumns(path).tensor)


def _rows(computation: RowComputation, rows_t: Tensor) -> GradientRows:
    m, samples = computation.source.batch_size, computation.samples
    mean, path, reason = computation.loss_mean, computation.engine.path, computation.reason
    return GradientRows(rows_t.t(), m, samples, mean, path, reason)


def _result(out: Tensor | None, p: int, n: int, device: torch.device) -> Tensor:
    """``out`` if it fits, or new memory."""
    if out is None:
        if device.type != "cpu":
            return torch.empty(p, n, device=device)
        return torch.from_numpy(np.empty((p, n), np.float32))  # numpy asks for huge pages
    fits = out.shape == (p, n) and out.dtype == torch.float32 and out.is_contiguous()
    if not fits or out.device != device or out.requires_grad:
        raise DataError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}; give a contiguous ({p}, {n}) "
            f"float32 tensor on {device} that needs no gradient"
        )
    return out
