"""Multiplications of networks, and pruning under budgets made of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from chita_opt.errors import LayerError, SupportError
from chita_opt.nn import (
    TrainingRecipe,
    count_macs,
    prune,
    prune_and_train,
    prune_in_stages,
    select_layers,
)
from chita_opt.supports import MinimumKeeps, TwoBudgets


class Residual(nn.Module):
    """ResNet20's layers for CIFAR-10: three stages of six 3x3 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        widths = [16] * 7 + [32] * 6 + [64] * 6
        self.body = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1 if a == b else 2, 1, bias=False) for a, b in pairwise(widths)
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.first(x))
        for layer in self.body:
            x = relu(layer(x))
        return self.fc(x.mean((2, 3)))


def test_resnet20_has_the_published_totals() -> None:
    """40,551,040 multiplications of 268,336 weights (FALCON, AISTATS 2024)."""
    model = Residual()
    layers = select_layers(model)
    count = count_macs(model, layers, torch.zeros(2, 3, 32, 32))
    assert (layers.size, count.total) == (268336, 40551040)
    assert sorted(set(count.each)) == [1, 64, 256, 1024]
    assert count.by_layer["fc.weight"] == 640
    assert sum(count.by_layer.values()) == int(count.per_weight().sum()) == count.total


def test_every_use_counts() -> None:
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Conv1d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(32, 4), shared,
                          nn.ReLU(), shared, nn.BatchNorm1d(4))  # fmt: skip
    layers = select_layers(model, norms=True, biases=True)
    count = count_macs(model, layers, torch.zeros(5, 2, 10))
    each = dict(zip(layers.names, count.each, strict=True))
    assert each["0.weight"] == 8 and each["2.weight"] == 1 and each["3.weight"] == 2
    assert each["0.bias"] == each["2.bias"] == each["6.weight"] == 0
    weights = layers.weights(model)
    assert count.kept(weights) == count.total
    assert count.kept(torch.zeros_like(weights)) == 0


def test_recurrent_layers_count_their_steps() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 5, batch_first=True, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    model = Net()
    layers = select_layers(model)
    assert set(count_macs(model, layers, torch.zeros(2, 7, 3)).each) == {7}


def test_a_layer_that_does_not_run_is_named() -> None:
    model = nn.Linear(3, 3)
    model.add_module("idle", nn.Linear(3, 3))
    with pytest.raises(LayerError, match="idle"):
        count_macs(model, select_layers(model), torch.zeros(1, 3))


def small_network() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(36, 3, bias=False),
    )  # fmt: skip
    x = torch.randn(200, 1, 6, 6, generator=draw)
    return model, (x, torch.randint(3, (200,), generator=draw))


def test_both_budgets_hold_after_pruning() -> None:
    model, data = small_network()
    count = count_macs(model, select_layers(model), data[0][:1])
    family = count.budget(sparsity=0.5, mac_cut=0.7)
    assert isinstance(family, TwoBudgets)
    result = prune(model, cross_entropy, data, support=family, rows=50, trust=False)
    assert count.kept(result.w) <= 0.3 * count.total
    assert int((result.w != 0).sum()) <= 0.5 * family.size
    assert result.certificate is not None
    assert result.certificate.lower <= result.certificate.upper


def test_stages_tighten_both_budgets() -> None:
    model, data = small_network()
    count = count_macs(model, select_layers(model), data[0][:1])
    family = count.budget(sparsity=0.6, mac_cut=0.8, minimum=0.05)
    assert isinstance(family, MinimumKeeps)
    result = prune_in_stages(
        model, cross_entropy, data, support=family, stages=4, rows=20, batch_size=4,
        schedule="poly", trust=False,
    )  # fmt: skip
    kept = [row.kept for row in result.stages]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) > 1
    assert count.kept(result.w) <= 0.2 * count.total and family.contains(result.w != 0)
    layers = select_layers(model).unflatten(result.w)
    assert all(bool(weights.any()) for weights in layers.values())


def test_rounds_of_blocks_tighten_both_budgets() -> None:
    model, data = small_network()
    count = count_macs(model, select_layers(model), data[0][:1])
    family = count.budget(sparsity=0.5, mac_cut=0.8)
    result = prune_in_stages(
        model, cross_entropy, data, support=family, method="blocks", stages=1, rows=40,
        batch_size=4, first_order=0.0, trust=False,
    )  # fmt: skip
    assert family.contains(result.w != 0) and bool((result.w != 0).any())


def test_shares_out_of_range_are_refused() -> None:
    model, data = small_network()
    count = count_macs(model, select_layers(model), data[0][:1])
    with pytest.raises(SupportError, match=r"mac_cut is 1\.5"):
        count.budget(mac_cut=1.5)
    with pytest.raises(SupportError, match="lower the minima"):
        count.budget(sparsity=0.99, minimum=0.5)


def test_training_takes_a_budget_of_multiplications_from_text() -> None:
    model, data = nn.Linear(8, 4), (torch.randn(60, 8), torch.arange(60) % 4)
    recipe = TrainingRecipe(epochs=2, batch_size=20)
    own = {"stages": 2, "rows": 3, "trust": False, "recipe": recipe}
    found = prune_and_train(model, cross_entropy, data, support="macs:0.5", **own)
    assert 0 < found.nnz <= 16


@pytest.mark.parametrize("stages", [False, True])
def test_a_budget_of_multiplications_from_text(stages: bool) -> None:
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(18, 4))
    data = torch.randn(40, 1, 8), torch.randint(4, (40,))
    layers = select_layers(model)
    count = count_macs(model, layers, data[0][:1])
    own = {"rows": 20, "batch_size": 1, "trust": False}
    if stages:
        found = prune_in_stages(model, cross_entropy, data, support="macs:0.6", stages=2, **own)
    else:
        found = prune(model, cross_entropy, data, support="macs:0.6:0.2", sparsity=0.5, **own)
        assert int(found.solution.mask.sum()) <= 41 and found.certificate is not None
        assert all(row.kept >= 0.2 * row.size for row in found.layers)
    assert 0.3 * count.total < count.kept(found.w) <= 0.4 * count.total


@pytest.mark.parametrize(
    ("text", "data", "what"),
    [("macs:x", None, "write 'macs:CUT'"), ("macs:0.5:0.1:0", None, "write 'macs:CUT'"),
     ("macs:1.5", None, "give a share"), ("macs:0.5", iter([]), "read once")],
)  # fmt: skip
def test_texts_of_multiplications_that_are_refused(text: str, data: object, what: str) -> None:
    own = (torch.randn(8, 4), torch.randint(2, (8,))) if data is None else data
    with pytest.raises(SupportError, match=what):
        prune(nn.Linear(4, 2), cross_entropy, own, support=text, rows=4)
