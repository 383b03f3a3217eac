"""Two general ways to compute gradient rows: ``torch.func.vmap`` and a plain autograd loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from chita_opt.errors import LayerError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.tensor_call import TensorCall

Loss = Callable[[Any, Tensor], Tensor]

# Batching a convolution's backward pass rearranges its inputs and deltas; measured on ResNet20.
_VMAP_FACTOR = 6


class RowLoss:
    """The mean loss of some samples as a function of the selected parameters alone.

    Every other parameter, and a copy of every buffer, is a constant; the model itself is never
    written to.

    Parameters
    ----------
    model : torch.nn.Module
        The model, in eval mode.
    loss_fn : callable
        ``loss_fn(output, target)``: the mean loss, or one loss per sample.
    layer_map : LayerMap
        The parameters to differentiate by.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss, layer_map: LayerMap) -> None:
        self.model, self.loss_fn, self.layer_map = model, loss_fn, layer_map
        first_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._call = TensorCall(model)
        #: The first name of each slice's parameter.
        self.keys = [first_names[id(layer_map.parameter(model, item))] for item in layer_map]
        constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.selected = {key: constants.pop(key) for key in self.keys}
        self.fixed = constants | {name: b.detach().clone() for name, b in model.named_buffers()}

    def double(self) -> RowLoss:
        """Return the same function with every parameter and buffer in double precision."""
        other = copy.copy(self)
        other.selected = {name: in_double(value) for name, value in self.selected.items()}
        other.fixed = {name: in_double(value) for name, value in self.fixed.items()}
        return other

    def __call__(self, selected: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch as a scalar tensor."""
        return self.of(self.output(selected, x), y)

    def output(self, selected: Mapping[str, Tensor], x: Tensor) -> Any:
        """Return the output of the model."""
        return self._call({**self.fixed, **selected}, (x,))

    def of(self, output: Any, y: Tensor) -> Tensor:
        """Return the mean loss of an output as a scalar tensor."""
        loss = self.loss_fn(output, y)
        if not isinstance(loss, Tensor):
            raise LayerError(f"loss_fn must return a tensor, got {type(loss).__name__}")
        return loss.mean()


def in_double(tensor: Tensor) -> Tensor:
    """Return a floating tensor in double precision, another one (classes, tokens) as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


class Engine(Protocol):
    """Computes some gradient rows at a time."""

    path: str

    def rows_(self, x: Tensor, y: Tensor, block: Tensor) -> float:
        """Write the rows of consecutive samples as the columns of ``block`` (p x rows).

        Returns
        -------
        float
            Mean loss of the samples.
        """
        ...

    def row_bytes(self, saved: int, samples: int) -> int:
        """Estimate the working memory of one row of so many samples.

        ``saved`` is the number of bytes that the graph of one sample keeps for the backward pass.
        """
        ...


class LoopRows:
    """One ``torch.autograd.grad`` per row: slow, and right for whatever autograd can do."""

    path = "loop"

    def __init__(self, loss: RowLoss) -> None:
        self._loss = loss
        self.leaves = {key: value.clone() for key, value in loss.selected.items()}

    def rows_(self, x: Tensor, y: Tensor, block: Tensor) -> float:
        """Write one row after the other; see :class:`Engine`."""
        rows = block.shape[1]
        total = 0.0
        leaves = {key: value.requires_grad_() for key, value in self.leaves.items()}
        for row, (xs, ys) in enumerate(zip(x.chunk(rows), y.chunk(rows), strict=True)):
            with torch.enable_grad():
                loss = self._loss(leaves, xs, ys)
            if not loss.requires_grad:
                raise LayerError("the loss does not depend on any of the selected weights")
            grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            for item, grad in zip(self._loss.layer_map, grads, strict=True):
                block[item.start : item.stop, row] = grad.reshape(-1)
            total += float(loss.detach())
        return total / rows

    def row_bytes(self, saved: int, samples: int) -> int:
        """Estimate the working memory of one row; see :class:`Engine`."""
        return 3 * saved * samples + 8 * self._loss.layer_map.size


class VmapRows:
    """``vmap`` over rows of ``grad`` of the row's mean loss."""

    path = "vmap"

    def __init__(self, loss: RowLoss) -> None:
        self._loss = loss
        self._rows = vmap(grad_and_value(loss), in_dims=(None, 0, 0))

    def rows_(self, x: Tensor, y: Tensor, block: Tensor) -> float:
        """Write all rows at once; see :class:`Engine`."""
        rows = block.shape[1]
        grads, losses = self._rows(
            self._loss.selected, x.unflatten(0, (rows, -1)), y.unflatten(0, (rows, -1))
        )
        for key, item in zip(self._loss.keys, self._loss.layer_map, strict=True):
            block[item.start : item.stop].copy_(grads[key].reshape(rows, -1).t())
        return float(losses.mean())

    def row_bytes(self, saved: int, samples: int) -> int:
        """Estimate the working memory of one row; see :class:`Engine`."""
        return _VMAP_FACTOR * saved * samples + 8 * self._loss.layer_map.size


@contextmanager
def counting_saved_bytes(ignore: Mapping[str, Tensor]) -> Iterator[list[int]]:
    """Add up the bytes that autograd saves for the backward pass, but for the given tensors."""
    known = {tensor.untyped_storage().data_ptr() for tensor in ignore.values()}
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
