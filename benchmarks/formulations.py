"""Root bounds, sizes and cut counts by formulation, and what HiGHS proves, on named instances.

``gap`` is (best value - bound) / best value in percent, the best value being that of the outer
approximation's own incumbent. Needs the reference data (CHITA_OPT_DATA).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pyomo.environ as pyo
import torch
from measuring import report
from reference_data import data_root

from chita_opt.exact.outer_approximation import OuterApproximation, outer_approximation
from chita_opt.exact.outer_approximation.cuts import root_witness
from chita_opt.exact.quadratic import Quadratic
from chita_opt.formulations import (
    optimal_diagonal_relaxation,
    pair_relaxation,
    perspective_relaxation,
    proven_big_m,
    removal_miqcp,
    strongest_pairs,
    weight_cuts_milp,
)
from chita_opt.formulations.factors import factor_matrix
from chita_opt.formulations.weight_cuts import add_weight_cuts
from chita_opt.instances import load_instance
from chita_opt.problem import Problem
from chita_opt.supports import Budget, keep_count

PROVEN = [
    *[(name, 1e-3, s) for name in ("fc2_p20", "fc3_row0", "fc3_row3") for s in (0.5, 0.7, 0.9)],
    *[(n, 1e-2, s) for n in ("fc2_row0", "fc2_row7", "fc2_p50") for s in (0.5, 0.7, 0.9)],
]
FURTHER = [
    *[(name, 1e-4, s) for name in ("fc2_p20", "fc3_row3") for s in (0.5, 0.7, 0.9)],
    *[(name, 1e-3, s) for name in ("fc2_row7", "fc2_p50") for s in (0.5, 0.7, 0.9)],
    *[("fc2_p100", 1e-2, s) for s in (0.5, 0.7, 0.9)],
    ("fc2_row0", 1e-4, 0.7),
    ("fc2_p50", 1e-4, 0.7),
    ("fc2_p100", 1e-3, 0.5),
    ("fc2_p100", 1e-3, 0.9),
    ("fc2_p200", 1e-2, 0.5),
    ("fc2_p200", 1e-2, 0.9),
]
ROOTS = [
    *[("fc2_p20", 1e-3, s) for s in (0.5, 0.9)],
    *[("fc2_row7", 1e-2, s) for s in (0.5, 0.9)],
    *[("fc2_p50", 1e-2, s) for s in (0.5, 0.9)],
]
Case = tuple[str, float, float]


def problem_of(case: Case) -> Problem:
    """The named instance with its ridge and sparsity."""
    name, ridge, sparsity = case
    instance = load_instance(data_root() / "instances" / f"{name}.npz")
    k = keep_count(instance.p, sparsity).k
    return instance.problem(ridge=ridge, supports=Budget.cardinality(instance.p, k))


def proofs(cases: list[Case], limit: float) -> list[dict[str, Any]]:
    """HiGHS in rounds on every case."""
    rows = []
    for case in cases:
        found = outer_approximation(problem_of(case), time_limit=limit)
        rows.append(
            {
                "instance": case[0],
                "ridge": case[1],
                "sparsity": case[2],
                "status": str(found.status),
                "upper": found.upper,
                "gap_%": 100.0 * found.gap,
                "witness_gap_%": 100.0 * (found.upper - found.proven) / found.upper,
                "seconds": found.seconds,
                "rounds": found.rounds,
                "cuts": found.cuts,
                "covers": found.covers,
                "nodes": found.nodes,
                "fixed": found.fixed,
            }
        )
    return rows


def relaxed(model: Any) -> float:
    """Continuous relaxation by HiGHS."""
    pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
    pyo.SolverFactory("highs").solve(model)
    return float(pyo.value(model.objective))


def big_m_root(problem: Problem, big_m: Any) -> float:
    """Continuous relaxation of big-M by Clarabel: HiGHS's quadratic solver fails on some."""
    family = problem.supports.rows()
    F = factor_matrix(problem.curvature.factor())
    w_bar, g, rho = (v.numpy() for v in (problem.w_bar, problem.g, problem.rho))
    w, z = cp.Variable(problem.p), cp.Variable(problem.p)
    x = w - w_bar
    value = 0.5 * cp.sum_squares(F @ x) + g @ x + 0.5 * rho @ x**2
    rows = [cp.abs(w) <= cp.multiply(big_m.numpy(), z), family.G @ z <= family.h, z <= 1.0]
    return float(cp.Problem(cp.Minimize(value), rows).solve(solver="CLARABEL"))


