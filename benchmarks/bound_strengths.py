"""Bounds of every strength on the named instances: gap to the best value, seconds, file size.

Run: CHITA_OPT_DATA=... python benchmarks/bound_strengths.py [--seconds 30] [--only X]
Each bound is saved with its witness and verified again with numpy; "gap %" is of the verified one,
on the loss increase. "blocks" are three instances side by side under one total.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import report
from reference_data import data_root

from chita_opt import Budget, TreeOptions, branch_and_bound, save_proof, verify
from chita_opt.curvature import BlockDiagonal
from chita_opt.errors import ProblemError
from chita_opt.exact import lower_bound, solve_blocks
from chita_opt.exact.strengths import STRENGTHS
from chita_opt.instances import load_instance
from chita_opt.problem import Problem

NAMES = ("fc3_row0", "fc2_p20", "fc2_p50")
BLOCKS = ("fc3_row0", "fc3_row3", "fc2_p20")
CASES = ((1e-3, 0.5), (1e-3, 0.9), (1e-4, 0.7))
COLUMNS = ("instance", "lambda", "sparsity", "p", "strength", "lower", "verified", "gap %",
           "seconds", "verify s", "KiB")  # fmt: skip


def problems() -> Iterator[tuple[str, float, float, Problem]]:
    """The named instances, then the blocks."""
    folder = data_root() / "instances"
    found = {name: load_instance(folder / f"{name}.npz") for name in {*NAMES, *BLOCKS}}
    for lam, sparsity in CASES:
        for name in NAMES:
            p = found[name].p
            family = Budget.cardinality(p, round((1.0 - sparsity) * p))
            yield name, lam, sparsity, found[name].problem(ridge=lam, supports=family)
        every = [Budget.cardinality(found[name].p, found[name].p) for name in BLOCKS]
        parts = [
            found[name].problem(ridge=lam, supports=family)
            for name, family in zip(BLOCKS, every, strict=True)
        ]
        p = sum(part.p for part in parts)
        yield (
            "blocks", lam, sparsity,
            Problem(
                BlockDiagonal([part.curvature for part in parts]),
                torch.cat([part.w_bar for part in parts]), lam,
                Budget.cardinality(p, round((1.0 - sparsity) * p)),
            ),
        )  # fmt: skip


def measure(problem: Problem, strength: str, best: float, seconds: float) -> dict[str, Any] | None:
    """One bound, saved and verified; None where the problem is not of its kind."""
    begin = time.perf_counter()
    try:
        limit = 50 if strength == "tree" else None
        found = lower_bound(problem, strength=strength, time_limit=seconds, node_limit=limit)
    except ProblemError:
        return None
    spent = time.perf_counter() - begin
    with TemporaryDirectory() as folder:
        file = Path(folder) / "bound"
        save_proof(found, file)
        begin = time.perf_counter()
        verified = verify(file).lower
        checking, size = time.perf_counter() - begin, file.stat().st_size / 1024
    gap = 100.0 * (best - verified) / (best - problem.dense_minimum)
    values = (strength, found.value, verified, gap, spent, checking, size)
    return dict(zip(COLUMNS[4:], values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only", default="", help="part of an instance's name")
    choice = parser.parse_args()
    rows = []
    for name, lam, sparsity, problem in problems():
        if choice.only not in name:
            continue
        solver = solve_blocks if name == "blocks" else branch_and_bound
        best = solver(problem, options=TreeOptions(time_limit=choice.seconds)).upper
        for strength in STRENGTHS:
            row = measure(problem, strength, best, choice.seconds)
            if row is not None:
                case = {"instance": name, "lambda": lam, "sparsity": sparsity, "p": problem.p}
                rows.append(case | row)
                print(rows[-1], flush=True)
    note = (
        f"{choice.seconds:g} s a bound, trees of at most 50 nodes; load average at the end "
        f"{os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}"
    )
    report("bound_strengths" + (f"_{choice.only}" if choice.only else ""), rows, COLUMNS, note)


if __name__ == "__main__":
    main()
