"""The perceptron of the CHITA experiments, LeNet-5, accuracy, and trained perceptrons."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import evaluating, model_device, samples_in_cache

PRETRAINED = ("mlpnet_mnist5k", "mlp_digits")


class MLPNet(nn.Module):
    """A perceptron without biases: ``log_softmax(W_L relu(... relu(W_1 x)))``.

    The default sizes give the MLPNet of Benbaki et al., "Fast as CHITA: Neural Network Pruning
    with Combinatorial Optimization" (ICML 2023): 784-40-20-10, 32,360 weights. The layers are
    named ``fc1``, ``fc2``, ...

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden widths and classes; at least two numbers.
    seed : int, optional
        Draw the first weights from a generator of their own; without it torch's is used.

    Raises
    ------
    DataError
        Fewer than two sizes, or a size below 1.
    """

    def __init__(
        self, sizes: Sequence[int] = (784, 40, 20, 10), *, seed: int | None = None
    ) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise DataError(f"sizes {tuple(sizes)} must be at least two numbers, each >= 1")
        self.sizes = tuple(sizes)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            layer = nn.Linear(inputs, outputs, bias=False)
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            self.add_module(f"fc{i}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (n, classes), of inputs (n, ...), flattened per sample."""
        *hidden, last = self.children()
        x = x.flatten(1)
        for layer in hidden:
            x = functional.relu(layer(x))
        return functional.log_softmax(last(x), dim=1)


class LeNet5(nn.Module):
    """LeNet-5 for images of 28 x 28 pixels, with ReLU and maximum pooling: 61,706 parameters.

    Two convolutions of 5 x 5 (1-6-16 channels, the first padded by 2), each followed by pooling of
    2 x 2, then 400-120-84-10; ends in ``log_softmax``. After LeCun et al., "Gradient-based learning
    applied to document recognition" (1998), with every map of the second convolution connected to
    every map of the first.

    Parameters
    ----------
    seed : int, optional
        Draw the first weights from a generator of their own; without it torch's is used.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for layer in self.children():
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            limit = 1.0 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -limit, limit, generator=generator)
            nn.init.uniform_(bias, -limit, limit, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (n, 10), of inputs (n, 784) or (n, 1, 28, 28)."""
        x = x.reshape(-1, 1, 28, 28)
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).flatten(1)
        x = functional.relu(self.fc2(functional.relu(self.fc1(x))))
        return functional.log_softmax(self.fc3(x), dim=1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int | None = None) -> float:
    """Return the share of samples whose largest output is at their class, in percent.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, ...) inputs to (n, classes) scores. It is run in eval mode and left as it was.
    x : Tensor
        (n, ...) inputs.
    y : Tensor
        (n,) classes.
    batch_size : int, optional
        Samples in one forward pass; as many as a processor's cache takes if absent, and at most
        4,096.

    Raises
    ------
    DataError
        No samples, or ``x`` and ``y`` differ in length.
    """
    if not len(x) or len(x) != len(y):
        raise DataError(f"{len(x)} inputs and {len(y)} classes: need as many of each, at least 1")
    device = model_device(model)
    if batch_size is None:
        batch_size = samples_in_cache(model, x[:4096].to(device))
    with evaluating(model), torch.no_grad():
        right = sum(
            int((model(inputs.to(device)).argmax(dim=1) == labels.to(device)).sum())
            for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)
        )
    return 100.0 * right / len(x)


def load_pretrained(name: str) -> MLPNet:
    """Return a trained network that comes with the package, in eval mode.

    Parameters
    ----------
    name : str
        ``"mlpnet_mnist5k"`` (784-40-20-10, on :func:`~chita_opt.nn.data.mnist_subset`) or
        ``"mlp_digits"`` (64-40-20-10, on :func:`~chita_opt.nn.data.digits`).

    Raises
    ------
    DataError
        There is no such network, or its file is not the one that its card describes.
    """
    from safetensors.torch import load

    card = pretrained_card(name)
    payload = _resource(name, "safetensors")
    digest = hashlib.sha256(payload).hexdigest()
    if digest != card["sha256"]:
        raise DataError(
            f"the weights of {name!r} have SHA-256 {digest}, their card says {card['sha256']}; "
            "install the package again"
        )
    model = MLPNet(card["sizes"], seed=0)
    model.load_state_dict(load(payload))
    return model.eval()


def pretrained_card(name: str) -> dict[str, Any]:
    """Return the card of a shipped network: data, split, recipe, accuracy in percent, versions.

    Raises
    ------
    DataError
        There is no such network.
    """
    if name not in PRETRAINED:
        raise DataError(f"no pretrained network {name!r}; there are {', '.join(PRETRAINED)}")
    card: dict[str, Any] = json.loads(_resource(name, "json"))
    return card


def _resource(name: str, suffix: str) -> bytes:
    return (files("chita_opt.nn") / "weights" / f"{name}.{suffix}").read_bytes()
