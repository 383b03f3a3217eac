"""One damped Newton step of the split ascent, compiled as a whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from chita_opt.exact.diagonal_split.kernels import (
    less_diagonal,
    local_model,
    newton_step,
    smoothed_value,
    split_system,
)
from chita_opt.exact.diagonal_split.lapack_calls import factor, inverse, solve
from chita_opt.supports.base import Array

_BACK = 0.6  # factor on a step that leaves the cone or does not gain
_INSIDE = 0.7


class Rows(NamedTuple):
    """The reduced quadratic: H (n, n), b (n,), and the rows G z <= h (m, n), (m,)."""

    H: Array
    b: Array
    G: Array
    h: Array


class Point(NamedTuple):
    """An interior point (r, d, nu), the factor L of S = H - diag(d), and v = S^-1 (b - r)."""

    r: Array
    d: Array
    nu: Array
    v: Array
    L: Array


class Room(NamedTuple):
    """Arrays that a step writes into; ``N`` ends as K^-1, ``z`` as the smoothed indicators."""

    trial: Point
    step: tuple[Array, Array, Array]
    Si: Array
    N: Array
    M: Array
    scalars: Array
    side: Array
    solved: Array
    rhs: Array
    answer: Array
    nu_block: Array
    z: Array
    work: Array
    n_info: Array


def new_point(n: int, m: int) -> Point:
    """Room for a point."""
    return Point(np.empty(n), np.empty(n), np.empty(m), np.empty(n), np.empty((n, n), order="F"))


def new_room(n: int, m: int) -> Room:
    """Room for the steps of a quadratic in n weights with m rows."""
    square = [np.empty((n, n), order="F") for _ in range(3)]
    sides = [np.empty((n, m + 1), order="F") for _ in range(4)]
    return Room(
        trial=new_point(n, m),
        step=(np.empty(n), np.empty(n), np.empty(m)),
        Si=square[0],
        N=square[1],
        M=square[2],
        scalars=np.empty((6, n)),
        side=sides[0],
        solved=sides[1],
        rhs=sides[2],
        answer=sides[3],
        nu_block=np.empty((m, m + 2)),
        z=np.empty(n),
        work=np.empty(n),
        n_info=np.zeros(4, dtype=np.int32),
    )


@njit(cache=True, nogil=True)
def settle(calls: Any, rows: Rows, point: Point, n_info: Array) -> bool:
    """Fill in L and v for the point's r and d; False where H - diag(d) is not definite."""
    less_diagonal(rows.H, point.d, point.L)
    if not factor(calls, point.L, n_info):
        return False
    point.v[:] = rows.b - point.r
    solve(calls, point.L, point.v, n_info)
    return True


@njit(cache=True, nogil=True)
def value(rows: Rows, point: Point, mu: float) -> float:
    """The barrier objective of a settled point."""
    return smoothed_value(
        point.v, rows.b, point.r, point.d, point.nu, rows.G, rows.h, point.L, mu
    )  # fmt: skip


@njit(cache=True, nogil=True)
def ascend_once(
    calls: Any, rows: Rows, point: Point, mu: float, room: Room, inside: float
) -> tuple[float, float]:
    """Move ``point`` by a damped Newton step; its decrement and length, nan where it fails.

    The step goes at most the share ``inside`` of the way to where H - diag(d) is singular.
    """
    failed = (np.nan, 0.0)
    n, r, d, nu, v = len(point.d), point.r, point.d, point.nu, point.v
    Si, N, M = room.Si, room.N, room.M
    for j in range(n):
        Si[j:, j] = point.L[j:, j]
    inverse(calls, Si, room.n_info)
    local_model(
        rows.H, Si, v, r, d, nu, rows.G, rows.h, mu, N, room.scalars, room.side, room.nu_block,
        room.z,
    )  # fmt: skip
    if not factor(calls, N, room.n_info):
        return failed
    room.solved[:] = room.side
    solve(calls, N, room.solved, room.n_info)
    inverse(calls, N, room.n_info)
    split_system(
        Si, N, mu, room.scalars, room.side, room.solved, v, r, d, rows.G, M, room.rhs,
        room.nu_block,
    )  # fmt: skip
    if not factor(calls, M, room.n_info):
        return failed
    room.answer[:] = room.rhs
    solve(calls, M, room.answer, room.n_info)
    step_r, step_d, step_nu = room.step
    decrement, longest = newton_step(
        room.scalars, room.side, room.solved, room.rhs, room.answer, N, v, room.nu_block, d, nu,
        step_r, step_d, step_nu, room.work,
    )  # fmt: skip
    return decrement, _search(calls, rows, point, mu, room, decrement, longest, inside)


@njit(cache=True, nogil=True)
def _search(
    calls: Any, rows: Rows, point: Point, mu: float, room: Room, decrement: float, longest: float,
    inside: float,
) -> float:  # fmt: skip
    """Backtrack from the longest step; the length taken, 0 where none gains."""
    old = value(rows, point, mu)
    trial = room.trial
    step_r, step_d, step_nu = room.step
    length = min(1.0, 0.9 * longest)
    for _ in range(30):
        if inside < 1.0 and not _definite(calls, rows, point, step_d, length / inside, room):
            length *= _BACK
            continue
        trial.r[:] = point.r + length * step_r
        trial.d[:] = point.d + length * step_d
        trial.nu[:] = point.nu + length * step_nu
        if settle(calls, rows, trial, room.n_info):
            new = value(rows, trial, mu)
            if new >= old + 0.01 * length * decrement - 1e-13 * abs(old):
                point.r[:], point.d[:], point.nu[:] = trial.r, trial.d, trial.nu
                point.v[:] = trial.v
                for j in range(len(trial.d)):
                    point.L[j:, j] = trial.L[j:, j]
                return length
        length *= _BACK
    return 0.0


@njit(cache=True, nogil=True)
def _definite(
    calls: Any, rows: Rows, point: Point, step_d: Array, length: float, room: Room
) -> bool:
    """Whether H less the split so far along the step is positive definite."""
    room.trial.d[:] = point.d + length * step_d
    less_diagonal(rows.H, room.trial.d, room.trial.L)
    return bool(factor(calls, room.trial.L, room.n_info))
