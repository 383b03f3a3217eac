"""Commands about a file with a quadratic problem. Imports come when a command runs."""

from __future__ import annotations

from pathlib import Path

import click

from chita_opt.cli import engine_options as eo
from chita_opt.cli import options as o
from chita_opt.cli.group import EXIT_CODES, app, existing, writable
from chita_opt.cli.group import instance as instance_argument


@app.command(epilog=EXIT_CODES)
@instance_argument
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


@app.command(epilog=EXIT_CODES)
@instance_argument
@click.option(
    "--weights",
    required=True,
    type=existing,
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


@app.command(epilog=EXIT_CODES)
@instance_argument
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
    type=writable,
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


@app.command(epilog=EXIT_CODES)
@click.argument("instances", metavar="INSTANCE|demo-net...", nargs=-1, required=True)
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@click.option(
    "--methods",
    default="magnitude,backsolve,chita,relax_round",
    show_default=True,
    help="Names, separated by commas.",
)
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.grouped("where", eo.EngineChoice, *eo.engine_options)
@o.json_option
@click.option(
    "--plot",
    type=writable,
    help="Write objective and bound over time (.png).",
)
def compare(
    instances: tuple[str, ...],
    budget: o.InstanceBudget,
    ridge: float,
    methods: str,
    effort: o.EffortChoice,
    where: eo.EngineChoice,
    as_json: bool,
    plot: Path | None,
) -> int:
    """Run several methods on INSTANCE (or the shipped network) and hold them against one bound.

    --time-limit is for each method, and for the bound. Several instances are independent: --workers
    and --scheduler divide them; seconds are then those of one thread among others.
    """
    from chita_opt.cli.comparing import run_compare
    from chita_opt.cli.comparing_several import run_compare_several

    names = methods.split(",")
    if len(instances) > 1:
        if plot is not None:
            raise click.UsageError("--plot draws one instance; give one, or leave it out")
        return run_compare_several(instances, budget, ridge, names, effort, where, as_json)
    if where.workers is not None or where.scheduler is not None:
        raise click.UsageError("--workers and --scheduler divide instances; give several")
    return run_compare(instances[0], budget, ridge, names, effort, as_json, plot)


@app.command(epilog=EXIT_CODES)
@instance_argument
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@click.option(
    "--strength",
    type=click.Choice(o.STRENGTHS),
    default="diagonal",
    show_default=True,
    help="dual: products with the data, any size; diagonal: the best split of the diagonal; pairs: "
    "the same and pairs of weights; lagrangian: blocks, one multiplier; tree: branch and bound.",
)
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@click.option("--node-limit", type=click.IntRange(min=1), help="Nodes of a tree.")
@o.proof_option
@o.json_option
def bound(
    instance: Path,
    budget: o.InstanceBudget,
    ridge: float,
    strength: str,
    effort: o.EffortChoice,
    node_limit: int | None,
    proof: Path | None,
    as_json: bool,
) -> int:
    """Prove how good any pruning of INSTANCE can be at best, without looking for one.

    --proof writes the witness, for `chita-opt verify`.
    """
    from chita_opt.cli.lower_bounds import run_bound
    from chita_opt.cli.solving import Request

    output = o.OutputChoice(as_json=as_json, save_weights=None, save_certificate=None)
    request = Request(instance=instance, ridge=ridge, budget=budget, choice=effort, output=output)
    return run_bound(request, strength, node_limit, proof)


@app.command(epilog=EXIT_CODES)
@instance_argument
@o.grouped("budget", o.InstanceBudget, *o.family_options)
@o.ridge_option
@click.option("--ks", help="Counts and ranges, as 1,2,5-8; every count up to the budget if absent.")
@o.grouped("effort", o.EffortChoice, *o.effort_options)
@o.grouped("tree", o.TreeChoice, *o.tree_options)
@click.option("--out", type=writable, help="Write the table (.json), for `chita-opt plot`.")
@o.json_option
def path(
    instance: Path,
    budget: o.InstanceBudget,
    ridge: float,
    ks: str | None,
    effort: o.EffortChoice,
    tree: o.TreeChoice,
    out: Path | None,
    as_json: bool,
) -> int:
    """Solve INSTANCE for every number of kept weights, with a proven bound for each.

    The limits are over all counts together. Without a budget the counts go up to all weights.
    """
    from chita_opt.cli.paths import parse_counts, run_path
    from chita_opt.cli.solving import Request

    output = o.OutputChoice(as_json=as_json, save_weights=None, save_certificate=None)
    request = Request(instance=instance, ridge=ridge, budget=budget, choice=effort, output=output)
    return run_path(request, tree, parse_counts(ks), out)
