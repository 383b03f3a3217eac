"""Gradient rows in a file: written whole or not at all, solved as in memory, within a limit."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import chita_opt as co
from chita_opt.curvature.column_file import MappedColumns, column_writer
from chita_opt.curvature.mapped_low_rank import MappedLowRank, solving_bytes
from chita_opt.errors import CurvatureError, DataError, MemoryLimitError, ProblemError
from chita_opt.nn import RowChoice, gradient_file, gradient_rows, select_layers

N, P = 30, 700


@pytest.fixture
def columns() -> torch.Tensor:
    return torch.randn(P, N, generator=torch.Generator().manual_seed(0))


def written(path: Path, columns: torch.Tensor, chunk: int = 7) -> Path:
    p, n = columns.shape
    with column_writer(path, p, n) as writer:
        for start in range(0, n, chunk):
            writer.write(start, columns[:, start : start + chunk], piece=4 * n * 11)
    return path


def test_what_is_written_is_read(tmp_path: Path, columns: torch.Tensor) -> None:
    path = written(tmp_path / "A.npy", columns)
    assert torch.equal(MappedColumns(path).tensor, columns)
    assert np.array_equal(np.load(path, allow_pickle=False), columns.numpy())
    assert [f.name for f in tmp_path.iterdir()] == ["A.npy"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, columns: torch.Tensor) -> None:
    path = written(tmp_path / "A.npy", columns)
    with pytest.raises(KeyboardInterrupt), column_writer(path, 5, 3) as writer:
        writer.write(0, torch.ones(5, 1))
        raise KeyboardInterrupt
    assert torch.equal(MappedColumns(path).tensor, columns)
    assert [f.name for f in tmp_path.iterdir()] == ["A.npy"]


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot read"),
        (b"not numpy", "is not a .npy file"),
        (np.ones((3, 2)), "float64"),
        (np.ones(3, np.float32), "shape"),
        (np.asfortranarray(np.ones((3, 2), np.float32)), "C order"),
        (np.array([{}]), "object"),
    ],
)
def test_other_files(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "A.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        co.open_gradients(path)


def test_a_file_cut_short(tmp_path: Path, columns: torch.Tensor) -> None:
    path = written(tmp_path / "A.npy", columns)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="cut short"):
        co.open_gradients(path)


def test_values_that_are_not_finite(tmp_path: Path, columns: torch.Tensor) -> None:
    columns[P - 1, 3] = float("inf")
    with pytest.raises(CurvatureError, match=r"A.npy.* holds inf"):
        co.open_gradients(written(tmp_path / "A.npy", columns))


@pytest.mark.parametrize("window", [4 * N, 4 * N * 100, 1 << 30])
def test_every_product_agrees_with_memory(
    tmp_path: Path, columns: torch.Tensor, window: int
) -> None:
    source = MappedColumns(written(tmp_path / "A.npy", columns))
    C = MappedLowRank(source.tensor.T, 1.0 / N, source=source, window=window)
    M = co.LowRank(columns.T, 1.0 / N)
    F, G = C.factor_of_rows, M.factor_of_rows
    x, r = torch.randn(P).double(), torch.randn(N).double()
    x[200:] *= torch.rand(P - 200) < 0.1
    index = torch.arange(0, P, 3)
    for exact in (True, False):
        tol = 1e-12 if exact else 1e-5
        for v in (x, x * (torch.arange(P) < 50), torch.ones_like(x)):
            assert torch.allclose(F.forward(v, exact=exact), G.forward(v, exact=exact), atol=tol)
        assert torch.allclose(F.adjoint(r, exact=exact), G.adjoint(r, exact=exact), atol=tol)
        assert torch.allclose(F.gram(index, exact=exact), G.gram(index, exact=exact), atol=tol)
    weights = torch.rand(len(index)).double()
    expected = G.columns[index].double()
    expected = expected.T @ (weights * (expected @ r)) / N
    assert torch.allclose(F.normal_at(index, weights, r), expected)
    assert torch.equal(F.select(index), G.select(index))
    assert torch.allclose(C.diagonal(), M.diagonal())
    assert torch.allclose(C.cross(index, index[:5]), M.cross(index, index[:5]))


@pytest.mark.parametrize("family", ["cardinality", "2:4"])
@pytest.mark.parametrize("first_order", [0.0, 1.0])
def test_solved_and_bounded_as_in_memory(
    tmp_path: Path, columns: torch.Tensor, family: str, first_order: float
) -> None:
    path = written(tmp_path / "A.npy", columns)
    supports = (
        co.Budget.cardinality(P, 90) if family == "cardinality" else co.Budget.n_of_m(P, 2, 4)
    )
    w_bar = torch.randn(P, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for rows in (columns.T, co.open_gradients(path, memory_limit=solving_bytes(N, P) + 10**5)):
        problem = co.from_gradients(
            rows, w_bar, ridge=1e-2, supports=supports, first_order=first_order
        )
        solution = co.solve(problem)
        found.append((solution.objective, co.dual_bound(problem, start=solution).value))
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-7)


def test_blocks_of_a_file_are_those_of_memory(tmp_path: Path, columns: torch.Tensor) -> None:
    source = MappedColumns(written(tmp_path / "A.npy", columns))
    C = MappedLowRank(source.tensor.T, 1.0 / N, source=source, window=4 * N * 40)
    w_bar = torch.randn(P, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for rows in (columns.T, C):
        problem = co.from_gradients(rows, w_bar, ridge=1e-2, supports=co.Budget.cardinality(P, 90))
        found.append(co.solve(problem, "blockwise", block=50).objective)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_limit_that_is_too_small(tmp_path: Path, columns: torch.Tensor) -> None:
    path = written(tmp_path / "A.npy", columns)
    need = solving_bytes(N, P) + 4 * N * P
    with pytest.raises(
        MemoryLimitError, match=f"at least {need} bytes.*memory_limit is {need - 1}"
    ):
        co.open_gradients(path, memory_limit=need - 1)
    assert co.open_gradients(path, memory_limit=need).window == 4 * N * P


def test_scales_and_devices(tmp_path: Path, columns: torch.Tensor) -> None:
    C = co.open_gradients(written(tmp_path / "A.npy", columns), scale=2.0)
    assert C.scale == 2.0 and C.to("cpu") is C
    with pytest.raises(ProblemError, match="scale"):
        co.from_gradients(C, torch.ones(P), ridge=1.0, supports=co.Budget.cardinality(P, 9))
    with pytest.raises(CurvatureError, match="not moved to cuda"):
        C.to("cuda")
    with pytest.raises(CurvatureError, match="scale"):
        co.open_gradients(tmp_path / "A.npy", scale=0.0)


@pytest.mark.parametrize("limit", [None, 22_000, 40_000, 120_000])
def test_rows_of_a_net_into_a_file(tmp_path: Path, limit: int | None) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    x, y = torch.randn(60, 1, 6, 6), torch.arange(60) % 5
    layers, choice = select_layers(net), RowChoice(rows=30, batch_size=2)
    steps: list[int] = []
    found = gradient_file(
        net, nn.CrossEntropyLoss(), (x, y), layers, choice, path=tmp_path / "A.npy",
        memory_limit=limit, progress=lambda done, rows: steps.append(done),
    )  # fmt: skip
    expected = gradient_rows(net, nn.CrossEntropyLoss(), (x, y), layers, choice)
    assert torch.allclose(found.A, expected.A, atol=1e-6)
    assert found.loss_mean == pytest.approx(expected.loss_mean) and found.path == expected.path
    assert steps[-1] == 30 and (limit is None) == (len(steps) <= 2)
    with pytest.raises(MemoryLimitError, match="memory_limit is 50"):
        gradient_file(
            net, nn.CrossEntropyLoss(), (x, y), layers, choice, path=tmp_path / "B.npy",
            memory_limit=50,
        )  # fmt: skip
    x[5] = float("nan")
    with pytest.raises(DataError, match=r"row 2 \(samples 4 to 5"):
        gradient_file(net, nn.CrossEntropyLoss(), (x, y), layers, choice, path=tmp_path / "B.npy")
    assert [f.name for f in tmp_path.iterdir()] == ["A.npy"]


SOLVE = """
import resource, sys, torch, chita_opt as co
p, n, limit = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(0)
w_bar, supports = torch.randn(p).double(), co.Budget.cardinality(p, p // 10)
small = co.from_gradients(torch.randn(n, 4000), w_bar[:4000], ridge=1e-2,
                          supports=co.Budget.cardinality(4000, 400))
co.dual_bound(small, start=co.solve(small))  # libraries and their buffers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
C = co.open_gradients(sys.argv[1], memory_limit=limit)
problem = co.from_gradients(C, w_bar, ridge=1e-3, supports=supports)
if sys.argv[5] == "blockwise":
    solution = co.solve(problem, "blockwise", block=1000)
else:
    solution = co.solve(problem)
    bound = co.dual_bound(problem, start=solution)
    assert bound.value <= solution.objective
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read on Linux")
@pytest.mark.parametrize("method", ["relax_round", "blockwise"])
def test_the_limit_is_kept(tmp_path: Path, method: str) -> None:
    p, n = 100_000, 400
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "A.npy"
    with column_writer(path, p, n) as writer:
        scale = torch.rand(p, 1, generator=generator)
        for start in range(0, n, 50):
            writer.write(start, scale * torch.randn(p, 50, generator=generator))
    limit = solving_bytes(n, p) + (70 << 20)
    args = [sys.executable, "-c", SOLVE, str(path), str(p), str(n), str(limit), method]
    run = subprocess.run(args, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    size = path.stat().st_size
    assert int(run.stdout) <= limit < solving_bytes(n, p) + size
    assert int(run.stdout) <= 0.9 * size  # the file is never in memory as a whole
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


def test_prune_from_a_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    data = (torch.randn(200, 6), torch.arange(200) % 3)
    options: dict[str, Any] = {"rows": 40, "sparsity": 0.7, "trust": False, "ridge": 1e-2}
    plain = co.prune(net, nn.CrossEntropyLoss(), data, **options)
    filed = co.prune(
        net, nn.CrossEntropyLoss(), data, gradient_file=tmp_path / "A.npy", **options,
        memory_limit=10**7,
    )  # fmt: skip
    assert filed.solution.objective == pytest.approx(plain.solution.objective, rel=1e-5)
    with pytest.raises(ProblemError, match="gradient_file"):
        co.prune(net, None, data, gradient_file=tmp_path / "A.npy", curvature="inputs", **options)
