"""Time and memory against size: p from 2 thousand to 4 million, n from 100 to 2,000.

Synthetic gradients: sixteen directions that all weights share plus noise, heavy-tailed scales, the
same first columns at every p. One weight in ten is kept. Each size is a process of its own. A
"pass" is A x plus A'y; "copy_s" is the time in which the device copies as many bytes as a pass
reads. "vectors" is the peak memory beside A in float64 vectors of p entries.

Sizes are written as they are measured: a call with the same settings goes on where one was stopped
(--fresh begins anew).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from measuring import earlier, report, save
from torch import Tensor

import chita_opt as co
from chita_opt.bounds import dual_bound

COLUMNS = (
    "sweep", "p", "n", "k", "pass_s", "copy_s", "solve_s", "bound_s", "solve_passes",
    "bound_passes", "gap_%", "data_gb", "peak_gb", "vectors",
)  # fmt: skip
SWEEPS: dict[str, list[tuple[int, int]]] = {
    "p at n=100": [(p, 100) for p in (2000, 8000, 32_000, 125_000, 500_000, 2_000_000, 4_000_000)],
    "p at n=200": [(p, 200) for p in (2000, 8000, 32_000, 125_000, 500_000, 2_000_000, 4_000_000)],
    "p at n=1000": [(p, 1000) for p in (8000, 32_000, 125_000, 500_000)],
    "n at p=32k": [(32_000, n) for n in (100, 250, 500, 1000, 2000)],
    "n at p=250k": [(250_000, n) for n in (100, 250, 500, 1000, 2000)],
}
QUICK: dict[str, list[tuple[int, int]]] = {
    "p at n=100": [(p, 100) for p in (2000, 8000, 32_000, 125_000)],
    "n at p=8k": [(8000, n) for n in (100, 250, 500)],
}
_KEPT = 0.1
_PIECE = 1 << 14  # columns drawn with one seed
_LARGE = 30_000  # weights from which fixed costs no longer matter to a slope


def gradients(p: int, n: int, device: str) -> tuple[Tensor, Tensor]:
    """Columns (p, n) and dense weights."""
    columns = torch.empty(p, n, device=device)
    w_bar = torch.empty(p, dtype=torch.float64, device=device)
    shared = torch.randn(16, n, generator=torch.Generator().manual_seed(1))
    for i in range(0, p, _PIECE):
        rng, count = torch.Generator().manual_seed(2 + i), min(_PIECE, p - i)
        mixed = torch.randn(_PIECE, 16, generator=rng) @ shared / 4.0
        mixed += torch.randn(_PIECE, n, generator=rng)
        scale = torch.randn(_PIECE, 1, generator=rng).exp() * 0.02
        columns[i : i + count] = mixed.mul_(scale)[:count]
        w_bar[i : i + count] = 0.05 * torch.randn(_PIECE, generator=rng).double()[:count]
    return columns, w_bar


def copy_seconds(size: int, device: str) -> float:
    """Seconds in which the device copies from memory to memory, ``size`` bytes read."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(6):
        synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best * size / source.nbytes


def synchronize(device: str) -> None:
    """Wait for the device's work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_bytes(device: str) -> int:
    """Largest memory so far: of the device, or resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def case(p: int, n: int, device: str) -> dict[str, Any]:
    """Solve and bound one size; called in a fresh process."""
    warm_columns, warm_weights = gradients(4000, 50, device)
    warm = co.from_gradients(
        warm_columns.T, warm_weights, ridge=1e-4, supports=co.Budget.cardinality(4000, 400)
    )
    dual_bound(warm, start=co.solve(warm))
    begin_bytes = peak_bytes(device)
    columns, w_bar = gradients(p, n, device)
    k = round(_KEPT * p)
    problem = co.from_gradients(columns.T, w_bar, ridge=1e-4, supports=co.Budget.cardinality(p, k))
    pass_time = problem.curvature.pass_seconds
    seconds = []
    begin = time.perf_counter()
    solution = co.solve(problem)
    synchronize(device)
    seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    bound = dual_bound(problem, start=solution)
    synchronize(device)
    seconds.append(time.perf_counter() - begin)
    peak, data = peak_bytes(device), columns.nbytes
    return {
        "p": p, "n": n, "k": k, "pass_s": pass_time,
        "solve_s": seconds[0], "bound_s": seconds[1],
        "solve_passes": seconds[0] / pass_time, "bound_passes": seconds[1] / pass_time,
        "gap_%": 100 * (solution.objective - bound.value) / solution.objective,
        "data_gb": data / 1e9, "peak_gb": peak / 1e9,
        "vectors": (peak - begin_bytes - data) / (8 * p) if p >= _LARGE else None,
        "copy_s": copy_seconds(2 * data, device),
    }  # fmt: skip


def slope(rows: list[dict[str, Any]], size: str, value: str) -> float:
    """Least-squares slope of log(value) by log(size)."""
    x = [math.log(r[size]) for r in rows]
    y = [math.log(r[value]) for r in rows]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mx) ** 2 for a in x)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread


def slopes(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Slopes of every sweep, and of its large sizes alone where time no longer has a floor."""
    found = {}
    for name in dict.fromkeys(r["sweep"] for r in table):
        rows = [r for r in table if r["sweep"] == name]
        size = name.split()[0]
        large = [r for r in rows if r["p"] >= _LARGE] if size == "p" else rows
        found[name] = {v: slope(rows, size, v) for v in ("pass_s", "solve_s", "bound_s")}
        if 2 <= len(large) < len(rows):
            found[name] |= {f"{v}_large": slope(large, size, v) for v in ("solve_s", "bound_s")}
    return found


def in_fresh_process(p: int, n: int, device: str) -> dict[str, Any]:
    """Run one case in a process of its own, so that its peak memory is known."""
    call = [sys.executable, __file__, "--case", str(p), str(n), "--device", device]
    run = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    """All sweeps, or small ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--most", type=float, default=4e9, help="bytes of A; larger sizes are left")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(case(*options.case, options.device)))
        return
    name = "scaling_quick" if options.quick else "scaling"
    setting = f"{options.device}; {torch.get_num_threads()} threads"
    table = measured(options, name, setting)
    found = slopes(table)
    lines = [{"sweep": f"slope, {sweep}"} | values for sweep, values in found.items()]
    worst = max(
        v for sweep, values in found.items() if sweep.startswith("p")
        for key, v in values.items() if key.startswith("solve_s")
    )  # fmt: skip
    note = (
        f"{setting}; largest slope of solve_s in p: {worst:.2f}; slopes of large sizes alone are "
        "in the JSON"
    )
    report(f"{name}_slopes", [*table, *lines], COLUMNS, note)


def measured(options: argparse.Namespace, name: str, setting: str) -> list[dict[str, Any]]:
    """Rows of every sweep; each size is measured once and written at once."""
    sweeps = QUICK if options.quick else SWEEPS
    sizes = [(sweep, p, n) for sweep, own in sweeps.items() for p, n in own]
    cases = [] if options.fresh else earlier(name, setting)
    known = {(row["p"], row["n"]) for row in cases}
    for _, p, n in sizes:
        if 4 * p * n <= options.most and (p, n) not in known:
            cases.append(in_fresh_process(p, n, options.device))
            known.add((p, n))
            save(name, cases, setting)
    by_size = {(row["p"], row["n"]): row for row in cases}
    return [{"sweep": s} | by_size[p, n] for s, p, n in sizes if (p, n) in by_size]


if __name__ == "__main__":
    main()
