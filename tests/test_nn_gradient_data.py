"""The data that gradient rows are made of, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from chita_opt.errors import DataError, MemoryLimitError
from chita_opt.nn.gradients import gradient_rows
from chita_opt.nn.layers import select_layers
from chita_opt.nn.sampling import RowChoice

cross_entropy = nn.CrossEntropyLoss()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def classes(count: int) -> Tensor:
    return torch.arange(count) % 3


def _sources(x: Tensor, y: Tensor) -> dict[str, Any]:
    pairs = list(zip(x.split(5), y.split(5), strict=True))
    return {
        "list": [x, y],
        "batches": pairs,
        "loader": DataLoader(TensorDataset(x, y), batch_size=4),
        "dataset": TensorDataset(x, y),
        "generator": iter(pairs),
        "numpy": (x.numpy(), y.numpy()),
    }


@pytest.mark.parametrize("kind", list(_sources(torch.zeros(1, 1), torch.zeros(1))))
def test_kinds_of_data(kind: str) -> None:
    net, x, y = mlp(), torch.randn(23, 6), classes(23)
    layers = select_layers(net)
    expected = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=7, batch_size=3))
    data = _sources(x, y)[kind]
    limit = 4 * 7 * layers.size + 6000
    result = gradient_rows(
        net, cross_entropy, data, layers, RowChoice(rows=7, batch_size=3), memory_limit=limit
    )
    assert torch.allclose(result.A, expected.A, atol=1e-6)
    assert math.isclose(result.loss_mean, expected.loss_mean, rel_tol=1e-6)
    if kind == "generator":
        with pytest.raises(DataError, match="fetched by number"):
            gradient_rows(net, cross_entropy, iter([]), layers, RowChoice(rows=7, seed=1))
        return
    index = np.random.default_rng(0).integers(0, 23, (4, 2))
    chosen = gradient_rows(net, cross_entropy, _sources(x, y)[kind], layers, RowChoice(index=index))
    direct = gradient_rows(
        net,
        cross_entropy,
        (x[index.ravel()], y[index.ravel()]),
        layers,
        RowChoice(rows=4, batch_size=2),
    )
    assert torch.equal(chosen.A, direct.A)
    seeded = gradient_rows(
        net, cross_entropy, _sources(x, y)[kind], layers, RowChoice(rows=9, seed=3)
    )
    again = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=9, seed=3))
    assert torch.equal(seeded.A, again.A) and not torch.equal(seeded.A[:7], expected.A)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"rows": 5, "batch_size": 3}, "15 samples; the data hold 12"),
        ({"rows": 13, "seed": 0}, "13 samples; the data hold 12"),
        ({"rows": 0}, "rows must be a positive integer, got 0"),
        ({}, "rows is required"),
        ({"index": [[0, 12]]}, "sample 12; the data hold samples 0 to 11"),
        ({"index": [0, 1]}, r"\(n, m\)"),
        ({"index": [[0, 1]], "rows": 2}, "rows=2 contradicts"),
        ({"index": [[0]], "seed": 1}, "either index or seed"),
    ],
)
def test_bad_requests(options: dict[str, Any], words: str) -> None:
    net, x, y = mlp(), torch.randn(12, 6), classes(12)
    with pytest.raises(DataError, match=words):
        gradient_rows(net, cross_entropy, (x, y), select_layers(net), RowChoice(**options))


@pytest.mark.parametrize("data", [5, [torch.zeros(3, 6)], [(torch.zeros(3, 6), torch.zeros(2))]])
def test_bad_data(data: Any) -> None:
    net = mlp()
    with pytest.raises(DataError):
        gradient_rows(net, cross_entropy, data, select_layers(net), RowChoice(rows=2))


def test_a_stream_that_ends_early() -> None:
    net = mlp()
    batches = [(torch.randn(4, 6), classes(4))] * 2
    with pytest.raises(DataError, match="9 samples; the data hold 8"):
        gradient_rows(net, cross_entropy, iter(batches), select_layers(net), RowChoice(rows=9))


@pytest.mark.parametrize("bad", [0, 5])
def test_a_gradient_that_is_not_finite_names_its_row(bad: int) -> None:
    net, x, y = mlp(), torch.randn(12, 6), classes(12)
    x[2 * bad + 1] = float("nan")
    with pytest.raises(DataError, match=rf"row {bad} \(samples {2 * bad} to {2 * bad + 1}"):
        gradient_rows(
            net, cross_entropy, (x, y), select_layers(net), RowChoice(rows=6, batch_size=2)
        )


@pytest.mark.parametrize("norms", [False, True])
def test_the_memory_limit_cuts_chunks(norms: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 50), nn.LayerNorm(50), nn.Linear(50, 3))
    x, y = torch.randn(40, 6), classes(40)
    layers = select_layers(net, norms=norms)
    free = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=40))
    result_bytes = 4 * 40 * layers.size
    steps: list[tuple[int, int]] = []
    tight = gradient_rows(
        net,
        cross_entropy,
        (x, y),
        layers,
        RowChoice(rows=40),
        memory_limit=result_bytes + 40_000,
        progress=lambda done, rows: steps.append((done, rows)),
    )
    assert len(steps) > 2 and steps[-1] == (40, 40)
    assert torch.allclose(free.A, tight.A, atol=1e-6)
    with pytest.raises(MemoryLimitError, match=f"memory_limit is {result_bytes - 1}"):
        gradient_rows(
            net, cross_entropy, (x, y), layers, RowChoice(rows=40), memory_limit=result_bytes - 1
        )
    with pytest.raises(MemoryLimitError, match=f"memory_limit is {result_bytes}"):
        gradient_rows(
            net, cross_entropy, (x, y), layers, RowChoice(rows=40), memory_limit=result_bytes
        )
