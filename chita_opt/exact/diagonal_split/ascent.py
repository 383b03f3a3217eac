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

from chita_opt.exact.diagonal_split.lapack_calls import CALLS
from chita_opt.exact.diagonal_split.step import Rows, ascend_once, new_point, new_room, settle
from chita_opt.supports.base import Array


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
    inside : float
        Most of the way to a singular H - diag(d) that a step may go; 1 to look only at where it
        ends. With H of low rank but for a ridge steps end so near to singular that none recovers.
    """

    def __init__(self, reduced: Reduced, state: DualState, inside: float = 1.0) -> None:
        self.node, self.mu, self.steps, self.inside = reduced, state.mu, 0, inside
        n, m = len(state.d), len(state.nu)
        self._rows = Rows(
            np.asfortranarray(reduced.H),
            np.ascontiguousarray(reduced.b),
            np.ascontiguousarray(reduced.G),
            np.ascontiguousarray(reduced.h),
        )
        self._room, self._point = new_room(n, m), new_point(n, m)
        self.r[:], self.d[:], self.nu[:] = state.r, state.d, state.nu
        self.interior = bool(settle(CALLS, self._rows, self._point, self._room.n_info))

    @property
    def r(self) -> Array:
        """The dual."""
        return self._point.r

    @property
    def d(self) -> Array:
        """The split."""
        return self._point.d

    @property
    def nu(self) -> Array:
        """The rows' multipliers."""
        return self._point.nu

    @property
    def v(self) -> Array:
        """The solution of (H - diag d) v = b - r."""
        return self._point.v

    @property
    def z(self) -> Array:
        """Smoothed indicators, of the last step's start."""
        return self._room.z

    @property
    def spread(self) -> Array:
        """Diagonal of K^-1, of the last step's start."""
        return np.asarray(self._room.N.diagonal())

    def newton(self) -> float:
        """One damped Newton step at the present mu; the decrement over mu, nan if none gains."""
        decrement, self.length = ascend_once(
            CALLS, self._rows, self._point, self.mu, self._room, self.inside
        )
        self.steps += 1
        return float(decrement / self.mu) if self.length > 0.0 else np.nan

    def scores(self) -> Array:
        """What keeping each weight gains at the present point, r^2 / 2d."""
        return np.asarray(0.5 * self.r * self.r / self.d)

    def free_part(self) -> float:
        """The bound but for the maximum over supports."""
        return float(self.node.const - 0.5 * self.v @ (self.node.b - self.r))
