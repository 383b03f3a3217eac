"""Options of ``prune-in-stages``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from chita_opt.cli import options as o

OptionDecorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class StageChoice:
    """How many stages, how the sparsity rises, and how a run is stopped and continued."""

    stages: int
    schedule: str
    base: float
    progress_file: Path | None
    resume: bool
    time_limit: float | None
    seed: int


run_options = (
    click.option(
        "--progress-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write what the run needs to go on (.safetensors), now and then.",
    ),
    click.option("--resume", is_flag=True, help="Continue from --progress-file."),
    click.option(
        "--time-limit",
        type=o.seconds,
        help="Seconds; stages then go to the final sparsity, training stops where it is.",
    ),
    o.seed_option,
)
stage_options = (
    click.option(
        "--stages", type=click.IntRange(min=1), default=16, show_default=True, help="Stages."
    ),
    click.option(
        "--schedule",
        type=click.Choice(["exp", "poly", "linear", "cosine", "const", "mfac"]),
        default="exp",
        show_default=True,
        help="How the sparsity rises from stage to stage.",
    ),
    click.option(
        "--base",
        type=click.FloatRange(0.0, 1.0, max_open=True),
        default=0.1,
        show_default=True,
        help="Sparsity of the first stage.",
    ),
    *run_options,
)
measuring_options = o.measuring_options(("gradients", "sampled"), 16, "1/m")
method_option = click.option(
    "--method",
    type=click.Choice(("fast", "blocks", o.HYBRID, *o.METHOD_NAMES)),
    default="fast",
    show_default=True,
    help="fast: exact weights on the support that is best on held-out samples; blocks: rounds of "
    "pruning, output unit by output unit (--first-order 0); hybrid: fast, and exact search of the "
    "best support in the quadratic model competes; or a method.",
)
