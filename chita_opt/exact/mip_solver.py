"""``solve_with``: the strongest model of this package that a solver of the user's own takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chita_opt.curvature import Dense
from chita_opt.errors import MethodError, MissingDependencyError
from chita_opt.exact.outer_approximation.cuts import root_witness
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.result import relative_gap
from chita_opt.formulations import (
    SideConstraint,
    add_side_constraints,
    perspective_miqcp,
    proven_big_m,
)
from chita_opt.heuristics.methods import solve as heuristic
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

SOLVERS = {
    "scip": ("scip_direct", "pyscipopt"),
    "gurobi": ("gurobi_direct_minlp", "gurobipy"),
    "cplex": ("cplex_direct", "cplex"),
    "xpress": ("xpress_direct", "xpress"),
}
"""Pyomo's interface and the Python package, by the name that users give."""


@dataclass(frozen=True, eq=False)
class SolverResult:
    """A solver's answer, its support solved anew, and its own word on the bound.

    Attributes
    ----------
    problem : Problem
        What was solved.
    solution : Solution or None
        The better of its answer and the heuristic's start; recomputed.
    lower : float
        The solver's bound, in units of the loss: believed of nobody but the solver.
    status : Status
        OPTIMAL if that bound closes the gap asked for.
    word : str
        What the solver said.
    seconds : float
        Wall time.
    """

    problem: Problem
    solution: Solution | None
    lower: float
    status: Status
    word: str
    seconds: float

    @property
    def gap(self) -> float:
        """(upper - lower) relative to the incumbent's increase over the dense minimum."""
        if self.solution is None:
            return float("inf")
        upper = self.solution.objective
        return relative_gap(self.lower, upper, upper - self.problem.dense_minimum)


def solve_with(
    problem: Problem,
    solver: str,
    *,
    time_limit: float | None = None,
    gap: float = 1e-4,
    strong_split: bool = True,
    side_constraints: Sequence[SideConstraint] = (),
) -> SolverResult:
    """Give SCIP, Gurobi, CPLEX or Xpress the perspective model with a strong split and a proven M.

    The loss is scaled so that pruning everything costs 100: solvers' tolerances are absolute.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it; formed as a dense matrix.
    solver : str
        "scip", "gurobi", "cplex" or "xpress".
    time_limit : float, optional
        Seconds over the whole call.
    gap : float
        Relative gap at which to stop.
    strong_split : bool
        Move the best diagonal of the curvature into the perspective terms; otherwise the ridge
        alone.
    side_constraints : sequence of callables
        Each adds constraints on ``model.z``; M is then not taken from the heuristic's solution,
        which they may forbid, but from pruning everything.

    Raises
    ------
    MethodError
        If the solver is unknown, or refuses the model (as size-limited licences do).
    MissingDependencyError
        If it is not installed, or has no licence.
    """
    clock = Clock(time_limit)
    engine = _engine(solver)
    start = heuristic(problem, time_limit=None if time_limit is None else 0.1 * time_limit)
    unit = 0.01 * (problem.prune_all - problem.dense_minimum) or 1.0
    model = _model(problem, start, unit, bool(side_constraints), strong_split)
    add_side_constraints(model, side_constraints)
    try:
        word, lower = _run(engine, model, clock, gap)
    except Exception as error:  # every solver refuses with a class of its own
        raise MethodError(
            f"{solver} did not take the model of {problem.p} weights: {error}. Licences that come "
            "with a package limit the size; use a full one, or branch_and_bound"
        ) from error
    found = None if side_constraints else start
    mask = _mask(model)
    if mask is not None and problem.supports.contains(mask):
        w = problem.curvature.support_solver(problem.separable, mask).weights
        answer = Solution(problem, w, solver, Status.FEASIBLE)
        if found is None or answer.objective < found.objective:
            found = answer
    bound = -np.inf if lower is None else unit * lower
    status = Status.TIME_LIMIT if clock.expired else Status.FEASIBLE
    if found is not None:
        upper = found.objective
        if upper - bound <= 1.01 * gap * (upper - problem.dense_minimum):
            status = Status.OPTIMAL
        bound = min(bound, upper)
    return SolverResult(problem, found, bound, status, word, clock.elapsed)


def _engine(name: str) -> Any:
    from pyomo.contrib.solver.common.factory import SolverFactory as Modern
    from pyomo.environ import SolverFactory

    if name not in SOLVERS:
        raise MethodError(f"solver {name!r} is not known; choose {', '.join(SOLVERS)}")
    interface, package = SOLVERS[name]
    modern = name in ("scip", "gurobi")
    engine = (Modern if modern else SolverFactory)(interface)
    if not engine.available(*([] if modern else [False])):
        raise MissingDependencyError(
            f"{name} is not available to Pyomo as {interface}; install {package} and its licence"
        )
    return engine


def _model(
    problem: Problem, start: Solution, unit: float, constrained: bool, strong_split: bool
) -> Any:
    """The perspective model in hundredths of pruning everything."""
    scaled = Problem(
        Dense(problem.curvature.dense() / unit), problem.w_bar, problem.rho / unit,
        problem.supports, problem.g / unit,
    )  # fmt: skip
    upper = scaled.prune_all if constrained else scaled.objective(start.w)
    witness = root_witness(scaled, Quadratic.of(scaled), upper) if strong_split else None
    split = None if witness is None else witness.split
    model = perspective_miqcp(scaled, split=split, big_m=proven_big_m(scaled, upper))
    if not constrained:
        for j, kept in enumerate(start.mask.tolist()):
            model.z[j].set_value(float(kept))
    return model


def _run(engine: Any, model: Any, clock: Clock, gap: float) -> tuple[str, float | None]:
    """Solve; the solver's word and its bound. Values of an answer are left in the model."""
    for variable in model.z.values():
        variable.stale = True
    if hasattr(engine, "config") and hasattr(engine.config, "load_solutions"):
        engine.config.load_solutions = False
        engine.config.raise_exception_on_nonoptimal_result = False
        engine.config.time_limit, engine.config.rel_gap = clock.remaining, gap
        result = engine.solve(model)
        if result.incumbent_objective is not None:
            result.solution_loader.load_vars()
        return str(result.termination_condition), result.objective_bound
    cplex = "cplex" in engine.name  # Pyomo spells the names of its interfaces in several ways
    limits = ("timelimit", "mip_tolerances_mipgap") if cplex else ("maxtime", "miprelstop")
    if clock.remaining is not None:
        engine.options[limits[0]] = clock.remaining
    engine.options[limits[1]] = gap
    result = engine.solve(model, load_solutions=False, warmstart=False)
    if len(result.solution):
        model.solutions.load_from(result)
    return str(result.solver.termination_condition), result.problem.lower_bound


def _mask(model: Any) -> torch.Tensor | None:
    """The answer's indicators; None if the solver left none."""
    if all(variable.stale for variable in model.z.values()):
        return None
    return torch.tensor([variable.value > 0.5 for variable in model.z.values()])


__all__ = ["SOLVERS", "SolverResult", "solve_with"]
