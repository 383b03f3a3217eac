"""Run a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.nn.attention import plain_attention

_CACHE_BYTES = 2 << 20
_FEWEST = 8  # samples, below which calls cost more than they save


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, then restore what was there, also after an exception.

    On leaving, every module has its own training flag back (a frozen layer inside a model in
    training stays frozen) and the random state of the CPU and of the model's devices is as before.

    Parameters
    ----------
    model : torch.nn.Module
        The model to evaluate.
    """
    flags = [(module, module.training) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            yield
        finally:
            for module, flag in flags:
                module.training = flag


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch off what gives digits or derivatives away for speed.

    On CUDA this is TF32, which convolutions use by default and which loses half of the digits;
    everywhere the fused kernels of attention.
    """
    with plain_attention():
        if device.type != "cuda":
            yield
            return
        with _without_tf32():
            yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    switches: list[tuple[Any, str, Any]]
    if hasattr(matmul, "fp32_precision"):  # reading the older switches may fail beside these
        switches = [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    else:
        switches = [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    before = [getattr(owner, name) for owner, name, _ in switches]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(switches, before, strict=True):
            setattr(owner, name, value)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer of a model; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def samples_in_cache(
    model: nn.Module, x: Tensor, call: Callable[[Tensor], Any] | None = None
) -> int:
    """Samples of one forward pass of which no layer's output leaves a processor's cache.

    A convolutional network runs more than twice as fast in such passes as in passes of 1,000
    samples. All of ``x`` on other devices, and where the output is not one tensor with an entry
    for each sample, so that it could not be put together again.

    Parameters
    ----------
    model : torch.nn.Module
        The model, of which one sample is evaluated.
    x : Tensor
        (n, ...) inputs.
    call : callable, optional
        What runs the model; ``model`` itself if absent.
    """
    if model_device(model).type != "cpu" or len(x) <= _FEWEST:
        return len(x)
    largest = x[:1].nbytes

    def note(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, output.nbytes if isinstance(output, Tensor) else 0)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            output = (call or model)(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or not output.ndim or len(output) != 1:
        return len(x)
    return min(len(x), max(_FEWEST, _CACHE_BYTES // largest))


def in_passes(call: Callable[[Tensor], Any], x: Tensor, samples: int) -> Any:
    """``call(x)`` by so many samples at a time."""
    if len(x) <= samples:
        return call(x)
    return torch.cat([call(part) for part in x.split(samples)])
