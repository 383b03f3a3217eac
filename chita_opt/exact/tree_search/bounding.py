"""The bound of one node: where the ascent starts, when it stops, and the proof of its split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from chita_opt.exact.diagonal_split.ascent import DualState, Reduced, SplitAscent
from chita_opt.exact.diagonal_split.proving import lower_split, same_pulls
from chita_opt.exact.quadratic import IN, OUT, Quadratic
from chita_opt.exact.tree_search.allowed import Restricted
from chita_opt.exact.tree_search.node import Node, Witness
from chita_opt.supports.base import Array

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class AscentOptions:
    """When an ascent lowers its barrier, stops, and what it leaves to the children.

    Most are compared with ``n mu``, about what the barrier hides. Chosen on the named instances for
    the least work of whole trees.

    Attributes
    ----------
    enough : float
        Stop once ``n mu`` is below this share: the node will not be closed.
    coarse : float
        And below this, relative to the incumbent's increase: bounds are compared between nodes.
    warm : float
        Children start from the last centred point with ``n mu`` above this share: points nearer
        to the boundary are bad starts.
    warm_floor : float
        The same, relative to the incumbent's increase.
    shrink : float
        Factor on mu.
    inward : float
        Factor on the inherited split, to lie strictly inside.
    centred, finished : float
        A point counts as centred where the Newton decrement over mu is below this times the root
        of n; the second holds at the last mu, where only the bound matters.
    branching : float
        Branching looks at the last centre with ``n mu`` at least this share of the incumbent's
        increase: nearer to the optimum the indicators say too little about the second choices.
    inside : float
        Most of the way to a singular H - diag(d) that a step may go. Below 1 it costs a seventh
        more and is worth it for a bound alone, where H has low rank but for its ridge.
    most_steps : int
        Newton steps after which an ascent ends wherever it is.
    """

    enough: float = 0.6
    coarse: float = 0.02
    warm: float = 0.5
    warm_floor: float = 3e-3
    shrink: float = 0.3
    inward: float = 0.93
    centred: float = 0.5
    finished: float = 3.0
    branching: float = 0.05
    inside: float = 1.0
    most_steps: int = 60


_MANY = 400


def ascent_for(size: int) -> AscentOptions:
    """Accuracy of the bounds of a tree over so many weights.

    Of many weights a tree bounds few nodes in the time it has, so that each bound counts: loose
    ones of the root's children are below the root's own.
    """
    if size < _MANY:
        return AscentOptions()
    return AscentOptions(enough=0.3, coarse=0.01, inside=0.7, most_steps=150)


@dataclass(frozen=True, eq=False)
class Centre:
    """What branching looks at: dual v, diagonal of K^-1, smoothed indicators z."""

    v: Array
    spread: Array
    z: Array


class NodeBound:
    """One round of bounding: the reduced quadratic of a state and its ascent.

    Parameters
    ----------
    quadratic : Quadratic
        The whole problem.
    node : Node
        State and warm start.
    restricted : Restricted
        The family on the free weights.
    free : ndarray
        Their indices.
    options : AscentOptions
        Stopping rules.
    """

    def __init__(
        self,
        quadratic: Quadratic,
        node: Node,
        restricted: Restricted,
        free: Array,
        options: AscentOptions,
    ) -> None:
        self.quadratic, self.node, self.free = quadratic, node, free
        self.restricted, self.options = restricted, options
        kept = np.flatnonzero(node.state == IN)
        H, b, const = quadratic.reduce(free, kept)
        self.reduced = Reduced(H, b, const, restricted.G, restricted.h)
        self.ascent = self._open()
        self.stop: Callable[[], bool] | None = None
        self.saved: tuple[Array, Array, Array, float] | None = None
        self.centre: Centre | None = None

    # -- starts ---------------------------------------------------------------------------

    def _open(self) -> SplitAscent | None:
        """From the parent's point, else from a cold start; None if neither is interior."""
        for start in (self._warm, self._cold):
            state = start()
            if state is None:
                continue
            ascent = SplitAscent(self.reduced, state, self.options.inside)
            if ascent.interior:
                return ascent
        return None

    def _warm(self) -> DualState | None:
        """The parent's split and indicators, with the weights that are best for them."""
        node, h = self.node, self.reduced.h
        if not node.mu > 0.0:
            return None
        d = self.options.inward * node.d[self.free]
        z = np.clip(node.z[self.free], 1e-3, 1.0 - 1e-3)
        if len(h) == 1:
            z *= min(h[0] / float(z.sum()), 0.999 / float(z.max()))
        K = self.reduced.H.copy(order="F")
        np.einsum("ii->i", K)[:] += d / z - d
        _, v, info = lapack.dposv(K, self.reduced.b, lower=1, overwrite_a=1)
        if info or not float(d.min()) > 0.0:
            return None
        r = d * v / z
        level = float((0.5 * r * v / z).max())
        nu = np.maximum(node.nu[self.restricted.names], max(1e-6 * level, 1e-300))
        return DualState(d, r, nu, node.mu)

    def _cold(self) -> DualState | None:
        """A share of the smallest eigenvalue everywhere."""
        H, b, h = self.reduced.H, self.reduced.b, self.reduced.h
        n = len(b)
        lowest = float(np.linalg.eigvalsh(H)[0])
        if not lowest > 4.0 * n * _EPS * float(np.trace(H)):
            return None
        d = np.full(n, 0.7 * lowest)
        share = float(np.clip(h.sum() / n if len(h) else 0.5, 0.05, 0.95))
        v = np.linalg.solve(H + np.diag(d * (1.0 / share - 1.0)), b)
        r = d * v / share
        s = 0.5 * r * r / d
        scale = max(abs(self.quadratic.const), 1e-300)
        level = max(float(np.quantile(s, 1.0 - share)), 1e-3 * float(s.max()), 1e-9 * scale / n)
        return DualState(d, r, np.full(len(h), level), 0.1 * scale / n)

    # -- ascent ---------------------------------------------------------------------------

    def ascend(self, cutoff: float, scale: float) -> tuple[Array, Array]:
        """Newton steps until the cutoff is reached or evidently will not be; the best (d, v)."""
        ascent = self.ascent
        assert ascent is not None
        lower, best = self._value(), (ascent.d.copy(), ascent.v.copy())
        for _ in range(self.options.most_steps):
            decrement = ascent.newton()
            if not np.isfinite(decrement):
                break
            value = self._value()
            if value > lower:
                lower, best = value, (ascent.d.copy(), ascent.v.copy())
            if lower >= cutoff or (self.stop is not None and self.stop()):
                break
            if self._settled(decrement, cutoff - lower, scale):
                break
        if self.saved is None:
            self._save()
        if self.centre is None:
            self.centre = Centre(ascent.v, ascent.spread, ascent.z)
        return best

    def _settled(self, decrement: float, distance: float, scale: float) -> bool:
        """Where the point is centred, keep what is needed of it and lower mu; True at the end."""
        ascent, options = self.ascent, self.options
        assert ascent is not None
        n = len(self.free)
        left = ascent.mu * n
        last = max(min(options.enough * distance, options.coarse * scale), 1e-7 * scale)
        if not decrement < (options.finished if left < last else options.centred) * n**0.5:
            return False
        if self.centre is None or left >= options.branching * scale:
            self.centre = Centre(ascent.v.copy(), ascent.spread.copy(), ascent.z.copy())
        if self.saved is None or left > max(options.warm * distance, options.warm_floor * scale):
            self._save()
        if left < last:
            return True
        ascent.mu *= options.shrink
        return False

    def _save(self) -> None:
        a = self.ascent
        assert a is not None
        self.saved = (a.d.copy(), a.z.copy(), a.nu.copy(), a.mu)

    def _value(self) -> float:
        assert self.ascent is not None
        return self.ascent.free_part() - self.restricted.best(self.ascent.scores())[1]

    def inherit(self, node: Node) -> None:
        """Write the point for the children into ``node``."""
        assert self.saved is not None
        d, z, nu, mu = self.saved
        node.d, node.z, node.nu = node.d.copy(), node.z.copy(), np.zeros_like(node.nu)
        node.d[self.free], node.z[self.free] = d, z
        node.nu[self.restricted.names] = nu
        node.mu = mu

    # -- proof ----------------------------------------------------------------------------

    def prove(self, d: Array, v: Array) -> Witness | None:
        """The bound of (d, v), its split proven with room for rounding; None if it cannot be."""
        H = self.reduced.H
        proven = lower_split(H, d, self.quadratic.margin(self.node.state != OUT))
        if proven is None:
            return None
        v = same_pulls(H, d, v, proven)
        d = proven
        image = H @ v - d * v
        r = self.reduced.b - image
        s = 0.5 * r * r / d
        mask, value = self.restricted.best(s)
        lower = self.reduced.const - 0.5 * float(v @ image) - value
        lower -= self.quadratic.rounding(value)
        return Witness(lower, mask, self.restricted.exchange(s, mask))
