r"""Covers: few pruned weights of which a better solution keeps at least one.

If no solution that prunes all of K (besides what is fixed out) lies below a level L, then

.. math:: f(w)\ \ge\ L-(L-L_0)\sum_{j\in K}z_j

for every mask z and every bound :math:`L_0` on all of them. That K suffices is proven like a node
of the tree search: the relaxation with the best split over the weights that are left, or fixing
until nothing is. The smaller K, the stronger the row; the complement of any mask of value L or more
is a K to begin with.

Source: the canonical cuts of Balas & Jeroslow (1972), shortened as explanations are (Junker,
QuickXplain, AAAI 2004); monotonicity in the removed set makes the kept weights drop out.
"""

from __future__ import annotations

from collections.abc import Callable

from chita_opt.exact.quadratic import OUT
from chita_opt.exact.tree_search.node import Node
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.supports.base import Array

Offer = Callable[[Array], None]
"""Takes a support (index array) that a proof attempt came across."""


def shortest_cover(
    order: Array, excludes: Callable[[Array], bool], stop: Callable[[], bool]
) -> Array | None:
    """A subset of ``order`` (the most telling weights first) that still excludes.

    The shortest prefix that does, found by doubling and halving, less what it can do without.
    None if even all of them do not, or time is up.
    """
    low, high = 0, 1
    while not excludes(order[:high]):
        if high == len(order) or stop():
            return None
        low, high = high, min(2 * high, len(order))
    while high - low > 1 and not stop():
        middle = (low + high) // 2
        low, high = (low, middle) if excludes(order[:middle]) else (middle, high)
    held = order[:high]
    for j in held[:-1][::-1]:
        if stop():
            break
        rest = held[held != j]
        if excludes(rest):
            held = rest
    return held


class Covers:
    """Finds covers under one node.

    Parameters
    ----------
    solver : NodeSolver
        Bounds the attempts.
    offer : Callable
        Gets the supports that were rounded on the way.
    """

    def __init__(self, solver: NodeSolver, offer: Offer) -> None:
        self.solver, self.offer, self.attempts = solver, offer, 0

    def excluded(self, node: Node, pruned: Array, level: float, scale: float) -> bool:
        """Whether pruning ``pruned`` (indices) under ``node`` provably costs ``level`` or more.

        ``scale`` is the unit of tolerances, the incumbent's increase over the dense minimum.
        """
        trial = node.copy()
        trial.state[pruned] = OUT
        outcome = self.solver.process(trial, level, scale)
        self.attempts += 1
        if outcome.branch < 0 and outcome.lower >= level:
            return True
        for support in outcome.supports[-2:]:
            self.offer(support)
        return False
