"""A budget of multiplications from a line of text: the layers' counts are measured on a sample."""

from __future__ import annotations

from typing import Any

from torch import nn

from chita_opt.errors import SupportError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.macs import count_macs
from chita_opt.nn.pruning_problem import by_number
from chita_opt.nn.sampling import input_batches
from chita_opt.supports import SupportFamily


def mac_budget(
    support: str | SupportFamily,
    model: nn.Module,
    layer_map: LayerMap,
    data: Any,
    sparsity: float | None,
) -> tuple[str | SupportFamily, float | None]:
    """What ``macs:CUT`` or ``macs:CUT:MINIMUM`` asks for, as a family that holds its own counts.

    Any other support, and its sparsity, are handed back as they are.

    CUT is the share of the multiplications to remove, MINIMUM the share of each layer's weights
    that the budget sets aside for it; see :meth:`MacCount.budget`. A sparsity is the other budget.

    Raises
    ------
    SupportError
        If the text does not hold one or two numbers, a share lies outside [0, 1], or the data
        cannot be read twice.
    """
    if not isinstance(support, str) or not support.startswith("macs:"):
        return support, sparsity
    try:
        cut, minimum = (*map(float, support.split(":")[1:]), 0.0)[:2]
        if support.count(":") > 2:
            raise ValueError
    except ValueError:
        raise SupportError(
            f"support {support!r} is not known; write 'macs:CUT' or 'macs:CUT:MINIMUM', as macs:0.6"
        ) from None
    if not by_number(data):
        raise SupportError(
            f"{support} runs the model on a sample before the data are read, and a stream is read "
            "once; give count_macs(model, layers, inputs).budget(...) as the family"
        )
    inputs = next(input_batches(data, batch_size=1, samples=1))
    counted = count_macs(model, layer_map, inputs)
    return counted.budget(sparsity=sparsity or 0.0, mac_cut=cut, minimum=minimum), None


__all__ = ["mac_budget"]
