r"""Compiled dynamic programme over a tree of layers, channels and weights.

Imported on first use: numba is slow to load.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chita_opt.supports.base import Array


@njit(cache=True, error_model="numpy")
def _spend(value: Array, sums: Array, price: int, first: int, out: Array, choice: Array) -> None:
    r"""``out[x] = max(value[x], max_n value[x - first - n price] + sums[n])``.

    ``choice[x]`` is the best n, or -1 where the channel stays closed. ``sums`` is concave and held
    at its last entry beyond it, so that for the capacities of one residue the best starting point
    moves only upwards: divide and conquer finds all of them in O(X log X).
    """
    size, most = len(value), len(sums) - 1
    for x in range(size):
        out[x], choice[x] = value[x], -1
    if price == 0:
        for x in range(first, size):
            if value[x - first] + sums[most] > out[x]:
                out[x], choice[x] = value[x - first] + sums[most], most
        return
    stack = np.empty((128, 4), dtype=np.int64)
    for residue in range(min(price, size - first)):
        count = (size - first - residue - 1) // price + 1
        depth = 0
        stack[0] = (0, count - 1, 0, count - 1)
        while depth >= 0:
            low, high, left, right = stack[depth]
            depth -= 1
            if low > high:
                continue
            t = (low + high) // 2
            best, at = -np.inf, left
            for i in range(left, min(right, t) + 1):
                total = value[residue + i * price] + sums[min(t - i, most)]
                if total > best:
                    best, at = total, i
            x = first + residue + t * price
            if best > out[x]:
                out[x], choice[x] = best, min(t - at, most)
            depth += 1
            stack[depth] = (low, t - 1, left, at)
            depth += 1
            stack[depth] = (t + 1, high, at, right)


@njit(cache=True, error_model="numpy")
def tree_knapsack(sums: Array, starts: Array, layers: Array, prices: Array, limit: int) -> Array:
    """Weights kept in each channel, -1 where it is closed; exact.

    ``sums[starts[c]:starts[c+1]]`` are channel c's sums of the n best scores from n = 0 on,
    ``layers`` (C,) rises, ``prices`` are those of a weight, a channel and a layer.
    """
    channels, size = len(layers), limit + 1
    choice = np.empty((channels, size), dtype=np.int32)
    opened = np.zeros((layers[-1] + 1, size), dtype=np.bool_)
    closed = np.zeros(size)
    inside, swap = np.empty(size), np.empty(size)
    for c in range(channels):
        layer = layers[c]
        if c == 0 or layers[c - 1] != layer:
            for x in range(size):
                inside[x] = closed[x - prices[2]] if x >= prices[2] else -np.inf
        own = sums[starts[c] : starts[c + 1]]
        first = prices[1]
        _spend(inside, own, prices[0], min(first, size), swap, choice[c])
        inside, swap = swap, inside
        if c == channels - 1 or layers[c + 1] != layer:
            for x in range(size):
                if inside[x] > closed[x]:
                    closed[x] = inside[x]
                    opened[layer, x] = True
    counts = np.full(channels, -1, dtype=np.int64)
    x, c = limit, channels - 1
    while c >= 0:
        layer = layers[c]
        is_open = opened[layer, x]
        while c >= 0 and layers[c] == layer:
            if is_open:
                counts[c] = choice[c, x]
                if counts[c] >= 0:
                    x -= prices[1] + counts[c] * prices[0]
            c -= 1
        if is_open:
            x -= prices[2]
    return counts
