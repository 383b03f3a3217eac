"""The networks that regular blocks are measured on: weights, data, what to prune, how to judge.

MLPNet and ResNet20 come trained, from CHITA_OPT_DATA. The character models are trained here, once,
with a checkpoint after every epoch; windows of 64 characters begin at the zero state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from measuring import RESULTS
from reference_data import data_root, mlpnet
from reference_data import images as mnist_images
from resnet20 import images as cifar_images
from resnet20 import resnet20
from torch import Tensor, nn

from chita_opt.nn import LayerMap, TrainingRecipe, accuracy, select_layers, train_classifier
from chita_opt.nn.characters import CharacterModel, perplexity, read_text, text_data

LAYERS = ("fc1", "fc2", "fc3")
"""One layer of MLPNet, the others dense."""

NETS = ("mlpnet", *LAYERS, "resnet20", "lstm", "gru")


@dataclass(frozen=True, eq=False)
class Net:
    """A dense network with all that pruning it needs.

    Attributes
    ----------
    name : str
        One of ``NETS``.
    model : torch.nn.Module
        Gives log-probabilities.
    train : tuple of Tensor
        Inputs and classes.
    judge : Callable
        Test measure of a model: accuracy in per cent, or perplexity.
    measure : str
        Which of them.
    include, exclude : tuple of str
        Layers that are pruned (all without any), and weights that are left alone.
    batch : int
        Samples of a gradient row.
    tune : TrainingRecipe
        A short fine-tune.
    tune_samples : int
        Training samples that it sees.
    """

    name: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    judge: Callable[[nn.Module], float]
    measure: Literal["accuracy", "perplexity"]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    batch: int = 1
    tune: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=1, lr=0.005))
    tune_samples: int = 60_000

    @property
    def layers(self) -> LayerMap:
        """What may be pruned."""
        return select_layers(self.model, include=self.include or None, exclude=self.exclude)

    def with_weights(self, w: Tensor) -> nn.Module:
        """A copy of the network with other weights."""
        model = copy.deepcopy(self.model)
        self.layers.write_(model, w)
        return model


def open_net(name: str, *, test: int, text_epochs: int, width: int) -> Net:
    """A network by name.

    Parameters
    ----------
    name : str
        One of ``NETS``.
    test : int
        Test images, or windows.
    text_epochs, width : int
        Epochs and units of the character models.
    """
    if name == "mlpnet" or name in LAYERS:
        x, y = mnist_images("test")
        x, y = x[:test], y[:test]
        return Net(
            name, mlpnet(), mnist_images("train"),
            lambda model: accuracy(model, x, y), "accuracy",
            include=(name,) if name in LAYERS else (),
        )  # fmt: skip
    if name == "resnet20":
        pictures = cifar_images("test", min(test, 5000))
        net = nn.Sequential(resnet20("resnet20_finetuned"), nn.LogSoftmax(1))
        return Net(
            name, net, cifar_images("train"),
            lambda model: accuracy(model, *pictures, batch_size=500), "accuracy",
            exclude=("*downsample*",), batch=16,
            tune=TrainingRecipe(epochs=1, lr=0.01, weight_decay=1e-4), tune_samples=5000,
        )  # fmt: skip
    return _character_net(name, test, text_epochs, width)


def _character_net(name: str, test: int, epochs: int, width: int) -> Net:
    text = text_data(read_text(data_root() / "data" / "tinyshakespeare.txt"))
    model = CharacterModel(len(text.vocabulary), cell=name, width=width, seed=0)  # type: ignore[arg-type]
    recipe = TrainingRecipe(epochs=epochs, batch_size=64, lr=4e-3, optimizer="adam")
    path = RESULTS / f"darb_{name}_{width}_{epochs}.safetensors"
    train_classifier(model, text.x_train, text.y_train, recipe=recipe, checkpoint=path)
    windows = text.x_test[:test], text.y_test[:test]
    return Net(
        name, model, (text.x_train, text.y_train), lambda net: perplexity(net, *windows),
        "perplexity", exclude=("embedding",), batch=4,
        tune=TrainingRecipe(epochs=1, batch_size=64, lr=2e-3, optimizer="adam"), tune_samples=3000,
    )  # fmt: skip
