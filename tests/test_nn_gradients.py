"""Gradient rows against a plain autograd loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from chita_opt.errors import DataError, LayerError
from chita_opt.nn.gradients import GradientRows, gradient_rows
from chita_opt.nn.layers import LayerMap, select_layers
from chita_opt.nn.sampling import RowChoice

Loss = Callable[[Any, Tensor], Tensor]
cross_entropy = nn.CrossEntropyLoss()


def plain_rows(model: nn.Module, loss_fn: Loss, x: Tensor, y: Tensor, layers: LayerMap) -> Tensor:
    """Gradient of the mean loss of each x[i], y[i], one after the other."""
    weights = [model.get_parameter(name) for name in layers.names]
    flags = {module: module.training for module in model.modules()}
    model.eval()
    rows = []
    for xs, ys in zip(x, y, strict=True):
        grads = torch.autograd.grad(loss_fn(model(xs), ys).mean(), weights, allow_unused=True)
        parts = [
            torch.zeros_like(w) if g is None else g for w, g in zip(weights, grads, strict=True)
        ]
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    for module, flag in flags.items():
        module.training = flag
    return torch.stack(rows)


def assert_plain(
    result: GradientRows, model: nn.Module, loss_fn: Loss, x: Tensor, y: Tensor, layers: LayerMap
) -> None:
    m = result.batch_size
    n = result.samples // m
    xs, ys = x[: n * m].unflatten(0, (n, m)), y[: n * m].unflatten(0, (n, m))
    expected = plain_rows(model, loss_fn, xs, ys, layers)
    scale = float(expected.abs().max()) + 1e-12
    assert result.A.dtype == torch.float32 and result.At.is_contiguous()
    assert torch.allclose(result.A.double() / scale, expected.double() / scale, atol=1e-5)


def mlp(sizes: tuple[int, ...] = (6, 5, 3)) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def classes(count: int, number: int = 3) -> Tensor:
    return torch.arange(count) % number


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("biases", [False, True])
def test_linear_layers(m: int, biases: bool) -> None:
    net, x, y = mlp(), torch.randn(28, 6), classes(28)
    layers = select_layers(net, biases=biases)
    result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=7, batch_size=m))
    assert result.path == "outer products" and result.reason == ""
    assert result.A.shape == (7, layers.size) and result.samples == 7 * m
    assert_plain(result, net, cross_entropy, x, y, layers)
    with torch.no_grad():
        expected = float(cross_entropy(net(x[: 7 * m]), y[: 7 * m]))
    assert math.isclose(result.loss_mean, expected, rel_tol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=40)
@given(
    dims=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    m=st.sampled_from([1, 3]),
)
def test_convolutions(
    dims: int,
    kernel: int,
    stride: int,
    padding: int | str,
    mode: str,
    dilation: int,
    groups: int,
    m: int,
) -> None:
    if padding == "same":
        stride = 1
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    net = nn.Sequential(
        conv(4, 4, kernel, stride, padding, dilation, groups, padding_mode=mode),
        nn.ReLU(inplace=True),
        conv(4, 2, 1),
        nn.Flatten(),
    ).double()
    x = torch.randn(2 * m, 4, *(6, 5, 7)[:dims], dtype=torch.float64)
    y = torch.zeros(2 * m, dtype=torch.long)
    layers = select_layers(net, biases=True)
    result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=2, batch_size=m))
    assert result.path == "outer products", result.reason
    assert_plain(result, net, cross_entropy, x, y, layers)


class Forward(nn.Module):
    """Two layers of a kind and a forward pass of one's own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.bn = nn.BatchNorm1d(4)
        self.own_forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own_forward(self, x)


def _item(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x).relu()) * (1.0 if x.sum().item() > -1e9 else 2.0)


def _insists_on_single(net: Any, x: Tensor) -> Tensor:
    return functional.linear(net.a(x.float()).float(), torch.ones(4, 4, dtype=torch.float32))


@pytest.mark.parametrize(
    "forward, path, reason",
    [
        (lambda net, x: net.b(net.a(x).relu_()), "outer products", ""),
        (lambda net, x: net.b(net.bn(net.a(x)).relu()), "outer products", ""),
        (lambda net, x: net.b(net.a(x)[:, None].expand(-1, 3, -1)).mean(1), "outer products", ""),
        (lambda net, x: net.b(input=net.a(input=x)), "outer products", ""),
        (lambda net, x: net.b(net.a(net.a(x).tanh())), "vmap", "2 times"),
        (lambda net, x: net.b(x), "vmap", "0 times"),
        (lambda net, x: net.b(net.a(x)) @ net.a.weight, "vmap", "differ"),
        (lambda net, x: net.b(net.a(x.T.reshape(4, -1).T.flip(0))).flip(0), "vmap", "differ"),
        (_item, "outer products", ""),
        (lambda net, x: _item(net, net.a(x)), "loop", "vmap failed"),
        (_insists_on_single, "vmap", "0 times"),
    ],
)
@pytest.mark.parametrize("m", [1, 3])
def test_forward_passes(
    forward: Callable[[Any, Tensor], Tensor], path: str, reason: str, m: int
) -> None:
    net = Forward(forward)
    net.bn.running_mean.normal_()
    x, y = torch.randn(15, 4), classes(15, 4)
    layers = select_layers(net)
    result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=5, batch_size=m))
    assert result.path == path and reason in result.reason, result.reason
    assert_plain(result, net, cross_entropy, x, y, layers)


