"""Recompute the statistics of batch normalisation after the weights changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import evaluating, model_device
from chita_opt.nn.sampling import input_batches


def recalibrate_bn_(
    model: nn.Module, data: Any, batch_size: int = 256, *, samples: int | None = None
) -> tuple[str, ...]:
    """Replace running means and variances by those of the given inputs, in place.

    Pruning shifts the activations that batch normalisation was fitted to. This is a step of its
    own, never taken silently: it uses data, and a pruned network must not be compared with it on
    against one with it off. Every batch counts the same (a cumulative average), so give batches
    of one size. Only the batch normalisation layers leave eval mode; weights do not change.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    data : Tensor, (inputs, targets), Dataset, DataLoader or iterable of batches
        Training inputs; targets are ignored.
    batch_size : int
        Samples per batch, where the data do not come in batches.
    samples : int, optional
        Use the first so many samples; all when not given.

    Returns
    -------
    tuple of str
        Names of the layers whose statistics were replaced; empty where none keeps any.

    Raises
    ------
    DataError
        If the data are malformed or too few, or the statistics come out not finite. The model
        then has its earlier statistics.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return ()
    momenta = {name: layer.momentum for name, layer in layers.items()}
    before = {
        name: {key: buffer.clone() for key, buffer in layer.named_buffers()}
        for name, layer in layers.items()
    }
    try:
        with evaluating(model), torch.no_grad():
            for layer in layers.values():
                layer.reset_running_stats()
                layer.momentum = None  # cumulative average
                layer.training = True
            for x in input_batches(data, batch_size=batch_size, samples=samples):
                model(x.to(model_device(model)))
        for name, layer in layers.items():
            _check_finite(name, layer)
    except BaseException:
        for name, layer in layers.items():
            for key, buffer in layer.named_buffers():
                buffer.copy_(before[name][key])
        raise
    finally:
        for name, layer in layers.items():
            layer.momentum = momenta[name]
    return tuple(layers)


def _check_finite(name: str, layer: _BatchNorm) -> None:
    for buffer in (layer.running_mean, layer.running_var):
        if buffer is not None and not bool(torch.isfinite(buffer).all()):
            raise DataError(f"the statistics of {name!r} on these data are not finite")
