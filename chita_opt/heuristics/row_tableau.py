"""One row of a layer as a tableau: exact costs of removals, entries and exchanges."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chita_opt.heuristics import sweeps
from chita_opt.heuristics.quotas import RowQuota
from chita_opt.heuristics.row_systems import RowSystem
from chita_opt.supports.base import Array

_SINGULAR = 1e-10  # a pivot is rounding below this share of the weight's own curvature
_SCANS = 10  # rankings of all exchanges in one descent
_PANEL = 64  # toggles between two products


class RowTableau:
    r"""The swept tableau of a row on the support ``inside``.

    With T kept and O pruned: :math:`V_{TT}=-M_{TT}^{-1}`, :math:`V_{TO}=M_{TT}^{-1}M_{TO}`,
    :math:`V_{OO}=M_{OO}-M_{OT}M_{TT}^{-1}M_{TO}`; u holds the weights on T and the pulls on O.
    With the unconstrained minimiser :math:`\hat w`, :math:`u=V_{\cdot O}\hat w_O+(\hat w_T,0)`, and
    the objective over the row's minimum is :math:`\tfrac12\hat w_O^\top V_{OO}\hat w_O`: no terms
    cancel.

    Attributes
    ----------
    V : Tensor
        (d, d) float64, on the CPU.
    u, diagonal, inside : Array
        (d,): the vector u, diag(V), and which weights are kept.
    value : float
        Objective over the row's unconstrained minimum.
    """

    def __init__(self, system: RowSystem, centre: Array, inside: Array, quota: RowQuota) -> None:
        self.V, self.inside, self.quota = _swept(system, inside), inside.copy(), quota
        weights = torch.from_numpy(np.where(inside, 0.0, centre))
        u = (self.V @ weights).numpy()
        self.value = 0.5 * float(weights.numpy() @ u)
        self.u = u + np.where(inside, centre, 0.0)
        self.diagonal = self.V.diagonal().numpy().copy()
        self.floor = _SINGULAR * system.M.diagonal().numpy()
        self.room = quota.caps - np.bincount(quota.group[inside], minlength=len(quota.caps))

    def walk(self, adds: int, low: int, window: RowWindow) -> None:
        """Enter ``adds`` weights, then remove down to ``low``; ``window`` keeps what is passed."""
        count = int(self.inside.sum())
        length = 2 * min(adds, len(self.u) - count) + count - low
        R, p, shift = self._panel(length)
        t, self.value = sweeps.walk(
            self.V.numpy(), R, p, shift, self.diagonal, self.floor, self.u, self.inside,
            self.quota.group, self.quota.caps, self.room, self.value, adds, low, window.base,
            window.values, window.supports,
        )  # fmt: skip
        self._apply(R, p, shift, t)

    def exchange(self, tol: float, window: RowWindow) -> None:
        """The best exchanges until none lowers the objective by ``tol``."""
        d = len(self.u)
        partner, change = np.empty(d, np.int64), np.empty(d)
        for _ in range(_SCANS):
            R, p, shift = self._panel(min(_PANEL, 2 * d))
            rules = (self.quota.group, self.room, partner, change)
            state = (self.diagonal, self.u, self.inside)
            sweeps.rank_exchanges(self.V.numpy(), *state, *rules)
            t, total = sweeps.take_exchanges(self.V.numpy(), R, p, shift, *state, *rules, tol)
            if t == 0:
                break
            self.value += total
            self._apply(R, p, shift, t)
        window.keep(int(self.inside.sum()), self.value, self.inside)

    def _panel(self, length: int) -> tuple[Array, Array, Array]:
        d = len(self.u)
        return np.empty((length, d)), np.empty(length), np.zeros(d)

    def _apply(self, R: Array, p: Array, shift: Array, t: int) -> None:
        """Bring V up to date and read its diagonal anew."""
        panel = torch.from_numpy(R[:t])
        self.V.addmm_((panel / torch.from_numpy(p[:t])[:, None]).T, panel, alpha=-1.0)
        self.V.diagonal().sub_(torch.from_numpy(shift))
        self.diagonal = self.V.diagonal().numpy().copy()


class RowWindow:
    """The best known objective and support of a row at each count around the present one.

    Attributes
    ----------
    base : int
        Lowest count.
    values : Array
        (counts,), infinite where no support is known.
    supports : Array
        (counts, d) bool.
    """

    def __init__(self, low: int, high: int, tableau: RowTableau) -> None:
        self.base = low
        self.values = np.full(high - low + 1, np.inf)
        self.supports = np.zeros((high - low + 1, len(tableau.u)), bool)
        self.keep(int(tableau.inside.sum()), tableau.value, tableau.inside)

    def keep(self, count: int, value: float, support: Array) -> None:
        """Take a support if its objective is the lowest at its count."""
        if value < self.values[count - self.base]:
            self.values[count - self.base] = value
            self.supports[count - self.base] = support


def _swept(system: RowSystem, inside: Array) -> Tensor:
    """V from M where few weights are kept, from its inverse where few are pruned.

    Formed in the order kept, pruned and put back at the end: blocks are then slices.
    """
    order = torch.from_numpy(np.argsort(~inside, kind="stable"))
    n, d = int(inside.sum()), len(inside)
    V = torch.empty(d, d, dtype=torch.float64)
    if 2 * n <= d:
        M = _ordered(system.M, order)
        inverse = _inverse(M[:n, :n])
        B = inverse @ M[:n, n:]
        schur = M[n:, n:].addmm_(M[n:, :n], B, alpha=-1.0)
    else:
        P = _ordered(system.inverse, order)
        schur = _inverse(P[n:, n:])
        B = -(P[:n, n:] @ schur)
        inverse = P[:n, :n].addmm_(B, P[n:, :n])
    V[:n, :n], V[:n, n:] = -inverse, B
    V[n:, :n], V[n:, n:] = B.T, schur
    return _ordered(V, order.argsort())


def _ordered(A: Tensor, order: Tensor) -> Tensor:
    return A.index_select(0, order).index_select(1, order)


def _inverse(A: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(A))
