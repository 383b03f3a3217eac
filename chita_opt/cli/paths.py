"""``path``: values and proven bounds for every number of kept weights, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from chita_opt import __version__
from chita_opt.certificates.verification import SCOPE
from chita_opt.cli import INTERRUPTED, OK
from chita_opt.cli.options import TreeChoice
from chita_opt.cli.screen import (
    SCOPE_SENTENCE,
    check_folders,
    json_text,
    number,
    percent,
    print_json,
    print_table,
    stages,
)
from chita_opt.cli.solving import Request
from chita_opt.errors import ProblemError
from chita_opt.exact import KPath, TreeOptions, k_path
from chita_opt.exact.result import relative_gap
from chita_opt.files import write_atomically
from chita_opt.instances import load_instance
from chita_opt.solution import Status


def run_path(request: Request, tree: TreeChoice, ks: Sequence[int], out: Path | None) -> int:
    """Solve an instance for every count, print the table, write table and proof."""
    check_folders(out, tree.proof)
    budget = request.budget
    if budget.k is None and budget.sparsity is None and budget.family == "cardinality":
        every = replace(budget, k=load_instance(request.instance).p)
        request = replace(request, budget=every)
    problem = request.problem()
    options = TreeOptions(
        gap=request.choice.search_gap,
        time_limit=request.left,
        node_limit=tree.node_limit,
        workers=tree.workers,
        proof=tree.proof is not None,
        log=(lambda line: click.echo(line, err=True)) if tree.log else None,
    )
    with stages() as shown:
        shown.begin("path")
        path = k_path(problem, ks=ks or None, options=options)
    report = _report(path) | request.context(problem) | _proved(path, tree.proof)
    if out is not None:
        write_atomically(out, json_text(report).encode())
    if request.output.as_json:
        print_json(report)
    else:
        _show(path, report)
    return INTERRUPTED if path.status is Status.INTERRUPTED else OK


def parse_counts(text: str | None) -> list[int]:
    """Counts from "1,2,5-8"; none from None.

    Raises
    ------
    ProblemError
        If the text is something else.
    """
    counts: list[int] = []
    for part in [] if text is None else text.split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ProblemError(f"--ks {text!r}: write counts and ranges, as 1,2,5-8")
        counts += range(int(ends[0]), int(ends[-1]) + 1)
    return counts


def _report(path: KPath) -> dict[str, Any]:
    """What ``plot trade-off`` draws, one row a count."""
    problem, floor = path.problem, path.problem.dense_minimum
    rows = []
    for k, upper, lower in zip(path.ks, path.upper, path.lower, strict=True):
        row: dict[str, Any] = {"family": problem.supports.name, "kept": int(k)}
        if k:
            row["ratio"] = problem.p / int(k)
        row |= {"objective": float(upper), "lower": float(lower)}
        rows.append(row | {"gap": relative_gap(float(lower), float(upper), float(upper) - floor)})
    return {
        "rows": rows,
        "status": str(path.status),
        "nodes": path.nodes,
        "version": __version__,
        "scope": SCOPE,
    }


def _proved(path: KPath, proof: Path | None) -> dict[str, Any]:
    """Write the proof log; what it proves for the largest count."""
    if proof is None:
        return {}
    from chita_opt.certificates import save_proof

    report = save_proof(path, proof)
    return {"proof_steps": report.steps, "proof_lower": report.lower}


def _show(path: KPath, report: dict[str, Any]) -> None:
    cells = [
        [f"{row['kept']:,}", number(row["objective"], 6), number(row["lower"], 6),
         percent(row["gap"])]
        for row in report["rows"]
    ]  # fmt: skip
    title = f"{report['family']}, ridge {number(report['ridge'])}"
    print_table(title, ["kept at most", "objective", "lower bound", "gap"], cells)
    click.echo(f"{path.status}, {path.nodes:,} nodes, {report['seconds']:.2f} s")
    if "proof_steps" in report:
        click.echo(f"proof        {report['proof_steps']:,} steps")
    click.echo(SCOPE_SENTENCE)


__all__ = ["parse_counts", "run_path"]
