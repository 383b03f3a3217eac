"""``export``: a pruned network in the form that another program reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from chita_opt.cli import OK
from chita_opt.cli.pruning import accuracies, read_test_data
from chita_opt.cli.screen import SCOPE_SENTENCE, check_folders, print_json, print_table
from chita_opt.cli.user_code import build_model, call
from chita_opt.errors import DataError
from chita_opt.nn.export import export, layer_sizes, load_export, model_card, restore_
from chita_opt.nn.export.sizes import FORMATS, LayerSizes, totals
from chita_opt.nn.weight_files import SavedWeights


def run_export(result: Path, to: str, out: Path, code: dict[str, str | None], as_json: bool) -> int:
    """Write the network of a result and say what it takes; ``code`` names the user's own."""
    check_folders(out)
    weights = load_export(result)
    model = None if code["model"] is None else build_model(code["model"], None)
    if to == "card":
        written = _write_card(weights, out, model, code)
    else:
        data = None if code["data"] is None else call(code["data"], "--data")()
        example = None if data is None else _example(data)
        if to == "onnx" and (model is None or example is None):
            raise click.UsageError("--to onnx needs --model and --data (inputs of its shape)")
        written = [export(weights, out, format=to, model=model, example=example).path]
    _show(written, layer_sizes(weights), as_json)
    return OK


def _write_card(
    weights: SavedWeights, out: Path, model: nn.Module | None, code: dict[str, str | None]
) -> list[Path]:
    data = None if code["data"] is None else call(code["data"], "--data")()
    test, measured = read_test_data(code["test"]), None
    if test is not None:
        if model is None:
            raise click.UsageError("--test needs --model, whose accuracy is measured")
        restore_(model, weights, partial=True)
        measured = {"accuracy": accuracies(model, model, test)["accuracy"]}
    return list(model_card(weights, data=data, measured=measured).save(out))


def _example(data: Any) -> Tensor:
    """Two samples of the user's data.

    Raises
    ------
    DataError
        If the data are neither a pair of tensors nor batches of them.
    """
    first = data[0] if isinstance(data, tuple | list) else next(iter(data))
    inputs = first[0] if isinstance(first, tuple | list) else first
    try:
        return torch.as_tensor(inputs)[:2]
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"--data gives no inputs for an example: {error}") from error


def _show(written: Sequence[Path], rows: Sequence[LayerSizes], as_json: bool) -> None:
    if as_json:
        print_json({
            "written": [{"path": path, "bytes": path.stat().st_size} for path in written],
            "bits": totals(rows),
            "layers": [{"name": r.name, "kept": r.kept, "bits": r.bits} for r in rows],
        })  # fmt: skip
        return
    lines = [
        [row.name, "x".join(map(str, row.shape)), f"{row.kept:,}", *_kilobytes(row.bits)]
        for row in rows
    ]
    whole = ["together", "", f"{sum(row.kept for row in rows):,}", *_kilobytes(totals(rows))]
    columns = ("layer", "shape", "kept", *(f"{name} KiB" for name in FORMATS))
    print_table("Size of the pruned weights", columns, [*lines, [], whole])
    for path in written:
        click.echo(f"wrote {path} ({path.stat().st_size:,} bytes)")
        if path.suffix == ".md":
            click.echo(SCOPE_SENTENCE)


def _kilobytes(bits: Any) -> list[str]:
    return [f"{bits[name] / 8192:.3g}" if name in bits else "-" for name in FORMATS]


__all__ = ["run_export"]