def kelley(problem: Problem, big_m: Any, split: Any, rounds: int = 150) -> tuple[float, int]:
    """Continuous relaxation of the weight cuts, tangents added at its own optima; bound, cuts."""
    model = weight_cuts_milp(problem, big_m, [problem.w_bar], split=split)
    pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
    value, stalled = -np.inf, 0
    for _ in range(rounds):
        pyo.SolverFactory("appsi_highs").solve(model)
        new = float(pyo.value(model.objective))
        stalled = stalled + 1 if new <= value + 1e-4 * abs(new) else 0
        value = new
        if stalled == 10:
            break
        w = torch.tensor([model.w[j].value for j in model.J], dtype=torch.float64)
        z = torch.tensor([max(model.z[j].value, 1e-3) for j in model.J], dtype=torch.float64)
        add_weight_cuts(model, problem, w, ratio=w / z, split=split)
    return value, len(model.cuts)


def saliency(problem: Problem, big_m: Any) -> float:
    """The removal form's linear rows alone."""
    model = removal_miqcp(problem, big_m)
    model.loss.deactivate()
    return relaxed(model)


def roots(case: Case) -> list[dict[str, Any]]:
    """Every formulation's root bound."""
    problem = problem_of(case)
    best = outer_approximation(problem, time_limit=60.0)
    scale = 0.01 * problem.prune_all  # solvers' tolerances are absolute
    scaled = load_scaled(problem, scale)
    big_m = proven_big_m(problem, best.upper)
    witness = root_witness(scaled, Quadratic.of(scaled), best.upper / scale)
    split = None if witness is None else witness.split
    pairs = strongest_pairs(scaled, 2 * problem.p)
    lines: list[tuple[str, Callable[[], Any]]] = [
        ("big-M", lambda: big_m_root(scaled, big_m)),
        ("removal saliencies", lambda: saliency(scaled, big_m)),
        ("perspective", lambda: conic(perspective_relaxation(scaled))),
        ("perspective, best split", lambda: conic(perspective_relaxation(scaled, split=split))),
        ("weight cuts", lambda: kelley(scaled, big_m, None)),
        ("weight cuts, best split", lambda: kelley(scaled, big_m, split)),
        ("optimal diagonal", lambda: conic(optimal_diagonal_relaxation(scaled))),
        ("and 2p pairs", lambda: conic(pair_relaxation(scaled, pairs))),
        ("one dual cut", lambda: best.bound.value / scale if best.bound else np.nan),
        ("dual cuts and screening", lambda: first_bound(problem, best) / scale),
    ]  # fmt: skip
    return [measured(case, name, make, best.upper / scale) for name, make in lines]


def conic(model: Any) -> float:
    """Value of a cvxpy model by Clarabel."""
    return float(model.model.solve(solver="CLARABEL"))


def first_bound(problem: Problem, best: OuterApproximation) -> float:
    """Proven before HiGHS starts."""
    return outer_approximation(problem, start=best.solution, round_limit=0).proven


def load_scaled(problem: Problem, unit: float) -> Problem:
    """The same problem with losses in ``unit``."""
    from chita_opt.cli.formulating import in_percent

    assert unit > 0
    return in_percent(problem)


def measured(case: Case, name: str, make: Callable[[], Any], upper: float) -> dict[str, Any]:
    """One row: bound as a gap, cuts, seconds."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Clarabel's accuracy on pairs
        value = make()
    value, cuts = value if isinstance(value, tuple) else (value, None)
    return {
        "instance": case[0], "ridge": case[1], "sparsity": case[2], "formulation": name,
        "root_gap_%": 100.0 * (upper - value) / upper, "cuts": cuts,
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> None:
    """Two tables: proofs, and root bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds an instance")
    parser.add_argument("--only", choices=("proofs", "further", "roots"))
    options = parser.parse_args()
    proof_columns = (
        "instance", "ridge", "sparsity", "status", "gap_%", "witness_gap_%", "seconds", "rounds",
        "cuts", "covers", "nodes", "fixed",
    )  # fmt: skip
    root_columns = (
        "instance", "ridge", "sparsity", "formulation", "root_gap_%", "cuts", "seconds",
    )  # fmt: skip
    outer_approximation(problem_of(("fc2_p20", 1e-3, 0.5)))  # kernels compile once
    if options.only in (None, "proofs"):
        report("formulations_proofs", proofs(PROVEN, options.limit), proof_columns)
    if options.only in (None, "further"):
        report("formulations_further", proofs(FURTHER, options.limit), proof_columns)
    if options.only in (None, "roots"):
        rows = [row for case in ROOTS for row in roots(case)]
        report("formulations_roots", rows, root_columns)


if __name__ == "__main__":
    main()
