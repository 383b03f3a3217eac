r"""Compiled parts of the two-budget oracle: prices of the linear relaxation, search over counts.

Weights of one cost f_c form a class, sorted by falling score; ``start[c]:start[c+1]`` are the
class's positions, and ``prefix`` holds :math:`P_c(n)`, the sum of its n best scores, at
``start[c] + c + n``. Imported on first use: numba is slow to load.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chita_opt.supports.base import Array

_HALVINGS = 200
_RESOLUTION = 4.5e-16


@njit(cache=True, error_model="numpy")
def above(scores: Array, first: int, stop: int, level: float) -> int:
    """Number of entries of the falling ``scores[first:stop]`` that exceed ``level``."""
    low, high = first, stop
    while low < high:
        middle = (low + high) // 2
        if scores[middle] > level:
            low = middle + 1
        else:
            high = middle
    return low - first


@njit(cache=True, error_model="numpy")
def _counts(scores: Array, start: Array, costs: Array, kept: float, used: float, out: Array) -> int:
    """Fill ``out`` with how many of each class exceed their price; their sum."""
    total = 0
    for c in range(len(costs)):
        out[c] = above(scores, start[c], start[c + 1], kept + used * costs[c])
        total += out[c]
    return total


@njit(cache=True, error_model="numpy")
def _top(
    scores: Array, start: Array, costs: Array, k: int, used: float, out: Array, ties: Array
) -> float:
    """The k largest of s - used * f (ties from the cheapest class) as counts; the price of one."""
    high = 0.0
    for c in range(len(costs)):
        if start[c + 1] > start[c]:
            high = max(high, scores[start[c]] - used * costs[c])
    if _counts(scores, start, costs, 0.0, used, out) <= k:
        return 0.0
    low = 0.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if _counts(scores, start, costs, middle, used, out) > k:
            low = middle
        else:
            high = middle
        if high - low <= _RESOLUTION * high:
            break
    _counts(scores, start, costs, low, used, ties)
    left = k - _counts(scores, start, costs, high, used, out)
    for c in range(len(costs)):  # costs ascend
        more = min(left, ties[c] - out[c])
        out[c] += more
        left -= more
    return high


@njit(cache=True, error_model="numpy")
def prices(
    scores: Array, start: Array, costs: Array, k: int, limit: int, counts: Array
) -> tuple[float, float]:
    """Prices of one weight and of one unit of cost; ``counts`` keep both budgets."""
    ties = np.empty_like(counts)
    one = _top(scores, start, costs, k, 0.0, counts, ties)
    if (counts * costs).sum() <= limit:
        return one, 0.0
    low, high = 0.0, 0.0
    for c in range(len(costs)):
        if costs[c] > 0 and start[c + 1] > start[c]:
            high = max(high, scores[start[c]] / costs[c] * (1.0 + 1e-12))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        _top(scores, start, costs, k, middle, counts, ties)
        if (counts * costs).sum() > limit:
            low = middle
        else:
            high = middle
        if high - low <= _RESOLUTION * high:
            break
    return _top(scores, start, costs, k, high, counts, ties), high


@njit(cache=True, error_model="numpy")
def search(
    prefix: Array,
    start: Array,
    costs: Array,
    budgets: tuple[int, int],
    price: Array,
    upper: float,
    counts: Array,
    max_nodes: int,
) -> int:
    r"""Improve ``counts`` to the optimum by depth-first search; the nodes, -1 if too many.

    A class that takes n weights at its ``price`` :math:`\nu_c` loses :math:`\max_m(P_c(m)-\nu_c m)
    -(P_c(n)-\nu_c n)\ge 0` of ``upper``, and the losses of all classes add up: only counts whose
    losses together are below the gap can improve. The last class takes what the budgets leave.
    """
    classes = len(costs)
    best = 0.0
    for c in range(classes):
        best += prefix[start[c] + c + counts[c]]
    tolerance = 1e-13 * upper
    centre, room = np.empty(classes, np.int64), np.empty(classes, np.int64)
    top = np.empty(classes)
    for c in range(classes):
        n, base = start[c + 1] - start[c], start[c] + c
        room[c] = n
        low, high = 0, n  # the scores fall, so that P is concave
        while low < high:
            middle = (low + high) // 2
            if prefix[base + middle + 1] - prefix[base + middle] > price[c]:
                low = middle + 1
            else:
                high = middle
        centre[c] = low
        top[c] = prefix[base + low] - price[c] * low
    level, nodes = 0, 0
    chosen, step, side = centre.copy(), np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    lost, kept, used = np.zeros(classes + 1), np.zeros(classes + 1), np.zeros(classes + 1)
    value = np.zeros(classes + 1)
    while level >= 0:
        c = level
        base = start[c] + c
        left = budgets[0] - kept[level]
        spend = budgets[1] - used[level]
        if level == classes - 1:
            n = min(left, float(room[c]))
            if costs[c] > 0:
                n = min(n, spend // costs[c])
            total = value[level] + prefix[base + int(n)]
            if total > best + tolerance:
                best = total
                counts[:level] = chosen[:level]
                counts[c] = int(n)
            level -= 1
            continue
        # side 0: centre, centre - 1, ...; side 1: centre + 1, ...; side 2: done
        n_next = centre[c] - step[c] if side[c] == 0 else centre[c] + 1 + step[c]
        if side[c] == 2:
            step[c] = side[c] = 0
            level -= 1
            continue
        fails = n_next < 0 or n_next > room[c]
        if not fails:
            loss = top[c] - (prefix[base + n_next] - price[c] * n_next)
            fails = upper - lost[level] - loss <= best + tolerance
        too_many = not fails and (n_next > left or n_next * costs[c] > spend)
        if fails or (too_many and side[c] == 1):
            side[c] += 1
            step[c] = 0
            continue
        step[c] += 1
        if too_many:
            continue
        nodes += 1
        if nodes > max_nodes:
            return -1
        chosen[c] = n_next
        lost[level + 1] = lost[level] + max(loss, 0.0)
        kept[level + 1] = kept[level] + n_next
        used[level + 1] = used[level] + n_next * costs[c]
        value[level + 1] = value[level] + prefix[base + n_next]
        level += 1
    return nodes
