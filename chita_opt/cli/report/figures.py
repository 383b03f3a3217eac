"""The charts of a page: values over time, counts, stages and pruning ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from chita_opt.certificates.path_proof import PathReport
from chita_opt.cli.pictures import TradeOff
from chita_opt.cli.plotting import read_tables
from chita_opt.cli.report.charts import Chart, Labels, Point, Series, draw
from chita_opt.cli.report.checks import Check
from chita_opt.cli.report.reading import Report, Source
from chita_opt.errors import DataError

_MEASURES = ("accuracy", "test")  # columns of tables that may hold an accuracy
_RISE = 1e-4  # relative; less is the rounding of weights to their type
_OBJECTIVE = "modelled loss increase"


def over_time(histories: Sequence[tuple[str, Any]]) -> list[Chart]:
    """One chart for every history of an incumbent and a bound, by the name of its file."""
    charts = []
    for name, history in histories:
        if not isinstance(history, Mapping):
            continue
        incumbent, bound = (_points(history.get(key)) for key in ("incumbent", "bound"))
        end = max((t for t, _ in (*incumbent, *bound)), default=0.0)
        series = (
            Series("incumbent", _until(incumbent, end), step=True),
            Series("proven bound", _until(bound, end), step=True, dashed=True),
        )
        words = "What is left between them at the end is the gap."
        if any(b - a > _RISE * abs(a) for (_, a), (_, b) in pairwise(incumbent)):
            words += " The objective rises where a candidate of lower held-out loss was taken."
        labels = Labels(f"Incumbent and bound of {name}", words, "seconds", _OBJECTIVE)
        charts.append(draw(series, labels))
        words = "The relative gap, from the moment at which there is a bound."
        labels = Labels(f"Gap of {name}", words, "seconds", "gap, % of the objective")
        charts.append(draw([Series("gap", _gaps(incumbent, bound), step=True)], labels))
    return [chart for chart in charts if chart is not None]


def by_count(check: Check) -> Chart | None:
    """Objective and bound of every count, where a file proves several."""
    found = check.found
    if not isinstance(found, PathReport):
        return None
    upper = tuple(zip(map(float, found.ks), found.uppers, strict=True))
    lower = tuple(zip(map(float, found.ks), found.lowers, strict=True))
    labels = Labels(
        f"Objective and bound by count, {check.source.name}",
        "The objective falls as more weights may be kept; the band reaches down to the bound.",
        "weights that may be kept",
        _OBJECTIVE,
    )
    return draw([Series("objective", upper, lower)], labels)


def by_stage(notes: Report) -> list[Chart]:
    """Kept weights, and the losses around every stage."""
    stages = notes.get("stages") or []
    before = tuple((float(row["stage"]), float(row["loss"])) for row in stages)
    after = tuple(
        (float(row["stage"]), float(row["notes"]["held_out_loss"]))
        for row in stages
        if row.get("notes", {}).get("held_out_loss") is not None
    )
    kept = tuple((float(row["stage"]), float(row["kept"])) for row in stages)
    losses = [Series("gradient samples, before", before), Series("held-out samples, after", after)]
    words = Labels(
        "Loss by stage", "Losses rise where a stage removes what mattered.", "stage", "mean loss"
    )
    counts = Labels("Kept weights by stage", "Fewer are kept after every stage.", "stage", "kept")
    charts = (draw(losses, words), draw([Series("kept weights", kept)], counts))
    return [chart for chart in charts if chart is not None]


def by_epoch(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Losses, accuracy and sparsity over the epochs of a training that prunes."""
    loss = Labels("Loss by epoch", "Losses jump where weights are removed.", "epoch", "mean loss")
    score = Labels(
        "Accuracy and sparsity by epoch",
        "Sparsity rises in steps; the accuracy of held-out samples says what each step cost.",
        "epoch",
        "%",
    )
    losses = [
        _column(rows, "loss", "training"), _column(rows, "held_out_loss", "held-out samples")
    ]  # fmt: skip
    shares = [
        _column(rows, "held_out_accuracy", "held-out accuracy"),
        _column(rows, "sparsity", "sparsity", 100.0),
    ]
    charts = (draw(losses, loss), draw(shares, score))
    return [chart for chart in charts if chart is not None]


def _column(rows: Sequence[Mapping[str, Any]], key: str, name: str, factor: float = 1.0) -> Series:
    found = [(float(row["epoch"]), row[key]) for row in rows if row.get(key) is not None]
    return Series(name, tuple((epoch, factor * float(value)) for epoch, value in found))


def trade_offs(table: Source) -> list[Chart]:
    """For every network of a table what is measured, and the objective with its bound.

    Raises
    ------
    DataError
        If the table has no curves.
    """
    charts = []
    for measure in (*_MEASURES, "objective"):
        for net, curves in read_tables(table.path, measure).items():
            charts.append(_trade_off(net, curves, measure))
    drawn = [chart for chart in charts if chart is not None]
    if not drawn:
        names = ", ".join(_MEASURES)
        raise DataError(f"{table.path} has none of {names} and objective in any row")
    return drawn


def _trade_off(net: str, curves: Mapping[str, Sequence[TradeOff]], measure: str) -> Chart | None:
    quadratic = measure == "objective"
    series = [_curve(name, points, quadratic) for name, points in curves.items()]
    title = f"{'Objective' if quadratic else 'Accuracy'} of {net} over the pruning ratio"
    words = "Further to the right fewer weights are kept."
    if quadratic:
        words += " Each band reaches from the objective down to the proven bound."
    y = _OBJECTIVE if quadratic else f"{measure}, %"
    return draw(series, Labels(title, words, "weights / kept weights", y), ratios=True)


def _curve(name: str, points: Sequence[TradeOff], quadratic: bool) -> Series:
    values = [(p.ratio, p.objective if quadratic else p.accuracy) for p in points]
    found = tuple((x, y) for x, y in values if y is not None)
    bounds = tuple((p.ratio, p.lower) for p in points if quadratic and p.lower is not None)
    return Series(name, found, bounds)


def _points(rows: Any) -> tuple[Point, ...]:
    return tuple((float(t), float(value)) for t, value in rows or ())


def _gaps(incumbent: tuple[Point, ...], bound: tuple[Point, ...]) -> tuple[Point, ...]:
    """The gap in per cent at every moment where one of the two changes."""
    rows = []
    for now in sorted({t for t, _ in (*incumbent, *bound)}):
        upper = [value for t, value in incumbent if t <= now][-1:]
        lower = [value for t, value in bound if t <= now]
        if upper and lower and upper[0] > 0.0:
            rows.append((now, 100.0 * max(upper[0] - max(lower), 0.0) / upper[0]))
    return tuple(rows)


def _until(points: tuple[Point, ...], end: float) -> tuple[Point, ...]:
    """The last value holds to the end."""
    return (*points, (end, points[-1][1])) if points and points[-1][0] < end else points


__all__ = ["by_count", "by_epoch", "by_stage", "over_time", "trade_offs"]