def test_tied_weights() -> None:
    net = Forward(lambda net, x: net.b(net.a(x).tanh()))
    net.b.weight = net.a.weight
    layers = select_layers(net)
    x, y = torch.randn(6, 4), classes(6, 4)
    result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=3, batch_size=2))
    assert layers.size == 16 and result.path == "vmap" and "tied" in result.reason
    assert_plain(result, net, cross_entropy, x, y, layers)


@pytest.mark.parametrize("biases", [False, True])
def test_a_module_under_two_names(biases: bool) -> None:
    """It is left as it was: torch's own tying would leave plain tensors in it."""
    shared = nn.Linear(6, 6)
    net = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 3))
    x, y, before = torch.randn(12, 6), classes(12), copy.deepcopy(net.state_dict())
    layers = select_layers(net, biases=biases)
    for _ in range(2):
        result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=6, batch_size=2))
        assert_plain(result, net, cross_entropy, x, y, layers)
    assert [type(p) for p in net.parameters()] == [nn.Parameter] * 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_norm_parameters_and_frozen_layers() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
    x, y = torch.randn(8, 2, 5, 5), classes(8)
    layers = select_layers(net, norms=True)
    result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=8))
    assert result.path == "vmap"
    assert_plain(result, net, cross_entropy, x, y, layers)
    expected = result.A
    net.requires_grad_(False)
    assert torch.equal(
        gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=8)).A, expected
    )
    only = select_layers(net)
    frozen = gradient_rows(net, cross_entropy, (x, y), only, RowChoice(rows=8))
    assert frozen.path == "outer products" and frozen.A.shape == (8, only.size)


def test_a_net_whose_samples_touch_each_other() -> None:
    """Batch statistics in eval mode: a row depends on the samples of the row alone."""
    net = Forward(lambda net, x: net.b(net.bn(net.a(x))))
    net.bn = nn.BatchNorm1d(4, track_running_stats=False)
    x, y = torch.randn(12, 4), classes(12, 4)
    layers = select_layers(net)
    result = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=3, batch_size=4))
    assert result.path == "vmap" and "differ" in result.reason
    assert_plain(result, net, cross_entropy, x, y, layers)


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(reduction="none"),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2])),
        nn.CrossEntropyLoss(ignore_index=0),
    ],
    ids=["none", "sum", "weighted", "ignoring"],
)
@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_losses(loss_fn: Loss, order: str) -> None:
    """Sorted: the first rows alone do not show that such a mean does not add up."""
    net, x, y = mlp(), torch.randn(12, 6), torch.tensor([1, 1, 1, 1, 2, 0, 0, 2, 1, 2, 2, 2])
    y = y if order == "mixed" else 2 - classes(12).sort().values.clamp(max=1)
    layers = select_layers(net)
    result = gradient_rows(net, loss_fn, (x, y), layers, RowChoice(rows=4, batch_size=3))
    assert result.path == "outer products"
    assert_plain(result, net, loss_fn, x, y, layers)


def test_a_loss_that_vmap_cannot_follow() -> None:
    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        loss = functional.cross_entropy(output, target)
        return loss if float(loss.detach()) < 1e9 else 0.0 * loss

    net, x, y = mlp(), torch.randn(12, 6), classes(12)
    layers = select_layers(net)
    result = gradient_rows(net, loss_fn, (x, y), layers, RowChoice(rows=4, batch_size=3))
    assert result.path == "outer products"
    assert_plain(result, net, loss_fn, x, y, layers)


def test_rows_into_memory_that_is_there() -> None:
    net, x, y = mlp(), torch.randn(24, 6), classes(24)
    layers = select_layers(net)
    first = gradient_rows(net, cross_entropy, (x, y), layers, RowChoice(rows=4, batch_size=3))
    expected = first.A.clone()
    rest = (x[12:], y[12:])
    choice = RowChoice(rows=4, batch_size=3)
    second = gradient_rows(net, cross_entropy, rest, layers, choice, out=first.At)
    assert second.A.data_ptr() == first.A.data_ptr() and not torch.equal(first.A, expected)
    assert_plain(second, net, cross_entropy, *rest, layers)
    with pytest.raises(DataError, match="give a contiguous"):
        gradient_rows(net, cross_entropy, rest, layers, choice, out=first.A)


