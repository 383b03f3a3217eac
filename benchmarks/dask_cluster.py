"""A network pruned layer by layer on a local dask cluster, one of two processes killed on the way.

MLPNet by layer-wise reconstruction (each layer 90 % sparse), then the rows of its last two layers
solved for every count: once here, one after the other; once on a cluster of two processes; once
more with one of them killed by SIGKILL while it works. Masks, weights and curves must be the same
to the last bit.

Run: python benchmarks/dask_cluster.py [--rows 500] [--quick]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import report
from torch.nn.functional import nll_loss

from chita_opt.exact import CurveOptions, ParallelEngine, split_into_blocks, value_curves
from chita_opt.nn import PruneOptions, load_pretrained, mnist_subset, prune, select_layers
from chita_opt.nn.pruning_problem import build_family, build_problem

COLUMNS = ("run", "seconds", "killed", "objective", "masks equal", "weights equal", "curves equal")
Answer = tuple[dict[str, torch.Tensor], torch.Tensor, list[Any], float]


def work(
    rows: int, exclude: str, engine: ParallelEngine, begun: Callable[[], None] | None = None
) -> Answer:
    """Masks, weights, curves and objective."""
    data, model = mnist_subset(), load_pretrained("mlpnet_mnist5k")
    train = (data.x_train, data.y_train)
    found = prune(
        model, None, train, sparsity=0.9, scope="layer", curvature="inputs", rows=rows, trust=False,
        workers=engine.workers, scheduler=engine.scheduler, exclude=exclude or (),
    )  # fmt: skip
    layers = select_layers(model, exclude="fc1")
    options = PruneOptions(curvature="row_gradients", rows=rows)
    family = build_family(layers, "cardinality", 0.9, options)
    problem = build_problem(model, nll_loss, train, layers, family, options).problem
    blocks = [block for _, block in split_into_blocks(problem)]
    if begun is not None:
        begun()
    curves = value_curves(blocks, ks=range(0, 20, 4), options=CurveOptions(), engine=engine)
    values = [(c.upper.tolist(), c.lower.tolist(), c.w.tobytes()) for c in curves]
    return dict(found.masks), found.w, values, found.objective


def equal(ours: Answer, theirs: Answer) -> tuple[bool, bool, bool]:
    """Whether masks, weights and curves agree to the last bit."""
    masks = all(torch.equal(mask, theirs[0][name]) for name, mask in ours[0].items())
    return masks, torch.equal(ours[1], theirs[1]), ours[2] == theirs[2]


def killer(pid: int, after: float) -> Callable[[], None]:
    """End a process without warning, some seconds from now."""

    def kill() -> None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)

    return lambda: threading.Thread(target=kill, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--after", type=float, default=1.0, help="seconds until the kill")
    parser.add_argument("--quick", action="store_true", help="leave the first layer alone")
    choice = parser.parse_args()
    from distributed import LocalCluster

    def timed(name: str, engine: ParallelEngine, killed: int | None) -> dict[str, Any]:
        begin = time.perf_counter()
        begun = None if killed is None else killer(killed, choice.after)
        answer = work(choice.rows, "fc1" if choice.quick else "", engine, begun)
        seconds = time.perf_counter() - begin
        same = (True, True, True) if serial is None else equal(serial, answer)
        answers.append(answer)
        values = (name, seconds, killed is not None, answer[3], *same)
        print(*(f"{c}={v}" for c, v in zip(COLUMNS, values, strict=True)), flush=True)
        return dict(zip(COLUMNS, values, strict=True))

    serial, answers = None, list[Answer]()
    rows = [timed("here", ParallelEngine(), None)]
    serial = answers[0]
    with LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        engine = ParallelEngine(scheduler=cluster.scheduler_address)
        rows.append(timed("two processes", engine, None))
        victim = next(iter(cluster.workers.values())).pid
        rows.append(timed("two processes, one killed", engine, victim))
        alive = {worker.pid for worker in cluster.workers.values()}
    report("dask_cluster", rows, COLUMNS, f"{choice.rows} rows; {time.strftime('%Y-%m-%d')}")
    if victim in alive:
        sys.exit("nobody was killed: give --after a smaller number")
    if not all(row[c] for row in rows for c in COLUMNS[-3:]):
        sys.exit("the answers differ")


if __name__ == "__main__":
    main()
