"""Branch and bound beside the MIP solvers that are installed, the same seconds for each.

Run: CHITA_OPT_DATA=... python benchmarks/exact_rivals.py [--seconds 60] [--workers 2] [--only X]
Rivals get the perspective model twice: with the ridge alone, which is what people write down, and
with this package's split, which is stronger. Both come with a proven M and a heuristic's answer.
SCIP is free (``pip install pyscipopt``); Gurobi's and CPLEX's wheels refuse models above a size,
and then say so here. A rival's bound is its own word. ``ours`` proves in a tenth of the time or
leaves a fifth of the gap: then ``clear`` says yes.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from exact_instances import OPEN, load
from measuring import report

from chita_opt import TreeOptions, branch_and_bound
from chita_opt.errors import ChitaError
from chita_opt.exact import solve_with
from chita_opt.problem import Problem

CASES = [
    ("fc2_p50", 1e-3, 0.9),
    ("fc2_p50", 1e-4, 0.7),
    ("fc2_p100", 1e-2, 0.5),
    ("fc2_p100", 1e-3, 0.5),
    ("fc2_p100", 1e-3, 0.9),
    ("fc2_p200", 1e-2, 0.5),
    ("fc2_p200", 1e-2, 0.9),
    *OPEN,
]
RIVALS = ("scip", "gurobi", "cplex")
COLUMNS = ("instance", "lambda", "sparsity", "p", "solver", "split", "gap %", "seconds", "word",
           "ours gap %", "ours s", "clear")  # fmt: skip
PROVEN = 0.0101  # percent


def ours(problem: Problem, seconds: float, workers: int) -> tuple[float, float]:
    """Gap in percent and seconds of the branch and bound."""
    found = branch_and_bound(problem, options=TreeOptions(time_limit=seconds, workers=workers))
    return 100.0 * found.gap, found.seconds


def rival(problem: Problem, solver: str, seconds: float, split: bool) -> dict[str, Any]:
    """A rival's gap, or why there is none."""
    begin = time.perf_counter()
    try:
        found = solve_with(problem, solver, time_limit=seconds, strong_split=split)
    except ChitaError as error:
        return {"word": str(error)}
    return {
        "gap %": 100.0 * found.gap,
        "seconds": time.perf_counter() - begin,
        "word": found.word.rsplit(".", 1)[-1],
    }


def clear(row: dict[str, Any]) -> str:
    """Whether ours proves in a tenth of the time, or leaves a fifth of the gap."""
    if "gap %" not in row:
        return ""
    if row["ours gap %"] <= PROVEN:
        unproven = row["gap %"] > PROVEN
        return "yes" if unproven or row["ours s"] <= 0.1 * row["seconds"] else "no"
    return "yes" if row["ours gap %"] <= 0.2 * row["gap %"] else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="part of an instance's name")
    parser.add_argument("--solvers", nargs="*", default=RIVALS)
    choice = parser.parse_args()
    branch_and_bound(load("fc3_row0", 1e-2, 0.5))  # compiles
    rows = []
    for case in CASES:
        if choice.only not in case[0]:
            continue
        problem = load(*case)
        gap, seconds = ours(problem, choice.seconds, choice.workers)
        for solver in choice.solvers:
            for split in (False, True):
                row = dict(zip(COLUMNS[:6], (*case, problem.p, solver, split), strict=True))
                row |= rival(problem, solver, choice.seconds, split)
                row |= {"ours gap %": gap, "ours s": seconds}
                rows.append(row | {"clear": clear(row)})
                print(" ".join(f"{c}={rows[-1].get(c)}" for c in COLUMNS), flush=True)
    name = "exact_rivals" + (f"_{choice.only}" if choice.only else "")
    report(name, rows, COLUMNS, f"{choice.seconds:g} s each, {choice.workers} workers for ours")


if __name__ == "__main__":
    main()
