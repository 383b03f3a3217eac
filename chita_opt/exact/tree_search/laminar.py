"""Compiled greedy oracle of a budget on a partition with a total, with exact exchange costs."""

from __future__ import annotations

import numpy as np
from numba import njit

from chita_opt.supports.base import Array


@njit(cache=True, error_model="numpy")
def best_budget(s: Array, labels: Array, caps: Array, total: int, mask: Array) -> float:
    """Fill ``mask`` with the best support for scores s >= 0; the sum of its scores."""
    n = len(s)
    order = np.argsort(-s)
    room = caps.copy()
    left = total
    value = 0.0
    for i in range(n):
        mask[i] = False
    for i in order:
        if left == 0:
            break
        if room[labels[i]] > 0:
            room[labels[i]] -= 1
            left -= 1
            mask[i] = True
            value += s[i]
    return value


@njit(cache=True, error_model="numpy")
def exchange_costs(s: Array, labels: Array, caps: Array, total: int, mask: Array) -> Array:
    """Loss of the best value when weight i is forced against ``mask``; exact for budgets."""
    n, groups = len(s), len(caps)
    room, kept = caps.copy(), 0
    weakest, strongest = np.full(groups, np.inf), np.zeros(groups)
    overall_in, overall_out = np.inf, 0.0
    for i in range(n):
        g = labels[i]
        if mask[i]:
            room[g] -= 1
            kept += 1
            weakest[g] = min(weakest[g], s[i])
            overall_in = min(overall_in, s[i])
        else:
            strongest[g] = max(strongest[g], s[i])
    if kept < total:
        overall_in = 0.0
    for i in range(n):
        if not mask[i] and room[labels[i]] > 0:
            overall_out = max(overall_out, s[i])
    costs = np.empty(n)
    for i in range(n):
        g = labels[i]
        if mask[i]:
            costs[i] = s[i] - max(strongest[g], overall_out)
        elif caps[g] == 0 or total == 0:
            costs[i] = np.inf
        else:
            costs[i] = (weakest[g] if room[g] == 0 else overall_in) - s[i]
    for i in range(n):
        costs[i] = max(costs[i], 0.0)
    return costs
