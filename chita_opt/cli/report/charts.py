"""Line charts as coordinates; the template writes them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

WIDTH, HEIGHT = 480.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 14.0, 12.0, 44.0
_FEW = 5  # ticks
_WIDE = 30.0  # a range of values above this ratio gets a logarithmic axis

_HUES, _DASHES = 8, 4
_MARKERS = (  # around the point: circle, square, diamond, triangle
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "m-3.2 -3.2h6.4v6.4h-6.4z",
    "m0 -4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
    "m0 -4.4l4.2 7.4h-8.4z",
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes
    ----------
    name : str
        For the legend and the table.
    points : tuple of (float, float)
        x and y, x increasing.
    lower : tuple of (float, float)
        Proven bounds, drawn as a band down from the curve.
    step : bool
        Whether a value holds until the next.
    dashed : bool
        Whether the line is.
    """

    name: str
    points: tuple[Point, ...]
    lower: tuple[Point, ...] = ()
    step: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Values to coordinates, and the values that are written beside it."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False
    at: tuple[float, ...] = ()

    def place(self, value: float) -> float:
        """Coordinate of a value."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log(low), math.log(high), math.log(v)
        return self.begin + (self.end - self.begin) * (v - low) / (high - low)

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Coordinate and text."""
        values = self.at or (_decades if self.log else _steps)(self.low, self.high)
        return [(_text(self.place(v)), f"{v:,.{3 if self.at else 6}g}") for v in values]


@dataclass(frozen=True)
class Line:
    """A curve as the template draws it: a path, an area down to the bound, and marked points.

    Curves "NAME" and "NAME, WAY" share hue and marker, and differ in their dashes.
    """

    name: str
    hue: int
    dash: int
    marker: str
    path: str
    area: str
    dots: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chart:
    """A chart and the table of the same values.

    Attributes
    ----------
    title, description : str
        What is shown, and what is to be seen.
    x, y : Axis
        Axes.
    x_label, y_label : str
        Their names, with units.
    lines : tuple of Line
        Curves.
    rows : tuple
        Curve, x, y and bound ("" where there is none).
    """

    title: str
    description: str
    x: Axis
    y: Axis
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    rows: tuple[tuple[str, str, str, str], ...]

    @property
    def bands(self) -> bool:
        """Whether a proven bound is drawn."""
        return any(line.area for line in self.lines)


@dataclass(frozen=True)
class Labels:
    """Words of a chart."""

    title: str
    description: str
    x: str
    y: str


def draw(series: Sequence[Series], labels: Labels, *, ratios: bool = False) -> Chart | None:
    """A chart of curves; None where no curve has a finite point.

    Parameters
    ----------
    series : sequence of Series
        Curves; values that are not finite are left out.
    labels : Labels
        Title, description and axes.
    ratios : bool
        Whether x is a ratio: a logarithmic axis with the values that occur.
    """
    curves = [_finite(s) for s in series]
    curves = [s for s in curves if s.points]
    xs = [x for s in curves for x, _ in s.points]
    ys = [y for s in curves for _, y in (*s.points, *s.lower)]
    if not xs:
        return None
    x, y = _x_axis(xs, ratios), _y_axis(ys)
    lines = tuple(_line(s, place, x, y) for s, place in zip(curves, _places(curves), strict=True))
    rows = tuple(row for s in curves for row in _rows(s))
    return Chart(labels.title, labels.description, x, y, labels.x, labels.y, lines, rows)


def _finite(series: Series) -> Series:
    points, lower = (
        tuple(sorted((p for p in part if all(map(math.isfinite, p))), key=itemgetter(0)))
        for part in (series.points, series.lower)
    )
    return replace(series, points=points, lower=lower)


def _places(curves: Sequence[Series]) -> list[tuple[int, int]]:
    """For every curve the number of its name without the way, and of the way."""
    bases: dict[str, int] = {}
    found = []
    for curve in curves:
        base = curve.name.partition(", ")[0]
        way = bases[base] = bases.get(base, -1) + 1
        found.append((list(bases).index(base), way + curve.dashed))
    return found


def _x_axis(values: Sequence[float], ratios: bool) -> Axis:
    low, high = min(values), max(values)
    if ratios and low > 0.0:
        room = (high / low) ** 0.04 if high > low else 1.5
        at = _thinned(sorted(set(values)))
        return Axis(low / room, high * room, _LEFT, WIDTH - _RIGHT, True, at)
    low = min(low, 0.0)
    return Axis(low, high if high > low else low + 1.0, _LEFT, WIDTH - _RIGHT)


def _y_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    begin, end = HEIGHT - _BOTTOM, _TOP
    if low > 0.0 and high > _WIDE * low:
        room = (high / low) ** 0.05
        return Axis(low / room, high * room, begin, end, True)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - room, high + room, begin, end)


def _thinned(values: Sequence[float]) -> tuple[float, ...]:
    """The values whose texts do not run into each other on a logarithmic axis."""
    kept = [values[0]]
    apart = max(math.log(values[-1] / values[0]) / 8.0, 1e-12)
    for value in values[1:]:
        if math.log(value / kept[-1]) >= apart:
            kept.append(value)
    return tuple(kept)


def _steps(low: float, high: float) -> tuple[float, ...]:
    """Round values, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / _FEW
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1.0, 2.0, 5.0, 10.0) if m * unit >= raw * 0.999)
    return tuple(i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def _decades(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten, with 2 and 5 times them where these are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0)):
        every = max(1, (last - first) // 8)
        found = tuple(
            m * 10.0**e
            for e in range(first, last + 1, every)
            for m in factors
            if low <= m * 10.0**e <= high
        )
        if len(found) >= 3:
            return found
    return found


def _line(series: Series, place: tuple[int, int], x: Axis, y: Axis) -> Line:
    path = _path(series.points, x, y, series.step)
    down = _path(series.lower[::-1], x, y, False)
    above = [p for p in series.points if p[0] in {x for x, _ in series.lower}]
    area = f"{_path(above, x, y, False)}L{down[1:]}Z" if len(series.lower) > 1 else ""
    dots = () if series.step else series.points
    marks = tuple((_text(x.place(a)), _text(y.place(b))) for a, b in dots)
    base, way = place
    dash = (way + base // _HUES) % _DASHES
    return Line(series.name, base % _HUES, dash, _MARKERS[base % len(_MARKERS)], path, area, marks)


def _path(points: Sequence[Point], x: Axis, y: Axis, step: bool) -> str:
    parts = []
    for i, (a, b) in enumerate(points):
        u, v = _text(x.place(a)), _text(y.place(b))
        parts.append(f"M{u} {v}" if i == 0 else f"H{u}V{v}" if step else f"L{u} {v}")
    return "".join(parts)


def _rows(series: Series) -> list[tuple[str, str, str, str]]:
    lower = dict(series.lower)
    return [
        (series.name, f"{x:.6g}", f"{y:.6g}", f"{lower[x]:.6g}" if x in lower else "")
        for x, y in series.points
    ]


def _text(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


__all__ = ["HEIGHT", "WIDTH", "Axis", "Chart", "Labels", "Line", "Series", "draw"]
