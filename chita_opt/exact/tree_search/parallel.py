"""One search over open nodes by several processes: the best first, whoever works on them.

This process searches like a single one. Beside it, every worker is given its share of the
currently best open nodes, searches below them for a moment and hands back what is still open,
its totals, the supports that it would propose and its part of the proof log; so the order stays
that of one search, and no node is lost or doubled. A slice whose process died is given again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from chita_opt.exact.options import TreeOptions
from chita_opt.exact.tree_search.proof_pieces import Inherited, put_back
from chita_opt.exact.tree_search.tree import Search
from chita_opt.exact.tree_search.workers import Answer, Goal, Slice, Worker
from chita_opt.solution import Clock

_ALONE = 2.0  # seconds of search after which workers are started at the latest
_SLICE = 0.25  # seconds that a worker searches before it hands back
_MOST = 64  # nodes that it is given at most
_SPREAD = 2  # nodes that it bounds, per node given, at most
_DEATHS = 2  # a process is started again, until so many have died
_GRACE = 0.5  # seconds that answers are waited for once a limit has come

_log = logging.getLogger(__name__)


class Crew:
    """The driver and its workers; a context that ends them.

    Parameters
    ----------
    search, options, clock : Search, TreeOptions, Clock
        What is searched, and its limits.
    look, keep : Callable
        Called often, and between nodes only: history, checkpoint.
    """

    def __init__(
        self,
        search: Search,
        options: TreeOptions,
        clock: Clock,
        look: Callable[[], None],
        keep: Callable[[], None],
    ) -> None:
        self.search, self.options, self.clock = search, options, clock
        self.look, self.keep = look, keep
        self.workers: list[Worker] = []
        self.deaths = self.nodes = 0
        self._begin = np.inf
        self._rate = 0.0  # seconds a node takes
        self._own = 0  # nodes begun here and not counted yet

    @property
    def stats(self) -> dict[str, float]:
        """Nodes bounded by workers, and how many of these died."""
        return {"by_workers": float(self.nodes), "workers_lost": float(self.deaths)}

    def start(self) -> None:
        """Start the workers; nobody waits for them."""
        if not self.workers and not self.deaths:
            self.workers = [Worker(self.search.solver) for _ in range(self.options.workers - 1)]

    def run(self) -> bool:
        """Search until the gap is closed or a limit comes."""
        search, self._begin = self.search, self.clock.elapsed
        while search.open_nodes:
            if search.finished():
                return True
            if self._stop():
                self._wait()
                return search.finished()
            if search.waiting and self._left > 0:
                self._step()
            else:
                time.sleep(1e-3)
        return True

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.close()
        self.workers = []

    def _step(self) -> None:
        begin, self._own = self.clock.elapsed, 1
        self.search.step(self._urgent)
        self._own = 0
        self._learn(self.clock.elapsed - begin, 1)

    def _learn(self, seconds: float, nodes: int) -> None:
        if nodes:
            rate = seconds / nodes
            self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate

    # -- limits ---------------------------------------------------------------------------------

    @property
    def _left(self) -> int:
        """Nodes that may still be begun: the limit less those done or given away."""
        if self.options.node_limit is None:
            return 2**31
        away = sum(worker.given.most for worker in self.workers if worker.given is not None)
        return self.options.node_limit - self.search.nodes - away - self._own

    def _stop(self) -> bool:
        """Asked between nodes: serve the workers unless a limit has come."""
        self.look()
        self.keep()
        limit = self.options.node_limit
        if self.clock.expired or (limit is not None and self.search.nodes >= limit):
            return True
        self._serve()
        return False

    def _urgent(self) -> bool:
        """Asked inside nodes; a log takes one node at a time."""
        self.look()
        if self.search.solver.log is None:
            self._serve()
        return self.clock.expired

    def _wait(self) -> None:
        """Take the answers that come soon; the nodes of the others stay open."""
        end = self.clock.elapsed + _GRACE
        while any(w.given is not None for w in self.workers) and self.clock.elapsed < end:
            for worker in list(self.workers):
                self._look_after(worker, more=False)
            time.sleep(1e-3)

    # -- workers --------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Start the workers when it is time, take what they have, give them more."""
        if self.clock.elapsed - self._begin >= _ALONE:
            self.start()
        for worker in list(self.workers):
            self._look_after(worker, more=True)

    def _look_after(self, worker: Worker, *, more: bool) -> None:
        """Merge what the worker has, give it more if it is idle, replace it if it is dead."""
        try:
            done = worker.collect()
            if done is not None:
                self._merge(*done)
            if more and worker.idle:
                self._give(worker)
        except (BrokenProcessPool, MemoryError) as error:
            self._replace(worker, error)

    def _give(self, worker: Worker) -> None:
        """The worker's share of the best open nodes, for about a slice's time."""
        search, remaining = self.search, self.clock.remaining
        wanted = int(_SLICE / self._rate) + 1 if self._rate else 1
        most = min(wanted, _MOST, self._left)
        if most < 1 or not (search.waiting and search.nodes):  # the root is bounded here
            return
        key, nodes, deep = search.hand_out(most, len(self.workers) + 1)
        log = search.solver.log
        most = min(wanted if deep else _SPREAD * len(nodes), self._left)
        seconds = _SLICE if remaining is None else min(_SLICE, remaining)
        deadline = None if remaining is None else time.time() + remaining
        brought = None if log is None else Inherited.of(log, nodes)
        goal = Goal(search.upper, search.gap, search.floor)
        worker.submit(Slice(key, nodes, deep, goal, most, seconds, deadline, brought))

    def _replace(self, worker: Worker, error: Exception) -> None:
        lost = worker.given
        if lost is not None:
            self.search.take_back(lost.key, lost.nodes, lost.deep)
        self.deaths += 1
        worker.close()
        again = self.deaths < _DEATHS
        _log.warning(
            "a process of the tree search died (%s); its nodes are open again, and %s",
            error, "it is started again" if again else "the search goes on without it",
        )  # fmt: skip
        if again:
            worker.start()
        else:
            self.workers.remove(worker)

    def _merge(self, given: Slice, answer: Answer) -> None:
        search, still, log = self.search, answer.still, self.search.solver.log
        search.begin(given.key, given.nodes)
        if log is not None and answer.piece is not None and given.brought is not None:
            still = put_back(log, answer.piece, given.nodes, given.brought, still)
        search.closed = min(search.closed, answer.closed)
        search.nodes += answer.nodes
        search.newton += answer.newton
        self.nodes += answer.nodes
        search.take_back(given.key, still, given.deep)
        self._learn(answer.seconds, answer.nodes)
        search.improve(answer.supports)
