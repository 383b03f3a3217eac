"""Dealing rows and columns to processors of limited room."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array

_MAX_NODES = 100_000


def one_hot(parts: Array, count: int) -> Array:
    """(n, count) float64, 1 at each entry's processor."""
    return (parts[:, None] == np.arange(count)).astype(np.float64)


def inside_parts(rows: Array, columns: Array) -> Array:
    """(rows, columns) bool: whether both ends lie on one processor."""
    return np.asarray(rows[:, None] == columns[None, :])


def dealt(values: Array, room: int) -> Array:
    """Best processors for given values (n, P), at most ``room`` each: a transportation problem."""
    seats = np.repeat(values, room, axis=1)
    who, seat = linear_sum_assignment(seats, maximize=True)
    parts = np.empty(len(values), dtype=np.int64)
    parts[who] = seat // room
    return parts


def packed(sizes: Array, parts: int, room: Array) -> list[int] | None:
    """A processor for each component (rows, columns), largest first, or None; depth first.

    Raises
    ------
    SupportError
        If that is not decided after 100,000 steps.
    """
    loads, nexts = np.zeros((parts, 2), dtype=np.int64), [0]
    place: list[int] = []
    for _ in range(_MAX_NODES):
        if len(place) == len(sizes):
            return place
        size = sizes[len(place)]
        fits = np.flatnonzero((loads + size <= room).all(1))
        fits = fits[fits >= nexts[-1]]
        q = next((int(q) for q in fits if not (loads[:q] == loads[q]).all(1).any()), None)
        if q is not None:
            nexts[-1] = q + 1
            loads[q] += size
            place.append(q)
            nexts.append(0)
            continue
        nexts.pop()
        if not place:
            return None
        loads[place[-1]] -= sizes[len(place) - 1]
        place.pop()
    raise SupportError(
        f"whether {len(sizes)} connected components fit {parts} processors is not decided after "
        f"{_MAX_NODES} steps; keep fewer weights"
    )


def completed(parts: Array, count: int, room: int) -> Array:
    """Deal those without a processor (-1) to whoever has room."""
    free = np.repeat(np.arange(count), np.maximum(room - np.bincount(
        parts[parts >= 0], minlength=count), 0))  # fmt: skip
    parts = parts.copy()
    parts[parts < 0] = free[: int((parts < 0).sum())]
    return parts
