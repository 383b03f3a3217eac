"""``prune``: the user's own network."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from torch import nn

from chita_opt.cli import INTERRUPTED, OK
from chita_opt.cli.engine_options import DivisionChoice
from chita_opt.cli.how_run import how_run
from chita_opt.cli.options import (
    BudgetChoice,
    CurvatureChoice,
    EffortChoice,
    LayerChoice,
    NetworkOutput,
    PruneOutput,
    UserCode,
)
from chita_opt.cli.screen import SCOPE_SENTENCE, Stages, check_folders, print_json, stages
from chita_opt.cli.solving import certificate_report
from chita_opt.cli.user_code import LOSSES, build_model, call
from chita_opt.errors import DataError
from chita_opt.nn import PruneOptions, PruningResult, accuracy, prune, save_weights
from chita_opt.nn.gradual_training import GradualResult
from chita_opt.nn.provenance import fingerprint
from chita_opt.nn.pruned_weights import PrunedWeights
from chita_opt.nn.stages import StagedResult
from chita_opt.solution import Status


def run_prune(
    code: UserCode,
    budget: BudgetChoice,
    curvature: CurvatureChoice,
    layers: LayerChoice,
    method: str,
    effort: EffortChoice,
    division: DivisionChoice,
    output: PruneOutput,
) -> int:
    """Prune the user's model, write and print the result."""
    if output.save_certificate is not None and not output.certify:
        raise click.UsageError("--save-certificate needs a bound; leave out --no-certify")
    check_folders(output.out, output.save_certificate)
    model, data, test = read_user_code(code)
    with stages() as shown:
        options = prune_options(budget, curvature, layers, effort, division, output, shown)
        result = prune(
            model,
            LOSSES[code.loss],
            data,
            sparsity=budget.sparsity,
            support=budget.family,
            method=method,
            options=options,
        )
    pruned = result.apply_(copy.deepcopy(model))
    measured = accuracies(model, pruned, test) | {
        "ridge": curvature.ridge, "seed": effort.seed, "run": how_run(code.checkpoint),
        "data": fingerprint(data),
    }  # fmt: skip
    write_network(output, pruned, result, measured)
    report = _report(result) | measured
    if output.save_certificate is not None and result.certificate is not None:
        result.certificate.save(output.save_certificate)
    show(report, result.summary, output)
    return INTERRUPTED if result.solution.status is Status.INTERRUPTED else OK


def prune_options(
    budget: BudgetChoice,
    curvature: CurvatureChoice,
    layers: LayerChoice,
    effort: EffortChoice,
    division: DivisionChoice,
    output: PruneOutput,
    shown: Stages,
) -> PruneOptions:
    """The library's options for the command line's."""
    return PruneOptions(
        **shared_options(budget, curvature, layers, output),
        split=division.split,
        workers=division.workers,
        scheduler=division.scheduler,
        certify=output.certify,
        seed=effort.seed,
        time_limit=effort.time_limit,
        target_gap=effort.gap,
        progress=shown.report,
    )


def shared_options(
    budget: BudgetChoice, curvature: CurvatureChoice, layers: LayerChoice, output: NetworkOutput
) -> dict[str, Any]:
    """What every way of pruning a network has an option for."""
    alpha = curvature.first_order
    return {
        "k": budget.k,
        "curvature": curvature.curvature,
        "rows": curvature.rows,
        "batch_size": curvature.batch_size,
        "first_order": alpha if alpha == "1/m" else float(alpha),
        "ridge": curvature.ridge,
        "ridge_unit": curvature.ridge_unit,
        "scope": layers.scope,
        "include": layers.include or None,
        "exclude": layers.exclude,
        "memory_limit": layers.memory_limit,
        "trust": output.trust,
        "holdout": output.holdout,
    }


def read_user_code(code: UserCode) -> tuple[nn.Module, Any, Any]:
    """The user's model, training data and test samples (None where none were named)."""
    model = build_model(code.model, code.checkpoint)
    return model, call(code.data, "--data")(), read_test_data(code.test)


def finish(
    code: UserCode,
    output: NetworkOutput,
    model: nn.Module,
    test: Any,
    result: StagedResult | GradualResult,
    settings: Mapping[str, Any],
) -> int:
    """Measure, write and print a result without a certificate; the exit code."""
    pruned = result.apply_(copy.deepcopy(model))
    measured = accuracies(model, pruned, test) | {**settings, "run": how_run(code.checkpoint)}
    write_network(output, pruned, result, measured)
    show(result.report() | measured, result.summary, output)
    return INTERRUPTED if result.status is Status.INTERRUPTED else OK


def write_network(
    output: NetworkOutput,
    pruned: nn.Module,
    result: PrunedWeights,
    measured: Mapping[str, Any],
) -> None:
    """The pruned state dict, masks and report with what was measured, where a file was named."""
    if output.out is not None:
        notes = {"report": json.dumps(result.report() | dict(measured))}
        save_weights(output.out, pruned, masks=result.masks, metadata=notes)


def read_test_data(reference: str | None) -> Any:
    """The user's test samples; None where none were named.

    Raises
    ------
    DataError
        If they are no pair.
    """
    if reference is None:
        return None
    test = call(reference, "--test")()
    if not isinstance(test, tuple | list) or len(test) != 2:
        raise DataError(f"--test must return (x, y), got {type(test).__name__}")
    return test


def accuracies(model: nn.Module, pruned: nn.Module, test: Any) -> dict[str, float]:
    """Accuracy before and after; nothing without test samples."""
    if test is None:
        return {}
    return {"dense_accuracy": accuracy(model, *test), "accuracy": accuracy(pruned, *test)}


def _report(result: PruningResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "upper": result.objective,
        "lower": None,
        "gap": None,
        "status": str(result.solution.status),
        "nnz": result.solution.nnz,
        "method": result.solution.method,
        "bound_proof": None,
    }
    if result.certificate is not None:
        found |= certificate_report(result.certificate)
    own = result.report()
    own.pop("certificate")
    seconds = {"seconds": result.seconds["total"], "stage_seconds": dict(result.seconds)}
    return own | found | seconds


def show(report: dict[str, Any], summary: str, output: NetworkOutput) -> None:
    """Print the report, or the summary and what was written."""
    if output.as_json:
        print_json(report)
        return
    click.echo(summary)
    if "accuracy" in report:
        before, after = report["dense_accuracy"], report["accuracy"]
        click.echo(f"test accuracy {before:.2f} % before, {after:.2f} % after")
    path: Path | None = output.out
    if path is not None:
        click.echo(f"wrote {path}")
    click.echo(SCOPE_SENTENCE)


__all__ = [
    "accuracies",
    "finish",
    "prune_options",
    "read_test_data",
    "read_user_code",
    "run_prune",
    "shared_options",
    "show",
    "write_network",
]
