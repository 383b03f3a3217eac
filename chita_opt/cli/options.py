"""Options of the commands, grouped into dataclasses so that no command has a dozen parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

METHOD_NAMES = (
    "auto",
    "magnitude",
    "backsolve",
    "coordinate_descent",
    "iht",
    "chita",
    "wanda",
    "woodfisher",
    "mfac",
    "cbs",
    "iobs",
    "blockwise",
    "obc",
    "alps",
    "layerwise",
    "alternating",
    "local_search",
    "relax_round",
    "best",
)

EXACT_NAMES = ("bnb", "highs", "relaxation")
HYBRID = "hybrid"
TREE_GAP = 1e-4  # relative gap at which a search stops where none is asked for

Command = Callable[..., Any]

STRENGTHS = ("dual", "diagonal", "pairs", "lagrangian", "tree")
EXPORT_NAMES = ("safetensors", "torch", "bitmap", "csr", "2:4", "darb", "card", "onnx")
MODEL_NAMES = ("big-m", "sos1", "perspective", "removal", "weight-cuts", "dual-cuts")


@dataclass(frozen=True, kw_only=True)
class BudgetChoice:
    """Which supports are allowed."""

    k: int | None
    sparsity: float | None
    family: str


@dataclass(frozen=True, kw_only=True)
class InstanceBudget(BudgetChoice):
    """The same for a file of weights, whose layers only the user knows."""

    shape: tuple[str, ...]

    @property
    def shapes(self) -> list[tuple[int, ...]] | None:
        """Shape of each layer; None where none were given."""
        return [tuple(map(int, text.split("x"))) for text in self.shape] or None


def _check_shape(_context: Any, _option: Any, texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", text):
            raise click.BadParameter(f"{text!r} is no shape; write it as 20x784 or 16x3x3x3")
    return texts


@dataclass(frozen=True, kw_only=True)
class EffortChoice:
    """How long to try, and how well to prove."""

    time_limit: float | None
    gap: float | None
    seed: int

    @property
    def search_gap(self) -> float:
        """Relative gap at which a search stops."""
        return TREE_GAP if self.gap is None else self.gap


@dataclass(frozen=True, kw_only=True)
class OutputChoice:
    """What to print and write."""

    as_json: bool
    save_weights: Path | None
    save_certificate: Path | None


@dataclass(frozen=True, kw_only=True)
class TreeChoice:
    """How a tree is searched and what it leaves behind."""

    proof: Path | None
    workers: int
    node_limit: int | None
    log: bool

    @property
    def named(self) -> list[str]:
        """The options that were given: they say something to a tree only."""
        given = {
            "--proof": self.proof is not None,
            "--workers": self.workers != 1,
            "--node-limit": self.node_limit is not None,
            "--log": self.log,
        }
        return [name for name, is_given in given.items() if is_given]


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """What pruning a network prints, writes and measures."""

    as_json: bool
    out: Path | None
    trust: bool
    holdout: int | None


@dataclass(frozen=True, kw_only=True)
class PruneOutput(NetworkOutput):
    """The same with a proof."""

    save_certificate: Path | None
    certify: bool


@dataclass(frozen=True, kw_only=True)
class UserCode:
    """The user's own model and data."""

    model: str
    data: str
    test: str | None
    checkpoint: Path | None
    loss: str


@dataclass(frozen=True, kw_only=True)
class CurvatureChoice:
    """How the curvature of a network is measured."""

    curvature: str
    rows: int
    batch_size: int
    ridge: float
    ridge_unit: str
    first_order: str


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """Which layers are pruned, and whether the sparsity is of each."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    scope: str
    memory_limit: int | None


def grouped(name: str, kind: type, *options: Callable[[Command], Command]) -> Any:
    """Decorate a command with options and hand them over as one ``kind`` under ``name``."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def gathered(**values: Any) -> Any:
            own = {field.name: values.pop(field.name) for field in fields(kind)}
            return command(**values, **{name: kind(**own)})

        decorated: Command = gathered
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


