"""``report``: one page of HTML about a result, its proofs checked again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from jinja2 import TemplateError

from chita_opt.cli import OK, REFUSED
from chita_opt.cli.report.checks import MALFORMED, check_proofs
from chita_opt.cli.report.page import render_page
from chita_opt.cli.report.reading import Inputs, read_inputs
from chita_opt.cli.report.sections import Page, build_page
from chita_opt.cli.screen import SCOPE_SENTENCE, check_folders, stages
from chita_opt.errors import ChitaError, DataError
from chita_opt.files import write_atomically


def run_report(paths: Sequence[Path], out: Path | None) -> int:
    """Write the page; the exit code says whether every proof that was given holds."""
    out = Path(f"{paths[0].stem}.html") if out is None else out
    check_folders(out)
    inputs = read_inputs(paths)
    with stages() as shown:
        shown.begin("checking proofs")
        page, text = _written(inputs)
    write_atomically(out, text.encode())
    refused = [check for check in page.checks if check.found is None]
    for check in refused:
        click.echo(f"refused: {check.reason}", err=True)
    for warning in page.warnings:
        click.echo(f"warning: {warning}", err=True)
    count = len(page.checks)
    held = f"{count - len(refused)} of {count} proofs hold" if count else "no proof was given"
    click.echo(f"wrote {out}: {held}")
    click.echo(SCOPE_SENTENCE)
    return REFUSED if refused else OK


def _written(inputs: Inputs) -> tuple[Page, str]:
    """The page and its HTML.

    Raises
    ------
    DataError
        If a report does not have the shape of one.
    """
    try:
        page = build_page(inputs, check_proofs(inputs))
        return page, render_page(page)
    except (*MALFORMED, TemplateError) as error:
        if isinstance(error, ChitaError):
            raise
        names = ", ".join(source.name for source in inputs.sources)
        raise DataError(f"a report in {names} is malformed: {error!r}") from error


__all__ = ["run_report"]
