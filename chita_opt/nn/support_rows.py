"""Gradient rows of some weights: what a refit on a sparse support needs, and no more."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from chita_opt.nn.layer_map import LayerSlice
from chita_opt.nn.outer_products import OuterProducts
from chita_opt.nn.row_engines import RowLoss

_SAMPLES = 1 << 15  # of one weight's products that are made at a time, times some weights
_WEIGHTS = 64
_DENSE = 0.04  # of a layer; beyond it all its products are made, and the others dropped


class SupportRows(OuterProducts):
    r"""Rows of the weights at ``index`` alone, (len(index), rows).

    A weight of a linear layer costs one product :math:`\delta_{sr}x_{sc}` a sample. Other layers,
    and linear ones of which much is wanted, compute all their weights' rows and drop the others.

    Parameters
    ----------
    loss : RowLoss
        The loss to differentiate.
    index : Tensor
        (s,) int64, sorted places in the flat vector.

    Raises
    ------
    NotApplicable
        As :class:`~chita_opt.nn.outer_products.OuterProducts`.
    """

    def __init__(self, loss: RowLoss, index: Tensor) -> None:
        super().__init__(loss)
        self._index = index
        ends = torch.tensor([0, *(item.stop for item in loss.layer_map)], device=index.device)
        cuts = torch.searchsorted(index, ends).tolist()
        pairs = zip(loss.layer_map, pairwise(cuts), strict=True)
        self._places = {item.name: slice(*cut) for item, cut in pairs}

    def _own(self, item: LayerSlice, block: Tensor) -> Tensor:
        return block[self._places[item.name]]

    def _write(self, item: LayerSlice, delta: Tensor, block: Tensor) -> None:
        chosen = self._index[self._places[item.name]] - item.start
        x = self._inputs[item.module_name]
        module = self._modules[item.module_name]
        linear = isinstance(module, nn.Linear) and x.ndim == 2 and item.kind != "bias"
        if not len(chosen):
            return
        if linear and len(chosen) > _DENSE * item.size:
            rows = block.shape[1]
            factors = x.unflatten(0, (rows, -1)), delta.unflatten(0, (rows, -1))
            self._write_products(module, *factors, block, item.size, chosen)
            return
        if not linear:
            every = block.new_empty(item.size, block.shape[1])
            super()._write(item, delta, every)
            block.copy_(every[chosen])
            return
        width = item.rows_cols[1]
        left, right = delta.t().contiguous(), x.t().contiguous()
        step = max(1, _WEIGHTS * _SAMPLES // len(x))
        for part in torch.arange(len(chosen), device=chosen.device).split(step):
            j = chosen[part]
            products = left[j // width] * right[j % width]
            block[part[0] : part[-1] + 1] = products.unflatten(1, (block.shape[1], -1)).sum(2)


__all__ = ["SupportRows"]
