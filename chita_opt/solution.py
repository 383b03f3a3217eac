"""What every method returns: weights that judge themselves against their problem."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.errors import ProblemError
from chita_opt.problem import Problem


class Status(StrEnum):
    """Why a method stopped and what is known about its answer."""

    OPTIMAL = "optimal"
    """Proven: the gap asked for is closed. Of a search that is 1e-4 unless another is given; of one
    witness 1e-9, which is rounding."""
    STATIONARY = "stationary"
    """The method's own stopping rule held."""
    FEASIBLE = "feasible"
    """A one-shot answer; nothing is claimed but feasibility."""
    TIME_LIMIT = "time_limit"
    """The time limit came first; the best answer so far is returned."""
    ITERATION_LIMIT = "iteration_limit"
    """The iteration limit came first."""
    INTERRUPTED = "interrupted"
    """Ctrl-C; the best answer so far is returned."""


@dataclass(frozen=True)
class Trace:
    """Rows (seconds since the start, value), value the best so far."""

    rows: tuple[tuple[float, float], ...] = ()

    @property
    def seconds(self) -> list[float]:
        """First column."""
        return [t for t, _ in self.rows]

    @property
    def values(self) -> list[float]:
        """Second column."""
        return [v for _, v in self.rows]

    def spread(self, count: int = 200) -> list[list[float]]:
        """At most ``count`` of the rows that are finite, spread over all, for a file."""
        rows = [[t, v] for t, v in self.rows if math.isfinite(t) and math.isfinite(v)]
        if len(rows) <= count:
            return rows
        return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]

    def then(self, later: Trace, begin: float) -> Trace:
        """These rows and those of a ``later`` trace, begun after ``begin`` s, that are lower."""
        rows, best = list(self.rows), self.rows[-1][1] if self.rows else float("inf")
        for t, value in later.rows:
            if value < best:
                rows.append((begin + t, value))
                best = value
        return Trace(tuple(rows))


class Clock:
    """Monotonic clock with a time limit over a whole call, and a trace that it stamps.

    Parameters
    ----------
    time_limit : float or None
        Seconds; None for no limit.

    Raises
    ------
    ProblemError
        If the limit is not positive.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        if time_limit is not None and not time_limit > 0:
            raise ProblemError(f"time_limit is {time_limit}; give seconds > 0, or None")
        self.limit = time_limit
        self.begin = time.perf_counter()
        self._rows: list[tuple[float, float]] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.begin

    @property
    def expired(self) -> bool:
        """Whether the limit has passed."""
        return self.limit is not None and self.elapsed >= self.limit

    @property
    def remaining(self) -> float | None:
        """Seconds left (at least a millisecond), or None without a limit."""
        return None if self.limit is None else max(self.limit - self.elapsed, 1e-3)

    def record(self, value: float) -> None:
        """Add a row to the trace."""
        self._rows.append((self.elapsed, value))

    @property
    def trace(self) -> Trace:
        """The rows so far."""
        return Trace(tuple(self._rows))


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights for a problem, and how they were found.

    ``objective``, ``mask``, ``nnz`` and ``is_feasible`` are recomputed from the problem's data and
    the weights in float64; no method's word is taken for them.

    Attributes
    ----------
    problem : Problem
        What was solved.
    w : Tensor
        (p,) float64 weights; exactly zero where pruned.
    method : str
        Name of the method.
    status : Status
        Why it stopped.
    seconds : float
        Wall time.
    trace : Trace
        Objective of the incumbent over time.
    stats : Mapping
        Counters and notes; a fallback that was taken is written here.
    warm : Mapping
        Tensors by name that a later bound may start from: "z" indicators and "image".
    evidence : object or None
        What the method proved of the problem on the way, for ``certify``: a
        :class:`chita_opt.bounds.Bound` or a :class:`chita_opt.exact.ReductionProof`.
    """

    problem: Problem
    w: Tensor
    method: str
    status: Status
    seconds: float = 0.0
    trace: Trace = field(default_factory=Trace)
    stats: Mapping[str, object] = field(default_factory=dict)
    warm: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    evidence: object | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.w.shape != (self.problem.p,) or not bool(torch.isfinite(self.w).all()):
            raise ProblemError(
                f"the weights of {self.method} have shape {tuple(self.w.shape)} or are not finite; "
                f"({self.problem.p},) finite values are needed"
            )
        object.__setattr__(self, "w", self.w.detach().to(self.problem.device, torch.float64))

    @cached_property
    def objective(self) -> float:
        """Modelled loss increase, recomputed in float64."""
        return self.problem.objective(self.w)

    @cached_property
    def mask(self) -> Tensor:
        """(p,) bool, true where a weight is not zero."""
        return self.w != 0

    @property
    def nnz(self) -> int:
        """Number of weights that are not zero."""
        return int(self.mask.sum())

    @property
    def sparsity(self) -> float:
        """Share of zero weights."""
        return 1.0 - self.nnz / self.problem.p

    @property
    def history(self) -> list[list[float]]:
        """Rows (seconds, objective) of the incumbent up to the end, for a file."""
        return [*self.trace.spread(), [self.seconds, self.objective]]

    def passes(self) -> float:
        """The cost in passes over the data: ``seconds`` over :attr:`Curvature.pass_seconds`.

        The pass is measured on the first call for a curvature, never while a method runs.
        """
        return self.seconds / self.problem.curvature.pass_seconds

    @cached_property
    def is_feasible(self) -> bool:
        """Whether the support belongs to the problem's family."""
        return self.problem.supports.contains(self.mask)

    def __str__(self) -> str:
        return (
            f"{self.method}: objective {self.objective:.6g}, {self.nnz} of {self.problem.p} "
            f"weights kept, {self.status}, {self.seconds:.2f} s"
        )
