"""Subtrees in several processes: rounds of best nodes, with one incumbent for all.

Each round hands the most promising open nodes out in turn; every worker searches below its own
for about a second and hands back what is still open. The incumbent's value stands in a file
that all map, so that an improvement closes nodes everywhere at once. No node is lost or doubled,
whatever the number of workers; only the order differs.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from joblib import Parallel, delayed

from chita_opt.exact.allowed import Allowed
from chita_opt.exact.node import Node
from chita_opt.exact.node_solver import NodeSolver
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree import Search
from chita_opt.solution import Clock
from chita_opt.supports.base import Array

_WARM_UP = 8  # open nodes per worker before the first round
_HANDED = 16  # nodes per worker and round
_ROUND = 1.0  # seconds
_ALONE = 5.0  # seconds before processes are started: they take about as long to import torch
_RETURNED = 40  # supports that a worker proposes, at most


class SharedValue:
    """A float64 in a file that processes map: the incumbent's value, only ever lowered."""

    def __init__(self, path: Path, value: float | None = None) -> None:
        if value is not None:
            np.array([value]).tofile(path)
        self.array = np.memmap(path, dtype=np.float64, mode="r+", shape=(1,))

    def lower_to(self, value: float) -> float:
        """Lower the value if ``value`` is smaller; what stands there now."""
        if value < self.array[0]:  # a race can only lose an improvement until the round ends
            self.array[0] = value
        return float(self.array[0])


class _Proposals:
    """Values supports in a worker; the best go back to be improved."""

    def __init__(self, quadratic: Quadratic, allowed: Allowed, shared: SharedValue) -> None:
        self.quadratic, self.allowed, self.shared = quadratic, allowed, shared
        self.best: list[tuple[float, Array]] = []
        self.seen: set[bytes] = set()

    def offer(self, support: Array) -> float:
        """Solve on the support if it is new and allowed."""
        state = np.zeros(self.quadratic.size, dtype=np.int8)
        state[support] = 1
        key = state.tobytes()
        if key not in self.seen and self.allowed.propagate(state):
            self.seen.add(key)
            value = self.quadratic.solve(support)[1]
            self.best.append((value, support))
            self.shared.lower_to(value)
        return self.shared.lower_to(np.inf)


def search_below(
    quadratic: Quadratic,
    allowed: Allowed,
    nodes: list[Node],
    path: Path,
    limits: tuple[float, float, float, float],
) -> tuple[list[Node], tuple[float, int, int], list[tuple[float, Array]]]:
    """Search below ``nodes``; the open nodes, (closed, nodes, Newton steps), best supports."""
    gap, floor, memory, seconds = limits
    end = time.perf_counter() + seconds
    shared = SharedValue(path)
    proposals = _Proposals(quadratic, allowed, shared)
    search = Search(
        NodeSolver(quadratic, allowed), proposals.offer, shared.lower_to(np.inf), gap, floor, memory
    )
    for node in nodes:
        search.push(node)
    search.run(lambda: time.perf_counter() > end)
    best = heapq.nsmallest(_RETURNED, proposals.best, key=lambda pair: pair[0])
    return search.waiting, (search.closed, search.nodes, search.newton), best


def run_parallel(
    search: Search, options: TreeOptions, clock: Clock, between: Callable[[], None]
) -> bool:
    """Drive ``search`` with several processes; True once the gap is closed."""
    workers, limit = options.workers, options.node_limit

    def stop() -> bool:
        between()
        return clock.expired or (limit is not None and search.nodes >= limit)

    def enough() -> bool:
        return search.open_nodes >= _WARM_UP * workers and clock.elapsed >= _ALONE

    serial = search.run(lambda: stop() or enough())
    if serial or stop():
        return serial
    with TemporaryDirectory(prefix="chita-opt-") as folder:
        path = Path(folder) / "incumbent"
        shared = SharedValue(path, search.upper)
        with Parallel(n_jobs=workers, backend="loky", inner_max_num_threads=1) as pool:
            while search.open_nodes and search.lower < search.cutoff and not stop():
                _round(search, pool, path, shared, options, clock)
    return search.run(lambda: True)  # closes what the cutoff closes


def _round(
    search: Search, pool: Parallel, path: Path, shared: SharedValue, options: TreeOptions,
    clock: Clock,
) -> None:  # fmt: skip
    """Hand out the best nodes, wait, take everything back."""
    workers, solver = options.workers, search.solver
    everything = search.waiting
    everything.sort(key=lambda node: node.lower)
    handed, kept = everything[: _HANDED * workers], everything[_HANDED * workers :]
    left = clock.remaining
    seconds = _ROUND if left is None else min(_ROUND, left)
    limits = (search.gap, search.floor, options.memory_limit / workers, seconds)
    answers = pool(
        delayed(search_below)(solver.quadratic, solver.allowed, handed[i::workers], path, limits)
        for i in range(workers)
    )  # an interrupt up to here leaves all nodes open
    search.remember()
    search.heap, search.dive = [], []
    for node in kept:
        search.push(node)
    for still, (closed, nodes, newton), best in answers:
        for node in still:
            search.push(node)
        search.closed = min(search.closed, closed)
        search.nodes += nodes
        search.newton += newton
        for _, support in best:
            search.upper = min(search.upper, search.offer(support))
    search.settle()
    shared.lower_to(search.upper)
