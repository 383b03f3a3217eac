"""``formulate``: one instance file, one model file for a solver of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from chita_opt.bounds import dual_bound
from chita_opt.cli import OK
from chita_opt.cli.options import InstanceBudget
from chita_opt.cli.screen import check_folders, number, print_json
from chita_opt.cli.solving import instance_problem
from chita_opt.curvature import Curvature, Dense, LowRank
from chita_opt.exact.outer_approximation.cuts import root_witness
from chita_opt.exact.quadratic import Quadratic
from chita_opt.formulations import (
    big_m_miqp,
    cleaned,
    dual_cut,
    dual_cuts_milp,
    perspective_miqcp,
    proven_big_m,
    removal_miqcp,
    sos1_miqp,
    weight_cuts_milp,
    write_model,
)
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.solution import Solution

_HEURISTIC_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class Material:
    """What the builders need beyond the problem: an incumbent, a proven M, the best split."""

    problem: Problem
    incumbent: Solution
    split: Tensor | None

    @property
    def big_m(self) -> Tensor:
        """From the incumbent."""
        return proven_big_m(self.problem, self.incumbent.objective)


BUILDERS: dict[str, Callable[[Material], Any]] = {
    "big-m": lambda m: big_m_miqp(m.problem, m.big_m),
    "sos1": lambda m: sos1_miqp(m.problem),
    "perspective": lambda m: perspective_miqcp(m.problem, split=m.split, big_m=m.big_m),
    "removal": lambda m: removal_miqcp(m.problem, m.big_m),
    "weight-cuts": lambda m: weight_cuts_milp(
        m.problem, m.big_m, [m.incumbent.w, m.problem.w_bar], split=m.split
    ),
    "dual-cuts": lambda m: _dual_cuts(m),
}


def run_formulate(
    path: Path, ridge: float, budget: InstanceBudget, model: str, to: Path, as_json: bool
) -> int:
    """Build a model of an instance, write it, and say what it is."""
    check_folders(to)
    problem = in_percent(instance_problem(path, ridge, budget))
    built = BUILDERS[model](_material(problem, model))
    write_model(built, to)
    report = {
        "instance": str(path),
        "model": model,
        "file": to,
        "family": problem.supports.name,
        "ridge": ridge,
        **_sizes(built),
    }
    if as_json:
        print_json(report)
    else:
        click.echo(_lines(report))
    return OK


def in_percent(problem: Problem) -> Problem:
    """The same problem in hundredths of the cost of pruning everything.

    Losses of 1e-5 are below solvers' absolute tolerances; the best supports and weights stay.
    """
    unit = 0.01 * (problem.prune_all - problem.dense_minimum)
    if not unit > 0.0:
        return problem
    C = problem.curvature
    scaled: Curvature
    if isinstance(C, LowRank):
        scaled = LowRank(C.A, C.scale / unit)
    else:
        scaled = Dense(C.dense() / unit)
    return Problem(scaled, problem.w_bar, problem.rho / unit, problem.supports, problem.g / unit)


def _material(problem: Problem, model: str) -> Material:
    """An incumbent always, the best split where the model takes one."""
    incumbent = solve(problem, time_limit=_HEURISTIC_SECONDS)
    split = None
    if model in ("perspective", "weight-cuts"):
        witness = root_witness(problem, Quadratic.of(problem), incumbent.objective)
        split = None if witness is None else witness.split
    return Material(problem, incumbent, split)


def _dual_cuts(material: Material) -> Any:
    """The cut of the best dual bound, and one that touches at the incumbent."""
    problem = material.problem
    bound = dual_bound(problem, time_limit=_HEURISTIC_SECONDS)
    floor = problem.dense_minimum
    touching = problem.curvature.image(material.incumbent.w - problem.w_bar)
    cuts = [dual_cut(problem, bound.witness, bound.split)]
    if bound.split is None:
        cuts.append(dual_cut(problem, touching))
    return dual_cuts_milp(problem, [cleaned(c, floor=floor) for c in cuts], lower=floor)


def _sizes(model: Any) -> dict[str, int]:
    import pyomo.environ as pyo

    variables = list(model.component_data_objects(pyo.Var))
    rows = model.component_data_objects((pyo.Constraint, pyo.SOSConstraint), active=True)
    return {
        "variables": len(variables),
        "binaries": sum(v.is_binary() for v in variables),
        "constraints": sum(1 for _ in rows),
    }


def _lines(report: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"model        {report['model']} of {report['instance']}, {report['family']}, "
            f"ridge {number(report['ridge'])}",
            f"size         {report['variables']:,} variables ({report['binaries']:,} binary), "
            f"{report['constraints']:,} constraints",
            f"written      {report['file']}",
            "The objective is the modelled loss increase in percent of the cost of pruning "
            "everything.",
            "chita_opt.formulations.read_solution reads a solver's answer back.",
        ]
    )
