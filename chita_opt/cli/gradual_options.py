"""Options of ``prune-and-train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from chita_opt.cli import options as o
from chita_opt.cli import stage_options as so


@dataclass(frozen=True, kw_only=True)
class TrainingChoice:
    """How the network trains."""

    epochs: int
    train_batch: int
    lr: float
    lr_min: float
    optimizer: str
    momentum: float
    weight_decay: float
    warmup: float
    distill: float
    temperature: float
    power: float
    patience: int | None
    bn_samples: int


@dataclass(frozen=True, kw_only=True)
class GradualChoice:
    """When it is pruned, and how a run is followed, stopped and continued."""

    pruning_steps: int
    interval: float | None
    schedule: str
    base: float
    returning: str
    shrinkage: float
    log_file: Path | None
    tensorboard: Path | None
    progress_file: Path | None
    resume: bool
    time_limit: float | None
    seed: int


_share = click.FloatRange(0.0, 1.0, max_open=True)
_positive = click.FloatRange(0.0, min_open=True)
_from_zero = click.FloatRange(0.0)


def _number(
    name: str, kind: click.ParamType, default: float | None, text: str
) -> so.OptionDecorator:
    return click.option(name, type=kind, default=default, show_default=True, help=text)


training_options = (
    _number("--epochs", click.IntRange(1), 7, "Passes over the data, in all."),
    _number("--train-batch", click.IntRange(1), 64, "Samples of a training step."),
    _number("--lr", _positive, 0.05, "Highest rate; its cosine restarts at every pruning step."),
    _number("--lr-min", _from_zero, 0.0, "Rate at the end of every cosine."),
    click.option(
        "--optimizer",
        type=click.Choice(["sgd", "adam", "adamw"]),
        default="sgd",
        show_default=True,
        help="Optimiser.",
    ),
    _number("--momentum", _share, 0.9, "Of sgd."),
    _number("--weight-decay", _from_zero, 0.0, "Weight decay."),
    _number("--warmup", _from_zero, 0.0, "Epochs over which the rate rises at the start."),
    _number("--distill", click.FloatRange(0.0, 1.0), 0.0, "Part of the dense network in the loss."),
    _number("--temperature", _positive, 2.0, "Of --distill."),
    _number("--power", click.FloatRange(1.0), 1.0, "Powerpropagation: w = t|t|^(POWER-1)."),
    _number(
        "--patience", click.IntRange(1), None, "Epochs without a better held-out loss to stop at."
    ),
    _number(
        "--bn-samples", click.IntRange(0), 0, "Samples for the statistics of batch normalisation."
    ),
)
gradual_options = (
    _number("--pruning-steps", click.IntRange(1), 6, "Pruning steps, the first at the start."),
    _number("--interval", _positive, None, "Epochs between them; by default evenly spread."),
    click.option(
        "--schedule",
        type=click.Choice(["exp", "poly", "linear", "cosine", "const", "mfac"]),
        default="poly",
        show_default=True,
        help="How the sparsity rises; poly is the cubic one.",
    ),
    _number("--base", _share, 0.5, "Sparsity of the first pruning step."),
    click.option(
        "--returning",
        type=click.Choice(["never", "at_steps", "always"]),
        default="at_steps",
        show_default=True,
        help="When pruned weights may come back: never, chosen by a pruning step, or by training.",
    ),
    _number(
        "--shrinkage",
        _share,
        0.0,
        "Soft shrinkage: share that small weights lose in a training step (--returning always).",
    ),
    click.option(
        "--log-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the history as JSON lines.",
    ),
    click.option(
        "--tensorboard",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder for TensorBoard.",
    ),
    *so.run_options,
)
measuring_options = o.measuring_options(("gradients", "sampled"), 16, "0")
method_option = click.option(
    "--method",
    type=click.Choice(("magnitude", "blocks", "fast", *o.METHOD_NAMES)),
    default="blocks",
    show_default=True,
    help="How a pruning step chooses: by magnitude, or on the quadratic model: output unit by "
    "output unit (blocks), exact weights on the largest (fast), or by a method.",
)
