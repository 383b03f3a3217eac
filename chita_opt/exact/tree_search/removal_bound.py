r"""Cheap first bounds: what the weights that must still go cost at least, one by one or together.

Let w minimise the quadratic over a node's free weights, none removed, and :math:`G=H^{-1}`.
Removing the set R and re-optimising the rest raises it by

.. math:: \Delta(R)=\tfrac12 w_R^\top(G_{RR})^{-1}w_R,

which is monotone in R. So a support costs at least the optimal brain surgeon's cost
:math:`c_j=w_j^2/2G_{jj}` of its dearest removal: with r removals due, the r-th smallest. And
:math:`(G_{RR})^{-1}\succeq\mathrm{diag}(e_R)` wherever :math:`H\succeq\mathrm{diag}(e)`, so with
:math:`e_j=t/G_{jj}` and t the reciprocal of the largest eigenvalue of G scaled to a unit diagonal
it costs at least t times the sum of the r smallest :math:`c_j`. That is the bound of the split e
at the point w: it is proven, and fixes weights, like every other split.

Hassibi and Stork (1993), "Second order derivatives for network pruning: optimal brain surgeon".
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, lapack

from chita_opt.exact.diagonal_split.ascent import Reduced
from chita_opt.exact.tree_search.allowed import Restricted
from chita_opt.supports.base import Array

_EPS = float(np.finfo(np.float64).eps)
_INSIDE = 1.0 - 1e-6  # factor on the split, so that it can be proven


class RemovalBound:
    """The bounds of one node; one factorisation and one inverse serve both.

    Parameters
    ----------
    reduced : Reduced
        Quadratic over the free weights.
    restricted : Restricted
        The family on them.
    margin : float
        Rounding in H, as from ``Quadratic.margin``: the true matrix is at least H - margin I.

    Attributes
    ----------
    costs : ndarray or None
        (n,) cost of removing each weight alone; None where H - 3 margin I has no Cholesky factor.
    """

    def __init__(self, reduced: Reduced, restricted: Restricted, margin: float) -> None:
        self.reduced, self.restricted = reduced, restricted
        self.costs: Array | None = None
        H = reduced.H.copy(order="F")
        # one margin for H itself, one for its factorisation, one for the solve
        np.einsum("ii->i", H)[:] -= 3.0 * margin
        L, info = lapack.dpotrf(H, lower=1, clean=1, overwrite_a=1)
        if info:
            return
        y, _ = lapack.dtrtrs(L, reduced.b, lower=1)
        self.gain = float(y @ y)
        self.w, _ = lapack.dtrtrs(L, y, lower=1, trans=1)
        G, _ = lapack.dpotri(L, lower=1, overwrite_c=1)
        self.G = np.asfortranarray(G)
        self.inverse = self.G.diagonal().copy()
        self.costs = 0.5 * self.w**2 / self.inverse

    def dearest(self) -> float:
        """Bound from the dearest removal of the cheapest support; -inf without a factor."""
        if self.costs is None:
            return -np.inf
        order = np.argsort(-self.costs)
        low, high = 0, len(order)  # the most expensive weights that may be kept together
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._may_keep(order[:middle]) else (low, middle - 1)
        dearest = float(self.costs[order[low]]) if low < len(order) else 0.0
        return self.reduced.const - 0.5 * self.gain + dearest - self._rounding()

    def split(self) -> tuple[Array, Array] | None:
        """Split and point of the scaled sum, for :meth:`NodeBound.prove`; None without a factor."""
        if self.costs is None:
            return None
        scale = self.inverse**-0.5
        n = len(scale)
        unit = self.G * scale[:, None] * scale[None, :]
        largest = eigh(unit, lower=True, eigvals_only=True, subset_by_index=[n - 1, n - 1])
        return _INSIDE / (float(largest[0]) * self.inverse), self.w

    def _may_keep(self, index: Array) -> bool:
        ones = np.zeros(len(self.inverse))
        ones[index] = 1.0
        return self.restricted.best(ones)[1] > len(index) - 0.5

    def _rounding(self) -> float:
        """Error of the costs: that of rows of the inverse factor grows with its condition."""
        n = len(self.inverse)
        condition = np.sqrt(float(self.reduced.H.trace()) * float(self.inverse.sum()))
        terms = abs(self.reduced.const) + condition * self.gain
        return 64.0 * _EPS * n * terms
