"""What people see: lines, tables and progress; JSON and tables on stdout, the rest on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chita_opt.errors import DataError

SCOPE_SENTENCE = (
    "Objective, bound and gap are about the quadratic model of the loss, not about the network's "
    "accuracy."
)
_WIDTH = 100  # where the output is no terminal


def json_text(values: Mapping[str, Any]) -> str:
    """One JSON object; numbers that are not finite become null."""
    return json.dumps(_plain(values), indent=2, allow_nan=False)


def print_json(values: Mapping[str, Any]) -> None:
    """The same on stdout."""
    click.echo(json_text(values))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(table)


class Stages:
    """Progress on stderr: what is being done and how far it is. Silent where nobody looks.

    Parameters
    ----------
    total : int
        Number of stages; 0 if not known.
    """

    def __init__(self, total: int = 0) -> None:
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=total or None)

    def begin(self, what: str) -> None:
        """Name the stage that begins now."""
        self.progress.update(self.task, description=what)

    def done(self) -> None:
        """Count a finished stage."""
        self.progress.advance(self.task)

    def report(self, stage: str, done: int, total: int) -> None:
        """Show a stage with its own count."""
        self.progress.update(self.task, description=stage, completed=done, total=total or None)


@contextmanager
def stages(total: int = 0) -> Iterator[Stages]:
    """Show progress while a block runs."""
    shown = Stages(total)
    with shown.progress:
        yield shown


def check_folders(*paths: Path | None) -> None:
    """Refuse outputs whose folder does not exist, before the work rather than after it.

    Raises
    ------
    DataError
        If the parent of a path is no folder.
    """
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise DataError(f"cannot write {path}: there is no folder {path.parent}; create it")


def number(value: float | None, digits: int = 5) -> str:
    """A number for a table; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share as a percentage with sensible digits."""
    if share is None or not math.isfinite(share):
        return "-"
    size = 100.0 * share
    return f"{size:.0f} %" if size >= 100 else f"{size:.3g} %"


def _plain(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(k): _plain(v) for k, v in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(v) for v in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return str(values) if isinstance(values, Path) else values
