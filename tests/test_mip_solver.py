"""Solvers of the user's own: what is refused, and agreement where one is installed."""

from __future__ import annotations

import importlib.util

import pytest

from chita_opt.errors import MethodError, MissingDependencyError
from chita_opt.exact import enumerate_optimum
from chita_opt.exact.mip_solver import SOLVERS, solve_with
from chita_opt.formulations import cost_budget
from chita_opt.solution import Status

from .problems import make_problem


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(MethodError, match="'cbc' is not known; choose scip"):
        solve_with(make_problem("dense", "cardinality", p=6), "cbc")


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_agree_with_enumeration_where_installed(name: str) -> None:
    problem = make_problem("dense", "cardinality", p=8, linear=True)
    if importlib.util.find_spec(SOLVERS[name][1]) is None:
        with pytest.raises(MissingDependencyError, match=f"install {SOLVERS[name][1]}"):
            solve_with(problem, name)
        pytest.skip(f"{SOLVERS[name][1]} is not installed")
    best = enumerate_optimum(problem).objective
    found = solve_with(problem, name, time_limit=30.0)
    increase = best - problem.dense_minimum
    assert found.status is Status.OPTIMAL and found.solution is not None
    assert found.solution.objective == pytest.approx(best, abs=1e-4 * increase)
    assert found.lower <= best + 1e-4 * increase and found.gap <= 1.1e-4
    limited = solve_with(problem, name, side_constraints=[cost_budget([1.0] * 8, 1.0)])
    assert limited.solution is not None and limited.solution.nnz <= 1
