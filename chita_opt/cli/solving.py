"""``solve`` and ``certify``: one instance file, one answer, one certificate."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from chita_opt import __version__
from chita_opt.certificates import Certificate
from chita_opt.certificates.pipeline import (
    Effort,
    certify_within,
    check_provable,
    check_seconds,
    less,
    overall_status,
    solve_certified,
)
from chita_opt.certificates.verification import SCOPE
from chita_opt.cli import INTERRUPTED, OK
from chita_opt.cli.options import BudgetChoice, EffortChoice, OutputChoice
from chita_opt.cli.screen import SCOPE_SENTENCE, check_folders, percent, print_json, stages
from chita_opt.errors import DataError
from chita_opt.files import write_atomically
from chita_opt.instances import load_instance
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import family_from_text


def run_solve(
    path: Path,
    ridge: float,
    method: str,
    budget: BudgetChoice,
    choice: EffortChoice,
    output: OutputChoice,
) -> int:
    """Solve an instance, prove a bound, print and write both."""
    begin = time.perf_counter()
    check_folders(output.save_weights, output.save_certificate)
    problem = instance_problem(path, ridge, budget)
    effort = effort_of(choice, method)
    if effort.time_limit is not None:  # the limit is over the whole call, reading included
        left = less(effort.time_limit - (time.perf_counter() - begin), 0.0)
        effort = replace(effort, time_limit=left)
    with stages() as shown:
        certificate = solve_certified(problem, effort, on_stage=shown.begin)
    return _finish(path, certificate, ridge, budget, choice, output, begin)


def run_certify(
    path: Path,
    weights: Path,
    ridge: float,
    budget: BudgetChoice,
    choice: EffortChoice,
    output: OutputChoice,
) -> int:
    """Prove a bound for weights that the user brings."""
    begin = time.perf_counter()
    check_folders(output.save_weights, output.save_certificate)
    w = load_weight_vector(weights)
    if budget.k is None and budget.sparsity is None and budget.family == "cardinality":
        budget = BudgetChoice(k=int((w != 0).sum()), sparsity=None, family=budget.family)
    problem = instance_problem(path, ridge, budget)
    if len(w) != problem.p:
        raise DataError(f"{weights} has {len(w)} weights, {path} has {problem.p}")
    check_provable(problem)
    solution = Solution(problem, w, weights.name, Status.FEASIBLE)
    effort = effort_of(choice)
    limit = choice.time_limit
    if limit is not None:
        limit = less(limit - (time.perf_counter() - begin), check_seconds(problem))
    with stages() as shown:
        certificate = certify_within(solution, effort, limit, on_stage=shown.begin)
    return _finish(path, certificate, ridge, budget, choice, output, begin)


def instance_problem(path: Path, ridge: float, budget: BudgetChoice) -> Problem:
    """The problem of an instance file under the chosen budget."""
    instance = load_instance(path)
    family = family_from_text(budget.family, instance.p, k=budget.k, sparsity=budget.sparsity)
    return instance.problem(ridge=ridge, supports=family)


def effort_of(choice: EffortChoice, method: str = "auto") -> Effort:
    """The library's options for the command line's."""
    return Effort(
        method=method, time_limit=choice.time_limit, target_gap=choice.gap, seed=choice.seed
    )


def load_weight_vector(path: Path) -> Tensor:
    """Read a vector of finite weights from a ``.npy`` file.

    Raises
    ------
    DataError
        If the file is not a plain one-dimensional array of finite floating-point numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind != "f":
        raise DataError(f"{path} must hold one vector of floating-point weights (np.save)")
    if not np.isfinite(array).all():
        raise DataError(f"{path} holds weights that are not finite")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def certificate_report(certificate: Certificate) -> dict[str, Any]:
    """What a certificate says, for JSON."""
    solution, values = certificate.solution, certificate.values
    return {
        "upper": values.upper,
        "lower": values.lower,
        "gap": values.relative_gap,
        "gap_absolute": values.gap,
        "share_of_pruning_everything": values.share_of_all,
        "status": str(overall_status(certificate)),
        "nnz": values.nnz,
        "p": values.p,
        "realised_sparsity": 1.0 - values.nnz / values.p,
        "method": solution.method,
        "bound_proof": certificate.proof,
        "relaxation_upper": certificate.bound.relaxation_upper,
        "screening": certificate.screening.counts,
        "gap_in_gains": certificate.screening.gap_in_gains,
        "method_seconds": solution.seconds,
        "bound_seconds": certificate.bound.seconds,
        "version": __version__,
        "scope": SCOPE,
    }


def certificate_lines(report: dict[str, Any]) -> str:
    """What a certificate says, for people."""
    screening = report["screening"]
    return "\n".join(
        [
            f"method       {report['method']} ({report['status']}), {report['seconds']:.2f} s",
            f"kept         {report['nnz']:,} of {report['p']:,} weights "
            f"(sparsity {report['realised_sparsity']:.6g}), {report['family']}",
            f"objective    {report['upper']:.8g}",
            f"lower bound  {report['lower']:.8g}  ({report['bound_proof']})",
            f"gap          {percent(report['gap'])} of the objective, "
            f"{percent(report['share_of_pruning_everything'])} of the cost of pruning everything",
            f"proven       {screening['kept']:,} weights kept and {screening['pruned']:,} pruned "
            "in every optimal answer",
            SCOPE_SENTENCE,
        ]
    )


def _finish(
    path: Path,
    certificate: Certificate,
    ridge: float,
    budget: BudgetChoice,
    choice: EffortChoice,
    output: OutputChoice,
    begin: float,
) -> int:
    """Write files, print, and say with which code to leave."""
    if output.save_weights is not None:
        buffer = io.BytesIO()
        np.save(buffer, certificate.solution.w.cpu().numpy(), allow_pickle=False)
        write_atomically(output.save_weights, buffer.getvalue())
    if output.save_certificate is not None:
        certificate.save(output.save_certificate)
    supports = certificate.solution.problem.supports
    report = certificate_report(certificate) | {
        "instance": str(path),
        "family": supports.name,
        "k": supports.max_count,
        "requested_sparsity": budget.sparsity,
        "ridge": ridge,
        "seed": choice.seed,
        "seconds": time.perf_counter() - begin,
    }
    if output.as_json:
        print_json(report)
    else:
        click.echo(certificate_lines(report))
    return INTERRUPTED if report["status"] == Status.INTERRUPTED else OK
