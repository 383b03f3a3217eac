"""Gradient rows of linear and convolutional layers as batched matrix products."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import grad

from chita_opt.nn.layer_map import LayerSlice
from chita_opt.nn.patches import Conv, is_stock, padded_input, window_view
from chita_opt.nn.row_engines import RowLoss

_log = logging.getLogger(__name__)

# Products made before they are transposed into place: of linear layers so many rows that each
# column receives a few cache lines at a time, of convolutions so few that windows stay cached.
_SCRATCH_BYTES = 8 << 20
_WINDOW_BYTES = 2 << 20
_WEIGHT_GRADIENTS = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}
CACHE_LINE = 16
"""Float32 numbers in a cache line: rows whose entries of one column fill it."""


class NotApplicable(Exception):
    """Outer products do not give the gradient of this model; the message says why."""


class OuterProducts:
    r"""One forward and backward pass, then one batched product per layer.

    For a layer :math:`Y = X W^\top` that is called once, the gradient of the mean loss of the m
    samples of a row is :math:`\nabla_W = \frac1m \sum_s \delta_s x_s^\top`, with :math:`x_s` the
    layer's input and :math:`\frac1m \delta_s` the derivative of the row's loss by the layer's
    output for sample s. One backward pass gives every :math:`\delta_s`, as samples do not touch
    each other in eval mode. A convolution is the same over the windows of its input.

    Raises
    ------
    NotApplicable
        If a selected parameter is tied, belongs to another kind of layer or is not in single or
        double precision. Computing rows raises it too, for a layer not called exactly once.
    """

    path = "outer products"

    def __init__(self, loss: RowLoss) -> None:
        self._loss = loss
        self._modules: dict[str, nn.Module] = {}
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._window_bytes = 0  # of one sample, in the layer seen where they are most
        self._scratch = torch.empty(0)
        self._losses_at_once = True
        for item in loss.layer_map:
            self._modules[item.module_name] = self._checked(item)

    def rows_(self, x: Tensor, y: Tensor, block: Tensor) -> float:
        """Write all rows at once; see :class:`chita_opt.nn.row_engines.Engine`."""
        rows = block.shape[1]
        try:
            with torch.enable_grad():
                losses = self._recorded_losses(x, y, rows)
            grads = torch.autograd.grad(
                losses.sum(),
                [out for outs in self._outputs.values() for out in outs],
                materialize_grads=True,
            )
            deltas = dict(zip(self._outputs, grads, strict=True))
            for item in self._loss.layer_map:
                self._write(item, deltas[item.module_name], self._own(item, block))
        finally:
            self._inputs, self._outputs = {}, {}
        return float(losses.detach().mean())

    def row_bytes(self, saved: int, samples: int) -> int:
        """Estimate the working memory of one row; see :class:`chita_opt.nn.row_engines.Engine`.

        The inputs and outputs of the layers are held on top of what the graph saves. Windows and
        products are made for a few rows at a time, so for one row at least.
        """
        one_product = 8 * max(self._loss.layer_map.sizes)
        return (5 * saved + self._window_bytes) * samples + one_product

    def _own(self, item: LayerSlice, block: Tensor) -> Tensor:
        """The part of the block that belongs to a parameter."""
        return block[item.start : item.stop]

    def _checked(self, item: LayerSlice) -> nn.Module:
        module = self._loss.model.get_submodule(item.module_name)
        if item.aliases:
            raise NotApplicable(f"{item.name} is tied to {item.aliases[0]}")
        if not is_stock(module):
            raise NotApplicable(f"{item.module_name} is a {type(module).__name__}")
        dtype = self._loss.layer_map.parameter(self._loss.model, item).dtype
        if dtype not in (torch.float32, torch.float64):
            raise NotApplicable(f"{item.name} is {dtype}")
        return module

    def _recorded_losses(self, x: Tensor, y: Tensor, rows: int) -> Tensor:
        """Run the model once, noting inputs and outputs of the layers; return a loss per row."""

        def recorder(name: str) -> Any:
            def record(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
                self._inputs[name] = (args[0] if args else kwargs["input"]).detach()
                if not output.requires_grad:
                    output.requires_grad_()
                self._outputs.setdefault(name, []).append(output)
                return output.clone()  # so that a later in-place ReLU leaves ours alone

            return record

        handles = [
            module.register_forward_hook(recorder(name), with_kwargs=True)
            for name, module in self._modules.items()
        ]
        try:
            output = self._loss.output(self._loss.selected, x)
        finally:
            for handle in handles:
                handle.remove()
        for name in self._modules:
            calls = len(self._outputs.get(name, ()))
            if calls != 1:
                raise NotApplicable(f"{name} is called {calls} times in a forward pass")
        if not isinstance(output, Tensor) or len(output) != len(x):
            raise NotApplicable("the model's output is not a tensor with one sample per index")
        return self._row_losses(output.unflatten(0, (rows, -1)), y.unflatten(0, (rows, -1)))

    def _row_losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each row, all at once where ``vmap`` can follow the loss.

        Not from a loss per sample: the mean of a loss with class weights or ignored targets is not
        the mean of its parts.
        """
        if self._losses_at_once:
            try:
                return vmap(self._loss.of)(output, y)
            except (RuntimeError, TypeError, ValueError) as error:
                _log.debug("losses row by row: %s", error)
                self._losses_at_once = False
        return torch.stack([self._loss.of(*row) for row in zip(output, y, strict=True)])

    def _write(self, item: LayerSlice, delta: Tensor, block: Tensor) -> None:
        """Write the columns of one parameter."""
        module, rows = self._modules[item.module_name], block.shape[1]
        x = self._inputs[item.module_name]
        if len(x) % rows or len(delta) % rows:
            raise NotApplicable(f"{item.module_name} does not keep one sample per leading index")
        x, delta = x.unflatten(0, (rows, -1)), delta.unflatten(0, (rows, -1))
        if item.kind == "bias":
            channel = delta.ndim - 1 if isinstance(module, nn.Linear) else 2
            others = [i for i in range(1, delta.ndim) if i != channel]
            block.copy_(delta.sum(others).t())
        elif isinstance(module, nn.Linear) and x.ndim == 3 and x.shape[1] == 1:
            # One vector a row: multiply straight into place, along the rows.
            left, right = delta[:, 0].t().contiguous(), x[:, 0].t().contiguous()
            torch.mul(left[:, None], right[None], out=block.unflatten(0, (len(left), -1)))
        else:
            self._write_products(module, x, delta, block, item.size)

    def _write_products(
        self,
        module: nn.Module,
        x: Tensor,
        delta: Tensor,
        block: Tensor,
        weights: int,
        chosen: Tensor | None = None,
    ) -> None:
        """Write products (rows, weights), or those of the chosen weights, as columns."""
        rows = block.shape[1]
        if isinstance(module, nn.Linear):
            product = _linear_product
            step = max(CACHE_LINE, _SCRATCH_BYTES // (4 * weights))
        else:
            product = _conv_product
            samples, outputs = x.shape[1], module.get_parameter("weight").shape[0]
            places = delta[0, 0].numel() // outputs
            windows = x.element_size() * places * (outputs + weights // outputs)
            self._window_bytes = max(self._window_bytes, windows)
            step = max(1, _WINDOW_BYTES // (samples * windows + 4 * weights))
        tile = max(step, CACHE_LINE)
        size = min(tile, rows) * weights
        if len(self._scratch) < size or self._scratch.dtype != x.dtype:
            self._scratch = x.new_empty(size)
        for first in range(0, rows, tile):
            last = min(first + tile, rows)
            made = self._scratch[: (last - first) * weights].view(-1, weights)
            for start in range(first, last, step):
                part = slice(start, min(start + step, last))
                product(module, x[part], delta[part], made[start - first : part.stop - first])
            if chosen is not None:
                made = made.index_select(1, chosen)
            block[:, first:last].copy_(made.t())


def _linear_product(module: nn.Module, x: Tensor, delta: Tensor, out: Tensor) -> None:
    """Rows (rows, out * in) from (rows, m, ..., in) and (rows, m, ..., out)."""
    x, delta = x.flatten(1, -2), delta.flatten(1, -2)
    torch.bmm(delta.transpose(1, 2), x, out=out.view(len(x), delta.shape[2], x.shape[2]))


def _conv_product(module: nn.Module, x: Tensor, delta: Tensor, out: Tensor) -> None:
    """Rows (rows, weights) from (rows, m, in, ...) and (rows, m, out, ...)."""
    assert isinstance(module, Conv)
    dims, groups = len(module.kernel_size), module.groups
    if module.out_channels == groups == module.in_channels:
        view = window_view(module, x.flatten(0, 1))
        return _depthwise_product(view.squeeze(2), delta, out)
    on_cpu = x.device.type == "cpu"
    if on_cpu and x.shape[1] > 1 and module.weight.shape[2:].numel() > 1:
        return _kernel_product(module, x, delta, out)
    view = window_view(module, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    taps, places = range(4, 4 + dims), range(4 + dims, 4 + 2 * dims)
    windows = view.permute(0, 2, 3, *taps, 1, *places)
    windows = windows.reshape(len(x) * groups, module.weight.shape[1:].numel(), -1)
    delta = delta.unflatten(2, (groups, -1)).movedim(1, 3)
    delta = delta.reshape(len(x) * groups, module.out_channels // groups, -1)
    made = out.view(len(delta), delta.shape[1], windows.shape[1])
    torch.bmm(delta, windows.transpose(1, 2), out=made)


def _kernel_product(module: Conv, x: Tensor, delta: Tensor, out: Tensor) -> None:
    """Row by row with the library's own kernel: windows of many samples leave the cache."""
    gradient = _WEIGHT_GRADIENTS[len(module.kernel_size)]
    for row, made in enumerate(out):
        found = gradient(
            padded_input(module, x[row]), module.weight.shape, delta[row],
            stride=module.stride, dilation=module.dilation, groups=module.groups,
        )  # fmt: skip
        made.copy_(found.flatten())


def _depthwise_product(view: Tensor, delta: Tensor, out: Tensor) -> None:
    """Tap by tap, as windows of one channel hold too little for a matrix product.

    ``view`` is (rows * m, channels, *kernel, *places), ``delta`` (rows, m, channels, *places).
    """
    rows, samples, channels = delta.shape[:3]
    places = delta.ndim - 3
    kernel = view.shape[2:-places]
    made = out.view(rows, channels, *kernel)
    for tap in itertools.product(*(range(size) for size in kernel)):
        place: tuple[slice | int, ...] = (slice(None), slice(None), *tap)
        seen = view[place].unflatten(0, (rows, samples))
        made[place] = (seen * delta).flatten(3).sum((1, 3))
