"""Support families from a line of text, for the command line and ``prune``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import SupportFamily
from chita_opt.supports.block_widths import POWERS, BlockWidths
from chita_opt.supports.budget import Budget
from chita_opt.supports.layer_families import join_layers
from chita_opt.supports.nested_groups import NestedGroups, TreePrices
from chita_opt.supports.regular_blocks import block_max, n_of_m_along
from chita_opt.supports.sparsity import keep_count
from chita_opt.supports.whole_groups import WholeGroups

Shapes = Sequence[tuple[int, ...]]
FORMS = (
    "'cardinality', 'N:M' (as 2:4), 'N:M:columns', 'blocks:WIDTH:M', 'rows:WIDTH:M', "
    "'bmwm:WIDTH', 'bmwm:WIDTH:M', 'darb', 'darb:WIDEST', 'blocks:RxC' (as 4x4), 'neurons', "
    "'columns', 'filters', 'channels' or 'nested:WEIGHT:CHANNEL:LAYER' (prices)"
)


def family_from_text(
    text: str,
    size: int,
    *,
    k: int | None = None,
    sparsity: float | None = None,
    shapes: Shapes | None = None,
) -> SupportFamily:
    """Read a family over ``size`` weights.

    ``cardinality`` needs ``k`` or ``sparsity``, as do the families that choose what they keep whole
    or how wide their blocks are: ``darb`` (block widths 1, 2, … 16, or up to WIDEST),
    ``blocks:RxC``, ``neurons`` and ``filters`` (rows of the weight's matrix), ``columns`` and
    ``channels`` (its inputs). ``nested:1:8:64`` charges 1 for a kept weight, 8 for an output
    channel that keeps any and 64 for such a layer; ``sparsity`` is the share of the whole price to
    save. The others (``2:4`` along the rows, ``2:4:columns`` down the columns, ``blocks:8:1``: at
    most 1 in every 8 consecutive weights, ``rows:784:20``, ``bmwm:8``: at most 1 in each block of 8
    in a row) are complete; a ``k`` or ``sparsity`` given with them is a total over all weights.

    Parameters
    ----------
    text : str
        One of the forms.
    size : int
        Number of weights.
    k, sparsity
        Kept weights, or the share removed; at most one of them.
    shapes : sequence of tuple, optional
        Shape of each layer's weight, outputs first, as the weights lie one after the other; one
        matrix of one row if absent.

    Raises
    ------
    SupportError
        If the text is not one of the forms, or counts or shapes do not fit.
    """
    if k is not None and sparsity is not None:
        raise SupportError(f"both k={k} and sparsity={sparsity} were given; give one of them")
    layers = [(1, size)] if shapes is None else list(shapes)
    if sum(prod(shape) for shape in layers) != size:
        raise SupportError(f"the layers {layers} do not hold {size} weights")
    if text.startswith("nested:"):
        return _nested(text, layers, sparsity)
    total = k if sparsity is None else keep_count(size, sparsity).k
    if needs_count(text):
        if total is None:
            raise SupportError(f"a {text} budget needs k or a sparsity")
        return _counted(text, size, layers, total)
    budget = _partition(text, size, layers)
    if total is None:
        return budget
    if not isinstance(budget, Budget):
        raise SupportError(f"a total over {text} is not offered; leave out k and sparsity")
    return Budget.nested(budget, total)


def needs_count(text: str) -> bool:
    """Whether a family is not complete without a number of kept weights."""
    whole = text.partition(":")[0] in {"cardinality", "darb", "nested", *_LABELS}
    return whole or re.fullmatch(r"blocks:\d+x\d+", text) is not None


def _counted(text: str, size: int, layers: Shapes, total: int) -> SupportFamily:
    """Families under a number of kept weights, over all layers together."""
    kind, _, rest = text.partition(":")
    if text == "cardinality":
        return Budget.cardinality(size, total)
    if kind == "darb":
        matrices = tuple((shape[0], prod(shape[1:])) for shape in layers)
        return BlockWidths(matrices, total, _powers(text, rest))
    if kind == "blocks":
        r, c = _whole_numbers(text, rest.split("x"), 2)
        return _joint(text, layers, total, lambda shape: _block_labels(shape, r, c))
    if rest:
        raise _unknown(text)
    return _joint(text, layers, total, _LABELS[kind])


def _nested(text: str, layers: Shapes, sparsity: float | None) -> NestedGroups:
    """Prices of weights, channels and layers under a share of what keeping everything costs."""
    prices = TreePrices(*_whole_numbers(text, text.split(":")[1:], 3))
    if sparsity is None:
        raise SupportError(f"{text} needs a sparsity: the share of the whole price to save")
    matrices = [(shape[0], prod(shape[1:])) for shape in layers]
    weights, channels = sum(map(prod, layers)), sum(rows for rows, _ in matrices)
    whole = prices.weight * weights + prices.channel * channels + prices.layer * len(layers)
    return NestedGroups.of_layers(matrices, prices, keep_count(max(whole, 1), sparsity).k)


def _joint(
    text: str, layers: Shapes, total: int, labelled: Callable[[tuple[int, ...]], Tensor]
) -> WholeGroups:
    """Whole groups of all layers under one budget of weights."""
    labels, first = [], 0
    for shape in layers:
        own = labelled(shape)
        labels.append(own + first)
        first += int(own.max()) + 1
    return WholeGroups(torch.cat(labels), total, title=text)


def _block_labels(shape: tuple[int, ...], r: int, c: int) -> Tensor:
    return WholeGroups.blocks((shape[0], prod(shape[1:])), (r, c), 0).labels


def _output_labels(shape: tuple[int, ...]) -> Tensor:
    return WholeGroups.filters(shape, 0).labels


def _input_labels(shape: tuple[int, ...]) -> Tensor:
    return WholeGroups.channels(shape, 0).labels


_LABELS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "neurons": _output_labels,
    "filters": _output_labels,
    "columns": _input_labels,
    "channels": _input_labels,
}


def _partition(text: str, size: int, layers: Shapes) -> SupportFamily:
    kind, _, rest = text.partition(":")
    if kind == "bmwm":
        numbers = _whole_numbers(text, rest.split(":"), 1, 2)
        width, keep = (*numbers, 1)[:2]
        own = [block_max((shape[0], prod(shape[1:])), width, keep) for shape in layers]
        return join_layers(own)
    if kind in {"blocks", "rows"}:
        width, n = _whole_numbers(text, rest.split(":"), 2)
        return Budget.n_of_m(size, n, width)
    pattern = text.removesuffix(":columns")
    n, m = _whole_numbers(text, pattern.split(":"), 2)
    if pattern == text:
        return Budget.n_of_m(size, n, m)
    own = [n_of_m_along((shape[0], prod(shape[1:])), n, m, axis=0) for shape in layers]
    return join_layers(own)


def _powers(text: str, rest: str) -> tuple[int, ...]:
    """Powers of two up to the widest."""
    if not rest:
        return POWERS
    widest = _whole_numbers(text, [rest], 1)[0]
    if widest < 1 or widest & (widest - 1):
        raise SupportError(f"{text}: the widest block is {widest}; give a power of two")
    return tuple(2**i for i in range(widest.bit_length()))


def _whole_numbers(text: str, parts: Sequence[str], *counts: int) -> tuple[int, ...]:
    if len(parts) not in counts or not all(part.isdecimal() for part in parts):
        raise _unknown(text)
    return tuple(int(part) for part in parts)


def _unknown(text: str) -> SupportError:
    return SupportError(f"family {text!r} is not known; write {FORMS}")


__all__ = ["FORMS", "family_from_text", "needs_count"]
