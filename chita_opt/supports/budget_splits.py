r"""Simple splits of a budget of k weights among layers (or rows): counts that sum to k exactly.

* ``uniform``: every layer keeps the same share.
* ``erk`` (Erdős–Rényi kernel): layer l keeps a share
  :math:`\min(1,\varepsilon\sum_id_{li}/\prod_id_{li})` with :math:`d_l` its shape; layers that
  reach 1 are kept whole, and :math:`\varepsilon` makes the others meet the budget.
* ``magnitude``: the counts of the k largest :math:`|w_j|` of all layers.
* counts of the caller's own.

Shares are rounded by largest remainder: every count is first rounded down, then the weights that
are left go, one each, to the layers with the largest fractions; ties go to the earlier layer.

Source: Mocanu et al., *Nature Communications* 9 (2018), for the random graph; Evci et al., *Rigging
the Lottery*, ICML 2020, for the kernel's dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from chita_opt.errors import SupportError

SPLITS = ("uniform", "erk", "magnitude")

Split = str | Mapping[str, int] | Sequence[int]
Shapes = Mapping[str, Sequence[int]]


def split_budget(split: Split, k: int, shapes: Shapes, *, w: Tensor | None = None) -> list[int]:
    """How many weights each layer keeps, k in all.

    Parameters
    ----------
    split : {"uniform", "erk", "magnitude"}, mapping of str to int, or sequence of int
        The rule, or a count for each layer by name or in order.
    k : int
        Weights to keep in all.
    shapes : mapping of str to sequence of int
        Shape of every layer by name, in the order of the weights.
    w : Tensor, optional
        (p,) dense weights, for "magnitude".

    Raises
    ------
    SupportError
        If the rule is not known, k exceeds the number of weights, w is missing, or given counts
        name other layers, exceed one, or do not sum to k.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    if not 0 <= k <= sum(sizes):
        raise SupportError(f"k is {k}; the layers have {sum(sizes)} weights: give 0 <= k <= these")
    if not isinstance(split, str):
        return _given(split, k, shapes, sizes)
    if split == "uniform":
        return rounded([Fraction(k * size, sum(sizes)) for size in sizes], sizes, k)
    if split == "erk":
        return rounded(_erdos_renyi_kernel(list(shapes.values()), sizes, k), sizes, k)
    if split == "magnitude":
        if w is None or w.shape != (sum(sizes),):
            raise SupportError(
                f"split='magnitude' needs the {sum(sizes)} dense weights; give them as w, or "
                "choose 'uniform' or 'erk'"
            )
        mask = torch.zeros(sum(sizes), dtype=torch.bool)
        mask[w.detach().abs().cpu().argsort(descending=True, stable=True)[:k]] = True
        return [int(part.sum()) for part in mask.split(sizes)]
    raise SupportError(f"split is {split!r}; choose {', '.join(SPLITS)}, or give the counts")


def rounded(shares: Sequence[Fraction], sizes: Sequence[int], k: int) -> list[int]:
    """Whole counts from exact shares that sum to k, by largest remainder within the sizes."""
    counts = [min(math.floor(share), size) for share, size in zip(shares, sizes, strict=True)]
    fractions = [share - count for share, count in zip(shares, counts, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: (-fractions[i], i))
    room = [i for i in order if counts[i] < sizes[i]]
    for i in room[: k - sum(counts)]:
        counts[i] += 1
    return counts


def _erdos_renyi_kernel(
    shapes: Sequence[Sequence[int]], sizes: Sequence[int], k: int
) -> list[Fraction]:
    # sum of dimensions = size times the raw density; a vector counts once
    raw = [
        Fraction(sum(shape) if len(shape) > 1 else size)
        for shape, size in zip(shapes, sizes, strict=True)
    ]
    whole: set[int] = set()
    while len(whole) < len(sizes):
        free = [i for i in range(len(sizes)) if i not in whole]
        left = k - sum(sizes[i] for i in whole)
        epsilon = Fraction(left) / sum((raw[i] for i in free), Fraction(0))
        full = {i for i in free if epsilon * raw[i] > sizes[i]}
        if not full:
            return [Fraction(sizes[i]) if i in whole else epsilon * raw[i] for i in range(len(raw))]
        densest = max(raw[i] / sizes[i] for i in full)
        whole |= {i for i in full if raw[i] / sizes[i] == densest}
    return [Fraction(size) for size in sizes]


def _given(
    split: Mapping[str, int] | Sequence[int], k: int, shapes: Shapes, sizes: Sequence[int]
) -> list[int]:
    names = list(shapes)
    own = dict(split) if isinstance(split, Mapping) else dict(zip(names, split, strict=False))
    if set(own) != set(names) or len(split) != len(names):
        raise SupportError(
            f"the split gives counts for {', '.join(own) or 'no layer'}; give one for each of "
            f"{', '.join(names)}"
        )
    counts = [int(own[name]) for name in names]
    for name, count, size in zip(names, counts, sizes, strict=True):
        if not 0 <= count <= size or count != own[name]:
            raise SupportError(
                f"the split keeps {own[name]} weights of {name}, which has {size}; give a whole "
                f"number in [0, {size}]"
            )
    if sum(counts) != k:
        raise SupportError(f"the split's counts sum to {sum(counts)}, the budget is {k}")
    return counts


__all__ = ["SPLITS", "Split", "rounded", "split_budget"]
