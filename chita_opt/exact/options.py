"""What the tree search may use, and when it stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chita_opt.errors import ProblemError

Log = Callable[[str], None]


@dataclass(frozen=True)
class TreeOptions:
    """Limits and choices of :func:`chita_opt.exact.branch_and_bound`.

    Attributes
    ----------
    gap : float
        Relative gap at which the search stops, on the increase over the dense minimum.
    node_limit : int or None
        Nodes.
    time_limit : float or None
        Seconds over the whole call.
    memory_limit : float
        Bytes for open nodes. Beyond it the search goes depth-first from the weakest nodes, so that
        their number stops growing.
    workers : int
        Processes. The optimum and the proof do not depend on it; among equally good supports the
        one found may.
    proof : bool
        Keep every witness, for :class:`chita_opt.exact.TreeProof`.
    checkpoint : Path or None
        File that the open nodes are written to, whole or not at all, every
        ``checkpoint_seconds`` and at the end of an unfinished search.
    checkpoint_seconds : float
        Seconds between two of them.
    resume : bool
        Continue from ``checkpoint`` where that file exists.
    log : Callable or None
        Called with one line of text about every ``log_seconds`` seconds.
    log_seconds : float
        Seconds between log lines.
    """

    gap: float = 1e-4
    node_limit: int | None = None
    time_limit: float | None = None
    memory_limit: float = 2e9
    workers: int = 1
    proof: bool = False
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0
    resume: bool = False
    log: Log | None = None
    log_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gap < 1.0:
            raise ProblemError(f"gap is {self.gap}; give a relative gap in [0, 1)")
        if self.node_limit is not None and self.node_limit < 1:
            raise ProblemError(f"node_limit is {self.node_limit}; give a count >= 1, or None")
        if self.workers < 1:
            raise ProblemError(f"workers is {self.workers}; give a count >= 1")
        if not self.memory_limit > 0:
            raise ProblemError(f"memory_limit is {self.memory_limit}; give bytes > 0")
        if self.resume and self.checkpoint is None:
            raise ProblemError("resume needs a checkpoint file; give one with checkpoint=")
