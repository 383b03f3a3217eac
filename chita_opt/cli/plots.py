"""Plots as PNG files: objective and bound over time, accuracy over sparsity."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chita_opt.errors import MissingDependencyError
from chita_opt.files import write_atomically

if TYPE_CHECKING:
    from chita_opt.certificates import Certificate
    from chita_opt.solution import Solution

CONTROL = "masked training"
"""Name of the curve that is no method of the quadratic problem."""


def plot_over_time(
    path: Path, solutions: Sequence[Solution], certificate: Certificate, title: str
) -> None:
    """Objective of each method over its time, and the proven bound, which starts after the best.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    figure, axes = _figure()
    best, bound = certificate.solution, certificate.bound
    end = max([s.seconds for s in solutions] + [best.seconds + bound.seconds])
    low, high = _range([s.objective for s in solutions], certificate.lower)
    for i, solution in enumerate(solutions):
        seconds, values = solution.trace.seconds, solution.trace.values
        label = solution.method
        if solution.objective > high:
            label += f" ({solution.objective:.3g}, above)"
        width = _width(i, len(solutions))
        axes.step(
            [*seconds, end],
            [*values, solution.objective],
            where="post",
            label=label,
            linewidth=width,
        )
        if solution.objective <= high:
            axes.plot(solution.seconds, solution.objective, "k.", markersize=5, zorder=5)
    seconds = [best.seconds + t for t in bound.trace.seconds]
    if seconds:
        axes.step(
            [*seconds, end],
            [*bound.trace.values, certificate.lower],
            where="post",
            color="black",
            linestyle="--",
            label="proven lower bound",
        )
    axes.axhline(certificate.lower, color="black", linewidth=0.6, linestyle=":")
    axes.set_ylim(low, high)
    axes.set_xlabel("seconds")
    axes.set_ylabel("modelled loss increase")
    gap = 100.0 * certificate.relative_gap
    axes.set_title(f"{title}: proven gap {gap:.2g} %", loc="left")
    axes.legend(frameon=False)
    write_figure(figure, path)


def plot_accuracy(
    path: Path, curves: Mapping[str, Sequence[tuple[float, float]]], dense: float
) -> None:
    """Test accuracy of each method over sparsity, with the dense network's as a line.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    figure, axes = _figure()
    places = sorted({s for curve in curves.values() for s, _ in curve})
    for i, (name, curve) in enumerate(curves.items()):
        x = [places.index(s) for s, _ in curve]
        width = _width(i, len(curves))
        style = {"linestyle": "--", "color": "gray"} if name == CONTROL else {}
        axes.plot(
            x,
            [a for _, a in curve],
            marker="o",
            markersize=2.2 * width,
            linewidth=width,
            label=name,
            **style,
        )
    axes.axhline(dense, color="black", linewidth=0.6, linestyle=":")
    axes.annotate(
        "dense", (1.0, dense), xytext=(-4, 4), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    axes.set_xticks(range(len(places)), [f"{s:g}" for s in places])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Accuracy after pruning (not what the bound is about)", loc="left")
    axes.legend(frameon=False, loc="lower left")
    write_figure(figure, path)


def _width(i: int, count: int) -> float:
    """Thinner lines on top of thicker ones, so that methods that agree are all seen."""
    return 3.4 - 2.0 * i / max(count - 1, 1)


def _range(objectives: Sequence[float], lower: float) -> tuple[float, float]:
    """The part of the axis where methods differ: magnitude's far value must not flatten it."""
    near = sorted(objectives)[: max(1, len(objectives) - 1)]
    top = near[-1] if near[-1] > lower else max(objectives)
    room = max(top - lower, 1e-3 * abs(lower), 1e-12)
    return lower - 0.35 * room, top + 0.35 * room


def _figure() -> tuple[Any, Any]:
    figure, (axes,) = canvas(1, 1, size=(7.0, 4.2))
    return figure, axes


def canvas(down: int, across: int, *, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure of so many inches and its axes, row by row.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib; install it with pip install 'chita-opt[plot]'"
        ) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def write_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())


__all__ = ["CONTROL", "canvas", "plot_accuracy", "plot_over_time", "write_figure"]
