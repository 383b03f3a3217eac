"""The search over open nodes: best bound first, depth-first where memory runs out."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from chita_opt.exact.node import Node
from chita_opt.exact.node_solver import NodeSolver
from chita_opt.exact.proof_log import Mark
from chita_opt.supports.base import Array

Offer = Callable[[Array], float]
Stop = Callable[[], bool]
Entry = tuple[float, int, Node]
_SPILL = 0.25  # share of the open nodes that goes depth-first at a time


@dataclass(eq=False)
class Search:
    """Open nodes and what is known about the whole problem.

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
    memory_limit : float
        Bytes of open nodes beyond which the weakest go depth-first.
    closed : float
        Smallest bound at which a node was closed.
    nodes, newton : int
        Nodes bounded and Newton steps taken.
    root, root_point : float, Node
        Bound before branching, and the root after its first ascent.
    """

    solver: NodeSolver
    offer: Offer
    upper: float
    gap: float
    floor: float
    memory_limit: float = np.inf
    closed: float = np.inf
    nodes: int = 0
    newton: int = 0
    root: float = -np.inf
    root_point: Node | None = None
    heap: list[Entry] = field(default_factory=list)
    dive: list[Node] = field(default_factory=list)
    _ticket: count[int] = field(default_factory=count)
    _before: tuple[list[Entry], list[Node], Mark | None] | None = None

    @property
    def scale(self) -> float:
        """The incumbent's increase over the dense minimum, at least a hair."""
        return max(self.upper - self.floor, 1e-300)

    @property
    def cutoff(self) -> float:
        """A node whose bound reaches this is closed."""
        return self.upper - self.gap * max(self.upper - self.floor, 0.0)

    @property
    def lower(self) -> float:
        """Proven bound on the whole problem."""
        best = self.heap[0][0] if self.heap else np.inf
        weak = min((node.lower for node in self.dive), default=np.inf)
        return float(min(self.closed, best, weak, self.upper))

    @property
    def open_nodes(self) -> int:
        """How many nodes wait."""
        return len(self.heap) + len(self.dive)

    @property
    def waiting(self) -> list[Node]:
        """The open nodes."""
        return [entry[2] for entry in self.heap] + self.dive

    def push(self, node: Node) -> None:
        """Add an open node."""
        heapq.heappush(self.heap, (node.lower, next(self._ticket), node))

    def run(self, stop: Stop) -> bool:
        """Search until the gap is closed (True) or ``stop`` says so."""
        while self.open_nodes:
            if self.lower < self.cutoff and stop():
                return False
            self.remember()
            if self.lower >= self.cutoff:
                self._close_rest()
            else:
                self._spill()
                self._step(stop)
            self.settle()
        return True

    def remember(self) -> None:
        """What is open before nodes are taken, for an interrupt that comes before they are done."""
        log = self.solver.log
        self._before = list(self.heap), list(self.dive), None if log is None else log.mark()

    def settle(self) -> None:
        """The nodes taken are done."""
        self._before = None

    def undo(self) -> None:
        """After an interrupt: what was open before the step is open again, none lost or doubled."""
        if self._before is None:
            return
        self.heap, self.dive, mark = self._before
        if self.solver.log is not None and mark is not None:
            self.solver.log.rewind(mark)
        self.settle()

    def _step(self, stop: Stop) -> None:
        """Close or branch one node."""
        node = self.dive[-1] if self.dive else self.heap[0][2]
        if node.lower >= self.cutoff:
            self._take()
            self._close(node)
            return
        outcome = self.solver.process(node.copy(), self.cutoff, self.scale, stop)
        value = self.upper
        for support in outcome.supports:
            value = min(value, self.offer(support))
        self._take()
        self.upper = value
        self.nodes += 1
        self.newton += outcome.steps
        if self.nodes == 1:
            self.root, self.root_point = outcome.lower, outcome.point
        if outcome.branch < 0:
            self.closed = min(self.closed, outcome.lower)
            return
        keep_diving = bool(self.dive)
        for child in outcome.children():
            if keep_diving:
                self.dive.append(child)
            else:
                self.push(child)

    def _take(self) -> None:
        if self.dive:
            self.dive.pop()
        else:
            heapq.heappop(self.heap)

    def _close(self, node: Node) -> None:
        self.closed = min(self.closed, node.lower)
        if self.solver.log is not None:
            self.solver.log.close(node)

    def _close_rest(self) -> None:
        """Every open node's bound reaches the cutoff."""
        for node in self.waiting:
            self._close(node)
        self.heap, self.dive = [], []

    def _spill(self) -> None:
        """Send the nodes nearest to the cutoff depth-first: they close soonest."""
        if self.dive or not self.heap:
            return
        if len(self.heap) * self.heap[0][2].bytes < self.memory_limit:
            return
        self.heap.sort()
        first = max(1, int((1.0 - _SPILL) * len(self.heap)))
        self.dive = [item[2] for item in self.heap[first:]] or [self.heap[-1][2]]
        self.heap = self.heap[: len(self.heap) - len(self.dive)]
