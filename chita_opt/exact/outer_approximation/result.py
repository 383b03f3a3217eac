"""What the outer approximation returns: incumbent, bounds, and whose word each bound is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from chita_opt.bounds import Bound
from chita_opt.exact.result import relative_gap
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status


class TraceRow(NamedTuple):
    """Seconds since the start, lower bound, objective of the incumbent (inf without one)."""

    seconds: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class OuterApproximation:
    """The best weights found, and what is known about the optimum from whom.

    Attributes
    ----------
    problem : Problem
        What was solved.
    solution : Solution or None
        The incumbent, its objective recomputed from the data; None if side constraints allowed no
        mask that was found in time.
    mask : Tensor or None
        (p,) bool, the incumbent's indicators; side constraints speak of these.
    lower : float
        The best lower bound: of the rounds, as HiGHS reports it, or ``proven`` if that is higher.
    proven : float
        The best lower bound without HiGHS: from dual witnesses with weights fixed by screening,
        re-evaluated in float64 with an allowance for rounding.
    bound : Bound or None
        One witness that proves nearly as much without any fixing;
        :func:`chita_opt.bounds.dual_point` reproduces its value. None for curvature forms whose
        rows or blocks must share a split.
    status : Status
        OPTIMAL where the gap asked for is closed; otherwise which limit came first.
    rounds, cuts, covers, nodes : int
        Masters solved, rows in the last (covers among them), nodes of all their trees.
    fixed : int
        Weights that screening fixed.
    seconds : float
        Wall time.
    trace : tuple of TraceRow
        Bounds over time, from HiGHS's log and from our own witnesses.
    """

    problem: Problem
    solution: Solution | None
    mask: Tensor | None
    lower: float
    proven: float
    bound: Bound | None
    status: Status
    rounds: int
    cuts: int
    covers: int
    nodes: int
    fixed: int
    seconds: float
    trace: tuple[TraceRow, ...] = field(repr=False)

    @property
    def upper(self) -> float:
        """Objective of the incumbent; infinite without one."""
        return float("inf") if self.solution is None else self.solution.objective

    @property
    def gap(self) -> float:
        """(upper - lower) relative to the incumbent's increase over the dense minimum."""
        if self.solution is None:
            return float("inf")
        return relative_gap(self.lower, self.upper, self.upper - self.problem.dense_minimum)

    @property
    def word(self) -> str:
        """Whose word ``lower`` is: "HiGHS" or "dual witness"."""
        return "HiGHS" if self.lower > self.proven else "dual witness"

    def __str__(self) -> str:
        return (
            f"outer approximation: {self.status}, objective {self.upper:.6g}, bound "
            f"{self.lower:.6g} ({self.word}; {self.proven:.6g} by witness), gap "
            f"{100 * self.gap:.3g} %, {self.rounds} rounds, {self.cuts} cuts, {self.seconds:.2f} s"
        )