@pytest.mark.parametrize("share", [0.02, 0.5])
@pytest.mark.parametrize("kind", ["linear", "wide", "conv", "tied"])
def test_rows_of_some_weights(kind: str, share: float) -> None:
    """The same numbers as in the rows of all weights, by every engine."""
    shared = nn.Linear(6, 6)
    nets: dict[str, nn.Module] = {
        "linear": mlp(),
        "wide": mlp((6, 60, 3)),
        "conv": nn.Sequential(
            nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3)
        ),
        "tied": nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 3)),
    }  # fmt: skip
    net, data = nets[kind], (torch.randn(28, 6), classes(28))
    layers = select_layers(net, biases=True)
    drawn = torch.rand(layers.size, generator=torch.Generator().manual_seed(0)) < share
    columns = drawn.nonzero().squeeze(1)
    for m in (1, 4):
        every = gradient_rows(net, cross_entropy, data, layers, RowChoice(rows=7, batch_size=m))
        choice = RowChoice(rows=7, batch_size=m, columns=columns)
        some = gradient_rows(net, cross_entropy, data, layers, choice)
        assert some.A.shape == (7, len(columns)) and some.path == every.path
        assert torch.allclose(some.A, every.A[:, columns], rtol=1e-5, atol=1e-7)


def test_a_model_whose_output_is_no_tensor() -> None:
    net, x, y = Forward(lambda net, x: {"out": net.b(net.a(x))}), torch.randn(6, 4), classes(6, 4)  # type: ignore[arg-type, return-value]
    layers = select_layers(net)

    def loss_fn(output: Any, target: Tensor) -> Tensor:
        return functional.cross_entropy(output["out"], target)

    result = gradient_rows(net, loss_fn, (x, y), layers, RowChoice(rows=3, batch_size=2))
    assert result.path == "vmap" and "output" in result.reason
    assert_plain(result, net, loss_fn, x, y, layers)


def test_a_layer_called_as_often_as_the_data_say() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        twice = bool((x[:, 0] > 50).any())
        return net.b(net.a(net.a(x)) if twice else net.a(x))

    net = Forward(forward)
    x, y = torch.randn(8, 4), classes(8, 4)
    x[-1, 0] = 99.0
    layers = select_layers(net)
    limit = 4 * 8 * layers.size + 2000
    result = gradient_rows(
        net, cross_entropy, (x, y), layers, RowChoice(rows=8), memory_limit=limit
    )
    assert result.path == "loop" and "2 times" in result.reason
    assert_plain(result, net, cross_entropy, x, y, layers)


class Watched(nn.Module):
    """Mixed training flags, dropout, batch norm, and a buffer that every pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.bn = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        assert not self.drop.training
        if self.fail:
            raise ZeroDivisionError
        self.calls += 1
        return self.out(self.drop(self.bn(self.fc(x))))


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_of_the_model_changes(fail: bool) -> None:
    net = Watched().train()
    net.bn.eval()
    net.fail = fail
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    loader = DataLoader(TensorDataset(torch.randn(20, 6), classes(20)), 4, shuffle=True)
    torch.set_rng_state(random)
    layers = select_layers(net)
    if fail:
        with pytest.raises(ZeroDivisionError):
            gradient_rows(net, cross_entropy, loader, layers, RowChoice(rows=9))
    else:
        gradient_rows(net, cross_entropy, loader, layers, RowChoice(rows=9))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert flags == [module.training for module in net.modules()]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(net.fc.weight.grad, torch.ones_like(net.fc.weight))
    assert net.out.weight.grad is None and net.out.weight.requires_grad
    assert not any(module._forward_hooks for module in net.modules())
    assert net.fc.weight is net.get_parameter("fc.weight")


def test_a_loss_without_the_weights() -> None:
    net, x, y = mlp(), torch.randn(4, 6), classes(4)
    with pytest.raises(LayerError, match="does not depend"):
        gradient_rows(
            net, lambda out, y: out.detach().sum(), (x, y), select_layers(net), RowChoice(rows=2)
        )


def test_mlpnet_rows(data_root: Any) -> None:
    """The paper's network on the stored samples, against autograd on a few rows."""
    with np.load(data_root / "data" / "mlpnet.npz", allow_pickle=False) as file:
        weights = [torch.from_numpy(file[f"fc{i}.weight"]) for i in (1, 2, 3)]
    with np.load(data_root / "data" / "mnist.npz", allow_pickle=False) as file:
        x = (torch.from_numpy(file["x_train"]).float() / 255 - 0.1307) / 0.3081
        y = torch.from_numpy(file["y_train"]).long()
    with np.load(data_root / "instances" / "mlp_samples.npz", allow_pickle=False) as file:
        index = file["m16"]
    net = nn.Sequential(nn.Flatten(), *mlp((784, 40, 20, 10)), nn.LogSoftmax(1))
    layers = select_layers(net)
    for layer in (1, 3, 5):
        nn.init.zeros_(net[layer].bias)
    layers.write_(net, torch.cat([w.reshape(-1) for w in weights]))
    loss = nn.NLLLoss()
    result = gradient_rows(net, loss, (x, y), layers, RowChoice(index=index))
    assert result.path == "outer products" and result.A.shape == (1000, 32360)
    chosen = torch.from_numpy(index[::250].astype(np.int64))
    expected = plain_rows(net, loss, x[chosen], y[chosen], layers)
    assert torch.allclose(result.A[::250], expected, atol=1e-5 * float(expected.abs().max()))
