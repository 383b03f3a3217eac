"""The plot commands: from files to pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from chita_opt.cli.pictures import Pattern, TradeOff, plot_patterns, plot_trade_off
from chita_opt.errors import DataError


def run_plot_masks(source: Path, out: Path, *, rows: int, columns: int) -> int:
    """Draw the masks of a file of pruned weights or of block-regular ones."""
    patterns = read_patterns(source)
    plot_patterns(out, patterns, rows=rows, columns=columns)
    click.echo(f"{len(patterns)} layers of {source} drawn in {out}")
    return 0


def run_plot_trade_off(source: Path, out: Path, *, net: str | None, measure: str) -> int:
    """Draw the curves of a table."""
    curves, name = read_curves(source, net, measure)
    plot_trade_off(out, curves, title=name, accuracy=measure)
    click.echo(f"{len(curves)} curves of {source} drawn in {out}")
    return 0


def read_patterns(source: Path) -> list[Pattern]:
    """Masks that a file holds: of weights with masks, or of block-regular weights.

    Raises
    ------
    DataError
        If the file is damaged, or holds no masks.
    """
    from chita_opt.nn.darb.darb_file import is_darb_file, load_darb
    from chita_opt.nn.weight_files import load_weights

    if is_darb_file(source):
        return [
            Pattern(name, (m.to_dense() != 0).flatten(1).numpy(), m.widths.numpy())
            for name, m in load_darb(source).matrices.items()
        ]
    masks = load_weights(source).masks
    found = [Pattern(n, m.flatten(1).numpy()) for n, m in masks.items() if m.ndim > 1]
    if not found:
        raise DataError(
            f"{source} holds no masks of layers; prune --out and save_weights write them"
        )
    return found


def read_curves(
    source: Path, net: str | None, measure: str
) -> tuple[dict[str, list[TradeOff]], str]:
    """Curves by family of a table in JSON, and the network that they are of.

    Parameters
    ----------
    source : path
        ``{"rows": [...]}``; a row has ``family`` (or ``method``) and ``ratio`` (or ``sparsity``),
        and what is known of ``measure``, ``objective`` and ``lower``. A row's ``net`` tells
        networks apart.
    net : str or None
        Which network; the only one where it is not given.
    measure : str
        Name of the measured column.

    Raises
    ------
    DataError
        If the file has no such rows, or several networks and none was named.
    """
    tables = read_tables(source, measure)
    if net not in (tables if len(tables) > 1 else [*tables, None]):
        raise DataError(f"{source} is about {', '.join(tables)}; choose one of them with --net")
    chosen = next(iter(tables)) if net is None else net
    points = [point for curve in tables[chosen].values() for point in curve]
    if all(p.accuracy is None and p.objective is None for p in points):
        raise DataError(f"{source} has neither {measure!r} nor 'objective' in any row of {chosen}")
    return tables[chosen], chosen


def read_tables(source: Path, measure: str) -> dict[str, dict[str, list[TradeOff]]]:
    """Curves by network and family of a table as :func:`read_curves` reads it.

    Raises
    ------
    DataError
        If the file has no such rows.
    """
    tables: dict[str, dict[str, list[TradeOff]]] = {}
    for row in _rows(source):
        point = TradeOff(
            _ratio(source, row),
            accuracy=_number(source, row, measure, optional=True),
            objective=_number(source, row, "objective", optional=True),
            lower=_number(source, row, "lower", optional=True),
        )
        curves = tables.setdefault(str(row.get("net", source.stem)), {})
        curves.setdefault(str(row["family"]), []).append(point)
    return tables


def _rows(source: Path) -> list[dict[str, Any]]:
    """Rows with a ``family`` and either a ``ratio`` or a ``sparsity``."""
    try:
        content = json.loads(source.read_text())
        rows = [row for row in content["rows"] if isinstance(row, dict)]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{source} is no table of a benchmark in JSON: {error}") from error
    named: list[dict[str, Any]] = [{"family": row.get("method")} | row for row in rows]
    found = [row for row in named if row["family"] is not None and {"ratio", "sparsity"} & set(row)]
    if not found:
        raise DataError(f"{source} has no rows with 'family' or 'method' and 'ratio' or 'sparsity'")
    return found


def _ratio(source: Path, row: Mapping[str, Any]) -> float:
    """Weights over kept weights."""
    if "ratio" in row:
        return float(_number(source, row, "ratio"))
    sparsity = float(_number(source, row, "sparsity"))
    if not 0.0 <= sparsity < 1.0:
        raise DataError(f"{source}: sparsity is {sparsity}; it must be in [0, 1)")
    return 1.0 / (1.0 - sparsity)


def _number(source: Path, row: Mapping[str, Any], key: str, *, optional: bool = False) -> Any:
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value is None and optional:
        return None
    raise DataError(
        f"{source}: {key} is {value!r} in a row of {row['family']}; it must be a number"
    )


__all__ = ["read_curves", "read_patterns", "read_tables", "run_plot_masks", "run_plot_trade_off"]
