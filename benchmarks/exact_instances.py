"""Branch and bound on the named instances: what is proven in 60 s, and the gaps where it is not.

Run: CHITA_OPT_DATA=... python benchmarks/exact_instances.py [--seconds 60] [--workers 2] [--only X]
H = A'A/n + lambda I, k = round((1 - sparsity) p), relative gap 1e-4 on the loss increase.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from measuring import report
from reference_data import data_root

from chita_opt import Budget, TreeOptions, branch_and_bound
from chita_opt.instances import load_instance
from chita_opt.problem import Problem

SMALL = ("fc3_row0", "fc3_row3", "fc2_p20", "fc2_row0", "fc2_row7", "fc2_p50")
SPARSITIES = (0.5, 0.7, 0.9)
PROVEN = [
    *((name, lam, s) for name in SMALL for lam in (1e-4, 1e-3, 1e-2) for s in SPARSITIES),
    ("fc2_p100", 1e-3, 0.5),
    ("fc2_p100", 1e-3, 0.9),
    ("fc2_p200", 1e-3, 0.5),
    ("fc2_p200", 1e-2, 0.5),
    ("fc2_p200", 1e-2, 0.9),
    ("fc2_p400", 1e-2, 0.5),
    ("fc2_p400", 1e-2, 0.9),
    ("fc2", 1e-2, 0.5),
    ("fc3", 1e-2, 0.5),
]
OPEN = {  # gap in percent to be left at most
    ("fc2_p100", 1e-4, 0.7): 10.0,
    ("fc2_p200", 1e-3, 0.9): 8.0,
    ("fc3", 1e-3, 0.5): 2.0,
    ("fc3", 1e-3, 0.9): 25.0,
    ("fc2", 1e-2, 0.9): 0.4,
}
COLUMNS = ("instance", "lambda", "sparsity", "p", "k", "status", "upper", "lower", "gap %",
           "root gap %", "aim %", "reached", "nodes", "newton", "seconds", "cpu s")  # fmt: skip


def load(name: str, lam: float, sparsity: float) -> Problem:
    """One rung of the ladder."""
    instance = load_instance(data_root() / "instances" / f"{name}.npz")
    k = round((1.0 - sparsity) * instance.p)
    return instance.problem(ridge=lam, supports=Budget.cardinality(instance.p, k))


def measure(case: tuple[str, float, float], seconds: float, workers: int) -> dict[str, Any]:
    """Solve one case; the aim is a proof, or a gap."""
    problem = load(*case)
    begin = _processor_seconds()
    found = branch_and_bound(problem, options=TreeOptions(time_limit=seconds, workers=workers))
    cpu = _processor_seconds() - begin
    aim = OPEN.get(case, 0.01)
    gap = 100.0 * found.gap
    values = (
        *case, problem.p, problem.supports.max_count, str(found.status), found.upper, found.lower,
        gap, 100.0 * (found.upper - found.root) / found.upper, aim, bool(gap <= aim * 1.0001),
        found.nodes, int(found.stats["newton_steps"]), found.seconds, cpu,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _processor_seconds() -> float:
    """Of this process; those of workers count only once they have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="part of an instance's name")
    parser.add_argument("--small", action="store_true", help="p <= 50 only")
    choice = parser.parse_args()
    warm = load("fc3_row0", 1e-2, 0.5)
    branch_and_bound(warm)  # compiles
    rows = []
    for case in [*PROVEN, *OPEN]:
        if choice.only in case[0] and (not choice.small or case[0] in SMALL):
            rows.append(measure(case, choice.seconds, choice.workers))
            last = rows[-1]
            print(" ".join(f"{c}={last[c]}" for c in COLUMNS), flush=True)
    note = (
        f"{choice.workers} workers, {choice.seconds:g} s, gap 1e-4; load average at the end "
        f"{os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}"
    )
    name = "exact_instances" + (f"_{choice.only}" if choice.only else "")
    report(name + ("_small" if choice.small else ""), rows, COLUMNS, note)


if __name__ == "__main__":
    main()
