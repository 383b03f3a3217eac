"""The page's content, section by section, before it is written as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chita_opt.cli.report import figures
from chita_opt.cli.report.charts import Chart
from chita_opt.cli.report.checks import Check, best_check
from chita_opt.cli.report.layers import Layer, layer_rows
from chita_opt.cli.report.mask_pictures import MaskPictures, picture_mask
from chita_opt.cli.report.reading import Inputs, Report, Source
from chita_opt.cli.report.summary import Tile, missing, tiles, warnings

_SETTINGS = ("ridge", "seed", "k", "family", "support", "instance")


@dataclass(frozen=True, eq=False)
class Page:
    """Everything that the template shows.

    Attributes
    ----------
    title : str
        Name of the result.
    notes : Mapping
        The result's own report: what the run said of itself.
    checks : tuple of Check
        Proofs, verified for this page.
    best : Check or None
        The proof that the summary stands on.
    tiles : tuple of Tile
        The summary.
    layers, masks : tuple
        Table of layers and their pictures.
    over_time, by_count, by_stage, by_epoch, trade_offs : tuple of Chart
        Charts.
    settings, options : tuple of (str, str)
        How it was run; and every option with its value.
    sources : tuple of Source
        The files that the page was made from.
    warnings, missing : tuple of str
        Contradictions between the files; and what no file held.
    """

    title: str
    notes: Report
    checks: tuple[Check, ...]
    best: Check | None
    tiles: tuple[Tile, ...]
    layers: tuple[Layer, ...]
    masks: tuple[MaskPictures, ...]
    over_time: tuple[Chart, ...]
    by_count: tuple[Chart, ...]
    by_stage: tuple[Chart, ...]
    by_epoch: tuple[Chart, ...]
    trade_offs: tuple[Chart, ...]
    settings: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    sources: tuple[Source, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def held_out(self) -> Report:
        """What a run in stages measured on held-out samples; empty for others."""
        found = (self.notes.get("notes") or {}).get("trust")
        return found if isinstance(found, dict) and "loss" in found else {}


def build_page(inputs: Inputs, checks: Sequence[Check]) -> Page:
    """Put the sections together.

    Raises
    ------
    DataError
        If a table has no curves.
    """
    notes = _notes(inputs, checks)
    best, layers = best_check(checks), layer_rows(inputs.network, notes)
    own = {row.name for row in layers}
    masks = {} if inputs.network is None else inputs.network.masks
    over_time = figures.over_time(_histories(inputs, checks))
    history = notes.get("history")
    by_epoch = figures.by_epoch(history) if isinstance(history, list) else []
    trade_offs = [chart for table in inputs.tables for chart in figures.trade_offs(table)]
    shown = [("layers", layers), ("over time", over_time or by_epoch), ("trade-offs", trade_offs)]
    return Page(
        title=inputs.sources[0].name,
        notes=notes,
        checks=tuple(checks),
        best=best,
        tiles=tuple(tiles(notes, checks, best, layers)),
        layers=tuple(layers),
        masks=tuple(picture_mask(n, m) for n, m in masks.items() if n in own and m.size),
        over_time=tuple(over_time),
        by_count=tuple(chart for c in checks if (chart := figures.by_count(c)) is not None),
        by_stage=tuple(figures.by_stage(notes)),
        by_epoch=tuple(by_epoch),
        trade_offs=tuple(trade_offs),
        settings=tuple(_settings(notes)),
        options=tuple(_options(notes)),
        sources=tuple(inputs.sources),
        warnings=tuple(warnings(notes, checks, best, layers)),
        missing=tuple(missing(notes, checks, shown)),
    )


def _notes(inputs: Inputs, checks: Sequence[Check]) -> Report:
    """What the run said: in the header of the weights, in JSON, or else in a proof."""
    own = {} if inputs.network is None else dict(inputs.network.notes)
    printed = inputs.reports[0][1] if inputs.reports else {}
    names = ("method", "status", "seconds", "version")
    claims = checks[0].claims if checks else {}
    return {n: claims[n] for n in names if n in claims} | own | dict(printed)


def _histories(inputs: Inputs, checks: Sequence[Check]) -> list[tuple[str, Any]]:
    """Histories by the name of their file; one that several files hold is shown once."""
    own = [] if inputs.network is None else [(inputs.network.source, inputs.network.notes)]
    claims = [(check.source, check.claims) for check in checks]
    found: list[tuple[str, Any]] = []
    for source, report in (*own, *inputs.reports, *claims):
        history = report.get("history")
        if history and all(history != other for _, other in found):
            found.append((source.name, history))
    return found


def _settings(notes: Report) -> Iterator[tuple[str, str]]:
    """What was asked for, how the curvature was measured, the data's digest, and versions."""
    measured, run = notes.get("notes") or {}, notes.get("run") or {}
    plain = {name: v for name, v in measured.items() if isinstance(v, str | int | float)}
    known: dict[str, Any] = plain | {"chita_opt": notes.get("version")}
    known |= {name: notes[name] for name in _SETTINGS if notes.get(name) is not None}
    known |= {f"data, {name}": value for name, value in (notes.get("data") or {}).items()}
    known |= (measured.get("run") or {}).get("versions") or {}
    known |= run.get("versions") or {}
    yield from _written(known)


def _options(notes: Report) -> Iterator[tuple[str, str]]:
    """Every option of the library's call that has a value."""
    run = (notes.get("notes") or {}).get("run") or {}
    yield from _written(run.get("options") or {})


def _written(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values in words; what has no value is left out."""
    for name, value in values.items():
        if value not in (None, "", [], {}):
            yield name.replace("_", " "), _words(value)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_words(v)}" for name, v in value.items())
    if isinstance(value, list):
        sizes = all(isinstance(v, int) for v in value)
        return (" × " if sizes else ", ").join(map(_words, value))
    return str(value)


__all__ = ["Page", "build_page"]
