r"""Compiled loops of the split ascent.

Matrices are Fortran-ordered; of symmetric ones only the lower triangle is read or written. The
interpreter is released, so that threads can work on several nodes.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from chita_opt.supports.base import Array


@njit(cache=True, nogil=True, error_model="numpy")
def less_diagonal(H: Array, d: Array, S: Array) -> None:
    """Write the lower triangle of ``H - diag(d)`` into S."""
    n = len(d)
    for j in range(n):
        for i in range(j, n):
            S[i, j] = H[i, j]
        S[j, j] -= d[j]


@njit(cache=True, nogil=True, error_model="numpy")
def smoothed_value(
    v: Array, b: Array, r: Array, d: Array, nu: Array, G: Array, h: Array, L: Array, mu: float
) -> float:
    """Barrier objective at (r, d, nu); L is the factor of H - diag(d), v solves S v = b - r."""
    n, m = len(d), len(nu)
    value = 0.0
    for i in range(n):
        t = 0.5 * r[i] * r[i] / d[i]
        for a in range(m):
            t -= G[a, i] * nu[a]
        root = np.sqrt(t * t + 4.0 * mu * mu)
        large = 0.5 * (1.0 + abs(t) / (root + 2.0 * mu))
        small = mu / (root + 2.0 * mu) / large
        z = large if t > 0.0 else small
        value -= 0.5 * v[i] * (b[i] - r[i]) + z * t + mu * np.log(large * small)
        value += mu * (2.0 * np.log(L[i, i]) + np.log(d[i]))
    for a in range(m):
        value += mu * np.log(nu[a]) - h[a] * nu[a]
    return value


@njit(cache=True, nogil=True, error_model="numpy")
def local_model(
    H: Array, Si: Array, v: Array, r: Array, d: Array, nu: Array, G: Array, h: Array, mu: float,
    K: Array, scalars: Array, side: Array, nu_block: Array, z: Array,
) -> None:  # fmt: skip
    """First and second derivatives in the coordinates (q, d, nu), q = dr - v dd.

    ``scalars`` rows: a, f, e', g_q, g_d. ``side`` holds g_q / a and P / a as columns, to be solved
    with K = H - diag(d) + diag(1 / a). ``nu_block`` holds the nu-nu block and g_nu twice.
    """
    n, m = len(d), len(nu)
    for a in range(m):
        for c in range(m):
            nu_block[a, c] = 0.0
        nu_block[a, a] = mu / (nu[a] * nu[a])
        nu_block[a, m] = mu / nu[a] - h[a]
        nu_block[a, m + 1] = 0.0
    for i in range(n):
        slope = r[i] / d[i]
        t = 0.5 * r[i] * slope
        for a in range(m):
            t -= G[a, i] * nu[a]
        root = np.sqrt(t * t + 4.0 * mu * mu)
        large = 0.5 * (1.0 + abs(t) / (root + 2.0 * mu))
        small = mu / (root + 2.0 * mu) / large
        zi = large if t > 0.0 else small
        z[i] = zi
        bend = 1.0 / (mu / (large * large) + mu / (small * small))
        ai = zi / d[i] + bend * slope * slope
        ci = -(zi * slope / d[i] + 0.5 * bend * slope**3)
        scalars[0, i] = ai
        scalars[1, i] = ai * v[i] + ci
        scalars[2, i] = bend * slope**4 * zi / (4.0 * d[i] * ai) + mu / (d[i] * d[i])
        gq = v[i] - zi * slope
        scalars[3, i] = gq
        scalars[4, i] = (
            -0.5 * v[i] * v[i] + 0.5 * zi * slope * slope - mu * Si[i, i] + mu / d[i] + v[i] * gq
        )
        side[i, 0] = gq / ai
        for a in range(m):
            held = bend * G[a, i]
            side[i, 1 + a] = -held * slope / ai
            nu_block[a, m] += G[a, i] * zi
            if held != 0.0:
                for c in range(m):
                    nu_block[a, c] += held * G[c, i]
        scalars[5, i] = bend
    for a in range(m):
        nu_block[a, m + 1] = nu_block[a, m]
    for j in range(n):
        for i in range(j, n):
            K[i, j] = H[i, j]
        K[j, j] += 1.0 / scalars[0, j] - d[j]


@njit(cache=True, nogil=True, error_model="numpy")
def split_system(
    Si: Array, N: Array, mu: float, scalars: Array, side: Array, solved: Array,
    v: Array, r: Array, d: Array, G: Array, M: Array, rhs: Array, nu_block: Array,
) -> None:  # fmt: skip
    """System left for d once q is eliminated; ``solved`` is K^-1 side, replaced by T [g_q, P]."""
    n, m = len(d), G.shape[0]
    for j in range(n):
        fj = scalars[1, j] / scalars[0, j]
        for i in range(j, n):
            M[i, j] = mu * Si[i, j] * Si[i, j] + fj * (scalars[1, i] / scalars[0, i]) * N[i, j]
        M[j, j] += scalars[2, j]
    for i in range(n):
        slope = r[i] / d[i]
        for c in range(m + 1):  # T x = x/a - K^-1 (x/a) / a
            solved[i, c] = side[i, c] - solved[i, c] / scalars[0, i]
        rhs[i, 0] = scalars[4, i] - scalars[1, i] * solved[i, 0]
        for c in range(m):
            P = side[i, 1 + c] * scalars[0, i]
            R = v[i] * P + 0.5 * scalars[5, i] * slope * slope * G[c, i]
            rhs[i, 1 + c] = R - scalars[1, i] * solved[i, 1 + c]
            for a in range(m):
                nu_block[a, c] -= side[i, 1 + a] * scalars[0, i] * solved[i, 1 + c]
            nu_block[c, m] -= P * solved[i, 0]


@njit(cache=True, nogil=True, error_model="numpy")
def newton_step(
    scalars: Array, side: Array, solved: Array, rhs: Array, answer: Array, N: Array, v: Array,
    nu_block: Array, d: Array, nu: Array, step_r: Array, step_d: Array, step_nu: Array,
    work: Array,
) -> tuple[float, float]:  # fmt: skip
    """Newton direction, its decrement (gradient times direction) and the longest step."""
    n, m = len(d), len(nu)
    if m:
        A = np.empty((m, m))
        y = np.empty(m)
        for a in range(m):
            for c in range(m):
                total = nu_block[a, c]
                for i in range(n):
                    total -= rhs[i, 1 + a] * answer[i, 1 + c]
                A[a, c] = total
            total = nu_block[a, m]
            for i in range(n):
                total -= rhs[i, 1 + a] * answer[i, 0]
            y[a] = total
        if m == 1:
            step_nu[0] = y[0] / A[0, 0]
        else:
            step_nu[:] = np.linalg.solve(A, y)
    for i in range(n):
        total = answer[i, 0]
        for a in range(m):
            total -= answer[i, 1 + a] * step_nu[a]
        step_d[i] = total
    # q = T (g_q - f dd - P dnu); T f dd needs one more product with N
    for i in range(n):
        work[i] = scalars[1, i] * step_d[i] / scalars[0, i]
    for i in range(n):
        step_r[i] = 0.0
    for j in range(n):
        step_r[j] += N[j, j] * work[j]
        for i in range(j + 1, n):
            step_r[i] += N[i, j] * work[j]
            step_r[j] += N[i, j] * work[i]
    decrement = 0.0
    longest = 1e300
    for i in range(n):
        total = solved[i, 0] - (work[i] - step_r[i] / scalars[0, i])
        for a in range(m):
            total -= solved[i, 1 + a] * step_nu[a]
        decrement += total * scalars[3, i] + step_d[i] * scalars[4, i]
        step_r[i] = total + v[i] * step_d[i]
        if step_d[i] < 0.0:
            longest = min(longest, -d[i] / step_d[i])
    for a in range(m):
        decrement += step_nu[a] * nu_block[a, m + 1]
        if step_nu[a] < 0.0:
            longest = min(longest, -nu[a] / step_nu[a])
    return decrement, longest
