"""Second moments of the inputs of each layer, for layer-wise reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import DataError, LayerError, MemoryLimitError
from chita_opt.nn.attention import attention_inputs, attention_of
from chita_opt.nn.evaluation import evaluating, full_precision, model_device
from chita_opt.nn.layer_map import LayerMap, LayerSlice
from chita_opt.nn.patches import Conv, input_vectors, is_stock
from chita_opt.nn.sampling import input_batches

_WORK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class LayerGram:
    r"""Second moment of the vectors that a weight matrix is multiplied with.

    With input vectors :math:`x_1, \dots, x_N` the mean squared change of the layer's output under
    a change :math:`\Delta W` of its weight is
    :math:`\frac1N \sum_t \|\Delta W x_t\|^2 = \mathrm{tr}(\Delta W H \Delta W^\top)`.

    Attributes
    ----------
    H : Tensor
        Mean of ``x x'``, float64, symmetric: (d, d) where d is the number of weights per output.
        For a convolution in G > 1 groups (G, d, d): group g serves the g-th of G equal parts of
        the outputs.
    count : int
        Number N of vectors: samples times output places, over all calls of the layer.
    """

    H: Tensor
    count: int

    @property
    def groups(self) -> int:
        """Number of groups of outputs with a matrix of their own."""
        return 1 if self.H.ndim == 2 else len(self.H)


def layer_inputs(
    model: nn.Module,
    data: Any,
    layer_map: LayerMap,
    *,
    samples: int | None = None,
    batch_size: int = 256,
    memory_limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, LayerGram]:
    """Accumulate the second moments of the inputs of all selected layers in one pass.

    The model runs in eval mode without gradients; nothing in it changes. Convolutions are treated
    as the matrix product over their windows, with their stride, padding, dilation and groups, and
    the projections of a self-attention as products with the tokens, or with the heads' outputs.

    Parameters
    ----------
    model : torch.nn.Module
        The model, called as ``model(inputs)``.
    data : Tensor, (inputs, targets), Dataset, DataLoader or iterable of batches
        The calibration data; targets are ignored.
    layer_map : LayerMap
        The layers, from :func:`chita_opt.nn.select_layers`; weights only.
    samples : int, optional
        Use the first so many samples; all when not given.
    batch_size : int
        Samples per forward pass, where the data do not come in batches.
    memory_limit : int, optional
        Bytes that the matrices and the unfolded windows together may take. The activations of one
        batch come on top: lower ``batch_size`` for those.
    progress : callable, optional
        Called as ``progress(samples_done)`` after each batch.

    Returns
    -------
    dict of str to LayerGram
        One entry per slice, by its name. A tied weight has one, over the inputs of every layer
        that uses it.

    Raises
    ------
    LayerError
        If a selected parameter is not the weight of a plain linear, convolutional or
        self-attention layer, or a layer is never called.
    DataError
        If the data are malformed or too few, or an input is not finite.
    MemoryLimitError
        If the matrices and the windows of one sample exceed ``memory_limit``.
    """
    users = {item.name: _users(model, item) for item in layer_map}
    work = _WORK_BYTES
    if memory_limit is not None:
        need = 8 * sum(_groups(users[item.name]) * item.rows_cols[1] ** 2 for item in layer_map)
        work = min(work, memory_limit - need)
        if work <= 0:
            raise _over_limit(need, memory_limit)
    device, done = model_device(model), 0
    moments = {name: _Moment(name, work, memory_limit) for name in users}
    with evaluating(model), full_precision(device), torch.no_grad(), ExitStack() as hooks:
        for name, modules in users.items():
            for module, key in modules:
                add = partial(moments[name].add, key)
                handle = module.register_forward_hook(add, with_kwargs=True)
                hooks.callback(handle.remove)
        for x in input_batches(data, batch_size=batch_size, samples=samples):
            model(x.to(device))
            done += len(x)
            if progress is not None:
                progress(done)
    return {name: moment.gram() for name, moment in moments.items()}


class _Moment:
    """Running sum of ``x x'`` of one parameter."""

    def __init__(self, name: str, work: int, limit: int | None) -> None:
        self._name, self._work, self._limit = name, work, limit
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, key: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Add what ``key`` of a layer is multiplied with in one call; the rest is a hook's."""
        if isinstance(module, nn.MultiheadAttention):
            x = attention_inputs(module, key, args, kwargs)
        else:
            x = args[0] if args else kwargs["input"]
        if not isinstance(module, Conv):
            x = x.reshape(-1, x.shape[-1])
            one = 2 * 8 * x.shape[1]  # bytes of an item: its vectors, once as they are, in float64
        else:
            weight = module.get_parameter("weight")
            x = x.unsqueeze(0) if x.ndim == weight.ndim - 1 else x
            places = output.numel() // (len(x) * weight.shape[0])
            one = 2 * 8 * places * x.shape[1] * weight[0, 0].numel()
        if self._limit is not None and one > self._work:
            raise _over_limit(self._limit - self._work + one, self._limit)
        for part in x.split(max(1, self._work // max(1, one))):
            vectors = input_vectors(module, part).to(torch.float64)
            if self._sum is None:
                groups, width, _ = vectors.shape
                self._sum = vectors.new_zeros(groups, width, width)
            self._sum.baddbmm_(vectors, vectors.transpose(1, 2))
            self._count += vectors.shape[2]

    def gram(self) -> LayerGram:
        """Return the mean."""
        if self._sum is None:
            raise LayerError(
                f"the layer of {self._name!r} is never called as a module, so that its inputs are "
                f"not seen; leave it alone with exclude={self._name!r}"
            )
        mean = self._sum / self._count
        if not bool(torch.isfinite(mean).all()):
            raise DataError(f"an input of the layer of {self._name!r} is not finite")
        mean = (mean + mean.transpose(1, 2)) / 2  # products may differ in the last bit
        return LayerGram(mean[0] if len(mean) == 1 else mean, self._count)


_User = tuple[nn.Module, str]
"""A module to watch, and the name of the weight in it."""


def _users(model: nn.Module, item: LayerSlice) -> list[_User]:
    """Return the modules that use a weight, each once."""
    users: list[_User] = []
    for name in (item.name, *item.aliases):
        owner, _, key = name.rpartition(".")
        user = attention_of(model, name) or (model.get_submodule(owner), key)
        attends = isinstance(user[0], nn.MultiheadAttention)
        if item.kind in ("bias", "norm") or not (attends or is_stock(user[0])):
            raise LayerError(
                f"{name!r} of a {type(user[0]).__name__} is not the weight of a plain linear, "
                "convolutional or attention layer and has no input vectors; select without it: "
                f"exclude={name!r}"
            )
        if all(user[0] is not other or user[1] != known for other, known in users):
            users.append(user)
    if len({_groups([user]) for user in users}) > 1:
        raise LayerError(f"the layers that share {item.name!r} differ in their groups")
    return users


def _groups(users: list[_User]) -> int:
    return int(getattr(users[0][0], "groups", 1))


def _over_limit(need: int, limit: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"the second moments of the layer inputs need at least {need} bytes (matrices and the "
        f"windows of one sample), memory_limit is {limit}: raise it or select fewer layers"
    )
