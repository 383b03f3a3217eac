"""Rows of MLPNet (784-40-20-10) to proven optimality for every count, and their layers' split.

The model is that of gradient rows without coupling between outputs: one block A_r'A_r/n + lambda I
a row. Every row of fc2 (20 of 40 weights) and fc3 (10 of 20) is solved for every number of weights
(relative gap 1e-6); rows of fc1 (784) get values and dual bounds on a grid. The layer's budget is
then split exactly, by dynamic program and by HiGHS, bounded by one price, and set beside uniform
and magnitude splits of the same rows (rows of one shape: ERK is uniform), and layers beside
uniform, ERK and magnitude. Layer-wise reconstruction of fc2 and fc3 is solved by solve_blocks.
Gaps are about the quadratic model, never about accuracy.

Run: CHITA_OPT_DATA=... python benchmarks/row_splits.py [--workers 2] [--seconds 300] [--wide 3]
Rows that are finished stand in results/row_splits_curves_*.json; the next run goes on from there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from measuring import earlier, report, save
from reference_data import data_root, images, mlp_gradients, mlpnet

from chita_opt import Budget, TreeOptions
from chita_opt.curvature import LowRank
from chita_opt.exact import (
    CurveOptions,
    ParallelEngine,
    ValueCurve,
    solve_blocks,
    split_curves,
    value_at,
    value_curves,
)
from chita_opt.instances import load_instance
from chita_opt.nn import PruneOptions, select_layers
from chita_opt.nn.pruning_problem import build_family, build_problem
from chita_opt.nn.row_blocks import row_blocks
from chita_opt.problem import Problem
from chita_opt.supports import split_budget

SHAPES = {"fc1": (40, 784), "fc2": (20, 40), "fc3": (10, 20)}
LAMBDAS = (1e-2, 1e-3)
SPARSITIES = (0.5, 0.7, 0.9, 0.95)
GAP = 1e-6
LAYER_COLUMNS = ("layer", "lambda", "rows", "counts", "proven", "worst_gap", "nodes", "row_seconds")
SPLIT_COLUMNS = ("layer", "lambda", "sparsity", "k", "value", "knapsack", "bound", "priced",
                 "gap", "uniform", "erk", "magnitude")  # fmt: skip
INPUT_COLUMNS = ("layer", "sparsity", "k", "status", "upper", "lower", "gap", "nodes", "seconds")


def rows_of(layer: str, lam: float) -> list[Problem]:
    """One problem a row, each under no more than its own size."""
    rows, width = SHAPES[layer]
    if layer == "fc1":
        found = mlp_gradients(1)
        A, w_bar = found.A[:, : rows * width], found.w_bar[: rows * width]
    else:
        instance = load_instance(data_root() / "instances" / f"{layer}.npz")
        assert isinstance(instance.curvature, LowRank)
        A, w_bar = instance.curvature.A, instance.w_bar
    (blocks,) = row_blocks(A, select_layers(torch.nn.Linear(width, rows))).values()
    parts = zip(blocks, w_bar.split(width), strict=True)
    anything = Budget.cardinality(width, width)
    return [Problem(block, w, lam, anything) for block, w in parts]


def curves_of(
    layer: str, lam: float, count: int, engine: ParallelEngine, clock: float
) -> list[ValueCurve | None]:
    """The curves of a layer's first rows; those not done within the time are None."""
    known = {(r["layer"], r["lambda"], r["row"]): r for r in earlier(f"row_splits_curves_{layer}")}
    problems = rows_of(layer, lam)[:count]
    left = [r for r in range(count) if (layer, lam, r) not in known]
    options = CurveOptions(tree=TreeOptions(gap=GAP), grid=12)
    while left and time.perf_counter() < clock:
        now, left = left[: engine.workers], left[engine.workers :]
        begin = time.perf_counter()
        found = value_curves([problems[r] for r in now], options=options, engine=engine)
        seconds = time.perf_counter() - begin
        for r, curve in zip(now, found, strict=True):
            known[layer, lam, r] = {
                "layer": layer, "lambda": lam, "row": r, "ks": curve.ks.tolist(),
                "upper": curve.upper.tolist(), "lower": curve.lower.tolist(),
                "status": str(curve.status), "nodes": curve.nodes, "seconds": seconds,
            }  # fmt: skip
            print(f"{layer} {lam:g} row {r}: {curve.status}, gap {curve.gaps.max():.2g}, "
                  f"{curve.nodes} nodes, {seconds:.1f} s", flush=True)  # fmt: skip
        save(f"row_splits_curves_{layer}", list(known.values()), "one row of the layer each")
    rows = [known.get((layer, lam, r)) for r in range(count)]
    return [None if row is None else _curve(row) for row in rows]


