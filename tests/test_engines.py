"""Independent tasks on processes: the same bits for any number of them, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import nll_loss

from chita_opt.cli import run
from chita_opt.errors import EngineError, ProblemError
from chita_opt.exact import (
    Contender,
    CurveOptions,
    ParallelEngine,
    TreeOptions,
    ValueCurve,
    enumerate_optimum,
    race,
    solve_blocks,
    split_into_blocks,
    value_curves,
)
from chita_opt.exact.racing import Board
from chita_opt.exact.racing import _run as race_run
from chita_opt.nn import PruningResult, prune
from chita_opt.nn.layer_engine import part_of_time
from chita_opt.nn.stages import StageOptions
from chita_opt.solution import Status

from .problems import make_problem

Call = Callable[[int], Any]


def threads() -> Call:
    """Functions of a test module cannot be found by workers; those inside others travel whole."""

    def count(task: int) -> tuple[int, int]:
        return task, torch.get_num_threads()

    return count


def dies_once(mark: Path) -> Call:
    def call(task: int) -> int:
        if task == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * task

    return call


def dies() -> Call:
    return lambda task: os.kill(os.getpid(), signal.SIGKILL)


def stops(task: int) -> int:
    if task == 2:
        raise KeyboardInterrupt
    return task


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a local dask cluster of two processes."""
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed")
    with distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
    ) as found:
        yield found.scheduler_address


def test_results_come_in_order_with_one_thread_each() -> None:
    before = torch.get_num_threads()
    expected = [(task, 1) for task in range(5)]
    assert ParallelEngine().map(threads(), range(5)) == expected
    assert torch.get_num_threads() == before
    assert ParallelEngine(workers=2).map(threads(), range(5)) == expected
    assert ParallelEngine(workers=2).map(threads(), []) == []


def test_a_death_is_survived_and_deaths_are_an_error(tmp_path: Path) -> None:
    engine = ParallelEngine(workers=2)
    assert engine.map(dies_once(tmp_path / "mark"), range(4)) == [0, 10, 20, 30]
    with pytest.raises(EngineError, match="died 1 times"):
        ParallelEngine(workers=2, retries=0).map(dies(), range(2))


def test_what_came_before_an_interrupt_is_kept() -> None:
    found: dict[int, int] = {}
    with pytest.raises(KeyboardInterrupt):
        ParallelEngine().map(stops, range(4), on_result=found.__setitem__)
    assert found == {0: 0, 1: 1}


def test_engines_refuse_what_they_cannot_be() -> None:
    with pytest.raises(EngineError, match="workers is 0"):
        ParallelEngine(workers=0)
    with pytest.raises(EngineError, match="retries"):
        ParallelEngine(retries=-1)
    with pytest.raises(ProblemError, match="workers is 0"):
        prune(nn.Linear(2, 2), None, torch.randn(9, 2), sparsity=0.5, workers=0)


