"""Whole networks solved and certified: gaps and seconds, beside the official code's own distance.

MLPNet (p = 32,360, n = 1000 rows) and ResNet20 (p = 268,336, n = 500 rows of 16 images), without
the linear term. Seconds are from A in memory to the certified pair; the check of the certificate
by numpy is timed apart. The gap is about the quadratic model, not about accuracy.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from measuring import pass_seconds, report
from reference_data import mlp_gradients, official_rows
from torch import Tensor
from torch.nn.functional import cross_entropy

import chita_opt as co
from chita_opt.bounds import dual_bound
from chita_opt.certificates import certify

COLUMNS = (
    "net", "family", "ridge", "upper", "lower", "gap_%", "limit_%", "official_gap_%", "seconds",
    "limit_s", "passes", "check_s", "kept_proven", "pruned_proven", "gap_in_gains",
)  # fmt: skip
LIMITS = {
    1e-3: {0.5: 0.02, 0.9: 0.05, 0.98: 0.25, "2:4": 0.4, "1:4": 1.0},
    1e-4: {0.5: 0.05, 0.9: 0.15, 0.98: 0.8},
}


def certified(problem: co.Problem, pass_time: float) -> dict[str, Any]:
    """Solve, bound and check one problem."""
    begin = time.perf_counter()
    solution = co.solve(problem, effort="thorough")
    bound = dual_bound(problem, start=solution)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    certificate = certify(solution, bound=bound)
    return {
        "upper": certificate.upper,
        "lower": certificate.lower,
        "gap_%": 100 * certificate.relative_gap,
        "seconds": seconds,
        "passes": seconds / pass_time,
        "check_s": time.perf_counter() - begin,
        "kept_proven": certificate.screening.counts["kept"],
        "pruned_proven": certificate.screening.counts["pruned"],
        "gap_in_gains": certificate.screening.gap_in_gains,
        "accuracy_note": "the gap is about the quadratic model",
    }


def official_gap(m: int, ridge: float, sparsity: object, lower: float, n: int) -> float | None:
    """Proven distance of the best official objective from the optimum, in percent."""
    values = [
        float(r["objective"]) for r in official_rows()  # type: ignore[arg-type]
        if r["instance"] == f"mlp_global_m{m}" and not r["first_order"]
        and r["l2"] == ridge and r["sparsity"] == sparsity
    ]  # fmt: skip
    if not values:
        return None
    best = min(values) / n
    return 100 * (best - lower) / best


def family(p: int, kind: object) -> co.Budget:
    """A cardinality budget by sparsity (the official count), or N:M by text."""
    if isinstance(kind, str):
        n, m = (int(x) for x in kind.split(":"))
        return co.Budget.n_of_m(p, n, m)
    return co.Budget.cardinality(p, int((1 - float(kind)) * p))  # type: ignore[arg-type]


def rows_for(
    net: str,
    A: Tensor,
    w_bar: Tensor,
    ridges: list[float],
    kinds: list[object],
    limit_s: float | None,
) -> list[dict[str, Any]]:
    """All certified rows of one network."""
    n, p = A.shape
    pass_time = pass_seconds(co.LowRank(A, 1.0))
    co.solve(co.from_gradients(A[:50], w_bar, ridge=1e-3, supports=family(p, 0.9)))  # warm up
    found = []
    for ridge in ridges:
        for kind in kinds:
            problem = co.from_gradients(A, w_bar, ridge=ridge, supports=family(p, kind))
            row = {"net": net, "family": str(kind), "ridge": ridge, "limit_s": limit_s}
            row |= certified(problem, pass_time)
            row["limit_%"] = LIMITS.get(ridge, {}).get(kind)
            if net == "ResNet20":
                row["limit_%"] = None if limit_s is None else 0.01
            if net.startswith("MLPNet"):
                row["official_gap_%"] = official_gap(
                    int(net.split("m")[-1]), ridge, kind, row["lower"], n
                )
            found.append(row)
    return found


def resnet_rows() -> tuple[Tensor, Tensor]:
    """Gradient rows of ResNet20: 500 rows of 16 images, shortcuts left out as published."""
    from resnet20 import images, resnet20

    from chita_opt.nn import RowChoice, gradient_rows, select_layers

    model = resnet20()
    layers = select_layers(model, exclude=("*downsample*",))
    x, y = images("train", 8000)
    rows = gradient_rows(
        model, cross_entropy, (x, y), layers, RowChoice(rows=500, batch_size=16, seed=0)
    )
    return rows.A, layers.weights(model).double()


def main() -> None:
    """MLPNet m=1 and 16, then ResNet20."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="*", default=["m1", "m16", "resnet20"])
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    for m in (1, 16):
        if f"m{m}" in options.nets:
            data = mlp_gradients(m)
            args = (f"MLPNet m{m}", data.A, data.w_bar)
            table += rows_for(*args, [1e-3, 1e-4], [0.5, 0.9, 0.98], 5.0)
            table += rows_for(*args, [1e-3], ["2:4", "1:4"], 5.0)
    if "resnet20" in options.nets:
        A, w_bar = resnet_rows()
        table += rows_for("ResNet20", A, w_bar, [1e-4, 1e-3], [0.5, 0.9, 0.98], 10.0)
        table += rows_for("ResNet20", A, w_bar, [1e-3], ["2:4"], None)
    wide = sum(r["limit_%"] is not None and r["gap_%"] > r["limit_%"] for r in table)
    slow = sum(r["limit_s"] is not None and r["seconds"] > r["limit_s"] for r in table)
    note = f"{len(table)} rows; gap above its limit: {wide}; slower than its limit: {slow}; "
    report("whole_network", table, COLUMNS, note + f"{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