seconds = click.FloatRange(min=0.0, min_open=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
ridge_option = click.option(
    "--ridge",
    type=click.FloatRange(min=0.0),
    default=1e-3,
    show_default=True,
    help="Ridge rho of the quadratic model, in units of the curvature.",
)


def _budget_options(flag: str, *, network: bool) -> tuple[Callable[[Command], Command], ...]:
    return (
        click.option("-k", "--k", type=click.IntRange(min=0), help="Weights to keep."),
        click.option(
            "--sparsity", type=click.FloatRange(0.0, 1.0), help="Share of weights to remove."
        ),
        click.option(
            flag,
            "family",
            default="cardinality",
            show_default=True,
            help="cardinality, N:M (as 2:4), N:M:columns, bmwm:WIDTH, darb, blocks:4x4, neurons, "
            "columns, filters, channels, nested:WEIGHT:CHANNEL:LAYER, blocks:WIDTH:M or "
            "rows:WIDTH:M" + ("; macs:CUT of a network's multiplications." if network else "."),
        ),
    )


family_options: tuple[Callable[[Command], Command], ...] = (
    *_budget_options("--family", network=False),
    click.option(
        "--shape",
        multiple=True,
        callback=_check_shape,
        help="Shape of the weights' matrix, outputs first, as 20x784; one for each layer, in the "
        "order of the weights. Without it they are one row.",
    ),
)
support_options = _budget_options("--support", network=True)
method_option = click.option(
    "--method",
    type=click.Choice((*METHOD_NAMES, HYBRID)),
    default="auto",
    show_default=True,
    help="Method; hybrid: a heuristic, exact search of windows and a tree over what no witness "
    "decides, for the whole --time-limit.",
)
solve_method_option = click.option(
    "--method",
    type=click.Choice((METHOD_NAMES[0], *EXACT_NAMES, HYBRID, *METHOD_NAMES[1:])),
    default="auto",
    show_default=True,
    help="bnb: branch and bound; highs: outer approximation by HiGHS; hybrid: a heuristic, exact "
    "windows and a tree over what no witness decides; relaxation: rounded, with "
    "its bound; auto: the relaxation, then up to 1,000 weights branch and bound (20 s without "
    "--time-limit); or a method by name, with a bound.",
)
proof_option = click.option(
    "--proof",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what proves the bound (of solve: the tree), for `chita-opt verify` to replay.",
)
tree_options = (
    proof_option,
    click.option(
        "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes."
    ),
    click.option("--node-limit", type=click.IntRange(min=1), help="Nodes of the tree."),
    click.option("--log", is_flag=True, help="Print the search's progress to standard error."),
)
effort_options = (
    click.option("--time-limit", type=seconds, help="Seconds for method and bound together."),
    click.option(
        "--gap", type=click.FloatRange(min=0.0), help="Relative gap to stop at, as 0.001."
    ),
    seed_option,
)
_certificate_option = click.option(
    "--save-certificate",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a file that `chita-opt verify` re-checks.",
)
output_options = (
    json_option,
    click.option(
        "--save-weights",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the weights (.npy, float64).",
    ),
    _certificate_option,
)
network_output_options = (
    json_option,
    click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the pruned state dict, the masks and the report (.safetensors).",
    ),
    click.option(
        "--trust/--no-trust",
        default=True,
        help="Whether held-out samples of the data check the quadratic model, and choose among "
        "candidates where it is wrong.",
    ),
    click.option("--holdout", type=click.IntRange(min=1), help="Samples to hold out for it."),
)
prune_output_options = (
    *network_output_options,
    _certificate_option,
    click.option("--certify/--no-certify", default=True, help="Whether to prove a bound."),
)
code_options = (
    click.option("--model", required=True, metavar="MODULE:FUNCTION", help="Returns the model."),
    click.option(
        "--data",
        required=True,
        metavar="MODULE:FUNCTION",
        help="Returns calibration data: (x, y), a dataset or a loader.",
    ),
    click.option(
        "--test",
        metavar="MODULE:FUNCTION",
        help="Returns (x, y) on which accuracy is measured before and after.",
    ),
    click.option(
        "--checkpoint",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="State dict to load into the model: safetensors, or torch (read with weights_only).",
    ),
    click.option(
        "--loss",
        type=click.Choice(["nll", "cross-entropy", "mse"]),
        default="cross-entropy",
        show_default=True,
        help="Loss of model(x) and y; nll for models that return log-probabilities.",
    ),
)


def measuring_options(
    kinds: Sequence[str], batch_size: int, first_order: str
) -> tuple[Callable[[Command], Command], ...]:
    """How the curvature is measured, with the defaults of a command."""
    return (
        click.option(
            "--curvature",
            type=click.Choice(kinds),
            default=kinds[0],
            show_default=True,
            help="One model of the loss (empirical Fisher, or sampled Gauss-Newton rows)"
            + ("; the same without coupling between rows" if "row_gradients" in kinds else "")
            + (", or layer-wise reconstruction." if "inputs" in kinds else "."),
        ),
        click.option(
            "--rows",
            type=click.IntRange(min=1),
            default=1000,
            show_default=True,
            help="Gradient rows.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=batch_size,
            show_default=True,
            help="Samples averaged in each row.",
        ),
        ridge_option,
        click.option(
            "--ridge-unit",
            type=click.Choice(["absolute", "mean_diagonal"]),
            default="absolute",
            show_default=True,
            help="Whether the ridge is a multiple of the mean diagonal of the curvature.",
        ),
        click.option(
            "--first-order",
            type=click.Choice(["0", "1/m", "1"]),
            default=first_order,
            show_default=True,
            help="Factor of the linear term.",
        ),
    )


curvature_options = measuring_options(("gradients", "row_gradients", "sampled", "inputs"), 1, "0")
layer_options = (
    click.option(
        "--include", multiple=True, help="Layer, parameter or pattern to prune; repeatable."
    ),
    click.option("--exclude", multiple=True, help="The same, to leave alone; wins; repeatable."),
    click.option(
        "--scope",
        type=click.Choice(["global", "layer"]),
        default="global",
        show_default=True,
        help="Whether the sparsity is of all weights together or of each layer.",
    ),
    click.option("--memory-limit", type=click.IntRange(min=1), help="Bytes."),
)
