"""Random problems of every form and family against enumeration: no wrong proof, no high bound.

Run: python benchmarks/random_exact.py [--count 2000] [--first 0]
Sizes up to 16; every third problem has damaged data: bad scales, near singularity, zero columns,
duplicate columns or a tiny ridge.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from measuring import report

from chita_opt.errors import CurvatureError
from chita_opt.exact import branch_and_bound, enumerate_optimum
from chita_opt.solution import Status

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.problems import awkward_problem, random_problem

GAP = 1e-4


def judge(seed: int) -> str:
    """Give "proven", "open" (a limit came first), "singular", or say what is wrong."""
    problem = awkward_problem(seed) if seed % 3 == 0 else random_problem(seed)
    try:
        optimum = enumerate_optimum(problem).objective
    except CurvatureError:
        return "singular"
    found = branch_and_bound(problem)
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
    return "proven" if found.gap <= 1.001 * GAP else "open"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    choice = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    verdicts = Counter[str]()
    for seed in range(choice.first, choice.first + choice.count):
        verdict = judge(seed)
        verdicts[verdict.split(":")[0]] += 1
        if verdict.startswith("WRONG"):
            print(seed, verdict, flush=True)
    rows = [{"verdict": k, "problems": n} for k, n in sorted(verdicts.items())]
    seconds = time.perf_counter() - begin
    report(
        "random_exact", rows, ("verdict", "problems"), f"{choice.count} problems, {seconds:.0f} s"
    )
    sys.exit(1 if verdicts["WRONG"] else 0)


if __name__ == "__main__":
    main()
