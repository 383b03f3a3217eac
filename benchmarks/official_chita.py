"""MLPNet: the default method beside the best of the official CHITA code, row by row.

Objectives are in the official code's units (n times ours, plus the constant a'w_bar). Time is in
passes over A (A x plus A'y): ours measured in this run, the official active-set solver's from its
own run. The accuracy column is on all 10,000 test images: a lower objective is not always a better
network.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from measuring import pass_seconds, report
from reference_data import OFFICIAL_PASS, Gradients, mlp_accuracy, mlp_gradients, official_rows

import chita_opt as co
from chita_opt.solution import Solution

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
COLUMNS = (
    "m", "first_order", "ridge", "sparsity", "ours", "official_best", "by", "below_%", "live",
    "official_live", "accuracy", "passes", "active_passes", "passes_to_active", "tenth",
)  # fmt: skip


def official(m: int, first_order: bool, ridge: float, sparsity: float) -> dict[str, Any]:
    """Best official objective of any algorithm, and the active-set solver's row."""
    rows = [
        r for r in official_rows()
        if r["instance"] == f"mlp_global_m{m}" and r["first_order"] == first_order
        and r["l2"] == ridge and r["sparsity"] == sparsity
    ]  # fmt: skip
    best = min(rows, key=lambda r: r["objective"])
    live = [r for r in rows if r["objective_live"] is not None]
    active = [r for r in rows if r["algo"] == "Active_IHTCDLS"]
    return {
        "k": best["k"],
        "best": best["objective"],
        "by": best["algo"],
        "live": min(r["objective_live"] for r in live) if live else None,
        "active": active[0] if active else None,
    }


def in_official_units(solution: Solution, rows: Gradients, g: torch.Tensor) -> float:
    """N f + a'w_bar."""
    n = rows.A.shape[0]
    return n * (solution.objective + float(g @ rows.w_bar))


def compare(
    m: int, first_order: bool, ridge: float, sparsity: float, pass_time: float
) -> dict[str, Any]:
    """One row of the table."""
    rows = mlp_gradients(m)
    theirs = official(m, first_order, ridge, sparsity)
    p = rows.A.shape[1]
    alpha = 1.0 / m if first_order else 0.0
    supports = co.Budget.cardinality(p, theirs["k"])
    problem = co.from_gradients(
        rows.A, rows.w_bar, ridge=ridge, supports=supports, first_order=alpha
    )
    solution = co.solve(problem)
    ours = in_official_units(solution, rows, problem.g)
    row = {
        "m": m, "first_order": first_order, "ridge": ridge, "sparsity": sparsity, "ours": ours,
        "official_best": theirs["best"], "by": theirs["by"],
        "below_%": 100 * (theirs["best"] - ours) / abs(theirs["best"]),
        "accuracy": mlp_accuracy(solution.w), "passes": solution.seconds / pass_time,
        "seconds": solution.seconds,
    }  # fmt: skip
    if theirs["live"] is not None:
        row["live"], row["official_live"] = live_objective(problem, rows), theirs["live"]
    if theirs["active"] is not None:
        row |= against_active(solution, theirs["active"], rows, problem.g, pass_time)
    return row


def live_objective(problem: co.Problem, rows: Gradients) -> float:
    """Our objective when weights of zero gradient columns are dropped free of charge, as theirs."""
    live = rows.A.abs().amax(0) > 0
    if bool(live.all()):
        return in_official_units(co.solve(problem), rows, problem.g)
    k = problem.supports.max_count
    small = co.Problem(
        co.LowRank(rows.A[:, live], problem.curvature.scale), problem.w_bar[live],
        problem.rho[live], co.Budget.cardinality(int(live.sum()), k), problem.g[live],
    )  # fmt: skip
    return len(rows.A) * (co.solve(small).objective + float(problem.g @ rows.w_bar))


def against_active(
    solution: Solution, active: dict[str, Any], rows: Gradients, g: torch.Tensor, pass_time: float
) -> dict[str, Any]:
    """Passes until the active-set solver's objective was reached."""
    n = rows.A.shape[0]
    goal = active["objective"] / n - float(g @ rows.w_bar)
    reached = [t for t, value in solution.trace.rows if value <= goal]
    passes = active["cpu_seconds"] / OFFICIAL_PASS
    return {
        "active_objective": active["objective"],
        "active_passes": passes,
        "passes_to_active": reached[0] / pass_time if reached else None,
        "tenth": passes / 10,
    }


def main() -> None:
    """Run every row, or those that the options leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--m", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--ridge", type=float, nargs="*", default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--sparsity", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--first-order", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    table = []
    for m in options.m:
        rows = mlp_gradients(m)
        pass_time = pass_seconds(co.LowRank(rows.A, 1.0))
        for first_order in options.first_order:
            for ridge in options.ridge:
                for sparsity in options.sparsity:
                    table.append(compare(m, bool(first_order), ridge, sparsity, pass_time))
    timed = [r for r in table if "tenth" in r]
    misses = sum(r["ours"] > r["official_best"] for r in table)
    slow = sum(r["passes_to_active"] is None or r["passes_to_active"] > r["tenth"] for r in timed)
    late = sum(r["passes"] > r.get("active_passes", float("inf")) for r in table)
    note = (f"{len(table)} rows; above the official best: {misses}; later than a tenth of the "
            f"active set's passes: {slow}; longer than it in all: {late}; "
            f"one pass {1e3 * pass_time:.1f} ms")  # fmt: skip
    report("official_chita", table, COLUMNS, note)


if __name__ == "__main__":
    main()
