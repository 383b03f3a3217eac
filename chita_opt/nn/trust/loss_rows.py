"""Fresh gradient rows at any weights, from samples that were not held out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.nn.gradients import gradient_rows
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.sampling import RowChoice
from chita_opt.nn.trust.expansion import Expansion


class LossRows:
    """Draws samples and measures gradient rows at the weights asked for.

    Parameters
    ----------
    model, loss_fn, data, layer_map
        As for :func:`chita_opt.nn.gradient_rows`; the model is copied.
    pool : Tensor
        Numbers of the samples that may be drawn.
    batch_size : int
        Samples of a row, m.
    seed : int
        Of the draws.
    memory_limit : int, optional
        Bytes, as for :func:`chita_opt.nn.gradient_rows`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        layer_map: LayerMap,
        *,
        pool: Tensor,
        batch_size: int = 16,
        seed: int = 0,
        memory_limit: int | None = None,
    ) -> None:
        self.model, self.loss_fn, self.data = copy.deepcopy(model), loss_fn, data
        self.layer_map, self.pool, self.batch_size = layer_map, pool, batch_size
        self.samples, self.memory_limit = 0, memory_limit
        self._random = torch.Generator().manual_seed(seed)
        self._buffer: Tensor | None = None

    def everywhere(self, w: Tensor, rows: int) -> Expansion:
        """The expansion over all weights; the next call may overwrite its rows."""
        self.layer_map.write_(self.model, w)
        found = gradient_rows(
            self.model,
            self.loss_fn,
            self.data,
            self.layer_map,
            RowChoice(index=self._draw(rows)),
            out=self._memory(rows),
            memory_limit=self.memory_limit,
        )
        self._buffer = found.At
        return Expansion(found.At, w, self.batch_size)

    def on(self, w: Tensor, index: Tensor, rows: int) -> Expansion:
        """The expansion over the weights at ``index`` (s,) alone."""
        self.layer_map.write_(self.model, w)
        choice = RowChoice(index=self._draw(rows), columns=index)
        found = gradient_rows(
            self.model,
            self.loss_fn,
            self.data,
            self.layer_map,
            choice,
            memory_limit=self.memory_limit,
        )
        return Expansion(found.At, w[index], self.batch_size)

    def _draw(self, rows: int) -> Tensor:
        need = rows * self.batch_size
        if need > len(self.pool):
            raise DataError(
                f"{rows} rows of {self.batch_size} samples need {need}, {len(self.pool)} samples "
                "are not held out; lower rows or batch_size"
            )
        self.samples += need
        chosen = torch.randperm(len(self.pool), generator=self._random)[:need]
        return self.pool[chosen].reshape(rows, self.batch_size)

    def _memory(self, rows: int) -> Tensor | None:
        fits = self._buffer is not None and self._buffer.shape[1] == rows
        return self._buffer if fits else None


__all__ = ["LossRows"]
