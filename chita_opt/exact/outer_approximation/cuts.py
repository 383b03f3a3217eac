r"""Dual cuts from splits of what is still open, proven in the space of all weights.

Weights that are fixed out are left out of the matrix, and those fixed in get a tiny split: their
part of the quadratic is then minimised freely, which is the Schur complement, and the others' split
may be as large as that complement allows. Such a cut holds for every mask that keeps no weight
fixed out; where it also keeps the weights fixed in, it is the cut of the smaller problem.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import lapack

from chita_opt.bounds import Bound, dual_point, safe_split
from chita_opt.curvature import Dense, LowRank
from chita_opt.exact.outer_approximation.split import split_at, weights_at
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions, NodeBound
from chita_opt.exact.tree_search.node import root_node
from chita_opt.formulations.dual_cuts import DualCut
from chita_opt.problem import Problem
from chita_opt.supports.base import Array

_EPS = float(np.finfo(np.float64).eps)
_TINY = 1e-9  # split of weights fixed in, relative to their diagonal
_LONG = AscentOptions(enough=1e-3)  # to the optimum of the relaxation, for all practical purposes
_EDGE = 1e-3  # how far from 0 and 1 indicators stay where a split is chosen


class CutMaker:
    """Makes cuts for one quadratic; ``state`` (p,) says what is FREE, OUT and IN.

    Parameters
    ----------
    quadratic : Quadratic
        The problem in weight space.
    state : ndarray
        (p,) int8; changed in place by its owner as weights are fixed.
    """

    def __init__(self, quadratic: Quadratic, state: Array) -> None:
        self.quadratic, self.state = quadratic, state

    def sharp_split(self, z: Array) -> Array | None:
        """A proven split d (p,) whose cut at z (p,) is the highest, or None."""
        free, kept = np.flatnonzero(self.state == FREE), np.flatnonzero(self.state == IN)
        if not len(free):
            return None
        H, b, _ = self.quadratic.reduce(free, kept)
        d = split_at(H, b, np.clip(z[free], _EDGE, 1.0 - _EDGE))
        return None if d is None else self.proven(self.spread(d, free))

    def spread(self, d: Array, free: Array) -> Array:
        """D over all weights from d over ``free``: tiny on those fixed in, zero on those out."""
        full = np.zeros(self.quadratic.size)
        kept = self.state == IN
        full[kept] = _TINY * self.quadratic.H.diagonal()[kept]
        full[free] = d
        return full

    def proven(self, d: Array) -> Array | None:
        """D shrunk until H - diag(d) is positive semidefinite beyond rounding on what is open."""
        active = np.flatnonzero(self.state != OUT)
        H = self.quadratic.H[np.ix_(active, active)]
        margin = self.quadratic.margin(self.state != OUT)
        shrink = 1e-10
        while shrink < 0.5:
            trial = d[active] * (1.0 - shrink)
            S = H.copy(order="F")
            S[np.diag_indices_from(S)] -= trial + margin
            if lapack.dpotrf(S, lower=1, clean=0, overwrite_a=1)[1] == 0:
                out = np.zeros_like(d)
                out[active] = trial
                return out
            shrink *= 4.0
        return None

    def weights(self, z: Array, d: Array) -> Array:
        """Weights (p,) of the relaxation at indicators z (p,) and split d."""
        active = np.flatnonzero(self.state != OUT)
        w = np.zeros(self.quadratic.size)
        H, b = self.quadratic.H[np.ix_(active, active)], self.quadratic.b[active]
        inside = np.where(self.state[active] == IN, 1.0, np.clip(z[active], _EDGE, 1.0 - _EDGE))
        w[active] = weights_at(H, b, inside, d[active])
        return w

    def cut(self, d: Array, w: Array) -> DualCut:
        """The cut of a proven split d and any weights w (p,) that are zero where fixed out.

        Constant and slopes move to the safe side by what float64 products may have lost.
        """
        q, active = self.quadratic, np.flatnonzero(self.state != OUT)
        H, b, d, v = q.H[np.ix_(active, active)], q.b[active], d[active], w[active]
        rounding = 4.0 * (q.size + 2) * _EPS
        size = np.abs(H) @ np.abs(v) + d * np.abs(v)
        image = H @ v - d * v
        pull = np.abs(b - image) + rounding * (np.abs(b) + size)
        slopes = np.zeros(q.size)
        slopes[active] = pull**2 / (2.0 * d) * (1.0 + 4.0 * _EPS)
        lost = rounding * (abs(q.const) + 0.5 * float(np.abs(v) @ size))
        return DualCut(q.const - 0.5 * float(v @ image) - lost, slopes)


def root_witness(problem: Problem, quadratic: Quadratic, upper: float) -> Bound | None:
    """The bound of the best split with nothing fixed, as a witness that ``dual_point`` takes.

    ``upper`` is an incumbent's value, the unit of the ascent's tolerances. None for curvature whose
    rows or blocks must share a split, and where none is proven.
    """
    if not isinstance(problem.curvature, LowRank | Dense):
        return None
    family = allowed(problem.supports)
    node = root_node(problem.p, family.row_count)
    node.state[quadratic.H.diagonal() <= 0.0] = OUT
    if not family.propagate(node.state) or family.everything(node.state):
        return None
    free = np.flatnonzero(node.state == FREE)
    bound = NodeBound(quadratic, node, family.restrict(node.state, free), free, _LONG)
    if bound.ascent is None:
        return None
    increase = max(upper - problem.dense_minimum, 1e-12 * abs(upper))
    d, v = bound.ascend(upper + increase, increase)
    maker = CutMaker(quadratic, np.full(quadratic.size, FREE, dtype=np.int8))
    full, w = np.full(quadratic.size, float(d.min())), np.zeros(quadratic.size)
    full[free], w[free] = d, v
    proven = maker.proven(full)
    if proven is None:
        return None
    split = safe_split(problem.curvature, torch.from_numpy(proven) - problem.rho)
    if split is None or not float((problem.rho + split).min()) > 0.0:
        return None
    image = torch.from_numpy(w) - problem.w_bar
    return Bound(dual_point(problem, image, split).value, image, split, "dual")
