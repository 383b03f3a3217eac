"""A race: several tree searches of one problem, which tell each other their incumbents.

Every contender searches the whole problem in its own way. What one finds closes nodes of all, and
the first proof ends the race. They meet in a folder, each with a file of its own, so that nobody
waits for anybody: on one machine any folder will do, on a cluster one that all workers see. What is
read there is weights, and their objective is computed anew.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from chita_opt.errors import DataError, ProblemError
from chita_opt.exact.engines import ParallelEngine
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.result import TreeResult
from chita_opt.exact.tree_search.branch_and_bound import MAX_SIZE, Tree
from chita_opt.exact.tree_search.checkpoint import read_arrays, write_arrays
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_EVERY = 0.2  # seconds between two looks into the folder
_MARK = b"incumbent"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """How one search goes about it.

    Attributes
    ----------
    options : TreeOptions
        Gap and limits; its workers are not used.
    method, seed : str, int
        Heuristic of the first incumbent.
    """

    options: TreeOptions = field(default_factory=TreeOptions)
    method: str = "auto"
    seed: int = 0


def race(
    problem: Problem,
    contenders: Sequence[Contender],
    *,
    engine: ParallelEngine | None = None,
    folder: str | Path | None = None,
) -> TreeResult:
    """Search the same problem in several ways at once; the first proof wins.

    Who wins, and which of equally good supports is found, depends on the machine; the optimum that
    is proven does not, beyond the gap asked for.

    Parameters
    ----------
    problem : Problem
        As for :func:`chita_opt.exact.branch_and_bound`.
    contenders : sequence of Contender
        At least one.
    engine : ParallelEngine, optional
        Where they run, best with a worker for each; one after the other here by default, where
        later ones start from what earlier ones found.
    folder : path, optional
        Where they meet, empty or not there; a temporary folder of this machine by default.

    Returns
    -------
    TreeResult
        The winner's; without a proof, the best bound of all with the best weights.

    Raises
    ------
    ProblemError
        If there is no contender, the folder is not empty, or it is missing for a cluster.
    """
    engine = engine or ParallelEngine()
    if not contenders:
        raise ProblemError("a race needs at least one contender")
    if problem.p > MAX_SIZE:
        raise ProblemError(f"the problem has {problem.p} weights; a tree takes {MAX_SIZE} at most")
    if folder is None and engine.scheduler is not None:
        raise ProblemError("contenders on a cluster need a folder that all its workers see")
    with tempfile.TemporaryDirectory() as own:
        place = Path(own if folder is None else folder)
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise ProblemError(
                f"{place} is not empty; contenders would read another race's weights"
            )
        found: dict[int, TreeResult] = {}
        try:
            tasks = [(n, contender) for n, contender in enumerate(contenders)]
            engine.map(partial(_run, problem, place), tasks, on_result=found.__setitem__)
        except KeyboardInterrupt:
            if not found:
                raise
        return _joined(problem, [found[n] for n in sorted(found)])


def _run(problem: Problem, place: Path, task: tuple[int, Contender]) -> TreeResult:
    number, contender = task
    options = replace(contender.options, workers=1)
    board = Board(place, number)
    limit = None if options.time_limit is None else 0.25 * options.time_limit
    start = solve(problem, contender.method, seed=contender.seed, time_limit=limit)
    with threadpool_limits(limits=1, user_api="blas"):
        found = _RacingTree(problem, options, start, board=board).run()
    board.tell(found.solution.w.numpy())
    if found.status is Status.OPTIMAL:
        board.end()
    return found


def _joined(problem: Problem, found: list[TreeResult]) -> TreeResult:
    """The first that is proven; else the best of all."""
    winner = next((r for r in found if r.status is Status.OPTIMAL), None)
    best = winner or max(found, key=lambda r: r.lower)
    solution = min((r.solution for r in found), key=lambda s: s.objective)
    nodes = sum(r.nodes for r in found)
    solution = replace(solution, problem=problem, status=best.status)
    return replace(
        best, solution=solution, lower=min(best.lower, solution.objective), nodes=nodes,
        stats={**best.stats, "contenders": float(len(found))},
    )  # fmt: skip


class Board:
    """The folder as one contender sees it.

    Parameters
    ----------
    place : Path
        The folder.
    number : int
        The contender's own.
    """

    def __init__(self, place: Path, number: int) -> None:
        self.place, self.own = place, place / f"{number}.weights"
        self._seen: dict[Path, int] = {}

    def tell(self, w: np.ndarray) -> None:
        """Put weights up for the others."""
        write_arrays(self.own, {"fingerprint": np.frombuffer(_MARK, dtype=np.uint8), "w": w})

    def news(self) -> list[np.ndarray]:
        """What others have put up since the last look."""
        found = []
        for path in sorted(self.place.glob("*.weights")):
            try:
                stamp = path.stat().st_mtime_ns
                if path == self.own or self._seen.get(path) == stamp:
                    continue
                found.append(read_arrays(path, ("fingerprint", "w"), _MARK)["w"])
                self._seen[path] = stamp
            except (OSError, DataError):  # a file system that shows half of it: the next look
                continue
        return found

    def end(self) -> None:
        """Tell the others that there is a proof."""
        (self.place / "proven").touch()

    @property
    def is_over(self) -> bool:
        """Whether one of them has a proof."""
        return (self.place / "proven").exists()


class _RacingTree(Tree):
    """A search that looks at the board between nodes."""

    def __init__(
        self, problem: Problem, options: TreeOptions, start: Solution, *, board: Board
    ) -> None:
        super().__init__(problem, options, start)
        self.board, self._told, self._looked = board, np.inf, -np.inf

    def _between_nodes(self) -> None:
        super()._between_nodes()
        if time.perf_counter() - self._looked < _EVERY:
            return
        self._looked = time.perf_counter()
        for w in self.board.news():
            other = torch.from_numpy(np.array(w)).to(self.problem.device)
            self.best.take(Solution(self.problem, other, "race", Status.FEASIBLE))
        self.search.upper = min(self.search.upper, self.best.value)
        if self.best.value < self._told:
            self._told = self.best.value
            self.board.tell(np.array(self.best.w))
        if self.board.is_over:
            self.clock.limit = 0.0


__all__ = ["Contender", "race"]
