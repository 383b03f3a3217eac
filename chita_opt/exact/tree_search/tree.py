"""The search over open nodes: best bound first, depth-first where memory runs out."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from chita_opt.exact.tree_search.node import Node
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.exact.tree_search.proof_log import Mark
from chita_opt.supports.base import Array

Offer = Callable[[Array], float]
Stop = Callable[[], bool]
_WITHIN = 1.0 - 1e-6  # share of the gap asked for: the one reported is computed anew
_SPILL = 0.25  # share of the open nodes that goes depth-first at a time


@dataclass(eq=False)
class Search:
    """Open nodes and what is known about the whole problem.

    A node leaves ``heap`` or ``dive`` for ``out`` while it is worked on; dropping it from ``out``,
    once its children are in, is the one operation that makes the work count. So every open node is
    somewhere whenever an interrupt comes, and :meth:`undo` forgets what was half done.

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
    target : float
        A bound that is enough, whatever the incumbent's value is.
    closed : float
        Smallest bound at which a node was closed or a part of it cut off.
    nodes, newton : int
        Nodes bounded and Newton steps taken.
    root : float
        Bound before branching.
    heap : list of tuple
        (bound, ticket, node): open nodes, best bound first.
    dive : list of tuple
        (smallest bound up to here, node): a stack that is worked on before the heap.
    out : dict
        By a ticket, nodes being worked on, here or in other processes, and how long the proof log
        was when results began to come in.
    """

    solver: NodeSolver
    offer: Offer
    upper: float
    gap: float
    floor: float
    memory_limit: float = np.inf
    target: float = np.inf
    closed: float = np.inf
    nodes: int = 0
    newton: int = 0
    root: float = -np.inf
    heap: list[tuple[float, int, Node]] = field(default_factory=list)
    dive: list[tuple[float, Node]] = field(default_factory=list)
    out: dict[int, tuple[list[Node], Mark | None]] = field(default_factory=dict)
    _ticket: count[int] = field(default_factory=count)

    @property
    def scale(self) -> float:
        """The incumbent's increase over the dense minimum, at least a hair."""
        return max(self.upper - self.floor, 1e-300)

    @property
    def cutoff(self) -> float:
        """A node whose bound reaches this is closed."""
        close = self.upper - _WITHIN * self.gap * max(self.upper - self.floor, 0.0)
        return min(close, self.target)

    @property
    def lower(self) -> float:
        """Proven bound on the whole problem."""
        best = self.heap[0][0] if self.heap else np.inf
        weak = self.dive[-1][0] if self.dive else np.inf
        away = min((node.lower for nodes, _ in self.out.values() for node in nodes), default=np.inf)
        return float(min(self.closed, best, weak, away, self.upper))

    @property
    def waiting(self) -> int:
        """How many nodes nobody works on."""
        return len(self.heap) + len(self.dive)

    @property
    def open_nodes(self) -> int:
        """How many nodes are not done."""
        return self.waiting + sum(len(nodes) for nodes, _ in self.out.values())

    def still_open(self) -> list[Node]:
        """All nodes that are not done, each once wherever an interrupt came."""
        away = [node for nodes, _ in self.out.values() for node in nodes]
        every = away + [entry[2] for entry in self.heap] + [entry[1] for entry in self.dive]
        return list(dict.fromkeys(every))

    def push(self, node: Node, *, deep: bool = False) -> None:
        """Add an open node, to the stack if ``deep``."""
        if deep:
            least = min(self.dive[-1][0], node.lower) if self.dive else node.lower
            self.dive.append((least, node))
        else:
            heapq.heappush(self.heap, (node.lower, next(self._ticket), node))

    def run(self, stop: Stop, urgent: Stop | None = None) -> bool:
        """Search until the gap is closed (True) or ``stop`` says so.

        ``stop`` is asked between nodes; ``urgent`` also inside them, where it ends an ascent early.
        """
        while self.waiting:
            if self.finished():
                return True
            if stop():
                return False
            self.step(urgent)
        return True

    def finished(self) -> bool:
        """Whether the gap is closed; what is open is then closed too."""
        if self.lower < self.cutoff:
            return False
        nodes = self.still_open()
        self.begin(next(self._ticket), nodes)
        for node in nodes:
            self._close(node)
        self.heap, self.dive = [], []
        self.out = {}
        return True

    def step(self, urgent: Stop | None = None) -> None:
        """Close or branch one node."""
        self._spill()
        deep, key = bool(self.dive), next(self._ticket)
        node = self._take(key)
        self.begin(key, [node])
        children: tuple[Node, ...] = ()
        if node.lower >= self.cutoff:
            self._close(node)
        else:
            children = self._process(node, urgent)
        self.take_back(key, children, deep)

    def improve(self, supports: Iterable[Array]) -> None:
        """Offer supports as incumbents."""
        for support in supports:
            self.upper = min(self.upper, self.offer(support))

    # -- nodes that are worked on -----------------------------------------------------------------

    def hand_out(self, number: int, share: int) -> tuple[int, list[Node], bool]:
        """Take out the first of every ``share`` among the next open nodes, at most ``number``.

        Returns their ticket, the nodes, and whether they are from the stack: then only its top.
        """
        key, deep = next(self._ticket), bool(self.dive)
        taken = 1 if deep else min(number * share, len(self.heap))
        best = [self._take(key) for _ in range(taken)]
        for i, node in enumerate(best):
            if i % share:
                self.push(node)
        self.out[key] = best[::share], None
        return key, best[::share], deep

    def begin(self, key: int, nodes: list[Node]) -> None:
        """From here on results of these nodes come in; they count once ``out[key]`` is dropped."""
        log = self.solver.log
        self.out[key] = nodes, None if log is None else log.mark()

    def take_back(self, key: int, still: Iterable[Node], deep: bool) -> None:
        """Nodes of a ticket are done but for what is still open below them."""
        for node in still:
            self.push(node, deep=deep)
        del self.out[key]

    @property
    def mark(self) -> Mark | None:
        """Where the log stood before the results now coming in; None between nodes."""
        return min((mark for _, mark in self.out.values() if mark is not None), default=None)

    def undo(self) -> None:
        """After an interrupt: nodes whose work had not ended are open again, none lost or doubled.

        With a log, what they had written is forgotten, and so are children that stood on it.
        """
        first = self.mark
        if self.solver.log is None or first is None:
            return
        self.solver.log.rewind(first)
        self.heap = [entry for entry in self.heap if entry[2].step < first[0]]
        heapq.heapify(self.heap)
        self.dive = [entry for entry in self.dive if entry[1].step < first[0]]

    def _take(self, key: int) -> Node:
        """Move the next node to those of ``key``."""
        node = self.dive[-1][1] if self.dive else self.heap[0][2]
        self.out.setdefault(key, ([], None))[0].append(node)
        if self.dive:
            self.dive.pop()
        else:
            heapq.heappop(self.heap)
        return node

    def _process(self, node: Node, urgent: Stop | None) -> tuple[Node, ...]:
        """Bound a node; its children, none if it is closed."""
        cutoff = self.cutoff
        outcome = self.solver.process(node.copy(), cutoff, self.scale, urgent)
        self.improve(outcome.supports)
        self.nodes += 1
        self.newton += outcome.steps
        if self.nodes == 1:
            self.root = outcome.lower
        if bool((outcome.node.state != node.state).any()):
            self.closed = min(self.closed, cutoff)  # what fixing cuts off reaches only the cutoff
        if outcome.branch < 0:
            self.closed = min(self.closed, outcome.lower)
            return ()
        return outcome.children()

    def _close(self, node: Node) -> None:
        self.closed = min(self.closed, node.lower)
        if self.solver.log is not None:
            self.solver.log.close(node)

    def _spill(self) -> None:
        """Send the nodes nearest to the cutoff depth-first: they close soonest."""
        if self.dive or not self.heap:
            return
        if len(self.heap) * self.heap[0][2].bytes < self.memory_limit:
            return
        self.heap.sort()
        first = min(int((1.0 - _SPILL) * len(self.heap)), len(self.heap) - 1)
        for entry in self.heap[first:]:
            self.push(entry[2], deep=True)
        del self.heap[first:]
