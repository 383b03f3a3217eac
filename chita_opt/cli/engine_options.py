"""Options about where independent work is done, and how a budget is divided among layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from chita_opt.exact import ParallelEngine


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """Where independent work is done."""

    workers: int | None
    scheduler: str | None

    @property
    def engine(self) -> ParallelEngine:
        """The library's engine."""
        from chita_opt.exact import ParallelEngine

        return ParallelEngine(workers=self.workers or 1, scheduler=self.scheduler)


@dataclass(frozen=True, kw_only=True)
class DivisionChoice(EngineChoice):
    """How the budget and the work are divided among layers."""

    split: str | None


engine_options = (
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Processes for work that is independent (layers, instances), one thread each; the "
        "result is the same for any number.",
    ),
    click.option(
        "--scheduler", metavar="ADDRESS", help="dask scheduler whose workers do it instead."
    ),
)
division_options = (
    click.option(
        "--split",
        type=click.Choice(["uniform", "erk", "magnitude"]),
        help="Divide the weights to keep among the layers by a rule; else the solution does.",
    ),
    *engine_options,
)
