"""The Newton matrix of the sample space, formed a few columns at a time, against its products."""

from __future__ import annotations

import pytest
import torch

from chita_opt.bounds import newton
from chita_opt.bounds.newton import FreePart, SampleSpaceNewton, apply_newton
from chita_opt.curvature.factors import ColumnFactor

P, N = 400, 12


@pytest.mark.parametrize("block", [1, 7, 40, 4096])
@pytest.mark.parametrize("pools", ["one", "none", "many", "far apart", "one and none"])
@pytest.mark.parametrize("stiffness", [1e-2, 1e6])
def test_the_matrix_is_that_of_its_products(
    block: int, pools: str, stiffness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newton, "_BLOCK", block)
    rng = torch.Generator().manual_seed(block)
    factor = ColumnFactor(torch.randn(P, N, generator=rng), 0.3)
    index = torch.arange(0, P, 3)
    z = torch.rand(P, generator=rng, dtype=torch.float64)
    labels = {
        "one": torch.zeros(len(index), dtype=torch.int64),
        "none": torch.full((len(index),), -1),
        "many": torch.arange(len(index)) % 30,
        "far apart": torch.arange(len(index)) % 5 * 10**15,
        "one and none": torch.arange(len(index)) % 2 - 1,
    }[pools]
    slope = torch.randn(len(index), generator=rng, dtype=torch.float64)
    h = stiffness * (0.5 + torch.rand(len(index), generator=rng, dtype=torch.float64))
    weights = torch.zeros_like(z)
    weights[::2] = 1.0  # small changes outside of the free part may wait
    weights[index] = z[index]
    free = FreePart(index, slope, h, labels)
    system = SampleSpaceNewton(factor)
    assert system.prepare(weights, free) and system.system is not None
    if pools == "far apart":  # its products count pools up to the largest label
        free = FreePart(index, slope, h, torch.arange(len(index)) % 5)
    M = torch.stack([apply_newton(factor, weights, free, e) for e in torch.eye(N).double()])
    assert torch.allclose(system.system.M, M, rtol=0.0, atol=3e-6 * float(M.abs().max()))


def test_sections_hold_whole_pools() -> None:
    sizes = torch.tensor([3, 4, 20, 1, 1, 9])
    assert list(newton._sections(sizes, 8)) == [(0, 7), (7, 27), (27, 29), (29, 38)]
    assert list(newton._sections(sizes, 100)) == [(0, 38)]
