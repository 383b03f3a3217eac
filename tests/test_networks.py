"""Whole networks of every kind: what is selected, their gradients, pruned from end to end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from chita_opt.certificates import verify
from chita_opt.errors import DataError, LayerError
from chita_opt.nn import (
    CharacterModel,
    LeftAlone,
    LeNet5,
    MLPNet,
    RowChoice,
    TransformerClassifier,
    count_macs,
    gradient_rows,
    layer_inputs,
    prune,
    select_layers,
)
from chita_opt.nn.export import export, restore_

Data = tuple[Tensor, Tensor]


class Mixed(nn.Module):
    """Grouped, depthwise and pointwise convolutions, a norm, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.pointwise = nn.Conv1d(6, 5, 1)
        self.first, self.second, self.head = (nn.Linear(5, 5) for _ in range(3))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(self.norm(self.stem(x))))
        x = self.pointwise(self.depthwise(x).flatten(2)).mean(2)
        return torch.log_softmax(self.head(torch.tanh(self.second(torch.tanh(self.first(x))))), 1)


def images(*shape: int, classes: int = 5, count: int = 40) -> Data:
    return torch.randn(count, *shape), torch.randint(classes, (count,))


def text(count: int = 40) -> Data:
    x = torch.randint(7, (count, 6))
    return x, x.roll(-1, 1)


