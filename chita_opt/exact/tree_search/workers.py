"""Processes that search below open nodes for a moment and hand back what is still open."""

from __future__ import annotations

import copy
import gc
import heapq
import signal
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor
from threadpoolctl import threadpool_limits

from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.node import Node, root_node
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.exact.tree_search.proof_pieces import Inherited, Piece, open_piece
from chita_opt.exact.tree_search.tree import Search
from chita_opt.supports import Budget
from chita_opt.supports.base import Array

_RETURNED = 8  # supports that a slice proposes, at most
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class Goal(NamedTuple):
    """Incumbent's value, relative gap, and the dense minimum."""

    upper: float
    gap: float
    floor: float


@dataclass(frozen=True, eq=False)
class Slice:
    """What a worker gets: nodes, and when to come back.

    Attributes
    ----------
    key : int
        The search's ticket.
    nodes : list of Node
        It searches below these only.
    deep : bool
        Depth-first, to save memory.
    goal : Goal
        When a node is closed.
    most : int
        Nodes that it may bound.
    seconds : float
        After these no other node is begun.
    deadline : float or None
        Time (``time.time()``) at which an ascent ends early: the whole call's limit.
    brought : Inherited or None
        The witnesses that the nodes inherit, where a proof is written.
    """

    key: int
    nodes: list[Node]
    deep: bool
    goal: Goal
    most: int
    seconds: float
    deadline: float | None
    brought: Inherited | None


@dataclass(frozen=True, eq=False)
class Answer:
    """What it hands back: open nodes, totals, the best supports seen, its part of the log."""

    still: list[Node]
    closed: float
    nodes: int
    newton: int
    supports: list[Array]
    seconds: float
    piece: Piece | None


# -- in the worker ------------------------------------------------------------------------------


@dataclass(eq=False)
class _Desk:
    """What a worker keeps between slices."""

    solver: NodeSolver
    seen: set[bytes] = field(default_factory=set)
    found: list[tuple[float, Array]] = field(default_factory=list)
    value: float = np.inf

    def offer(self, support: Array) -> float:
        """Solve on the support if it is new and allowed; the best value known."""
        state = np.zeros(self.solver.quadratic.size, dtype=np.int8)
        state[support] = 1
        key = np.packbits(state).tobytes()
        if key not in self.seen and self.solver.allowed.holds(state):
            self.seen.add(key)
            value = self.solver.quadratic.solve(support)[1]
            self.found.append((value, support))
            self.value = min(self.value, value)
        return self.value

    def work(self, given: Slice) -> Answer:
        begin = time.perf_counter()
        self.found, self.value = [], given.goal.upper
        solver = copy.copy(self.solver)
        if given.brought is not None:
            solver.log = open_piece(solver.quadratic, given.nodes, given.brought)
        search = Search(solver, self.offer, *given.goal)
        for node in given.nodes:
            search.push(node, deep=given.deep)
        search.run(
            lambda: time.perf_counter() - begin > given.seconds or search.nodes >= given.most,
            lambda: given.deadline is not None and time.time() > given.deadline,
        )
        best = heapq.nsmallest(_RETURNED, self.found, key=lambda pair: pair[0])
        return Answer(
            search.still_open(), search.closed, search.nodes, search.newton,
            [support for _, support in best], time.perf_counter() - begin,
            None if solver.log is None else Piece.of(solver.log, len(given.nodes)),
        )  # fmt: skip


_desks: list[_Desk] = []  # one, once the problem is loaded


def _load(solver: NodeSolver) -> None:
    """Keep the problem; the driver alone answers Ctrl-C, and ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(limits=1, user_api="blas")
    torch.set_num_threads(1)
    _compile()
    _desks[:] = [_Desk(solver)]
    gc.freeze()  # loky collects garbage every second, which over all of torch takes 0.1 s


def _compile() -> None:
    """Bring the compiled loops into memory on a toy, before nodes wait for them."""
    toy = Quadratic(np.asfortranarray(np.eye(3) + 0.5), np.array([1.0, 2.0, 4.0]), 8.0)
    family = allowed(Budget.cardinality(3, 1))
    NodeSolver(toy, family).process(root_node(3, family.row_count), np.inf, 1.0)


def _work(given: Slice) -> Answer:
    return _desks[0].work(given)


# -- in the driver ------------------------------------------------------------------------------


class Worker:
    """One process, which takes seconds to start; nobody waits for it.

    Parameters
    ----------
    solver : NodeSolver
        Sent once, without its log.
    """

    def __init__(self, solver: NodeSolver) -> None:
        self._solver = copy.copy(solver)
        self._solver.log = None
        self.start()

    def start(self) -> None:
        """Start a process; one that has died leaves nothing behind."""
        self.given: Slice | None = None
        self._answer: Future[Answer] | None = None
        self._pool = ProcessPoolExecutor(max_workers=1, env=_ONE_THREAD)
        self._loading: Future[None] = self._pool.submit(_load, self._solver)

    @property
    def idle(self) -> bool:
        """Whether it has the problem and waits for nodes."""
        return self.given is None and self._loading.done()

    def submit(self, given: Slice) -> None:
        """Begin a slice; raises ``BrokenProcessPool`` if the process has died."""
        self.given = given
        self._answer = self._pool.submit(_work, given)

    def collect(self) -> tuple[Slice, Answer] | None:
        """What was given and its answer, if it is there.

        Raises
        ------
        BrokenProcessPool
            If the process has died.
        """
        if self._loading.done():
            self._loading.result()
        if self.given is None or self._answer is None or not self._answer.done():
            return None
        done = self.given, self._answer.result()
        self.given = self._answer = None
        return done

    def close(self) -> None:
        """End the process, whatever it does."""
        self._pool.shutdown(wait=True, kill_workers=True)
