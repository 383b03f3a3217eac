"""2:4 weights as torch's semi-structured tensors, which sparse tensor cores multiply with."""

from __future__ import annotations

import torch
from torch import nn

from chita_opt.errors import LayerError
from chita_opt.nn.export.two_four import is_two_of_four

_TYPES = (torch.float16, torch.bfloat16)


def to_semi_structured_(model: nn.Module, *, names: list[str] | None = None) -> list[str]:
    """Replace 2:4 weights of linear layers by semi-structured tensors, in place.

    The layers then multiply by the sparse kernels of torch; gradients and state dicts are torch's
    matter (:func:`torch.sparse.to_sparse_semi_structured`).

    Parameters
    ----------
    model : torch.nn.Module
        On a CUDA device of compute capability 8.0 or more, in half precision.
    names : list of str, optional
        Weights to replace; by default those of all linear layers that keep at most two of every
        four weights and prune some.

    Returns
    -------
    list of str
        The weights that were replaced.

    Raises
    ------
    LayerError
        If there is no such device, or a named weight is no 2:4 weight in half precision of a linear
        layer; the model is then unchanged.
    """
    linear = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
    }
    chosen = names
    if chosen is None:
        chosen = [n for n, m in linear.items() if not m.weight.all() and _fault(m.weight) is None]
    for name in chosen:
        if name not in linear:
            raise LayerError(f"{name!r} is not the weight of a linear layer")
        fault = _fault(linear[name].weight)
        if fault is not None:
            raise LayerError(f"{name!r} {fault}")
    _check_device(model)
    from torch.sparse import to_sparse_semi_structured

    for name in chosen:
        weight = to_sparse_semi_structured(linear[name].weight.detach())
        linear[name].weight = nn.Parameter(weight, requires_grad=False)
    return chosen


def _fault(weight: torch.Tensor) -> str | None:
    """Why a weight is not replaced."""
    if weight.dtype not in _TYPES:
        return f"is {weight.dtype}; convert the model by half() or bfloat16() first"
    if not is_two_of_four(weight.detach() != 0):
        return "keeps more than two of four weights; prune with support='2:4'"
    return None


def _check_device(model: nn.Module) -> None:
    device = next(iter(model.parameters())).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise LayerError(
            f"the model is on {device}; semi-structured tensors need a CUDA device of compute "
            "capability 8.0 or more. Move it there, or store it with format='2:4'"
        )


__all__ = ["to_semi_structured_"]