NETS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "MLPNet": (lambda: MLPNet((12, 6, 5), seed=0), lambda: images(12), ()),
    "LeNet5": (lambda: LeNet5(seed=0), lambda: images(784, classes=10, count=24), ()),
    "Mixed": (Mixed, lambda: images(2, 9, 9), ()),
    "transformer": (
        lambda: TransformerClassifier(4, 3, 5, width=8, heads=2, hidden=6, layers=2, seed=0),
        lambda: images(12),
        (),
    ),
    "LSTM": (
        lambda: CharacterModel(7, width=5, layers=1, seed=0),
        text,
        ("embedding",),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("m", [1, 2])
def test_gradients_are_those_of_a_loop_over_samples(name: str, m: int) -> None:
    make, data, exclude = NETS[name]
    net, (x, y) = make(), data()
    layers = select_layers(net, exclude=exclude)
    index = torch.randperm(len(x))[: 5 * m].reshape(5, m)
    rows = gradient_rows(net, nll_loss, (x, y), layers, RowChoice(index=index))
    net.eval()
    for row, samples in zip(rows.A, index, strict=True):
        net.zero_grad()
        nll_loss(net(x[samples]), y[samples]).backward()
        expected = layers.flatten({i.name: layers.parameter(net, i).grad for i in layers})
        assert torch.allclose(
            row.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_is_selected_or_listed_with_a_reason(name: str) -> None:
    make, _, exclude = NETS[name]
    net = make()
    layers = select_layers(net, exclude=exclude)
    left = {item.name: item for item in layers.left_alone}
    owned = {name for name, _ in net.named_parameters()}
    assert owned == set(left) | set(layers.names) and not set(left) & set(layers.names)
    assert all(item.size == net.get_parameter(item.name).numel() for item in left.values())
    assert {item.reason for item in left.values()} <= {"bias", "norm", "excluded"}


def test_reasons_for_leaving_parameters_alone() -> None:
    net = Mixed()
    layers = select_layers(net, include=["[fhn]*", "grouped"], exclude="grouped")
    assert layers.names == ("first.weight", "head.weight")
    assert layers.slices[0].aliases == ("second.weight",)
    left = {item.name: item.reason for item in layers.left_alone}
    assert left["grouped.weight"] == left["grouped.bias"] == "excluded"
    assert left["stem.weight"] == "not included" and left["norm.weight"] == "norm"
    assert left["head.bias"] == "bias"
    assert LeftAlone("stem.weight", 72, "not included") in layers.left_alone


@pytest.mark.parametrize("name", NETS)
def test_from_weights_to_a_verified_certificate(name: str, tmp_path: Any) -> None:
    make, data, exclude = NETS[name]
    net, (x, y) = make(), data()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    result = prune(
        net, nll_loss, (x, y), sparsity=0.6, rows=12, exclude=exclude, trust=False, target_gap=0.2
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert result.certificate is not None
    result.certificate.save(tmp_path / "claim.safetensors")
    checked = verify(tmp_path / "claim.safetensors")
    assert checked.lower <= checked.upper == result.certificate.upper
    left = [item["name"] for item in result.report()["left_alone"]]
    assert {*left, *result.layer_map.names} == {name for name, _ in net.named_parameters()}
    assert ("left alone: " in result.summary) == bool(left)
    changed, reloaded = result.apply_(copy.deepcopy(net)).eval(), make().eval()
    masks = restore_(reloaded, export(result, tmp_path / "net.csr", format="csr", model=net).path)
    for item in result.layer_map:
        parameter = result.layer_map.parameter(changed, item)
        assert torch.equal(parameter != 0, result.masks[item.name])
        assert torch.equal(masks[item.name], result.masks[item.name])
    assert torch.equal(reloaded(x), changed(x))


@pytest.mark.parametrize("name", ["LeNet5", "Mixed", "transformer"])
def test_reconstruction_serves_every_kind_of_layer(name: str) -> None:
    make, data, _ = NETS[name]
    net, (x, _) = make(), data()
    options = {"curvature": "inputs", "rows": 10, "trust": False, "method": "backsolve"}
    result = prune(net, None, x, sparsity=0.5, scope="layer", certify=False, **options)
    assert len(result.layers) == len(select_layers(net)) and result.solution.is_feasible


def test_recurrent_layers_have_no_single_input() -> None:
    net, (x, _) = CharacterModel(7, width=5, seed=0), text()
    with pytest.raises(LayerError, match="exclude="):
        layer_inputs(net, x, select_layers(net, exclude="embedding"))


def test_moments_of_attention_are_those_of_its_formula() -> None:
    """The change of outputs when a projection changes, against the attention itself."""
    attention = nn.MultiheadAttention(6, 2, batch_first=True).double()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    net, x = Net(), torch.randn(5, 4, 6, dtype=torch.float64)
    grams = layer_inputs(net, x, select_layers(net))
    tokens = x.flatten(0, 1)
    assert torch.allclose(grams["attention.in_proj_weight"].H, tokens.T @ tokens / 20)
    with torch.no_grad():
        before, delta = net(x), torch.randn(6, 6, dtype=torch.float64)
        attention.out_proj.weight += delta
        change = (net(x) - before).square().sum() / 20
    H = grams["attention.out_proj.weight"].H
    assert float(torch.trace(delta @ H @ delta.T)) == pytest.approx(float(change))


def test_attention_to_other_tokens_is_refused_or_split() -> None:
    class Cross(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

        def forward(self, x: Tensor) -> Tensor:
            memory = x[:, :2, : self.attention.kdim]
            return self.attention(x, memory, value=memory)[0]

    x = torch.randn(6, 3, 4)
    same = Cross()
    with pytest.raises(LayerError, match="queries, keys and values differ"):
        layer_inputs(same, x, select_layers(same))
    apart = Cross(kdim=3, vdim=3)
    grams = layer_inputs(apart, x, select_layers(apart))
    assert grams["attention.k_proj_weight"].count == 12
    assert grams["attention.q_proj_weight"].count == 18
    assert grams["attention.v_proj_weight"].H.shape == (3, 3)


def test_a_transformer_with_hooks_and_without_gives_the_same() -> None:
    net, (x, _) = NETS["transformer"][0]().eval(), NETS["transformer"][1]()
    with torch.no_grad():
        fused = net(x)
        layer_inputs(net, x, select_layers(net))
        assert torch.backends.mha.get_fastpath_enabled()
        assert torch.equal(net(x), fused)
    assert torch.allclose(net(x), fused, atol=1e-5)  # with gradients: no fused kernels


def test_multiplications_of_a_transformer() -> None:
    net, (x, _) = NETS["transformer"][0](), NETS["transformer"][1]()
    macs = count_macs(net, select_layers(net), x[:3])
    assert set(macs.each[:-1]) == {4} and macs.each[-1] == 1


def test_an_embedding_is_pruned_by_its_name_alone() -> None:
    net, data = CharacterModel(7, width=5, layers=1, seed=0), text()
    with pytest.raises(LayerError, match=r"looked up.*include='embedding\.weight'.*exclude="):
        select_layers(net)
    layers = select_layers(net, include=["embedding.weight", "output"])
    assert [item.kind for item in layers] == ["embedding", "linear"]
    rows = gradient_rows(net, nll_loss, data, layers, RowChoice(rows=4))
    assert rows.A.shape == (4, 70)
    for odd in (nn.Embedding(3, 2, sparse=True), nn.Embedding(3, 2, max_norm=1.0)):
        with pytest.raises(LayerError, match="cannot be pruned"):
            select_layers(nn.Sequential(odd), include="0.weight")


@pytest.mark.parametrize(
    "options", [{"width": 7, "heads": 1}, {"width": 6, "heads": 4}, {"layers": 0}]
)
def test_a_transformer_of_no_size_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(DataError):
        TransformerClassifier(4, 3, 5, **options)
