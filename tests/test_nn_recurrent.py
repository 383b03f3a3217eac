"""Recurrent layers can be selected, measured and pruned; characters and perplexity."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from torch.nn.utils import prune as torch_prune

from chita_opt.errors import DataError, LayerError
from chita_opt.nn import (
    PruneOptions,
    RowChoice,
    TrainingRecipe,
    gradient_rows,
    layer_inputs,
    prune,
    select_layers,
    train_classifier,
)
from chita_opt.nn.characters import CharacterModel, perplexity, read_text, text_data

TEXT = "to be or not to be, that is the question. " * 12
CELLS = ("lstm", "gru")


def small(cell: str) -> tuple[CharacterModel, tuple[Tensor, Tensor]]:
    data = text_data(TEXT, length=8)
    model = CharacterModel(len(data.vocabulary), cell=cell, width=6, seed=0)  # type: ignore[arg-type]
    return model, (data.x_train, data.y_train)


def test_windows_are_followed_by_their_targets() -> None:
    data = text_data("abcdefghijklmnopqrst", length=3, test_part=0.4)
    assert data.vocabulary == "abcdefghijklmnopqrst"
    assert data.x_train.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert torch.equal(data.y_train, data.x_train + 1)
    assert data.x_test.tolist() == [[12, 13, 14], [15, 16, 17]]  # 12 to 19: the last eight


@pytest.mark.parametrize("length, part", [(0, 0.1), (4, 0.0), (4, 1.0), (100, 0.1)])
def test_a_text_that_cannot_be_cut_is_refused(length: int, part: float) -> None:
    with pytest.raises(DataError):
        text_data("a short text", length=length, test_part=part)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(DataError, match=r"text\.txt"):
        read_text(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="UTF-8"):
        read_text(path)
    path.write_text("né")
    assert read_text(path) == "né"


@pytest.mark.parametrize("cell", CELLS)
def test_perplexity_is_that_of_the_mean_loss(cell: str) -> None:
    model, (x, y) = small(cell)
    assert perplexity(model, x, y, batch_size=7) == pytest.approx(
        math.exp(float(nll_loss(model(x), y).detach())), rel=1e-5
    )
    nn.init.zeros_(model.output.weight)
    nn.init.zeros_(model.output.bias)
    assert perplexity(model, x, y) == pytest.approx(model.output.out_features, rel=1e-5)
    with pytest.raises(DataError):
        perplexity(model, x, y[:1])


def test_training_lowers_perplexity() -> None:
    model, data = small("lstm")
    before = perplexity(model, *data)
    recipe = TrainingRecipe(epochs=20, batch_size=8, lr=0.02, optimizer="adam")
    train_classifier(model, *data, recipe=recipe)
    assert perplexity(model, *data) < 0.7 * before


@pytest.mark.parametrize("options", [{"cell": "rnn"}, {"width": 0}, {"layers": 0}])
def test_a_model_of_no_size_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(DataError):
        CharacterModel(5, **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_model_and_leaves_torch_alone() -> None:
    state = torch.random.get_rng_state()
    one, two = CharacterModel(5, width=4, seed=3), CharacterModel(5, width=4, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("cell, gates", [("lstm", 4), ("gru", 3)])
def test_recurrent_matrices_are_selected_gate_by_gate(cell: str, gates: int) -> None:
    model, _ = small(cell)
    layers = select_layers(model, exclude="embedding")
    names = [f"recurrent.weight_{kind}_l{i}" for i in (0, 1) for kind in ("ih", "hh")]
    assert layers.names == (*names, "output.weight")
    assert layers["recurrent.weight_hh_l1"].kind == "recurrent"
    assert layers.rows_cols(names[0]) == (6 * gates, 6)
    with_biases = select_layers(model, exclude="embedding", biases=True)
    assert "recurrent.bias_hh_l1" in with_biases


def test_reverse_projection_and_cells_are_selected() -> None:
    both = nn.LSTM(4, 5, bidirectional=True, proj_size=2)
    names = select_layers(nn.ModuleDict({"r": both})).names
    assert {"r.weight_hr_l0", "r.weight_ih_l0_reverse"} <= set(names) and len(names) == 6
    assert select_layers(nn.ModuleDict({"r": nn.GRUCell(3, 2)})).sizes == (18, 12)


def test_a_recurrent_layer_masked_by_torch_is_refused() -> None:
    net = nn.ModuleDict({"r": nn.LSTM(2, 2)})
    torch_prune.l1_unstructured(net["r"], "weight_hh_l0", 0.5)
    with pytest.raises(LayerError, match=r"prune\.remove"):
        select_layers(net)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, about vmap
def test_gradient_rows_are_those_of_autograd(cell: str) -> None:
    model, (x, y) = small(cell)
    layers = select_layers(model, exclude="embedding")
    found = gradient_rows(model, nll_loss, (x, y), layers, RowChoice(rows=5, batch_size=2))
    assert found.path == "loop" and found.reason  # and said why
    for row in range(5):
        model.zero_grad()
        nll_loss(model(x[2 * row : 2 * row + 2]), y[2 * row : 2 * row + 2]).backward()
        expected = layers.flatten({n: model.get_parameter(n).grad for n in layers.names})  # type: ignore[misc]
        torch.testing.assert_close(found.A[row].double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_recurrent_network_is_pruned_with_proof(cell: str) -> None:
    model, data = small(cell)
    options = PruneOptions(exclude="embedding", rows=20, trust=False)
    result = prune(model, nll_loss, data, sparsity=0.8, options=options)
    certificate = result.certificate
    assert certificate is not None and certificate.lower <= certificate.upper
    result.apply_(model)
    weights = select_layers(model, exclude="embedding").weights(model)
    assert int((weights != 0).sum()) <= result.keep.k


def test_recurrent_layers_have_no_input_moments() -> None:
    model, data = small("lstm")
    layers = select_layers(model, include="recurrent")
    with pytest.raises(LayerError, match=r"LSTM.*exclude="):
        layer_inputs(model, data, layers)
