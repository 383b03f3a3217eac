r"""Compiled loops over one row: weights enter and leave a support in the order of their costs.

The state of a row is the swept tableau V of :mod:`chita_opt.heuristics.tableau`, with u the
weights kept and the pulls of the others. A weight that enters or leaves changes V by a rank-one
term. These are collected in a panel R with pivots p and applied together by the caller
(``V - sum_s r_s r_s' / p_s``, less a diagonal), as blocked factorisations do; meanwhile only one
row of the current V is formed per step, and diag(V) and u are kept up to date.

``group`` labels the weights of the row and ``room`` counts, for each group, how many more may
enter: negative where too many are kept.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chita_opt.supports.base import Array

_FAST = {"contract", "reassoc", "nsz", "arcp"}


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def toggle(
    V: Array, R: Array, p: Array, t: int, diagonal: Array, u: Array, inside: Array, j: int
) -> float:
    """Move weight j in or out: row t of the panel. Returns the change of the objective."""
    d = len(u)
    row = R[t]
    for i in range(d):
        row[i] = V[j, i]
    for s in range(t):
        c = R[s, j] / p[s]
        if c != 0.0:
            for i in range(d):
                row[i] -= c * R[s, i]
    pivot, own = diagonal[j], u[j]
    sign = -1.0 if inside[j] else 1.0
    inverse = 1.0 / pivot
    c = own * inverse
    for i in range(d):
        u[i] -= row[i] * c
        diagonal[i] -= row[i] * row[i] * inverse
    u[j] = sign * c
    diagonal[j] = -inverse
    row[j] = pivot - sign
    p[t] = pivot
    inside[j] = not inside[j]
    return -0.5 * own * c


@njit(cache=True, error_model="numpy")
def cheapest(diagonal: Array, u: Array, inside: Array, group: Array, room: Array) -> int:
    """The kept weight that costs least to remove, of groups over their caps if there are any."""
    over = False
    for g in range(len(room)):
        over |= room[g] < 0
    best, found = np.inf, -1
    for i in range(len(u)):
        if inside[i] and (not over or room[group[i]] < 0):
            cost = -u[i] * u[i] / diagonal[i]
            if cost < best or found < 0:
                best, found = cost, i
    return found


@njit(cache=True, error_model="numpy")
def strongest(
    diagonal: Array, floor: Array, u: Array, inside: Array, group: Array, caps: Array
) -> int:
    """The pruned weight that gains most when it enters; -1 if none does."""
    best, found = 0.0, -1
    for i in range(len(u)):
        if not inside[i] and diagonal[i] > floor[i] and caps[group[i]] > 0:
            gain = u[i] * u[i] / diagonal[i]
            if gain > best:
                best, found = gain, i
    return found


@njit(cache=True, error_model="numpy")
def remove_panel(
    V: Array, R: Array, p: Array, diagonal: Array, u: Array, inside: Array, group: Array,
    room: Array, order: Array, loss: Array, forced: Array,
) -> int:  # fmt: skip
    """Remove weights in the order of their costs until the panel is full or nothing is kept."""
    for t in range(len(order)):
        j = cheapest(diagonal, u, inside, group, room)
        if j < 0:
            return t
        forced[t] = room[group[j]] < 0
        loss[t] = toggle(V, R, p, t, diagonal, u, inside, j)
        order[t] = j
        room[group[j]] += 1
    return len(order)


@njit(cache=True, error_model="numpy")
def remove_block_panel(
    V: Array, B: Array, R: Array, p: Array, diagonal: Array, u: Array, inside: Array,
    order: Array, loss: Array,
) -> int:  # fmt: skip
    """Remove whole blocks of consecutive weights; ``B`` (blocks, c, c) holds -V on the blocks."""
    blocks, c = B.shape[0], B.shape[1]
    t = 0
    while t + c <= len(order):
        best, found = np.inf, -1
        for b in range(blocks):
            if inside[b * c]:
                x = np.linalg.solve(B[b], u[b * c : (b + 1) * c])
                cost = 0.0
                for i in range(c):
                    cost += 0.5 * x[i] * u[b * c + i]
                if cost < best:
                    best, found = cost, b
        if found < 0:
            return t
        for j in range(found * c, (found + 1) * c):
            toggle(V, R, p, t, diagonal, u, inside, j)
            order[t], loss[t] = j, best
            pivot = p[t]
            for b in range(blocks):
                for i in range(c):
                    for k in range(c):
                        B[b, i, k] += R[t, b * c + i] * R[t, b * c + k] / pivot
            t += 1
    return t


@njit(cache=True, error_model="numpy")
def walk(
    V: Array, R: Array, p: Array, shift: Array, diagonal: Array, floor: Array, u: Array,
    inside: Array, group: Array, caps: Array, room: Array, value: float, adds: int, low: int,
    base: int, best: Array, supports: Array,
) -> tuple[int, float]:  # fmt: skip
    """Let up to ``adds`` weights enter, then remove down to ``low`` kept ones.

    At every count that is passed, ``best[count - base]`` and ``supports[count - base]`` keep the
    lowest objective seen and its support. Returns the length of the panel and the objective.
    """
    count, t, over = 0, 0, 0
    for i in range(len(u)):
        count += inside[i]
    for _ in range(adds):
        j = strongest(diagonal, floor, u, inside, group, caps)
        if j < 0 or count + 1 - base >= len(best):
            break
        value += toggle(V, R, p, t, diagonal, u, inside, j)
        shift[j] += 2.0
        over += room[group[j]] <= 0
        room[group[j]] -= 1
        t, count = t + 1, count + 1
        if over == 0 and value < best[count - base]:
            best[count - base] = value
            supports[count - base] = inside
    while count > low:
        j = cheapest(diagonal, u, inside, group, room)
        value += toggle(V, R, p, t, diagonal, u, inside, j)
        shift[j] -= 2.0
        room[group[j]] += 1
        over -= room[group[j]] <= 0
        t, count = t + 1, count - 1
        if over == 0 and value < best[count - base]:
            best[count - base] = value
            supports[count - base] = inside
    return t, value


@njit(cache=True, error_model="numpy", fastmath=_FAST)
def rank_exchanges(
    V: Array, diagonal: Array, u: Array, inside: Array, group: Array, room: Array,
    partner: Array, change: Array,
) -> None:  # fmt: skip
    """For every kept weight the allowed pruned one that replaces it best, and the exact change."""
    d = len(u)
    for i in range(d):
        change[i], partner[i] = 0.0, -1
        if not inside[i]:
            continue
        inverse = -diagonal[i]
        ratio = u[i] / inverse
        best, found = 0.0, -1
        for j in range(d):
            cross = V[i, j]
            pull = u[j] + cross * ratio
            gain = pull * pull / (max(diagonal[j], 0.0) + cross * cross / inverse)
            if inside[j] or not (group[i] == group[j] or room[group[j]] > 0):
                gain = 0.0
            if gain > best:
                best, found = gain, j
        change[i], partner[i] = 0.5 * (u[i] * ratio - best), found


@njit(cache=True, error_model="numpy")
def take_exchanges(
    V: Array, R: Array, p: Array, shift: Array, diagonal: Array, u: Array, inside: Array,
    group: Array, room: Array, partner: Array, change: Array, tol: float,
) -> tuple[int, float]:  # fmt: skip
    """Take ranked exchanges in turn while the panel has room; each is judged anew first."""
    t, total = 0, 0.0
    for i in np.argsort(change):
        j = partner[i]
        if j < 0 or not change[i] <= -tol or t + 2 > len(p):
            break
        if inside[j] or not (group[i] == group[j] or room[group[j]] > 0):
            continue
        cross = V[i, j]
        for s in range(t):
            cross -= R[s, i] * R[s, j] / p[s]
        ratio = -u[i] / diagonal[i]
        pull = u[j] + cross * ratio
        bend = max(diagonal[j], 0.0) - cross * cross / diagonal[i]
        if 0.5 * (u[i] * ratio - pull * pull / bend) > 0.7 * change[i]:
            continue
        total += toggle(V, R, p, t, diagonal, u, inside, i)
        total += toggle(V, R, p, t + 1, diagonal, u, inside, j)
        shift[i] -= 2.0
        shift[j] += 2.0
        room[group[i]] += 1
        room[group[j]] -= 1
        t += 2
    return t, total
