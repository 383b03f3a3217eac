"""4.2 million weights and 200 gradient rows from a file: solved and bounded within 6 GB.

The net is MobileNetV1 with random weights (norms calibrated) on real images of CIFAR-10; the rows
are its gradients. Each stage is a process of its own, whose peak resident memory is what the
system says (ru_maxrss); pages of the mapped file count. A pass is A x plus A'y, streamed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import report
from torch.nn.functional import cross_entropy

COLUMNS = (
    "p", "n", "m", "sparsity", "file_gb", "limit_gb", "collect_s", "collect_gb", "pass_s",
    "solve_s", "bound_s", "solve_passes", "bound_passes", "upper", "lower", "gap_%", "solve_gb",
)  # fmt: skip


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def collect(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write the gradient rows and the dense weights."""
    from mobilenet import untrained_mobilenet
    from resnet20 import images

    from chita_opt.nn import RowChoice, gradient_file, select_layers

    x, y = images("train", options.rows * options.batch_size)
    model = untrained_mobilenet(x[:512])
    layers = select_layers(model)
    begin = time.perf_counter()
    gradient_file(
        model, cross_entropy, (x, y), layers,
        RowChoice(rows=options.rows, batch_size=options.batch_size),
        path=path, memory_limit=int(options.limit) - peak_bytes(),
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    torch.save(layers.weights(model), path.with_suffix(".pt"))
    return {"p": layers.size, "collect_s": seconds, "collect_gb": peak_bytes() / 1e9}


def solve(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Solve and bound from the file."""
    import chita_opt as co

    w_bar = torch.load(path.with_suffix(".pt"), weights_only=True).double()
    p = len(w_bar)
    curvature = co.open_gradients(path, memory_limit=int(options.limit) - peak_bytes())
    supports = co.Budget.cardinality(p, p - int(options.sparsity * p))
    problem = co.from_gradients(curvature, w_bar, ridge=options.ridge, supports=supports)
    pass_time = curvature.pass_seconds
    print(f"one pass {pass_time:.2f} s, {peak_bytes() / 1e9:.2f} GB", file=sys.stderr)
    begin = time.perf_counter()
    solution = co.solve(problem)
    solved = time.perf_counter() - begin
    print(f"{solution}, {peak_bytes() / 1e9:.2f} GB", file=sys.stderr)
    begin = time.perf_counter()
    bound = co.dual_bound(problem, start=solution)
    bounded = time.perf_counter() - begin
    return {
        "pass_s": pass_time, "solve_s": solved, "bound_s": bounded,
        "solve_passes": solved / pass_time, "bound_passes": bounded / pass_time,
        "upper": solution.objective, "lower": bound.value,
        "gap_%": 100 * (solution.objective - bound.value) / solution.objective,
        "solve_gb": peak_bytes() / 1e9, "method": solution.method,
    }  # fmt: skip


def stage(name: str, path: Path, arguments: list[str]) -> dict[str, Any]:
    """Run one stage as a process of its own."""
    call = [sys.executable, __file__, *arguments, "--stage", name, "--file", str(path)]
    run = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    """Collect, then solve at each sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.9, 0.98])
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--limit", type=float, default=6e9, help="bytes of resident memory")
    parser.add_argument("--quick", action="store_true", help="40 rows")
    parser.add_argument("--stage", choices=("collect", "solve"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = 40 if options.quick else options.rows
    if options.stage:
        if options.stage == "solve":
            options.sparsity = options.sparsity[0]
        print(json.dumps((collect if options.stage == "collect" else solve)(options.file, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "A.npy"
        shared = [f"--rows={options.rows}", f"--batch-size={options.batch_size}",
                  f"--limit={options.limit}", f"--ridge={options.ridge}"]  # fmt: skip
        row = {"n": options.rows, "m": options.batch_size, "limit_gb": options.limit / 1e9}
        row |= stage("collect", path, shared)
        row["file_gb"] = path.stat().st_size / 1e9
        table = [
            row | {"sparsity": s} | stage("solve", path, [*shared, f"--sparsity={s}"])
            for s in options.sparsity
        ]
    over = sum(max(r["collect_gb"], r["solve_gb"]) > r["limit_gb"] for r in table)
    note = f"rows over the limit: {over}; {torch.get_num_threads()} threads"
    report("larger_than_memory", table, COLUMNS, note)


if __name__ == "__main__":
    main()
