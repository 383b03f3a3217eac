"""Masks on models: applied, kept, exchanged with PyTorch, saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim import SGD, Adam, AdamW, Optimizer

from chita_opt.errors import DataError, LayerError
from chita_opt.nn.batch_norm import recalibrate_bn_
from chita_opt.nn.masks import MaskKeeper, apply_masks_, from_torch_prune, to_torch_prune_
from chita_opt.nn.weight_files import load_weights, save_weights


class Net(nn.Module):
    """Two layers and a third that shares the second one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 4)
        self.fc2 = nn.Linear(4, 4)
        self.fc3 = nn.Linear(4, 4, bias=False)
        self.fc3.weight = self.fc2.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())


@pytest.fixture
def masks() -> dict[str, Tensor]:
    return {"fc1.weight": torch.rand(4, 5) < 0.5, "fc2.weight": torch.rand(4, 4) < 0.5}


def is_exactly_masked(net: nn.Module, masks: dict[str, Tensor]) -> bool:
    pruned = [net.get_parameter(name)[~mask] for name, mask in masks.items()]
    return all(bool((w == 0).all()) and not bool(torch.signbit(w).any()) for w in pruned)


def test_apply(masks: dict[str, Tensor]) -> None:
    net = Net()
    with torch.no_grad():
        net.fc1.weight[~masks["fc1.weight"]] = float("nan")
    before = net.fc1.weight.detach().clone()
    apply_masks_(net, {name: mask.float() for name, mask in masks.items()})
    assert is_exactly_masked(net, {**masks, "fc3.weight": masks["fc2.weight"]})
    kept = masks["fc1.weight"]
    assert torch.equal(net.fc1.weight[kept], before[kept])
    assert net.fc1.weight.requires_grad and net.fc1.weight.is_leaf


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"fc9.weight": torch.ones(4, 5)}, "fc9.weight"),
        ({"fc1": torch.ones(4, 5)}, "fc1"),
        ({"fc1.weight": torch.ones(5, 4)}, "shape"),
        ({"fc1.weight": torch.full((4, 5), 0.5)}, "0 and 1"),
        ({"fc2.weight": torch.ones(4, 4), "fc3.weight": torch.zeros(4, 4)}, "one parameter"),
    ],
)
@pytest.mark.parametrize("use", [apply_masks_, MaskKeeper, to_torch_prune_])
def test_bad_masks(use: Callable[..., Any], bad: dict[str, Tensor], words: str) -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(LayerError, match=words):
        use(net, {"fc1.bias": torch.zeros(4), **bad})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


OPTIMIZERS: list[Callable[[Any], Optimizer]] = [
    lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: Adam(p, lr=0.01, weight_decay=0.1),
    lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
]


def train(net: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(net(torch.randn(8, 5)), torch.randn(8, 4)).backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "with momentum"])
@pytest.mark.parametrize("name", ["fc2.weight", "fc3.weight"])
def test_pruned_weights_stay_zero(
    make: Callable[[Any], Optimizer], warm: bool, name: str, masks: dict[str, Tensor]
) -> None:
    net = Net()
    optimizer = make(net.parameters())
    if warm:
        train(net, optimizer, 3)
    masks = {"fc1.weight": masks["fc1.weight"], name: masks["fc2.weight"]}
    with MaskKeeper(net, masks).attach(optimizer) as keeper:
        assert is_exactly_masked(net, masks)
        for _ in range(5):
            before = net.fc1.weight.detach().clone()
            train(net, optimizer, 1)
            assert is_exactly_masked(net, masks)
            assert bool((net.fc1.weight != before)[masks["fc1.weight"]].any())
    assert keeper.masks.keys() == masks.keys()
    train(net, optimizer, 1)
    assert not is_exactly_masked(net, masks), "a detached keeper still acts"


def test_a_keeper_detaches_after_an_exception(masks: dict[str, Tensor]) -> None:
    net = Net()
    optimizer = SGD(net.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), MaskKeeper(net, masks).attach(optimizer):
        raise ZeroDivisionError
    train(net, optimizer, 1)
    assert not is_exactly_masked(net, masks)


def test_a_keeper_by_hand(masks: dict[str, Tensor]) -> None:
    net = Net()
    keeper = MaskKeeper(net, masks)
    train(net, SGD(net.parameters(), lr=0.1), 2)
    keeper(net)
    assert is_exactly_masked(net, masks)
    net.double()
    keeper.apply_()
    assert is_exactly_masked(net, masks)
    with pytest.raises(LayerError, match="another model"):
        keeper(Net())
    with pytest.raises(LayerError, match="optimizer"):
        keeper.attach(SGD(Net().parameters(), lr=0.1))
    with pytest.raises(LayerError, match="no masks"):
        MaskKeeper(net, {})