@pytest.mark.parametrize(
    "asked",
    [{"curvature": "inputs"}, {"scope": "layer"}, {"workers": None, "scheduler": "tcp://none:1"},
     {"curvature": "inputs", "scope": "layer", "method": "hybrid"}],
)  # fmt: skip
def test_workers_are_refused_where_layers_are_one_problem(asked: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    data = torch.randn(9, 2), torch.zeros(9, dtype=torch.int64)
    with pytest.raises(ProblemError, match=r"leave out workers|independent"):
        prune(net, nll_loss, data, sparsity=0.5, rows=9, **{"workers": 2, **asked})
    with pytest.raises(ProblemError, match="leave them out"):
        StageOptions(workers=2)


def curves(engine: ParallelEngine) -> tuple[ValueCurve, ...]:
    problem = make_problem("gradient_blocks", "cardinality", p=12, ridge=1e-2)
    blocks = [block for _, block in split_into_blocks(problem)]
    return value_curves(blocks, options=CurveOptions(tree=TreeOptions(gap=1e-6)), engine=engine)


def layerwise(**where: object) -> PruningResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    return prune(
        model, None, torch.randn(60, 12), sparsity=0.5, scope="layer", curvature="inputs", rows=60,
        ridge=0.1, trust=False, **where,
    )  # fmt: skip


def check_same(ours: ParallelEngine, workers: int | None, scheduler: str | None) -> None:
    for here, there in zip(curves(ParallelEngine()), curves(ours), strict=True):
        assert np.array_equal(here.upper, there.upper) and np.array_equal(here.lower, there.lower)
        assert here.w is not None and there.w is not None and np.array_equal(here.w, there.w)
    one, other = layerwise(workers=1), layerwise(workers=workers, scheduler=scheduler)
    assert torch.equal(one.w, other.w)
    assert one.certificate is not None and other.certificate is not None
    assert one.certificate.lower == other.certificate.lower
    assert list(one.layer_certificates) == list(other.layer_certificates)


def test_two_processes_give_the_same_bits() -> None:
    check_same(ParallelEngine(workers=2), 2, None)
    problem = make_problem("gradient_blocks", "cardinality", p=12, ridge=1e-2)
    one, two = solve_blocks(problem), solve_blocks(problem, engine=ParallelEngine(workers=2))
    assert torch.equal(one.solution.w, two.solution.w) and one.lower == two.lower


@pytest.mark.slow
def test_a_cluster_gives_the_same_bits_and_survives_a_death(cluster: str, tmp_path: Path) -> None:
    engine = ParallelEngine(scheduler=cluster)
    check_same(engine, None, cluster)
    assert engine.map(dies_once(tmp_path / "mark"), range(4)) == [0, 10, 20, 30]


def test_a_time_limit_holds_on_processes() -> None:
    begin = time.perf_counter()
    result = layerwise(workers=2, time_limit=2.0)
    assert result.certificate is not None and result.certificate.lower <= result.objective
    assert time.perf_counter() - begin < 60.0


def test_compare_over_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    paths = [str(tmp_path / f"{n}.npz") for n in range(2)]
    for path in paths:
        np.savez(path, A=draw.normal(size=(20, 8)), w_bar=draw.normal(size=8))
    asked = ("compare", *paths, "--k", "3", "--methods", "magnitude,backsolve")

    def report(*more: str) -> dict[str, Any]:
        assert run([*asked, *more, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["instances"]
        assert list(found) == paths
        return {path: (own["upper"], own["lower"]) for path, own in found.items()}

    assert report() == report("--workers", "2")
    assert run([*asked]) == 0 and "backsolve" in capsys.readouterr().out
    assert run(["compare", paths[0], "--k", "3", "--workers", "2"]) != 0
    assert run([*asked, "--plot", str(tmp_path / "p.png")]) != 0
    assert run(["compare", paths[0], "none.npz", "--k", "3"]) != 0


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_proof_of_a_race_wins(workers: int, tmp_path: Path) -> None:
    problem = make_problem("low_rank", "cardinality", p=12, seed=3, ridge=1e-3)
    exact = enumerate_optimum(problem).objective
    contenders = [
        Contender(options=TreeOptions(node_limit=1), method="magnitude"),
        Contender(method="backsolve"),
        Contender(options=TreeOptions(gap=1e-3)),
    ]
    engine = ParallelEngine(workers=workers)
    found = race(problem, contenders, engine=engine, folder=tmp_path / "meeting")
    assert found.status is Status.OPTIMAL
    assert found.lower <= exact * (1 + 1e-9) and found.upper == pytest.approx(exact, rel=1e-3)
    assert (tmp_path / "meeting" / "proven").exists()
    with pytest.raises(ProblemError, match="not empty"):
        race(problem, contenders, folder=tmp_path / "meeting")


def test_weights_on_the_board_close_nodes_and_end_searches(tmp_path: Path) -> None:
    problem = make_problem("low_rank", "cardinality", p=12, seed=3, ridge=1e-3)
    best = enumerate_optimum(problem).w.numpy()
    one, other = Board(tmp_path, 0), Board(tmp_path, 1)
    one.tell(best)
    assert [w.tolist() for w in other.news()] == [best.tolist()]
    assert other.news() == [] and one.news() == []
    (tmp_path / "2.weights").write_bytes(b"half of it")
    assert other.news() == []
    found = race_run(problem, tmp_path, (3, Contender(method="magnitude")))
    assert found.upper == pytest.approx(problem.objective(torch.from_numpy(best)))
    one.end()
    assert race_run(problem, tmp_path, (4, Contender())).nodes == 0


def test_races_refuse_what_cannot_be_run(tmp_path: Path) -> None:
    problem = make_problem("low_rank", "cardinality", p=12)
    with pytest.raises(ProblemError, match="at least one"):
        race(problem, [])
    with pytest.raises(ProblemError, match="folder"):
        race(problem, [Contender()], engine=ParallelEngine(scheduler="tcp://nowhere:1"))
    unproven = [Contender(options=TreeOptions(node_limit=1, gap=0.0))]
    found = race(problem, unproven)
    assert found.lower <= enumerate_optimum(problem).objective * (1 + 1e-9)


def test_small_layers_get_seconds_too() -> None:
    sizes = [200, 800, 31_360]
    parts = [part_of_time(size, sizes) for size in sizes]
    assert sum(parts) == pytest.approx(1.0)
    assert parts == sorted(parts) and parts[0] > 1 / 6
