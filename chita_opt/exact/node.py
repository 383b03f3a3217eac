"""One node of the tree: reduce, bound, fix, round, choose what to branch on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import lapack

from chita_opt.exact.allowed import Allowed, Rows
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.split_ascent import DualState, Reduced, SplitAscent
from chita_opt.supports.base import Array

_EPS = float(np.finfo(np.float64).eps)


import os
SAVE=float(os.environ.get('SAVE','1'));END=float(os.environ.get('END','.3'));SHRINK=float(os.environ.get('SHRINK','.3'));CUT=float(os.environ.get('CUT','.97'))

@dataclass(eq=False)
class Node:
    """An open node: what is fixed and where its parent's ascent ended.

    Attributes
    ----------
    state : ndarray
        (p,) int8: FREE, OUT or IN.
    lower : float
        Proven bound inherited from the parent.
    d, z : ndarray
        (p,) split and indicators of the parent; only free entries count.
    nu : ndarray
        Row multipliers by the family's row number.
    mu : float
        Barrier weight that the parent's ascent ended with.
    depth : int
        Branchings above.
    step : int
        Step of the proof log that the node starts at; -1 without one.
    """

    state: Array
    lower: float
    d: Array
    z: Array
    nu: Array
    mu: float
    depth: int = 0
    step: int = -1


@dataclass(eq=False)
class Witness:
    """A proven dual point over the free weights, its bound, and the cost of going against it."""

    lower: float
    mask: Array
    costs: Array
    d: Array
    v: Array


@dataclass(eq=False)
class Outcome:
    """What became of a node: closed, or split on a weight into two children.

    Attributes
    ----------
    lower : float
        Bound on everything below the node.
    branch : int
        Weight to branch on, -1 where the node is closed.
    node : Node
        The node after fixing, to make children from.
    supports : list of ndarray
        Supports worth solving exactly.
    """

    lower: float
    branch: int
    node: Node
    supports: list[Array] = field(default_factory=list)
    steps: int = 0


class NodeSolver:
    """Everything about one problem that its nodes share."""

    def __init__(self, quadratic: Quadratic, allowed: Allowed) -> None:
        self.quadratic, self.allowed = quadratic, allowed
        self.size = max(abs(quadratic.const), 1e-300)

    def root(self) -> Node:
        """The root: nothing fixed, no split known."""
        p, rows = self.quadratic.size, self.allowed.row_count
        zero = np.zeros(p)
        state = np.full(p, FREE, dtype=np.int8)
        return Node(state, -np.inf, zero, zero.copy(), np.zeros(rows), 0.0)

    def process(self, node: Node, cutoff: float) -> Outcome:
        """Bound a node against ``cutoff``, fix what the bound decides, and say how to branch."""
        supports: list[Array] = []
        steps = 0
        while True:
            if not self.allowed.propagate(node.state):
                return Outcome(np.inf, -1, node, supports, steps)
            leaf = self._leaf(node)
            if leaf is not None:
                supports.append(leaf[0])
                return Outcome(max(leaf[1], node.lower), -1, node, supports, steps)
            free = np.flatnonzero(node.state == FREE)
            kept = np.flatnonzero(node.state == IN)
            H, b, const = self.quadratic.reduce(free, kept)
            rows = self.allowed.rows(node.state, free)
            reduced = Reduced(H, b, const, rows.G, rows.h)
            ascent = self._open(node, free, reduced, rows)
            if ascent is None:
                return self._blind(node, free, supports, steps)
            best = self._ascend(ascent, node, free, cutoff)
            steps += ascent.steps
            self._keep(node, free, rows, ascent, best)
            supports.append(np.concatenate([kept, free[best.mask]]))
            chosen = self.allowed.best(node.state, free, ascent.z)[0]
            supports.append(np.concatenate([kept, free[chosen]]))
            if node.lower >= cutoff:
                return Outcome(node.lower, -1, node, supports, steps)
            fixed = self._fix(node, free, best, cutoff)
            if fixed == 0 or fixed < max(2, 0.05 * len(free)):
                if fixed:
                    self.allowed.propagate(node.state)
                break
        branch = self._branch(node, free, ascent)
        return Outcome(node.lower, branch, node, supports, steps)

    def children(self, outcome: Outcome) -> tuple[Node, Node]:
        """The node with its branching weight out, and in."""
        made = []
        for side in (OUT, IN):
            n = outcome.node
            state = n.state.copy()
            state[outcome.branch] = side
            made.append(Node(state, n.lower, n.d, n.z, n.nu, n.mu, n.depth + 1))
        return made[0], made[1]

    def _leaf(self, node: Node) -> tuple[Array, float] | None:
        """Exact value where nothing is left to choose."""
        if bool((node.state == FREE).any()) and not self.allowed.everything(node.state):
            return None
        support = np.flatnonzero(node.state != OUT)
        value = self.quadratic.solve(support)[1]
        return support, value - self.rounding(value)

    def rounding(self, value: float) -> float:
        """Allowance for the rounding of a bound's terms."""
        return 64.0 * _EPS * self.quadratic.size * (self.size + abs(value))

    def _blind(self, node: Node, free: Array, supports: list[Array], steps: int) -> Outcome:
        """Branch without a bound of the node's own: H is positive definite only to rounding."""
        size = self.quadratic.b[free] ** 2 / self.quadratic.H.diagonal()[free]
        return Outcome(node.lower, int(free[np.argmax(size)]), node, supports, steps)

    # -- ascent ---------------------------------------------------------------------------

    def _open(self, node: Node, free: Array, reduced: Reduced, rows: Rows) -> SplitAscent | None:
        """An ascent from the parent's end, else from a cold start; None if neither is interior."""
        if node.mu > 0.0:
            warm = self._warm(node, free, reduced, rows)
            ascent = None if warm is None else SplitAscent(reduced, warm)
            if ascent is not None and ascent.ok:
                return ascent
        cold = self._cold(len(free), reduced, rows)
        ascent = None if cold is None else SplitAscent(reduced, cold)
        return ascent if ascent is not None and ascent.ok else None

    def _cold(self, n: int, reduced: Reduced, rows: Rows) -> DualState | None:
        """A share of the smallest eigenvalue everywhere."""
        lowest = float(np.linalg.eigvalsh(reduced.H)[0])
        if not lowest > 4.0 * n * _EPS * float(np.trace(reduced.H)):
            return None
        d = np.full(n, 0.7 * lowest)
        share = np.clip(rows.h.sum() / n if len(rows.h) else 0.5, 0.05, 0.95)
        v = np.linalg.solve(reduced.H + np.diag(d * (1.0 / share - 1.0)), reduced.b)
        r = d * v / share
        s = 0.5 * r * r / d
        nu = np.full(len(rows.h), max(float(np.quantile(s, 1.0 - share)), 1e-3 * float(s.max())))
        scale = max(self.size, 1e-300)
        return DualState(d, r, np.maximum(nu, 1e-9 * scale / n), 0.1 * scale / n)

    def _warm(self, node: Node, free: Array, reduced: Reduced, rows: Rows) -> DualState | None:
        """The parent's split and indicators, with the weights that are best for them."""
        d, z = CUT * node.d[free], np.clip(node.z[free], 1e-3, 1.0 - 1e-3)
        if len(rows.h) == 1:
            z *= min(rows.h[0] / float(z.sum()), 0.999 / float(z.max()))
        K = reduced.H.copy(order="F")
        K[np.diag_indices_from(K)] += d / z - d
        _, v, info = lapack.dposv(K, reduced.b, lower=1, overwrite_a=1)
        if info:
            return None
        r = d * v / z
        level = float((0.5 * r * v / z).max())
        nu = np.maximum(node.nu[rows.names], max(1e-6 * level, 1e-300))
        return DualState(d, r, nu, node.mu)

    def _ascend(self, ascent: SplitAscent, node: Node, free: Array, cutoff: float) -> Witness:
        """Newton steps until the node is closed, or evidently will not be."""
        n = ascent.n
        best = self._witness(ascent, node, free)
        saved = None
        for _ in range(60):
            decrement = ascent.newton()
            if not np.isfinite(decrement):
                break
            trial = self._witness(ascent, node, free)
            if trial.lower > best.lower:
                best = trial
            if best.lower >= cutoff:
                break
            if decrement < n**0.5:
                left = ascent.mu * n
                if saved is None or left > SAVE * (cutoff - best.lower):
                    saved = (ascent.d, ascent.z.copy(), ascent.nu, ascent.mu)
                if left < END * (cutoff - best.lower) or left < 1e-7 * abs(cutoff):
                    break
                ascent.mu *= SHRINK
        self.saved = saved or (ascent.d, ascent.z, ascent.nu, ascent.mu)
        return self._prove(best, ascent, node, free)

    def _witness(self, ascent: SplitAscent, node: Node, free: Array) -> Witness:
        s = ascent.scores()
        mask, value = self.allowed.best(node.state, free, s)
        lower = ascent.free_part() - value
        return Witness(lower, mask, s, ascent.d, ascent.point)

    def _prove(self, best: Witness, ascent: SplitAscent, node: Node, free: Array) -> Witness:
        """Lower the split until its Cholesky proof holds with room for rounding; recompute."""
        H = ascent.node.H
        margin = self.quadratic.margin(node.state != OUT)
        d, shift = best.d, margin
        for _ in range(60):
            S = H.copy(order="F")
            S[np.diag_indices_from(S)] -= d + margin
            if lapack.dpotrf(S, lower=1, clean=0, overwrite_a=1)[1] == 0:
                break
            d = best.d - shift
            shift *= 2.0
            if float(d.min()) <= 0.0:
                nothing = np.zeros(len(free))
                return Witness(-np.inf, best.mask, nothing, best.d, best.v)
        v = best.v
        image = H @ v - d * v
        r = ascent.node.b - image
        s = 0.5 * r * r / d
        mask, value = self.allowed.best(node.state, free, s)
        lower = ascent.node.const - 0.5 * float(v @ image) - value
        lower -= self.rounding(value)
        costs = self.allowed.exchange(node.state, free, s, mask)
        return Witness(lower, mask, costs, d, v)

    # -- after the bound --------------------------------------------------------------------

    def _keep(
        self, node: Node, free: Array, rows: Rows, ascent: SplitAscent, best: Witness
    ) -> None:
        """Write the ascent's end into the node, for its children."""
        node.lower = max(node.lower, best.lower)
        node.d, node.z, node.nu = node.d.copy(), node.z.copy(), np.zeros_like(node.nu)
        d, z, nu, mu = self.saved
        node.d[free], node.z[free] = d, z
        node.nu[rows.names] = nu
        node.mu = mu

    def _fix(self, node: Node, free: Array, best: Witness, cutoff: float) -> int:
        """Fix weights whose other value has a bound at or above the cutoff; how many."""
        decided = best.lower + best.costs >= cutoff
        node.state[free[decided & best.mask]] = IN
        node.state[free[decided & ~best.mask]] = OUT
        return int(decided.sum())

    def _branch(self, node: Node, free: Array, ascent: SplitAscent) -> int:
        """The free weight whose indicator the relaxation cheats on most."""
        open_ = node.state[free] == FREE
        z, v = ascent.z, ascent.point
        cheat = ascent.d * (v * v / np.maximum(z, 1e-9) - v * v)
        return int(free[int(np.argmax(np.where(open_, cheat, -1.0)))])
