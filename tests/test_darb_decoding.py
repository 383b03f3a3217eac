"""Products that decode as they go agree with the dense one; costs counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chita_opt.errors import LayerError
from chita_opt.nn.darb import DarbMatrix, decoding_costs
from chita_opt.nn.darb.decoding import CsrProduct, DarbProduct, TileProduct, TorchDarbProduct


def regular(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random weight with at most one value a block of its row's width; some rows are empty."""
    random = np.random.default_rng(seed)
    weight = np.zeros((rows, columns))
    for row in range(rows):
        width = int(random.choice([0, 1, 2, 4, 8, 16, 32, 256]))
        for start in range(0, columns if width else 0, width or 1):
            weight[row, random.integers(start, min(start + width, columns))] = random.normal()
    return torch.from_numpy(weight).to(dtype)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 10**6))
def test_every_format_gives_the_dense_product(rows: int, columns: int, seed: int) -> None:
    weight = regular(rows, columns, seed)
    matrix = DarbMatrix.from_dense(weight)
    x = np.random.default_rng(seed + 1).normal(size=columns)
    expected = weight.numpy() @ x
    products = [
        DarbProduct(matrix),
        DarbProduct(matrix, packed=True),
        CsrProduct(weight),
        CsrProduct(weight, runs=True),
        TileProduct(weight),
    ]
    for product in products:
        with pytest.raises(LayerError, match="columns"):
            product(np.zeros(columns + 1))
        for _ in range(2):  # nothing of the first call is left in the second
            np.testing.assert_allclose(product(x), expected, rtol=1e-12, atol=1e-12)
    found = TorchDarbProduct(matrix)(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_single_precision_stays_single() -> None:
    weight = regular(8, 64, 0, torch.float32)
    x = np.ones(64, np.float32)
    for product in (DarbProduct(DarbMatrix.from_dense(weight)), CsrProduct(weight)):
        y = product(x)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, weight.sum(1).numpy(), rtol=1e-5, atol=1e-5)
    half = DarbMatrix.from_dense(weight.half())
    with pytest.raises(LayerError, match="float16"):
        DarbProduct(half)


def test_torch_takes_batches_and_gradients() -> None:
    weight = regular(9, 40, 3)
    layer = TorchDarbProduct(DarbMatrix.from_dense(weight))
    x = torch.randn(2, 5, 40, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, x @ weight.t())
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x @ weight.t()).detach() @ weight)
    with pytest.raises(LayerError, match="40"):
        layer(torch.zeros(39))


def test_costs_are_those_counted_by_hand() -> None:
    weight = torch.zeros(5, 32)
    weight[0, [0, 9]] = weight[1, [3, 12, 17, 30]] = 1.0  # widths 16 and 8
    weight[4, 31] = 1.0
    matrix = DarbMatrix.from_dense(weight, torch.tensor([8, 8, 0, 0, 32]))
    found = decoding_costs(weight, matrix, lanes=4)
    assert {cost.kept for cost in found.values()} == {7}
    # rows 0 to 3 wait for row 1, then row 4 is alone
    assert (found["csr"].steps, found["csr"].operations) == (4 + 1, 2 * 7 + 2 * 5)
    # row 4 holds a filling entry before its weight
    assert (found["csr_runs"].steps, found["csr_runs"].operations) == (4 + 2, 3 * 8 + 2 * 5)
    tiles = 6  # block columns 0, 2, 3, 4, 7 above, 7 below
    assert found["blocks_4x4"].steps == 4 * (5 + 1)
    assert found["blocks_4x4"].operations == 19 * tiles + 2 * 2
    assert (found["bitmap"].steps, found["bitmap"].operations) == (32 * 2, 160 + 7)
    # two rows of width 8 in four steps, one of width 32 in one
    assert (found["darb"].steps, found["darb"].operations) == (4 + 1, 2 * (8 + 1) + 4 + 1)
    assert found["darb"].efficiency == 7 / 20
    assert found["darb"].operations_per_weight == pytest.approx(23 / 7)


def test_whole_groups_of_one_width_never_wait() -> None:
    weight = torch.zeros(32, 64)
    weight[:, ::8] = 1.0
    costs = decoding_costs(weight, DarbMatrix.from_dense(weight), lanes=16)
    assert costs["darb"].efficiency == 1.0 == costs["csr"].efficiency
    assert costs["bitmap"].efficiency == 1 / 8
    assert "darb" not in decoding_costs(weight)


@pytest.mark.parametrize("lanes", [0, 2, 6])
def test_lanes_hold_whole_blocks(lanes: int) -> None:
    with pytest.raises(LayerError, match=f"lanes is {lanes}"):
        decoding_costs(torch.eye(4), lanes=lanes)
