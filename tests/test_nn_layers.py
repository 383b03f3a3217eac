"""Selecting layers by name, and the flat vector."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from chita_opt.errors import LayerError
from chita_opt.nn.layers import LayerMap, LayerSlice, select_layers


class ConvNet(nn.Module):
    """Convolutions of every kind, normalisation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
        self.fc = nn.Linear(4, 2)


class Tied(nn.Module):
    """An encoder and a decoder that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def test_every_supported_weight_in_module_order() -> None:
    layers = select_layers(ConvNet())
    assert layers.names == (
        "stem.weight",
        "depthwise.weight",
        "layer1.0.weight",
        "layer1.2.weight",
        "fc.weight",
    )
    assert [item.kind for item in layers] == ["conv2d"] * 4 + ["linear"]
    assert layers.sizes == (216, 72, 32, 16, 8)
    assert layers.size == sum(layers.sizes) == layers.slices[-1].stop
    assert layers.rows_cols("stem.weight") == (8, 27)
    assert layers.rows_cols("depthwise.weight") == (8, 9)


@pytest.mark.parametrize(
    "include, exclude, names",
    [
        ("fc", (), ["fc.weight"]),
        ("fc.weight", (), ["fc.weight"]),
        ("layer1.*", (), ["layer1.0.weight", "layer1.2.weight"]),
        ("layer1", "layer1.0", ["layer1.2.weight"]),
        (["fc", "stem"], (), ["stem.weight", "fc.weight"]),
        ("*", ["layer1", "stem*"], ["depthwise.weight", "fc.weight"]),
        (None, "layer1.?", ["stem.weight", "depthwise.weight", "fc.weight"]),
        ("fc.bias", (), ["fc.bias"]),
        (["fc.weight", "bn.weight"], (), ["bn.weight", "fc.weight"]),
    ],
)
def test_include_and_exclude(include: object, exclude: object, names: list[str]) -> None:
    layers = select_layers(ConvNet(), include=include, exclude=exclude)  # type: ignore[arg-type]
    assert list(layers.names) == names


def test_biases_and_norms_on_request() -> None:
    layers = select_layers(ConvNet(), biases=True, norms=True)
    assert "bn.weight" in layers and "bn.bias" in layers and "fc.bias" in layers
    assert layers["fc.bias"].kind == "bias" and layers["layer1.1.bias"].kind == "norm"
    assert select_layers(ConvNet(), include="bn", norms=True).names == ("bn.weight", "bn.bias")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"include": "fcc"}, ["fcc", "'fc'"]),
        ({"exclude": "layer9.*"}, ["layer9.*"]),
        ({"include": ["fc", "nothing"]}, ["nothing"]),
        ({"include": []}, ["empty"]),
        ({"include": "bn"}, ["bn", "norms=True"]),
        ({"include": "*.bias", "exclude": "bn"}, []),
        ({"include": "fc", "exclude": "fc"}, ["nothing is selected"]),
        ({"include": ""}, ["include"]),
    ],
)
def test_a_useless_pattern_is_an_error(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(LayerError) as error:
        select_layers(ConvNet(), **options)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(5, 4),
        nn.ConvTranspose2d(3, 3, 2),
        nn.Bilinear(2, 2, 2),
        nn.PReLU(),
        Custom(),
        nn.LazyLinear(3),
        nn.ParameterList([torch.ones(2)]),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.Linear(2, 2, device="meta"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_unsupported_layer_is_named_with_the_cure(layer: nn.Module) -> None:
    net = nn.ModuleDict({"fc": nn.Linear(2, 2), "odd": layer})
    with pytest.raises(LayerError, match=r"'odd.*exclude=.*'odd"):
        select_layers(net)
    assert select_layers(net, exclude="odd").names == ("fc.weight",)
    assert select_layers(net, include="fc").names == ("fc.weight",)
    with pytest.raises(LayerError, match="odd"):
        select_layers(net, include="*")


def test_a_layer_masked_by_torch_is_refused() -> None:
    net = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    prune.l1_unstructured(net["fc"], "weight", 0.5)
    with pytest.raises(LayerError, match=r"prune\.remove"):
        select_layers(net)


def test_parameters_of_the_model_itself_are_named() -> None:
    with pytest.raises(LayerError, match="'gate'"):
        select_layers(Custom())


def test_a_tied_weight_is_one_variable() -> None:
    net = Tied()
    layers = select_layers(net)
    assert layers.names == ("encoder.weight",) and layers.size == 16
    assert layers.slices[0].aliases == ("decoder.weight",)
    assert select_layers(net, include="decoder").names == ("encoder.weight",)
    assert layers["decoder.weight"] is layers.slices[0]
    with pytest.raises(LayerError):
        select_layers(net, exclude="decoder")


def test_one_module_under_two_names() -> None:
    shared = nn.Linear(3, 3)
    layers = select_layers(nn.Sequential(shared, nn.ReLU(), shared), biases=True)
    assert layers.names == ("0.weight", "0.bias")
    assert layers.slices[1].aliases == ("2.bias",)


def test_a_linear_layer_tied_to_an_embedding_can_be_asked_for() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(6, 3), "head": nn.Linear(3, 6, bias=False)})
    net["head"].weight = net["embed"].weight
    layers = select_layers(net, include="head")
    assert layers.names == ("head.weight",) and layers.slices[0].aliases == ("embed.weight",)
    assert layers.weights(net).shape == (18,)
    with pytest.raises(LayerError, match="Embedding"):
        select_layers(net)


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=5))
def test_flatten_and_unflatten_are_inverse(shapes: list[list[int]]) -> None:
    slices, start = [], 0
    for i, shape in enumerate(shapes):
        stop = start + torch.Size(shape).numel()
        slices.append(LayerSlice(f"l{i}.weight", f"l{i}", "linear", tuple(shape), start, stop))
        start = stop
    layers = LayerMap(tuple(slices))
    vector = torch.randn(layers.size, dtype=torch.float64)
    tensors = layers.unflatten(vector)
    assert [tuple(t.shape) for t in tensors.values()] == [tuple(shape) for shape in shapes]
    assert torch.equal(layers.flatten(tensors), vector)
    masks = layers.unflatten(vector > 0)
    assert all(mask.dtype == torch.bool for mask in masks.values())
    assert layers.unflatten(vector, dtype=torch.float32)["l0.weight"].dtype == torch.float32


def test_weights_and_write_round_trip() -> None:
    net = ConvNet()
    layers = select_layers(net)
    before = {name: p.clone() for name, p in net.named_parameters()}
    vector = layers.weights(net)
    assert vector.dtype == torch.float64
    assert torch.equal(vector[-8:], net.fc.weight.detach().reshape(-1).double())
    layers.write_(net, -vector)
    for name, parameter in net.named_parameters():
        expected = -before[name] if name in layers else before[name]
        assert torch.equal(parameter, expected) and parameter.requires_grad


def test_bad_vectors_and_tensors_are_refused() -> None:
    net = ConvNet()
    layers = select_layers(net)
    good = layers.weights(net)
    with pytest.raises(LayerError, match="344"):
        layers.write_(net, torch.zeros(3))
    with pytest.raises(LayerError, match="finite"):
        layers.write_(net, good * float("nan"))
    assert torch.equal(layers.weights(net), good)
    with pytest.raises(LayerError, match=r"stem\.weight"):
        layers.flatten({"fc.weight": net.fc.weight})
    with pytest.raises(LayerError, match=r"fc\.bias"):
        layers.flatten({**layers.unflatten(good), "fc.bias": net.fc.bias})
    with pytest.raises(LayerError, match="shape"):
        layers.weights(nn.ModuleDict({"stem": nn.Conv2d(3, 8, 1)}))
    with pytest.raises(LayerError, match="no parameter"):
        layers.weights(nn.Linear(2, 2))
