"""Candidates that compete by their held-out loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chita_opt.curvature import SupportSolver
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.problem import Problem
from chita_opt.solution import Clock


@dataclass(frozen=True, eq=False)
class Candidate:
    """Weights and what they cost.

    Attributes
    ----------
    name : str
        How they were found.
    w : Tensor
        (p,) float64 weights.
    loss : float
        Mean loss on the choosing half of the held-out samples.
    """

    name: str
    w: Tensor
    loss: float

    def row(self, problem: Problem) -> dict[str, Any]:
        """Plain values for a report, the quadratic objective recomputed."""
        return {"name": self.name, "loss": self.loss, "objective": problem.objective(self.w)}


def entered(name: str, w: Tensor, held_out: HeldOut) -> Candidate:
    """A candidate with its loss measured."""
    return Candidate(name, w, held_out.loss(w))


def lowest(candidates: Iterable[Candidate]) -> Candidate:
    """The candidate of lowest loss; the first of equal ones."""
    return min(candidates, key=lambda candidate: candidate.loss)


def solved_on(
    problem: Problem,
    masks: Mapping[str, Tensor],
    held_out: HeldOut,
    *,
    exact: bool = False,
    clock: Clock | None = None,
) -> list[Candidate]:
    """The quadratic problem's minimiser on each support, with its held-out loss.

    Where supports are wider than n, neighbours share the Gram matrix of their columns: the second
    and later solves add and remove the columns that differ.

    Parameters
    ----------
    problem : Problem
        Ridge, linear term and curvature are the same for all supports.
    masks : mapping of str to Tensor
        Supports, (p,) bool, by name.
    held_out : HeldOut
        The choosing samples.
    exact : bool
        Solve to float64 rather than to the data's precision.
    clock : Clock, optional
        No further support is tried once it has expired.
    """
    found: list[Candidate] = []
    solver: SupportSolver | None = None
    for name, mask in masks.items():
        if found and clock is not None and clock.expired:
            break
        if solver is None:
            solver = problem.curvature.support_solver(problem.separable, mask, exact=exact)
        else:
            solver = solver.moved(mask, exact=exact)
        found.append(entered(name, solver.weights, held_out))
    return found


__all__ = ["Candidate", "entered", "lowest", "solved_on"]
