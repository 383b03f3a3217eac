"""Second moments of layer inputs, against naive sums and against the layers themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from chita_opt.errors import DataError, LayerError, MemoryLimitError
from chita_opt.nn.inputs import LayerGram, layer_inputs
from chita_opt.nn.layers import select_layers


def trace(gram: LayerGram, delta: Tensor) -> float:
    """Return tr(D H D'), summed over groups."""
    matrices = gram.H if gram.groups > 1 else gram.H[None]
    parts = delta.flatten(1).double().unflatten(0, (gram.groups, -1))
    return float(sum((d @ h * d).sum() for d, h in zip(parts, matrices, strict=True)))


def test_linear_layers_against_sums_of_outer_products() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    x = torch.randn(11, 5)
    grams = layer_inputs(net, x, select_layers(net), batch_size=4)
    second = net[1](net[0](x)).detach()
    for name, inputs in (("0.weight", x), ("2.weight", second)):
        expected = sum(torch.outer(v, v) for v in inputs.double()) / 11
        assert grams[name].count == 11 and grams[name].H.dtype == torch.float64
        assert torch.allclose(grams[name].H, expected, rtol=1e-6)
        assert torch.equal(grams[name].H, grams[name].H.T)


def test_conv2d_against_unfold() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)))
    x = torch.randn(5, 3, 7, 6)
    gram = layer_inputs(net, x, select_layers(net))["0.weight"]
    windows = functional.unfold(x, (3, 2), dilation=(2, 1), padding=(2, 1), stride=(1, 2)).double()
    vectors = windows.transpose(1, 2).reshape(-1, 18)
    assert gram.count == len(vectors)
    assert torch.allclose(gram.H, vectors.T @ vectors / len(vectors))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60)
@given(
    dims=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    work=st.sampled_from([1, 1 << 26]),
)
def test_the_trace_is_the_change_of_the_output(
    dims: int,
    kernel: int,
    stride: int,
    padding: Any,
    mode: Any,
    dilation: int,
    groups: int,
    work: int,
) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    stride = 1 if padding == "same" else stride
    layer = conv(4, 8, kernel, stride, padding, dilation, groups, padding_mode=mode).double()
    x = torch.randn(3, 4, *(5, 6, 5)[:dims], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chita_opt.nn.inputs._WORK_BYTES", work)
        gram = layer_inputs(nn.Sequential(layer), x, select_layers(nn.Sequential(layer)))
    assert gram["0.weight"].groups == groups
    delta = torch.randn_like(layer.weight)
    with torch.no_grad():
        before = layer(x)
        layer.weight += delta
        change = (layer(x) - before).square().sum().item()
    found = trace(gram["0.weight"], delta) * gram["0.weight"].count
    assert found == pytest.approx(change, rel=1e-9)
    assert gram["0.weight"].count == before.numel() // 8


def test_sequences_and_batch_norm_in_eval_mode() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.bn = nn.BatchNorm1d(6)
            self.b = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(input=self.bn(self.a(x).transpose(1, 2)).transpose(1, 2))

    net = Net().train()
    net.bn.running_mean.normal_()
    x = torch.randn(7, 5, 4)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    grams = layer_inputs(net, x, select_layers(net))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())
    inner = functional.batch_norm(
        net.a(x).transpose(1, 2), net.bn.running_mean, net.bn.running_var
    ).transpose(1, 2)
    vectors = inner.reshape(-1, 6).detach().double()
    assert grams["b.weight"].count == 35
    assert torch.allclose(grams["b.weight"].H, vectors.T @ vectors / 35, rtol=1e-5)


def test_a_tied_weight_sees_the_inputs_of_both_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    x = torch.randn(8, 3)
    gram = layer_inputs(net, x, select_layers(net))["0.weight"]
    both = torch.cat([x, net[:2](x).detach()]).double()
    assert gram.count == 16
    assert torch.allclose(gram.H, both.T @ both / 16, rtol=1e-5)


def test_kinds_of_data_agree() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    x, y = torch.randn(10, 3), torch.zeros(10)
    layers, seen = select_layers(net), []
    expected = layer_inputs(net, x, layers)["0.weight"].H
    kinds: list[Any] = [
        (x, y),
        x.numpy(),
        list(x.split(3)),
        iter(x.split(4)),
        [(x[:6], y[:6]), (x[6:], y[6:])],
        DataLoader(TensorDataset(x, y), batch_size=3),
        TensorDataset(x),
    ]
    for data in kinds:
        gram = layer_inputs(net, data, layers, batch_size=4, progress=seen.append)["0.weight"]
        assert gram.count == seen[-1] == 10
        assert torch.allclose(gram.H, expected, rtol=1e-12)
    first = layer_inputs(net, list(x.split(3)), layers, samples=5)["0.weight"]
    assert first.count == 5
    assert torch.allclose(first.H, layer_inputs(net, x[:5], layers)["0.weight"].H)


def test_faults_are_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net, x = Unused(), torch.randn(4, 3)
    with pytest.raises(LayerError, match=r"unused\.weight.*never called"):
        layer_inputs(net, x, select_layers(net))
    with pytest.raises(LayerError, match=r"used\.bias"):
        layer_inputs(net, x, select_layers(net, include="used", biases=True))
    own = nn.Sequential(Own(3, 2))
    with pytest.raises(LayerError, match="Own"):
        layer_inputs(own, x, select_layers(own))
    layers = select_layers(net, include="used")
    with pytest.raises(DataError, match="7 samples are needed; the data hold 4"):
        layer_inputs(net, x, layers, samples=7)
    with pytest.raises(DataError, match="not finite"):
        layer_inputs(net, x * float("nan"), layers)
    with pytest.raises(DataError):
        layer_inputs(net, [], layers)
    with pytest.raises(DataError):
        layer_inputs(net, ["text"], layers)
    with pytest.raises(MemoryLimitError, match="72 bytes"):
        layer_inputs(net, x, layers, memory_limit=10)
    with pytest.raises(MemoryLimitError, match="memory_limit is 80"):
        layer_inputs(net, x, layers, memory_limit=80)
    assert layer_inputs(net, x, layers, memory_limit=200)["used.weight"].count == 4


def test_eval_mode_is_left_after_an_exception() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    net[1].eval()
    with pytest.raises(RuntimeError):
        layer_inputs(net, torch.randn(4, 5), select_layers(net))
    assert net.training and net[0].training and not net[1].training
    assert not net[0]._forward_hooks
