"""Random problems of every form and family against enumeration: no wrong proof, no high bound.

Run: python benchmarks/random_exact.py [--count 2000] [--first 0] [--engine tree|highs]
Both engines see the same problems: the branch and bound, and outer approximation with HiGHS.
Sizes up to 16; every third problem has damaged data: bad scales, near singularity, zero columns,
duplicate columns or a tiny ridge.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import report

from chita_opt.errors import CurvatureError
from chita_opt.exact import branch_and_bound, enumerate_optimum, outer_approximation
from chita_opt.solution import Status

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.problems import awkward_problem, random_problem

GAP = 1e-4
COLUMNS = ("engine", "verdict", "problems", "seconds")
ENGINES: dict[str, Callable[..., Any]] = {"tree": branch_and_bound, "highs": outer_approximation}


def judge(seed: int, engine: str) -> str:
    """Give "proven", "open" (a limit came first), "singular", or say what is wrong."""
    problem = awkward_problem(seed) if seed % 3 == 0 else random_problem(seed)
    try:
        optimum = enumerate_optimum(problem).objective
    except CurvatureError:
        return "singular"
    found = ENGINES[engine](problem)
    scale = optimum - problem.dense_minimum
    slack = 1e-11 * (problem.prune_all + abs(problem.dense_minimum) + 1e-300)
    if not found.solution.is_feasible:
        return "WRONG: not allowed"
    if found.lower > optimum + slack:
        return f"WRONG: bound {found.lower} above the optimum {optimum}"
    if found.upper < optimum - slack:
        return f"WRONG: better than the optimum {optimum}: {found.upper}"
    if found.status is Status.OPTIMAL and found.upper - optimum > 1.001 * GAP * scale + slack:
        return f"WRONG: {found.upper} is called optimal, the optimum is {optimum}"
    closed = found.upper - found.lower <= slack  # where nothing is lost a relative gap says nothing
    return "proven" if closed or found.gap <= 1.001 * GAP else "open"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    choice = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for engine in ENGINES if choice.engine == "both" else [choice.engine]:
        begin, verdicts = time.perf_counter(), Counter[str]()
        for seed in range(choice.first, choice.first + choice.count):
            verdict = judge(seed, engine)
            verdicts[verdict.split(":")[0]] += 1
            if verdict.startswith("WRONG"):
                print(engine, seed, verdict, flush=True)
        seconds = time.perf_counter() - begin
        rows += [
            {"engine": engine, "verdict": what, "problems": n, "seconds": seconds}
            for what, n in sorted(verdicts.items())
        ]
    report("random_exact", rows, COLUMNS, f"{choice.count} problems an engine")
    sys.exit(1 if any(row["verdict"] == "WRONG" for row in rows) else 0)


if __name__ == "__main__":
    main()
