"""Commands about networks. Imports come when a command runs."""

from __future__ import annotations

from pathlib import Path

import click

from chita_opt.cli import engine_options as eo
from chita_opt.cli import options as o
from chita_opt.cli import stage_options as so
from chita_opt.cli.group import EXIT_CODES, app


@app.command(epilog=EXIT_CODES)
@o.grouped("code", o.UserCode, *o.code_options)
@o.grouped("budget", o.BudgetChoice, *o.support_options)
@o.grouped("curvature", o.CurvatureChoice, *o.curvature_options)
@o.grouped("layers", o.LayerChoice, *o.layer_options)
@o.method_option
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.grouped("division", eo.DivisionChoice, *eo.division_options)
@o.grouped("output", o.PruneOutput, *o.prune_output_options)
def prune(
    code: o.UserCode,
    budget: o.BudgetChoice,
    curvature: o.CurvatureChoice,
    layers: o.LayerChoice,
    method: str,
    effort: o.EffortChoice,
    division: eo.DivisionChoice,
    output: o.PruneOutput,
) -> int:
    """Prune your own model, given as MODULE:FUNCTION; modules are found from this folder.

    --out gets the whole pruned state dict and the masks (safetensors).
    """
    from chita_opt.cli.pruning import run_prune

    return run_prune(code, budget, curvature, layers, method, effort, division, output)


@app.command(epilog=EXIT_CODES)
@o.grouped("code", o.UserCode, *o.code_options)
@o.grouped("budget", o.BudgetChoice, *o.support_options)
@o.grouped("curvature", o.CurvatureChoice, *so.measuring_options)
@o.grouped("layers", o.LayerChoice, *o.layer_options)
@so.method_option
@o.grouped("choice", so.StageChoice, *so.stage_options)
@o.grouped("output", o.NetworkOutput, *o.network_output_options)
def prune_in_stages(
    code: o.UserCode,
    budget: o.BudgetChoice,
    curvature: o.CurvatureChoice,
    layers: o.LayerChoice,
    method: str,
    choice: so.StageChoice,
    output: o.NetworkOutput,
) -> int:
    """Prune your own model in stages of rising sparsity (CHITA++); for 90 % and more.

    Every stage measures the gradients again at the weights that the stage before left. --data are
    training data: with the linear term on, the stages train the network as well.
    """
    from chita_opt.cli.staging import run_staged

    return run_staged(code, budget, curvature, layers, method, choice, output)


@app.command(epilog=EXIT_CODES)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("chita-demo"),
    show_default=True,
    help="Folder for the certificate and the plots.",
)
@click.option(
    "--sparsities", default="0.5,0.8,0.9,0.95,0.98", show_default=True, help="Separated by commas."
)
@click.option(
    "--time-limit",
    type=o.seconds,
    default=8.0,
    show_default=True,
    help="Seconds for each method, and for each bound.",
)
@o.seed_option
@o.json_option
def demo(out: Path, sparsities: str, time_limit: float, seed: int, as_json: bool) -> int:
    """Prune a small trained network by several methods and prove how good each result is.

    The network is the paper's 784-40-20-10 perceptron, trained on 4,000 real MNIST images; it is
    part of the package. Takes about a minute.
    """
    from chita_opt.cli.demo import run_demo

    return run_demo(out, sparsities.split(","), time_limit, seed, as_json)
