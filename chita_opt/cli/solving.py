"""``solve`` and ``certify``: one instance file, one answer, one certificate."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from chita_opt.cli.how_run import how_run
from chita_opt.cli.options import EffortChoice, InstanceBudget, OutputChoice
from chita_opt.cli.screen import SCOPE_SENTENCE, check_folders, percent, print_json, stages
from chita_opt.errors import DataError
from chita_opt.files import write_atomically
from chita_opt.instances import load_instance
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import family_from_text


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one call asks for, and when it began.

    Attributes
    ----------
    instance : Path
        The problem's file.
    ridge : float
        Added to the curvature.
    budget, choice, output
        The command line's options.
    begin : float
        ``time.perf_counter()`` at the start: a time limit is over the whole call.
    """

    instance: Path
    ridge: float
    budget: InstanceBudget
    choice: EffortChoice
    output: OutputChoice
    begin: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float | None:
        """Seconds left of the time limit."""
        limit = self.choice.time_limit
        return None if limit is None else less(limit - self.elapsed, 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begin

    def problem(self) -> Problem:
        """The instance under the chosen budget."""
        return instance_problem(self.instance, self.ridge, self.budget)

    def save_weights(self, solution: Solution) -> None:
        """Write the weights where a file was asked for."""
        if self.output.save_weights is not None:
            buffer = io.BytesIO()
            np.save(buffer, solution.w.cpu().numpy(), allow_pickle=False)
            write_atomically(self.output.save_weights, buffer.getvalue())

    def context(self, problem: Problem) -> dict[str, Any]:
        """What every report repeats of the question."""
        return {
            "instance": str(self.instance),
            "family": problem.supports.name,
            "k": problem.supports.max_count,
            "requested_sparsity": self.budget.sparsity,
            "ridge": self.ridge,
            "seed": self.choice.seed,
            "seconds": self.elapsed,
            "run": how_run(self.instance),
        }

    def show(self, report: dict[str, Any], lines: Callable[[dict[str, Any]], str]) -> int:
        """Print JSON or lines; the exit code."""
        if self.output.as_json:
            print_json(report)
        else:
            click.echo(lines(report))
        return INTERRUPTED if report["status"] == Status.INTERRUPTED else OK


def run_solve(request: Request, method: str) -> int:
    """Solve an instance, prove a bound, print and write both."""
    check_folders(request.output.save_weights, request.output.save_certificate)
    problem = request.problem()
    effort = replace(effort_of(request.choice, method), time_limit=request.left)
    with stages() as shown:
        certificate = solve_certified(problem, effort, on_stage=shown.begin)
    return _finish(request, certificate)


def run_certify(request: Request, weights: Path) -> int:
    """Prove a bound for weights that the user brings."""
    check_folders(request.output.save_weights, request.output.save_certificate)
    w, budget = load_weight_vector(weights), request.budget
    if budget.k is None and budget.sparsity is None and budget.family == "cardinality":
        budget = replace(budget, k=int((w != 0).sum()))
        request = replace(request, budget=budget)
    problem = request.problem()
    if len(w) != problem.p:
        raise DataError(f"{weights} has {len(w)} weights, {request.instance} has {problem.p}")
    check_provable(problem)
    solution = Solution(problem, w, weights.name, Status.FEASIBLE)
    limit = request.left
    if limit is not None:
        limit = less(limit, check_seconds(problem))
    effort = effort_of(request.choice)
    with stages() as shown:
        certificate = certify_within(solution, effort, limit, on_stage=shown.begin)
    return _finish(request, certificate)


def instance_problem(path: Path, ridge: float, budget: InstanceBudget) -> Problem:
    """The problem of an instance file under the chosen budget."""
    instance = load_instance(path)
    family = family_from_text(
        budget.family, instance.p, k=budget.k, sparsity=budget.sparsity, shapes=budget.shapes
    )
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
        "method_passes": solution.passes(),
        "bound_seconds": certificate.bound.seconds,
        "history": certificate.history,
        "version": __version__,
        "scope": SCOPE,
    }


def certificate_lines(report: dict[str, Any]) -> str:
    """What a certificate says, for people."""
    screening = report["screening"]
    return "\n".join(
        [
            *headline(report, f" ({report['method_passes']:.0f} passes over the data to solve)"),
            f"proven       {screening['kept']:,} weights kept and {screening['pruned']:,} pruned "
            "in every optimal answer",
            SCOPE_SENTENCE,
        ]
    )


def headline(report: dict[str, Any], effort: str = "") -> list[str]:
    """Method, support, objective, bound and gap; ``effort`` follows the seconds."""
    return [
        f"method       {report['method']} ({report['status']}), {report['seconds']:.2f} s{effort}",
        f"kept         {report['nnz']:,} of {report['p']:,} weights "
        f"(sparsity {report['realised_sparsity']:.6g}), {report['family']}",
        f"objective    {report['upper']:.8g}",
        f"lower bound  {report['lower']:.8g}  ({report['bound_proof']})",
        f"gap          {percent(report['gap'])} of the objective, "
        f"{percent(report['share_of_pruning_everything'])} of the cost of pruning everything",
    ]


def _finish(request: Request, certificate: Certificate) -> int:
    """Write files, print, and say with which code to leave."""
    solution = certificate.solution
    request.save_weights(solution)
    if request.output.save_certificate is not None:
        certificate.save(request.output.save_certificate)
    report = certificate_report(certificate) | request.context(solution.problem)
    return request.show(report, certificate_lines)
