r"""The best diagonal split of a reduced quadratic, by a barrier Newton method on its dual.

For :math:`\min_w\tfrac12w^\top Hw-b^\top w` over supports z with :math:`Gz\le h`, every d >= 0 with
:math:`S=H-\mathrm{diag}(d)\succeq0` and every r give the lower bound

.. math:: -\tfrac12(b-r)^\top S^{-1}(b-r)-\max_{z}\sum_i z_i\frac{r_i^2}{2d_i},

which is jointly concave in (r, d): the dual of the semidefinite relaxation of Dong, Chen and
Linderoth (2015) and Zheng, Sun and Li (2014). The maximum over z is dualised with multipliers nu,
and all inequalities get logarithmic barriers of weight mu:

.. math:: F_\mu=-\tfrac12(b-r)^\top S^{-1}(b-r)-h^\top\nu-\sum_i\phi_\mu\Big(\frac{r_i^2}{2d_i}
          -(G^\top\nu)_i\Big)+\mu\Big(\log\det S+\sum\log d_i+\sum\log\nu_a\Big),

:math:`\phi_\mu(t)=\max_{0<z<1}zt+\mu\log z(1-z)`. A Newton step costs three Cholesky
factorisations and two inverses; every iterate is a valid witness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from chita_opt.exact import kernels
from chita_opt.supports.base import Array


_BACK = 0.6  # factor on a step that leaves the cone or does not gain


@dataclass(eq=False)
class Reduced:
    """A node's quadratic over its free weights: ``const + w'Hw/2 - b'w``, rows ``G z <= h``.

    Attributes
    ----------
    H : ndarray
        (n, n) Fortran-ordered.
    b : ndarray
        (n,).
    const : float
        Cost of what is fixed.
    G, h : ndarray
        (m, n) and (m,): the rows that can bind.
    """

    H: Array
    b: Array
    const: float
    G: Array
    h: Array


@dataclass(eq=False)
class DualState:
    """Interior point of the ascent: split d, dual r, row multipliers nu, barrier weight mu."""

    d: Array
    r: Array
    nu: Array
    mu: float


class SplitAscent:
    """Newton ascent of one reduced quadratic.

    Parameters
    ----------
    reduced : Reduced
        The quadratic.
    state : DualState
        Strictly feasible start.
    """

    def __init__(self, reduced: Reduced, state: DualState) -> None:
        self.node, self.d, self.r, self.nu = reduced, state.d, state.r, state.nu
        self.mu, self.steps = state.mu, 0
        n, m = len(self.d), len(self.nu)
        self.n, self.m = n, m
        new = lambda *shape: np.empty(shape, order="F")  # noqa: E731
        self.S, self.K, self.M = new(n, n), new(n, n), new(n, n)
        self.scalars, self.side, self.rhs = np.empty((6, n)), new(n, m + 1), new(n, m + 1)
        self.nu_block = np.empty((m, m + 2))
        self.z, self.work = np.empty(n), np.empty(n)
        self.step = (np.empty(n), np.empty(n), np.empty(m))
        self.L = new(n, n)
        self.spread = np.empty(n)
        self.interior = self._move(self.r, self.d)

    def _move(self, r: Array, d: Array) -> bool:
        """Factor H - diag(d) and solve for v; False where it is not positive definite."""
        S = np.empty((self.n, self.n), order="F")
        kernels.less_diagonal(self.node.H, d, S)
        L, info = lapack.dpotrf(S, lower=1, clean=0)
        if info != 0:
            return False
        v, _ = lapack.dpotrs(L, self.node.b - r, lower=1)
        self._trial = (S, L, v)
        return True

    @property
    def v(self) -> Array:
        """The solution of (H - diag d) v = b - r."""
        return self._trial[2]

    def _value(self, r: Array, d: Array, nu: Array) -> float:
        _, L, v = self._trial
        node = self.node
        return float(kernels.smoothed_value(v, node.b, r, d, nu, node.G, node.h, L, self.mu))

    def newton(self) -> float:
        """One damped Newton step at the present mu; the decrement over mu."""
        node = self.node
        S, L, v = self._trial
        Si, _ = lapack.dpotri(L, lower=1)
        kernels.local_model(
            S, Si, v, self.r, self.d, self.nu, node.G, node.h, self.mu,
            self.K, self.scalars, self.side, self.nu_block, self.z,
        )  # fmt: skip
        factor, info = lapack.dpotrf(self.K, lower=1, clean=0)
        if info:
            return np.nan
        solved, _ = lapack.dpotrs(factor, self.side, lower=1)
        N, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
        kernels.split_system(
            Si, N, self.mu, self.scalars, self.side, solved, v, self.r, self.d, node.G,
            self.M, self.rhs, self.nu_block,
        )  # fmt: skip
        factor, info = lapack.dpotrf(self.M, lower=1, clean=0)
        if info:
            return np.nan
        answer, _ = lapack.dpotrs(factor, self.rhs, lower=1)
        step_r, step_d, step_nu = self.step
        decrement, longest = kernels.newton_step(
            self.scalars, self.side, solved, self.rhs, answer, N, v, self.nu_block,
            self.d, self.nu, step_r, step_d, step_nu, self.work,
        )  # fmt: skip
        self.steps += 1
        self.spread = N.diagonal().copy()
        old, held = self._value(self.r, self.d, self.nu), self._trial
        length = min(1.0, 0.9 * longest)
        for _ in range(30):
            r = self.r + length * step_r
            d = self.d + length * step_d
            nu = self.nu + length * step_nu
            if self._move(r, d):
                new = self._value(r, d, nu)
                if new >= old + 0.01 * length * decrement - 1e-13 * abs(old):
                    self.r, self.d, self.nu = r, d, nu
                    self.length = length
                    self.value = new
                    return decrement / self.mu
            length *= _BACK
        self._trial = held
        return np.nan

    def scores(self) -> Array:
        """What keeping each weight gains at the present point, r^2 / 2d."""
        return np.asarray(0.5 * self.r * self.r / self.d)

    def free_part(self) -> float:
        """The bound but for the maximum over supports."""
        return float(self.node.const - 0.5 * self.v @ (self.node.b - self.r))
