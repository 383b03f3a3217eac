"""What the weights of a multi-head attention are multiplied with.

``MultiheadAttention`` hands its weights to one function instead of calling layers, so that a hook
on ``out_proj`` never runs; the inputs are found through the attention itself.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from chita_opt.errors import LayerError

_INPUTS = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}
OUTPUT = "out_proj.weight"


def attention_of(model: nn.Module, name: str) -> tuple[nn.MultiheadAttention, str] | None:
    """The attention that owns a parameter, and its name in there; None for any other parameter."""
    owner, _, key = name.rpartition(".")
    if key == "weight" and owner.rpartition(".")[2] == "out_proj":
        owner, key = owner.rpartition(".")[0], OUTPUT
    module = model.get_submodule(owner)
    return (module, key) if isinstance(module, nn.MultiheadAttention) else None


def attention_inputs(
    module: nn.MultiheadAttention, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The vectors (..., d) that a matrix of an attention is multiplied with in one call.

    Parameters
    ----------
    module : torch.nn.MultiheadAttention
        The attention.
    key : str
        ``"in_proj_weight"``, ``"q_proj_weight"``, ``"k_proj_weight"``, ``"v_proj_weight"`` or
        ``"out_proj.weight"``. The vectors of the last are the heads' outputs side by side.
    args, kwargs
        Of the call.

    Raises
    ------
    LayerError
        If ``in_proj_weight`` is asked for and queries, keys and values are not one tensor.
    """
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    sources = given["query"], given["key"], given["value"]
    if key == OUTPUT:
        return _heads(module, args, kwargs)
    if key in _INPUTS:
        return sources[_INPUTS[key]]
    if any(other is not sources[0] for other in sources):
        raise LayerError(
            "'in_proj_weight' of an attention whose queries, keys and values differ has no single "
            "input; exclude it, or measure the curvature by gradients"
        )
    return sources[0]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by its formula: ``vmap`` does not follow the fused kernels of torch.

    Encoder layers in eval mode would also pass over their own modules, and over hooks in them.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _heads(
    module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The output of an attention whose output projection is the identity."""
    twin = copy.copy(module)
    twin._forward_hooks = OrderedDict()  # this may run in one of them
    weight = module.out_proj.weight
    changed = {OUTPUT: torch.eye(len(weight), dtype=weight.dtype, device=weight.device)}
    if module.out_proj.bias is not None:
        changed["out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
    found: Tensor = functional_call(twin, changed, args, dict(kwargs))[0]
    return found


__all__ = ["attention_inputs", "attention_of", "plain_attention"]
