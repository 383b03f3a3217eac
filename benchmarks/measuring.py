"""Timing in passes, tables and JSON, shared by the benchmark scripts."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from chita_opt import __version__
from chita_opt.curvature import LowRank
from chita_opt.files import write_atomically

RESULTS = Path(__file__).parent / "results"


def best_seconds(call: Callable[[], object], repeats: int = 12) -> float:
    """Shortest of several runs: the least disturbed one."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def pass_seconds(curvature: LowRank) -> float:
    """Seconds of one pass over A in float32: A x plus A' y."""
    factor = curvature.factor()
    x = torch.randn(curvature.size)
    y = torch.randn(curvature.A.shape[0])
    return best_seconds(lambda: (x @ factor.columns, factor.columns @ y))


def report(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], note: str = ""
) -> None:
    """Print a table of some columns and write all of them as JSON."""
    show(name, rows, columns, note)
    save(name, rows, note)


def show(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], note: str = ""
) -> None:
    """Print a table of some columns."""
    table = Table(title=name, caption=note, show_lines=False)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(_show(row.get(c)) for c in columns))
    Console(width=200).print(table)


def save(name: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> None:
    """Write all columns as JSON."""
    content = {"name": name, "note": note, "machine": _machine(), "rows": list(rows)}
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(RESULTS / f"{name}.json", text.encode(), make_folder=True)


def earlier(name: str, note: str | None = None) -> list[dict[str, Any]]:
    """Rows that an earlier call has written; with a note only those of the same settings."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    return list(content["rows"]) if note is None or content["note"] == note else []


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "chita_opt": __version__,
    }
