"""Pictures of masks, and curves of what a pattern costs, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chita_opt.cli.plots import canvas, write_figure

_COLUMNS = 3
_SHADES = 9  # block widths 1 to 256


@dataclass(frozen=True, eq=False)
class Pattern:
    """One layer's mask.

    Attributes
    ----------
    name : str
        The layer.
    mask : ndarray
        (rows, columns) bool.
    widths : ndarray or None
        (rows,) block width of every row, where rows have one.
    """

    name: str
    mask: NDArray[Any]
    widths: NDArray[Any] | None = None


@dataclass(frozen=True)
class TradeOff:
    """One point of a curve.

    Attributes
    ----------
    ratio : float
        Weights over kept weights.
    accuracy : float or None
        Of the pruned network: per cent, or whatever is measured.
    objective, lower : float or None
        Of the quadratic model, and the proven bound.
    """

    ratio: float
    accuracy: float | None = None
    objective: float | None = None
    lower: float | None = None


def plot_patterns(path: Path, patterns: Sequence[Pattern], *, rows: int, columns: int) -> None:
    """Kept weights of each layer's upper left part, one dot a weight; block widths as shades.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    across = min(_COLUMNS, len(patterns))
    down = -(-len(patterns) // across)
    figure, grid = canvas(down, across, size=(4.2 * across, 3.2 * down))
    for axes, pattern in zip(grid, patterns, strict=False):
        shown = np.where(pattern.mask, 1.0, np.nan)[:rows, :columns]
        if pattern.widths is not None:
            codes = np.log2(np.maximum(pattern.widths[: len(shown)], 1))
            shown = shown * codes[:, None]
        limits = {"vmin": -2.0, "vmax": _SHADES - 1.0, "cmap": "viridis_r"}
        if pattern.widths is None:
            limits = {"vmin": 0.0, "vmax": 1.0, "cmap": "gray_r"}
        axes.imshow(shown, interpolation="nearest", aspect="auto", **limits)
        axes.set_title(f"{pattern.name}: {_summary(pattern)}", loc="left", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(patterns) :]:
        axes.remove()
    write_figure(figure, path)


def plot_trade_off(
    path: Path, curves: Mapping[str, Sequence[TradeOff]], *, title: str, accuracy: str
) -> None:
    """What is measured over the pruning ratio, and the objective with a band down to its bound.

    A curve "NAME, WAY" has the colour of "NAME" and is dashed; a point of ratio 1 is a level.

    Parameters
    ----------
    path : path
        File to write (.png).
    curves : Mapping
        Points of each family.
    title, accuracy : str
        Of the picture, and of the measured axis; a side without any value is left out.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    points = [point for curve in curves.values() for point in curve]
    sides = [name for name in ("accuracy", "objective") if _has(points, name)]
    figure, grid = canvas(1, len(sides), size=(6.4 * len(sides), 4.4))
    for axes, side in zip(grid, sides, strict=True):
        for name, curve in curves.items():
            style = _style(name, list(curves))
            _curve(axes, [p for p in curve if getattr(p, side) is not None], side, style)
        ratios = sorted({point.ratio for point in points} - {1.0})
        axes.set_xscale("log")
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axes.minorticks_off()
        axes.set_xlabel("weights / kept weights")
        axes.set_ylabel(accuracy if side == "accuracy" else "modelled loss increase")
    if "objective" in sides:
        grid[-1].set_yscale("log")
        grid[-1].set_title("band: from the objective down to the proven bound", fontsize=9)
    grid[0].set_title(title, loc="left")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    write_figure(figure, path)


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    first, _, way = name.partition(", ")
    bases = list(dict.fromkeys(other.partition(", ")[0] for other in names))
    return {
        "label": name,
        "color": f"C{bases.index(first) % 10}",
        "linestyle": "--" if way else "-",
    }


def _curve(axes: Any, curve: Sequence[TradeOff], side: str, style: Mapping[str, Any]) -> None:
    curve = sorted(curve, key=lambda point: point.ratio)
    if len(curve) == 1 and curve[0].ratio == 1.0:
        axes.axhline(getattr(curve[0], side), linewidth=0.8, **style)
        return
    axes.plot(
        [p.ratio for p in curve], [getattr(p, side) for p in curve],
        marker="o", markersize=3, **style,
    )  # fmt: skip
    proven = [p for p in curve if p.lower is not None and p.lower > 0.0]
    if side == "objective" and proven:
        low, high = [p.lower for p in proven], [p.objective for p in proven]
        x, color = [p.ratio for p in proven], style["color"]
        axes.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)


def _has(points: Sequence[TradeOff], name: str) -> bool:
    return any(getattr(point, name) is not None for point in points)


def _summary(pattern: Pattern) -> str:
    rows, columns = pattern.mask.shape
    text = f"{rows}x{columns}, keeps {100.0 * pattern.mask.mean():.1f} %"
    if pattern.widths is not None:
        found = sorted({int(width) for width in pattern.widths} - {0})
        text += f", widths {', '.join(map(str, found))}"
    return text


__all__ = ["Pattern", "TradeOff", "plot_patterns", "plot_trade_off"]
