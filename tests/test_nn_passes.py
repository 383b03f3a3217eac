"""Forward passes of as many samples as a cache takes: what is computed does not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.nn import select_layers
from chita_opt.nn.evaluation import in_passes, samples_in_cache
from chita_opt.nn.models import LeNet5, MLPNet, accuracy
from chita_opt.nn.trust import LossRows, held_out_of
from chita_opt.nn.trust.gates import flipped_shares


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return LeNet5().eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(300, 784, generator=rng), torch.randint(0, 10, (300,), generator=rng)


def test_convolutions_get_smaller_passes_than_perceptrons(net: nn.Module) -> None:
    x = torch.zeros(4096, 784)
    assert 8 <= samples_in_cache(net, x) < samples_in_cache(MLPNet(), x) <= 4096
    assert samples_in_cache(net, x[:5]) == 5


class Several(nn.Module):
    """Its output is no tensor that could be put together again."""

    def forward(self, x: Tensor) -> Any:
        return x.mean(0) if self.training else (x, x)


def test_outputs_that_cannot_be_joined_are_not_split() -> None:
    x = torch.zeros(1000, 100_000)
    assert samples_in_cache(Several(), x) == 1000
    assert samples_in_cache(Several(), x, lambda part: part.mean()) == 1000
    assert samples_in_cache(Several(), x, lambda part: part) == 8


def test_passes_are_put_together_in_order() -> None:
    x = torch.arange(10.0)
    seen: list[int] = []
    assert torch.equal(in_passes(lambda part: seen.append(len(part)) or 2 * part, x, 4), 2 * x)
    assert seen == [4, 4, 2]


def test_a_loss_that_is_no_mean_over_samples_stays_what_it_is(
    net: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    weights = torch.linspace(0.1, 3.0, 10)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return functional.nll_loss(output, y, weight=weights, ignore_index=3)

    layers = select_layers(net)
    held, w = held_out_of(net, loss, data, layers), layers.weights(net)
    assert held._samples < 300
    with torch.no_grad():
        expected = float(loss(net(data[0]), data[1]))
    assert held.loss(w) == pytest.approx(expected, rel=1e-6)
    assert held.loss_and_accuracy(w) == (held.loss(w), held.accuracy(w))
    assert held.accuracy(w) == pytest.approx(accuracy(net, *data, batch_size=300))
    assert accuracy(net, *data) == pytest.approx(accuracy(net, *data, batch_size=300))


def test_flipped_shares_do_not_depend_on_the_passes(
    net: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    layers = select_layers(net)
    w, held = layers.weights(net), held_out_of(net, functional.nll_loss, data, layers)
    whole = held_out_of(net, functional.nll_loss, data, layers)
    whole.__dict__["_samples"] = 300
    pruned = torch.where(w.abs() > w.abs().median(), w, 0.0)
    mine, theirs = flipped_shares(held, w, pruned), flipped_shares(whole, w, pruned)
    assert mine is not None and theirs is not None
    assert mine == pytest.approx(theirs, abs=1e-4)


def test_rows_of_a_refit_are_the_rows_of_those_weights(
    net: nn.Module, data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = select_layers(net)
    w, index = layers.weights(net), torch.arange(0, layers.size, 7)
    sizes: list[int] = []

    def source() -> LossRows:
        return LossRows(
            net, functional.nll_loss, data, layers, pool=torch.arange(300), batch_size=2, seed=3
        )

    everything = source().everywhere(w, 120)
    few = source().on(w, index, 120)
    torch.testing.assert_close(few.columns, everything.columns[index], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr("chita_opt.nn.row_computation._WORK_BYTES", 1 << 20)
    hook = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    again = source().on(w, index, 120)
    hook.remove()
    assert 0 < max(sizes) < 240  # in chunks that fit, not all samples at once
    torch.testing.assert_close(again.columns, few.columns, rtol=1e-5, atol=1e-7)
