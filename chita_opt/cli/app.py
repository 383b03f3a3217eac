"""The commands. Each imports what it needs when it runs, so that help and verify start fast."""

from __future__ import annotations

from pathlib import Path

import click

from chita_opt import __version__
from chita_opt.cli import options as o
from chita_opt.cli import stage_options as so

_EXIT_CODES = """\b
Exit codes:
  0    done
  1    verify: the claim is refused
  2    bad usage or bad input
  130  interrupted (Ctrl-C); solve, certify and prune still print the best answer so far
"""

_existing = click.Path(exists=True, dir_okay=False, path_type=Path)
_instance = click.argument("instance", type=_existing)


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chita-opt")
@click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors.")
def app(debug: bool) -> None:
    """Prune neural networks by optimisation, with a proof of how good the result is.

    Bounds and gaps are about the quadratic model of the loss, not about the network's accuracy.
    """


@app.command(epilog=_EXIT_CODES)
@_instance
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@o.solve_method_option
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.grouped("tree", o.TreeChoice, *o.tree_options)
@o.grouped("output", o.OutputChoice, *o.output_options)
def solve(
    instance: Path,
    ridge: float,
    method: str,
    budget: o.InstanceBudget,
    effort: o.EffortChoice,
    tree: o.TreeChoice,
    output: o.OutputChoice,
) -> int:
    """Solve the quadratic problem in INSTANCE and prove a bound.

    INSTANCE is a .npz file with A (samples x weights; the curvature is A'A/n) or H (weights x
    weights), w_bar, and optionally g. Give --k or --sparsity, or a family such as 2:4.
    """
    if tree.named and method not in ("auto", "bnb"):
        raise click.UsageError(f"{', '.join(tree.named)} needs --method bnb or auto")
    from chita_opt.cli.solving import Request, run_solve

    request = Request(instance=instance, ridge=ridge, budget=budget, choice=effort, output=output)
    if method in ("auto", "bnb", "highs"):
        from chita_opt.cli.solving_exactly import run_exact

        return run_exact(request, method, tree)
    return run_solve(request, "relax_round" if method == "relaxation" else method)


@app.command(epilog=_EXIT_CODES)
@_instance
@click.option(
    "--weights",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your weights (.npy), zero where pruned.",
)
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.grouped("output", o.OutputChoice, *o.output_options)
def certify(
    instance: Path,
    weights: Path,
    ridge: float,
    budget: o.InstanceBudget,
    effort: o.EffortChoice,
    output: o.OutputChoice,
) -> int:
    """Prove how far your own weights are from the best allowed ones of INSTANCE.

    Without --k, --sparsity and --family the budget is the number of your weights that are not
    zero.
    """
    from chita_opt.cli.solving import Request, run_certify

    request = Request(instance=instance, ridge=ridge, budget=budget, choice=effort, output=output)
    return run_certify(request, weights)


@app.command(epilog=_EXIT_CODES)
@click.argument("certificate", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--problem",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The problem's own file, if the certificate was saved without it.",
)
@click.option(
    "--instance",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check too that the certificate is about this instance (.npz).",
)
@o.json_option
def verify(certificate: Path, problem: Path | None, instance: Path | None, as_json: bool) -> int:
    """Re-check everything that CERTIFICATE claims, with numpy alone.

    Exit code 1 if a byte was changed, or a claim is better than what the data give.
    """
    from chita_opt.cli.verifying import run_verify

    return run_verify(certificate, problem, instance, as_json)


@app.command(epilog=_EXIT_CODES)
@o.grouped("code", o.UserCode, *o.code_options)
@o.grouped("budget", o.BudgetChoice, *o.support_options)
@o.grouped("curvature", o.CurvatureChoice, *o.curvature_options)
@o.grouped("layers", o.LayerChoice, *o.layer_options)
@o.method_option
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.grouped("output", o.PruneOutput, *o.prune_output_options)
def prune(
    code: o.UserCode,
    budget: o.BudgetChoice,
    curvature: o.CurvatureChoice,
    layers: o.LayerChoice,
    method: str,
    effort: o.EffortChoice,
    output: o.PruneOutput,
) -> int:
    """Prune your own model, given as MODULE:FUNCTION; modules are found from this folder.

    --out gets the whole pruned state dict and the masks (safetensors).
    """
    from chita_opt.cli.pruning import run_prune

    return run_prune(code, budget, curvature, layers, method, effort, output)


