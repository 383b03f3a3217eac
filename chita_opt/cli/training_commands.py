"""The command that prunes while it trains. Imports come when it runs."""

from __future__ import annotations

from chita_opt.cli import gradual_options as go
from chita_opt.cli import options as o
from chita_opt.cli.group import EXIT_CODES, app


@app.command(epilog=EXIT_CODES)
@o.grouped("code", o.UserCode, *o.code_options)
@o.grouped("budget", o.BudgetChoice, *o.support_options)
@o.grouped("curvature", o.CurvatureChoice, *go.measuring_options)
@o.grouped("layers", o.LayerChoice, *o.layer_options)
@go.method_option
@o.grouped("training", go.TrainingChoice, *go.training_options)
@o.grouped("gradual", go.GradualChoice, *go.gradual_options)
@o.grouped("output", o.NetworkOutput, *o.network_output_options)
def prune_and_train(
    code: o.UserCode,
    budget: o.BudgetChoice,
    curvature: o.CurvatureChoice,
    layers: o.LayerChoice,
    method: str,
    training: go.TrainingChoice,
    gradual: go.GradualChoice,
    output: o.NetworkOutput,
) -> int:
    """Prune your own model step by step while it trains (gradual pruning).

    --data are training data, of which some are held out. With --progress-file and --resume a run
    that was stopped or killed at any moment goes on to the same result.
    """
    from chita_opt.cli.gradual import library_options, run_gradual

    options = library_options(budget, curvature, layers, training, gradual, output)
    return run_gradual(code, budget, options, method, output)
