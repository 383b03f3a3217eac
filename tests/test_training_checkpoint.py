"""A training run that is stopped and continued ends at the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.nn import MLPNet, TrainingLog, TrainingRecipe, train_classifier
from chita_opt.nn.weight_files import load_tensors

Optimizer = Literal["sgd", "adam"]


def net() -> nn.Module:
    return nn.Sequential(MLPNet((6, 5, 4), seed=0), nn.Dropout(0.2), nn.LogSoftmax(1))


def data() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(50, 6, generator=random), torch.randint(4, (50,), generator=random)


def recipe(optimizer: Optimizer, epochs: int = 5) -> TrainingRecipe:
    return TrainingRecipe(epochs=epochs, batch_size=16, lr=0.01, optimizer=optimizer)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def stopped(model: nn.Module, step: int, optimizer: Optimizer, path: Path) -> None:
    """Ctrl-C in the middle of a run."""
    left = [step]

    def count(_: nn.Module) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(
            model, *data(), recipe=recipe(optimizer), mask_keeper=count, checkpoint=path
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("step", [2, 6, 20])  # of 20: in the first epoch, the second, the last
def test_a_continued_run_is_the_whole_run(tmp_path: Path, optimizer: Optimizer, step: int) -> None:
    whole = net()
    log = train_classifier(whole, *data(), recipe=recipe(optimizer))
    path = tmp_path / "run.safetensors"
    stopped(net(), step, optimizer, path)
    assert path.exists() == (step > 4)
    torch.manual_seed(99)  # whatever happened in between
    again = net()
    found = train_classifier(again, *data(), recipe=recipe(optimizer), checkpoint=path)
    assert found.losses == log.losses and found.steps == log.steps
    assert all(torch.equal(state(again)[name], value) for name, value in state(whole).items())


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    path, first, second = tmp_path / "run.safetensors", net(), net()
    logs: list[TrainingLog] = []
    for model in (first, second):
        log = train_classifier(model, *data(), recipe=recipe("adam"), checkpoint=path)
        logs.append(log)
    assert logs[0].losses == logs[1].losses
    assert all(torch.equal(state(second)[name], value) for name, value in state(first).items())


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    train_classifier(net(), *data(), recipe=recipe("sgd"), checkpoint=path)
    with pytest.raises(DataError, match=r"run\.safetensors is of another run"):
        train_classifier(net(), *data(), recipe=recipe("adam"), checkpoint=path)
    with pytest.raises(DataError, match="another run"):
        train_classifier(net(), *data(), recipe=recipe("sgd"), seed=5, checkpoint=path)
    for other in (MLPNet((6, 4), seed=0), MLPNet((6, 5, 4), seed=1)):  # another shape or weights
        with pytest.raises(DataError, match=r"another run.*begins at"):
            train_classifier(other, *data(), recipe=recipe("sgd"), checkpoint=path)
    text, tensors = load_tensors(path)
    del tensors["order"]
    save_file(tensors, path, metadata=text)
    with pytest.raises(DataError, match="does not fit"):
        train_classifier(net(), *data(), recipe=recipe("sgd"), checkpoint=path)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="readable"):
        train_classifier(net(), *data(), recipe=recipe("sgd"), checkpoint=path)
    for header in (None, {"chita_opt": "weights"}, {"chita_opt": '{"format": "x"}'}):
        save_file({"a": torch.ones(1)}, path, metadata=header)
        with pytest.raises(DataError, match="no file of a training run"):
            train_classifier(net(), *data(), recipe=recipe("sgd"), checkpoint=path)