def test_the_bridge_to_torch_prune(masks: dict[str, Tensor]) -> None:
    net, x = Net(), torch.randn(3, 5)
    assert from_torch_prune(net) == {}
    to_torch_prune_(net, masks)
    assert prune.is_pruned(net.fc1) and prune.is_pruned(net.fc3)
    assert net.fc2.weight_orig is net.fc3.weight_orig
    found = from_torch_prune(net)
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    output = net(x)
    with pytest.raises(LayerError, match=r"prune\.remove"):
        apply_masks_(net, masks)
    for layer in (net.fc1, net.fc2, net.fc3):
        prune.remove(layer, "weight")
    assert torch.equal(net(x), output)
    assert all(bool((net.get_parameter(k)[~masks[k]] == 0).all()) for k in masks)


def test_masks_made_by_torch_can_be_read() -> None:
    net = Net()
    prune.l1_unstructured(net.fc1, "weight", amount=5)
    prune.random_unstructured(net.fc1, "bias", amount=1)
    found = from_torch_prune(net)
    assert found.keys() == {"fc1.weight", "fc1.bias"}
    assert int((~found["fc1.weight"]).sum()) == 5 and int((~found["fc1.bias"]).sum()) == 1
    prune.identity(net.fc2, "weight")
    prune.custom_from_mask(net.fc3, "weight", torch.eye(4))
    with pytest.raises(LayerError, match="one parameter"):
        from_torch_prune(net)


def test_saved_weights_come_back(tmp_path: Path, masks: dict[str, Tensor]) -> None:
    net = Net()
    apply_masks_(net, masks)
    file = tmp_path / "net.safetensors"
    save_weights(file, net, masks=masks, metadata={"note": "90 %"})
    saved = load_weights(file)
    assert saved.metadata == {"note": "90 %"}
    assert saved.state.keys() == net.state_dict().keys()
    assert saved.state["fc2.weight"] is saved.state["fc3.weight"]
    assert saved.masks.keys() == masks.keys()
    assert all(torch.equal(saved.masks[k], masks[k]) for k in masks)
    other = Net()
    other.load_state_dict(saved.state)
    assert torch.equal(other(torch.ones(1, 5)), net(torch.ones(1, 5)))
    assert "fc3.weight" not in load_file(file)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_failed_save_leaves_the_file_alone(tmp_path: Path, masks: dict[str, Tensor]) -> None:
    file = tmp_path / "net.safetensors"
    save_weights(file, Net())
    before = file.read_bytes()
    with pytest.raises(LayerError):
        save_weights(file, Net(), masks={"fc9.weight": masks["fc1.weight"]})
    with pytest.raises(DataError, match="aliases"):
        save_weights(file, Net(), metadata={"aliases": "x"})
    with pytest.raises(DataError, match="text"):
        save_weights(file, Net(), metadata={"epochs": 3})  # type: ignore[dict-item]
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_weights(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x80\x04 not a safetensors file")
    with pytest.raises(DataError, match="not a readable"):
        load_weights(broken)
    tensors = {"fc.weight": torch.ones(2)}
    for header in (
        {"aliases": "{"},
        {"aliases": "[1]"},
        {"aliases": json.dumps({"b": "missing"})},
        {"aliases": json.dumps({"fc.weight": "fc.weight"})},
        {"chita_opt": "chita-opt weights 99"},
    ):
        save_file(tensors, broken, metadata=header)
        with pytest.raises(DataError):
            load_weights(broken)
    save_file(tensors, broken)
    assert load_weights(broken).masks == {}


def test_batch_norm_is_recalibrated() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3))
    net[1].eval()
    x = torch.randn(30, 2, 6, 6) * 3 + 1
    weight = net[0].weight.detach().clone()
    assert recalibrate_bn_(net, (x, torch.zeros(30)), batch_size=16) == ("1", "3")
    inner = net[0](x).detach()
    expected = inner.mean((0, 2, 3))
    assert torch.allclose(net[1].running_mean, expected, atol=1e-5)
    variances = torch.stack([part.var((0, 2, 3)) for part in inner.split(15)])
    assert torch.allclose(net[1].running_var, variances.mean(0), rtol=1e-4)
    assert net[1].momentum == 0.1 and not net[1].training and net[3].training
    assert torch.equal(net[0].weight, weight)
    assert recalibrate_bn_(nn.Linear(2, 2), x) == ()


def test_a_failed_recalibration_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(DataError, match="not finite"):
        recalibrate_bn_(net, torch.full((8, 2, 5, 5), float("nan")))
    with pytest.raises(DataError, match="100 samples"):
        recalibrate_bn_(net, torch.randn(8, 2, 5, 5), samples=100)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net[1].momentum == 0.1 and net[1].training