@app.command(epilog=_EXIT_CODES)
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


@app.command(epilog=_EXIT_CODES)
@_instance
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@click.option(
    "--model",
    type=click.Choice(o.MODEL_NAMES),
    default="perspective",
    show_default=True,
    help="Formulation: see formulations/README.md.",
)
@click.option(
    "--to",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .lp, .mps, .nl or .gms.",
)
@o.json_option
def formulate(
    instance: Path, budget: o.InstanceBudget, ridge: float, model: str, to: Path, as_json: bool
) -> int:
    """Write the problem in INSTANCE as a model file for a solver of your own.

    big-M values are proven from an incumbent, and perspective and weight-cuts get a strong split
    of the curvature. HiGHS takes dual-cuts and weight-cuts; the others are mixed-integer quadratic
    (SCIP reads .mps and .nl, Gurobi, CPLEX and Xpress .lp and .mps).
    """
    from chita_opt.cli.formulating import run_formulate

    return run_formulate(instance, ridge, budget, model, to, as_json)


@app.command(epilog=_EXIT_CODES)
@click.argument("instance", metavar="INSTANCE|demo-net")
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@click.option(
    "--methods",
    default="magnitude,backsolve,chita,relax_round",
    show_default=True,
    help="Names, separated by commas.",
)
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.json_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write objective and bound over time (.png).",
)
def compare(
    instance: str,
    budget: o.InstanceBudget,
    ridge: float,
    methods: str,
    effort: o.EffortChoice,
    as_json: bool,
    plot: Path | None,
) -> int:
    """Run several methods on INSTANCE (or the shipped network) and hold them against one bound.

    --time-limit is for each method, and for the bound.
    """
    from chita_opt.cli.comparing import run_compare

    return run_compare(instance, budget, ridge, methods.split(","), effort, as_json, plot)


@app.command(epilog=_EXIT_CODES)
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


@app.command(epilog=_EXIT_CODES)
@click.argument("result", nargs=-1, required=True, type=_existing)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page to write; without it RESULT's name and .html, in this folder.",
)
@click.option("--trade-off", "tables", multiple=True, type=_existing, help="Table of a benchmark.")
@click.option("--log", "logs", multiple=True, type=_existing, help="What solve --json printed.")
def report(
    result: tuple[Path, ...], out: Path | None, tables: tuple[Path, ...], logs: tuple[Path, ...]
) -> int:
    """Write one page of HTML about RESULT, its proofs checked again.

    RESULT is what prune --out wrote, certificates, proof logs, and what --json printed; the content
    tells which. The page opens with a double-click and asks for nothing outside itself. Exit code 1
    if a proof is refused; the page then says so.
    """
    from chita_opt.cli.reporting import run_report

    return run_report([*result, *tables, *logs], out)


@app.group()
def plot() -> None:
    """Draw pictures (.png) of masks and of tables."""


_out = click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File (.png)."
)


@plot.command(epilog=_EXIT_CODES)
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_out
@click.option("--rows", type=click.IntRange(1), default=64, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=128, show_default=True)
def masks(weights: Path, out: Path, rows: int, columns: int) -> int:
    """Draw which weights are kept in WEIGHTS, one dot a weight.

    WEIGHTS is a .safetensors file of prune --out, or of block-regular weights, whose block widths
    are shown as shades. --rows and --columns say how much of each layer is shown.
    """
    from chita_opt.cli.plotting import run_plot_masks

    return run_plot_masks(weights, out, rows=rows, columns=columns)


@plot.command(epilog=_EXIT_CODES)
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_out
@click.option("--net", help="Which network, where TABLE holds several.")
@click.option(
    "--measure", default="accuracy", show_default=True, help="Column drawn beside the objective."
)
def trade_off(table: Path, out: Path, net: str | None, measure: str) -> int:
    """Draw what every family of masks costs over the pruning ratio, with the proven bounds.

    TABLE is the .json of a benchmark: rows with family and ratio, and objective, lower and measure.
    """
    from chita_opt.cli.plotting import run_plot_trade_off

    return run_plot_trade_off(table, out, net=net, measure=measure)
