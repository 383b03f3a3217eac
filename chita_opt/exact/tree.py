"""The search over open nodes: best first, with limits, incumbents and a log."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from chita_opt.exact.node import Node, NodeSolver
from chita_opt.supports.base import Array

Offer = Callable[[Array], float]


@dataclass(eq=False)
class Search:
    """Open nodes and what is known; the main loop takes one node at a time.

    Attributes
    ----------
    solver : NodeSolver
        Bounds nodes.
    offer : Callable
        Takes a support (index array), returns the incumbent's value after it.
    upper : float
        Incumbent's value.
    gap, floor : float
        Relative gap, and the dense minimum that it is measured from.
    """

    solver: NodeSolver
    offer: Offer
    upper: float
    gap: float
    floor: float
    closed: float = np.inf
    nodes: int = 0
    root: float = -np.inf
    newton: int = 0
    heap: list[tuple[float, int, Node]] = field(default_factory=list)
    ticket: count = field(default_factory=count)

    @property
    def cutoff(self) -> float:
        """A node whose bound reaches this is closed."""
        return self.upper - self.gap * max(self.upper - self.floor, 0.0)

    @property
    def lower(self) -> float:
        """Proven bound on the whole problem."""
        opened = self.heap[0][0] if self.heap else np.inf
        return min(self.closed, opened, self.upper)

    def push(self, node: Node) -> None:
        """Add an open node."""
        heapq.heappush(self.heap, (node.lower, next(self.ticket), node))

    def step(self) -> None:
        """Take the node of the lowest bound, and close or branch it."""
        lower, _, node = self.heap[0]
        if lower >= self.cutoff:
            heapq.heappop(self.heap)
            self.closed = min(self.closed, lower)
            return
        work = Node(node.state.copy(), node.lower, node.d, node.z, node.nu, node.mu, node.depth)
        outcome = self.solver.process(work, self.cutoff)  # an interrupt leaves the node open
        children = self.solver.children(outcome) if outcome.branch >= 0 else ()
        self.nodes += 1
        self.newton += outcome.steps
        if self.nodes == 1:
            self.root = outcome.lower
        for support in outcome.supports:
            self.upper = min(self.upper, self.offer(support))
        heapq.heappop(self.heap)
        if outcome.branch < 0:
            self.closed = min(self.closed, outcome.lower)
        for child in children:
            self.push(child)

    def run(self, stop: Callable[[], bool]) -> bool:
        """Search until the gap is closed (True) or ``stop`` says so."""
        while self.heap:
            if self.lower >= self.cutoff:
                return True
            if stop():
                return False
            self.step()
        return True
