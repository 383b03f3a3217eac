"""Which rectifiers of a network switch when its weights change.

A network of linear layers and rectifiers is linear where no rectifier switches, and a quadratic
model of its loss is right there. The share that switches says how far a step has left that region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from chita_opt.nn.evaluation import evaluating
from chita_opt.nn.trust.calibration import HeldOut

_RECTIFIERS: frozenset[Any] = frozenset(
    {
        torch.relu,
        torch.relu_,
        Tensor.relu,
        Tensor.relu_,
        functional.relu,
        functional.relu_,
        functional.relu6,
        functional.leaky_relu,
        functional.leaky_relu_,
        functional.prelu,
        functional.rrelu,
        functional.threshold,
        functional.hardtanh,
    }
)


class _Recorder(TorchFunctionMode):
    """Notes the sign of the input of each rectifier, whether a module or a function calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[tuple[str, Tensor]] = []
        self.layer = ""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _RECTIFIERS and args and isinstance(args[0], Tensor):
            self.gates.append((self.layer, args[0].detach() > 0))
        return func(*args, **(kwargs or {}))


def flipped_shares(held_out: HeldOut, before: Tensor, after: Tensor) -> dict[str, float] | None:
    """Share of rectifiers, over units and samples, whose input changes its sign.

    Parameters
    ----------
    held_out : HeldOut
        The network and the samples.
    before, after : Tensor
        (p,) weights.

    Returns
    -------
    dict of str to float, or None
        By the name of the layer in front of the rectifier (of several behind one layer, the
        later ones get a number), in the order of calls. None where it cannot be measured: the
        network has no rectifiers that are called through torch's functions, or calls them in
        another order with other weights.
    """
    flipped: dict[str, int] = {}
    total: dict[str, int] = {}
    names = {module: name for name, module in held_out.model.named_modules()}
    with evaluating(held_out.model), torch.no_grad():
        for x in held_out.passes:
            first = _gates(held_out, before, x, names)
            second = _gates(held_out, after, x, names)
            if [(n, g.shape) for n, g in first] != [(n, g.shape) for n, g in second]:
                return None
            for (name, a), (_, b) in zip(_numbered(first), second, strict=True):
                flipped[name] = flipped.get(name, 0) + int((a != b).sum())
                total[name] = total.get(name, 0) + a.numel()
    return {name: flipped[name] / total[name] for name in total} or None


def _gates(
    held_out: HeldOut, w: Tensor, x: Tensor, names: Mapping[nn.Module, str]
) -> list[tuple[str, Tensor]]:
    recorder = _Recorder()
    with _naming(recorder, names), recorder:
        held_out.network.output(held_out.parameters(w), x)
    return recorder.gates


@contextmanager
def _naming(recorder: _Recorder, names: Mapping[nn.Module, str]) -> Iterator[None]:
    """Tell the recorder which layer with weights was called last."""

    def called(module: nn.Module, args: Any, output: Any) -> None:
        recorder.layer = names[module]

    own = [m for m in names if next(m.children(), None) is None and m._parameters]
    handles = [module.register_forward_hook(called) for module in own]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _numbered(gates: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: dict[str, int] = {}
    for name, gate in gates:
        seen[name] = seen.get(name, 0) + 1
        label = name or "input"
        yield (label if seen[name] == 1 else f"{label}#{seen[name]}"), gate


__all__ = ["flipped_shares"]
