"""Commands about what other commands wrote. Imports come when a command runs."""

from __future__ import annotations

from pathlib import Path

import click

from chita_opt.cli import options as o
from chita_opt.cli.group import EXIT_CODES, app, existing, writable


@app.command(epilog=EXIT_CODES)
@click.argument("certificate", type=existing)
@click.option(
    "--problem",
    type=existing,
    help="The problem's own file, if the certificate was saved without it.",
)
@click.option(
    "--instance",
    type=existing,
    help="Check too that the certificate is about this instance (.npz).",
)
@o.json_option
def verify(certificate: Path, problem: Path | None, instance: Path | None, as_json: bool) -> int:
    """Re-check everything that CERTIFICATE claims, with numpy alone.

    Exit code 1 if a byte was changed, or a claim is better than what the data give.
    """
    from chita_opt.cli.verifying import run_verify

    return run_verify(certificate, problem, instance, as_json)


@app.command(epilog=EXIT_CODES)
@click.argument("result", nargs=-1, required=True, type=existing)
@click.option(
    "--out",
    type=writable,
    help="Page to write; without it RESULT's name and .html, in this folder.",
)
@click.option("--trade-off", "tables", multiple=True, type=existing, help="Table of a benchmark.")
@click.option("--log", "logs", multiple=True, type=existing, help="What solve --json printed.")
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


@app.command(epilog=EXIT_CODES)
@click.argument("result", type=existing)
@click.option("--to", required=True, type=click.Choice(o.EXPORT_NAMES), help="Format.")
@click.option("--out", required=True, type=writable, help="File to write.")
@click.option("--model", metavar="MODULE:FUNCTION", help="Returns the model; for onnx and --test.")
@click.option("--data", metavar="MODULE:FUNCTION", help="Returns the data: example, fingerprint.")
@click.option("--test", metavar="MODULE:FUNCTION", help="Returns (x, y); accuracy for the card.")
@o.json_option
def export(
    result: Path,
    to: str,
    out: Path,
    model: str | None,
    data: str | None,
    test: str | None,
    as_json: bool,
) -> int:
    """Write the pruned network in RESULT in another form, and print what it takes in each.

    RESULT is what prune --out or export wrote. safetensors and torch hold a state dict and masks;
    bitmap, csr, 2:4 and darb the kept weights and their places; card is a model card, as JSON and
    as Markdown beside each other.
    """
    from chita_opt.cli.exporting import run_export

    code = {"model": model, "data": data, "test": test}
    return run_export(result, to, out, code, as_json)


@app.group()
def plot() -> None:
    """Draw pictures (.png) of masks and of tables."""


_out = click.option("--out", required=True, type=writable, help="File (.png).")


@plot.command(epilog=EXIT_CODES)
@click.argument("weights", type=existing)
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


@plot.command(epilog=EXIT_CODES)
@click.argument("table", type=existing)
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
