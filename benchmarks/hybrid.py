"""The hybrid on MLPNet: its objective beside every method's, its gap beside the plain dual bound's.

784-40-20-10, p = 32,360 weights, n = 1,000 rows of one image each, cardinality. Seconds of the
hybrid are from A in memory to the certified pair; the certificate is then written, and read and
verified again. The gap is about the quadratic model, not about accuracy, which is printed beside
it before and after.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import report
from reference_data import mlp_accuracy, mlp_gradients

import chita_opt as co
from chita_opt.certificates import verify_file
from chita_opt.certificates.pipeline import Effort, solve_certified
from chita_opt.certificates.verification import SCOPE
from chita_opt.heuristics import METHODS

COLUMNS = (
    "sparsity", "method", "objective", "lower", "gap_%", "plain_gap_%", "share_of_plain", "seconds",
    "accuracy_%",
)  # fmt: skip
ROUNDING = 1e-9  # of the upper end that a certificate gives, relative
SHARE = 2 / 3  # of the plain bound's gap, which the hybrid's may not exceed


def methods(problem: co.Problem, limit: float) -> list[dict[str, Any]]:
    """Every method of the table that serves the problem, each for at most ``limit`` seconds."""
    rows = []
    for name, method in METHODS.items():
        if not method.serves(problem):
            continue
        begin = time.perf_counter()
        found = co.solve(problem, name, time_limit=limit)
        rows.append(
            {
                "method": name,
                "objective": found.objective,
                "seconds": time.perf_counter() - begin,
                "accuracy_%": mlp_accuracy(found.w),
            }
        )
    return rows


def plain_row(problem: co.Problem) -> dict[str, Any]:
    """The default pipeline: its method at its full care, then the dual bound."""
    begin = time.perf_counter()
    certificate = solve_certified(problem)
    return {
        "method": "default and dual bound",
        "objective": certificate.upper,
        "lower": certificate.lower,
        "gap_%": 100 * certificate.relative_gap,
        "seconds": time.perf_counter() - begin,
        "accuracy_%": mlp_accuracy(certificate.solution.w),
    }


def hybrid_row(problem: co.Problem, limit: float) -> dict[str, Any]:
    """The hybrid within ``limit`` seconds, certificate included; the file is verified."""
    begin = time.perf_counter()
    certificate = solve_certified(problem, Effort(method="hybrid", time_limit=limit))
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hybrid.safetensors"
        certificate.save(path)
        begin = time.perf_counter()
        checked = verify_file(path)
    return {
        "method": "hybrid",
        "objective": certificate.upper,
        "lower": checked.lower,
        "gap_%": 100 * checked.relative_gap,
        "seconds": seconds,
        "check_s": time.perf_counter() - begin,
        "accuracy_%": mlp_accuracy(certificate.solution.w),
        "stats": {k: v for k, v in certificate.solution.stats.items() if type(v) is float},
        "trace": [list(row) for row in certificate.solution.trace.rows],
    }


def main() -> None:
    """Both sparsities; the summary says what was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsities", nargs="*", type=float, default=[0.9, 0.98])
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of the hybrid")
    parser.add_argument("--method-limit", type=float, default=30.0, help="seconds of each method")
    parser.add_argument("--ridge", type=float, default=1e-3)
    options = parser.parse_args()
    data = mlp_gradients(1)
    p = data.A.shape[1]
    table: list[dict[str, Any]] = []
    notes = [f"dense accuracy {mlp_accuracy(data.w_bar):.2f} %"]
    for sparsity in options.sparsities:
        family = co.Budget.cardinality(p, int((1 - sparsity) * p))
        problem = co.from_gradients(data.A, data.w_bar, ridge=options.ridge, supports=family)
        plain = plain_row(problem)
        rows = [*methods(problem, options.method_limit), plain]
        own = hybrid_row(problem, options.limit)
        own["plain_gap_%"] = plain["gap_%"]
        own["share_of_plain"] = own["gap_%"] / plain["gap_%"]
        level = min(row["objective"] for row in rows) * (1.0 + ROUNDING)
        where = "at or below" if own["objective"] <= level else "ABOVE"
        notes.append(
            f"{sparsity:g}: objective {where} the best other, gap "
            f"{own['share_of_plain']:.2f} of the plain one's (asked: {SHARE:.2f})"
        )
        table += [{"sparsity": sparsity, **row} for row in [*rows, own]]
    notes.append(f"objective, bound and gap are {SCOPE}; {torch.get_num_threads()} threads")
    report("hybrid", table, COLUMNS, "; ".join(notes))


if __name__ == "__main__":
    main()
