"""Gradients of the loss, one row per sample or mini-batch: the empirical Fisher's factor."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chita_opt.errors import DataError, MemoryLimitError
from chita_opt.nn.engine_choice import PROBE_ROWS, choose_engine
from chita_opt.nn.evaluation import evaluating, full_precision, model_device
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.outer_products import NotApplicable
from chita_opt.nn.row_engines import Engine, LoopRows, Loss, RowLoss
from chita_opt.nn.sampling import RowChoice, RowSource, open_rows

_log = logging.getLogger(__name__)

# Beyond this a larger chunk is no faster, but for chunks that leave cache lines half written.
_WORK_BYTES = 256 << 20
_MOST_BYTES = 2 << 30
_LINE = 16  # float32 numbers in a cache line


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
        How many rows of how many samples, and which samples.
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
    with evaluating(model), full_precision(model_device(model)):
        source = open_rows(data, choice)
        result_bytes = 4 * source.rows * layer_map.size
        if memory_limit is not None and result_bytes > memory_limit:
            raise _over_limit(result_bytes, memory_limit, source, layer_map)
        loss = RowLoss(model, loss_fn, layer_map)
        device = model_device(model)
        x, y = (part.to(device) for part in source.first(PROBE_ROWS))
        engine = choose_engine(loss, x, y, source.batch_size)
        if engine.reason:
            _log.info("gradient rows by %s: %s", engine.make.path, engine.reason)
        work = max(_WORK_BYTES, min(_LINE * engine.row_bytes, _MOST_BYTES))
        if memory_limit is not None:
            work = min(work, memory_limit - result_bytes)
            if engine.row_bytes > work:
                need = result_bytes + engine.row_bytes
                raise _over_limit(need, memory_limit, source, layer_map)
        chunk = max(1, min(source.rows, work // engine.row_bytes))
        chunk -= chunk % _LINE if chunk > _LINE else 0
        run = _Run(engine.make(loss), engine.reason)
        rows_t = _result(out, layer_map.size, source.rows, device)
        loss_mean = _fill(run, loss, source, chunk, rows_t, progress)
    samples = source.rows * source.batch_size
    path, reason = run.engine.path, run.reason
    return GradientRows(rows_t.t(), source.batch_size, samples, loss_mean, path, reason)


@dataclass
class _Run:
    """The engine in use, and why."""

    engine: Engine
    reason: str

    def rows_(self, x: Tensor, y: Tensor, block: Tensor, loss: RowLoss) -> float:
        try:
            return self.engine.rows_(x, y, block)
        except NotApplicable as error:  # how often a layer is called depends on the data
            self.engine, self.reason = LoopRows(loss), str(error)
            return self.engine.rows_(x, y, block)


def _fill(
    run: _Run,
    loss: RowLoss,
    source: RowSource,
    chunk: int,
    rows_t: Tensor,
    progress: Callable[[int, int], None] | None,
) -> float:
    """Write all rows, in chunks, as the columns of ``rows_t``; return the mean loss."""
    device = model_device(loss.model)
    done, total, fault = 0, 0.0, ""
    for x, y in source.chunks(chunk):
        count = len(x) // source.batch_size
        block = rows_t[:, done : done + count]
        mean = run.rows_(x.to(device), y.to(device), block, loss)
        if not math.isfinite(mean):
            fault = fault or f"the mean loss of rows {done} to {done + count - 1} is {mean}"
        done, total = done + count, total + mean * count
        if progress is not None:
            progress(done, source.rows)
    _check_finite(rows_t, loss.layer_map, source)
    if fault:
        raise DataError(fault)
    return total / source.rows


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


def _check_finite(rows_t: Tensor, layer_map: LayerMap, source: RowSource) -> None:
    if bool(torch.isfinite(rows_t.sum())):
        return
    finite = torch.isfinite(rows_t)
    if bool(finite.all()):  # only the sum overflowed
        return
    row = int((~finite.all(0)).nonzero()[0])
    weight = int((~finite[:, row]).nonzero()[0])
    name = next(item.name for item in layer_map if weight < item.stop)
    raise DataError(
        f"row {row} ({source.samples_of(row)}) has a gradient of {name!r} that is not finite; "
        "check these samples, or the weights, for NaN and overflow"
    )


def _over_limit(need: int, limit: int, source: RowSource, layer_map: LayerMap) -> MemoryLimitError:
    return MemoryLimitError(
        f"{source.rows} gradient rows of {layer_map.size} weights need at least {need} bytes "
        f"(result and working memory), memory_limit is {limit}: raise it, or lower rows or "
        "batch_size, or select fewer layers"
    )
