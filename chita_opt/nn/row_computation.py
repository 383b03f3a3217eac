"""Gradient rows computed chunk by chunk, wherever they are written to."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import DataError, MemoryLimitError
from chita_opt.nn.engine_choice import PROBE_ROWS, choose_engine
from chita_opt.nn.evaluation import evaluating, full_precision, model_device
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.outer_products import CACHE_LINE, NotApplicable, OuterProducts
from chita_opt.nn.row_engines import Engine, LoopRows, Loss, RowLoss
from chita_opt.nn.sampling import Batch, RowChoice, RowSource, open_rows
from chita_opt.nn.support_rows import SupportRows

_log = logging.getLogger(__name__)

# Beyond this a larger chunk is no faster, but for chunks that leave cache lines half written.
_WORK_BYTES = 256 << 20
_MOST_BYTES = 2 << 30


class RowComputation:
    """The rows of one source of samples, by the fastest engine that is right for the model.

    Make it by :meth:`prepared`, which keeps the model in eval mode; then :meth:`write` the chunks
    that :meth:`chunks` announces.

    Attributes
    ----------
    source : RowSource
        The samples.
    device : torch.device
        Where the model is, and the rows are computed.
    engine : Engine
        What computes them; replaced where the data turn out not to fit it.
    reason : str
        Why not a faster one.
    row_bytes : int
        Working memory of one row (an estimate).
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        layer_map: LayerMap,
        source: RowSource,
        columns: Tensor | None = None,
    ) -> None:
        self.source, self.device, self._map = source, model_device(model), layer_map
        self._columns = columns
        self._loss = RowLoss(model, loss_fn, layer_map)
        x, y = (part.to(self.device) for part in source.first(PROBE_ROWS))
        chosen = choose_engine(self._loss, x, y, source.batch_size)
        if chosen.reason:
            _log.info("gradient rows by %s: %s", chosen.make.path, chosen.reason)
        self.engine: Engine = chosen.make(self._loss)
        if columns is not None and chosen.make is OuterProducts:
            self.engine = SupportRows(self._loss, columns)
        self.reason, self.row_bytes = chosen.reason, chosen.row_bytes
        self._batch: Batch | None = None
        self._done, self._total, self._fault = 0, 0.0, ""

    @classmethod
    @contextmanager
    def prepared(
        cls, model: nn.Module, loss_fn: Loss, data: Any, layer_map: LayerMap, choice: RowChoice
    ) -> Iterator[RowComputation]:
        """Put the model in eval mode, open the data, choose the engine."""
        with evaluating(model), full_precision(model_device(model)):
            yield cls(model, loss_fn, layer_map, open_rows(data, choice), choice.columns)

    @property
    def width(self) -> int:
        """Weights of a row."""
        return self._map.size if self._columns is None else len(self._columns)

    @property
    def samples(self) -> int:
        """Samples in all rows."""
        return self.source.rows * self.source.batch_size

    @property
    def loss_mean(self) -> float:
        """Mean loss over the samples so far."""
        return self._total / self._done

    def chunk(self, memory_limit: int | None, *, held: int = 0, row: int = 0) -> int:
        """Rows of a chunk that fit beside ``held`` bytes, each taking ``row`` bytes of its own.

        Raises
        ------
        MemoryLimitError
            If not even one does.
        """
        row += self.row_bytes
        work = max(_WORK_BYTES, min(CACHE_LINE * row, _MOST_BYTES))
        if memory_limit is not None:
            work = min(work, memory_limit - held)
            if row > work:
                raise MemoryLimitError(
                    f"{self.source.rows} gradient rows of {self._map.size} weights need at least "
                    f"{held + row} bytes (result and working memory), memory_limit is "
                    f"{memory_limit}: raise it, or lower rows or batch_size, or select fewer layers"
                )
        count = max(1, min(self.source.rows, work // row))
        return count - (count % CACHE_LINE if count > CACHE_LINE else 0)

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield first row and number of rows of each chunk, which is to be written in between."""
        for batch in self.source.chunks(size):
            self._batch = batch
            yield self._done, len(batch[0]) // self.source.batch_size

    def write(self, block: Tensor, progress: Callable[[int, int], None] | None) -> None:
        """Write the rows of the chunk as the columns of ``block`` (p, count)."""
        assert self._batch is not None
        x, y = (part.to(self.device) for part in self._batch)
        try:
            mean = self._rows(x, y, block)
        except NotApplicable as error:  # how often a layer is called depends on the data
            self.engine, self.reason = LoopRows(self._loss), str(error)
            mean = self._rows(x, y, block)
        first, self._done = self._done, self._done + block.shape[1]
        self._total += mean * block.shape[1]
        if not math.isfinite(mean) and not self._fault:
            self._fault = f"the mean loss of rows {first} to {self._done - 1} is {mean}"
        if progress is not None:
            progress(self._done, self.source.rows)

    def _rows(self, x: Tensor, y: Tensor, block: Tensor) -> float:
        """Rows of all weights, or of the wanted columns, which only some engines do alone."""
        if self._columns is None or isinstance(self.engine, SupportRows):
            return self.engine.rows_(x, y, block)
        every = block.new_empty(self._map.size, block.shape[1])
        mean = self.engine.rows_(x, y, every)
        block.copy_(every.index_select(0, self._columns))
        return mean

    def check(self, rows_t: Tensor, first: int = 0) -> None:
        """Refuse columns (the rows from ``first`` on) or losses that are not finite."""
        if not bool(torch.isfinite(rows_t.sum())):
            finite = torch.isfinite(rows_t)
            if not bool(finite.all()):  # else only the sum overflowed
                self._name_culprit(finite, first)
        if self._fault:
            raise DataError(self._fault)

    def _name_culprit(self, finite: Tensor, first: int) -> None:
        column = int((~finite.all(0)).nonzero()[0])
        weight = int((~finite[:, column]).nonzero()[0])
        weight = weight if self._columns is None else int(self._columns[weight])
        name = next(item.name for item in self._map if weight < item.stop)
        row = first + column
        raise DataError(
            f"row {row} ({self.source.samples_of(row)}) has a gradient of {name!r} that is not "
            "finite; check these samples, or the weights, for NaN and overflow"
        )