def _curve(row: dict[str, Any]) -> ValueCurve:
    ks, upper, lower = (np.array(row[name]) for name in ("ks", "upper", "lower"))
    return ValueCurve(ks, upper, lower, nodes=row["nodes"])


def layer_row(layer: str, lam: float, curves: Sequence[ValueCurve]) -> dict[str, Any]:
    """What is proven of a layer's rows."""
    gaps = np.concatenate([curve.gaps for curve in curves])
    seconds = [r["seconds"] for r in earlier(f"row_splits_curves_{layer}") if r["lambda"] == lam]
    values = (
        layer, lam, f"{len(curves)} of {SHAPES[layer][0]}", len(gaps),
        int((gaps <= 1.001 * GAP).sum()), float(gaps.max()), sum(c.nodes for c in curves),
        float(np.median(seconds)),
    )  # fmt: skip
    return dict(zip(LAYER_COLUMNS, values, strict=True))


def split_rows(layer: str, lam: float, curves: Sequence[ValueCurve]) -> list[dict[str, Any]]:
    """The layer's split at several sparsities beside simple ones."""
    rows, width = SHAPES[layer]
    shapes = {str(r): (1, width) for r in range(rows)}
    w = torch.cat([problem.w_bar for problem in rows_of(layer, lam)])
    found = []
    for sparsity in SPARSITIES:
        k = round((1 - sparsity) * rows * width)
        best = split_curves(curves, k)
        other = split_curves(curves, k, method="knapsack")
        simple = {
            rule: value_at(curves, split_budget(rule, k, shapes, w=w))[0]
            for rule in ("uniform", "erk", "magnitude")
        }
        values = (
            layer, lam, sparsity, k, best.upper, other.upper, best.lower, best.priced, best.gap,
            *simple.values(),
        )  # fmt: skip
        found.append(dict(zip(SPLIT_COLUMNS, values, strict=True)))
    return found


def reconstructions(seconds: float, engine: ParallelEngine) -> list[dict[str, Any]]:
    """fc2 and fc3 by the second moments of their inputs."""
    model, (x, _) = mlpnet(), images("train")
    found = []
    for layer in ("fc2", "fc3"):
        chosen = select_layers(model, include=f"{layer}.weight")
        for sparsity in SPARSITIES:
            options = PruneOptions(curvature="inputs", rows=2000, ridge=1e-3)
            family = build_family(chosen, "cardinality", sparsity, options)
            network = build_problem(model, None, (x, x), chosen, family, options)
            result = solve_blocks(
                network.problem, options=TreeOptions(time_limit=seconds), engine=engine
            )
            values = (
                layer, sparsity, family.max_count, str(result.status), result.upper, result.lower,
                result.gap, result.nodes, result.seconds,
            )  # fmt: skip
            found.append(dict(zip(INPUT_COLUMNS, values, strict=True)))
            print(result, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1800.0, help="for the curves")
    parser.add_argument("--wide", type=int, default=2, help="rows of fc1")
    parser.add_argument("--only", default="", help="part of a layer's name, or 'inputs'")
    choice = parser.parse_args()
    engine = ParallelEngine(workers=choice.workers)
    clock, layers, splits = time.perf_counter() + choice.seconds, [], []
    for layer in ("fc3", "fc2", "fc1"):
        if choice.only not in layer:
            continue
        count = choice.wide if layer == "fc1" else SHAPES[layer][0]
        for lam in LAMBDAS:
            curves = curves_of(layer, lam, count, engine, clock)
            done = [curve for curve in curves if curve is not None]
            if done:
                layers.append(layer_row(layer, lam, done))
            if len(done) == SHAPES[layer][0]:
                splits += split_rows(layer, lam, done)
    note = f"{choice.workers} workers, gap {GAP:g}; {time.strftime('%Y-%m-%d')}"
    if layers:
        report("row_splits_rows", layers, LAYER_COLUMNS, note)
        report("row_splits", splits, SPLIT_COLUMNS, note)
    if choice.only in ("", "inputs"):
        report("row_splits_inputs", reconstructions(30.0, engine), INPUT_COLUMNS, note)


if __name__ == "__main__":
    main()
