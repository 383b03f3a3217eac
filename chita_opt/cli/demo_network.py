"""The shipped network with its data: what ``demo`` and ``compare demo-net`` prune."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from chita_opt.nn import (
    ImageData,
    LayerMap,
    MLPNet,
    RowChoice,
    accuracy,
    gradient_rows,
    load_pretrained,
    mnist_subset,
    select_layers,
)
from chita_opt.nn.gradual import gradual_magnitude_
from chita_opt.problem import Problem, from_gradients
from chita_opt.solution import Solution
from chita_opt.supports import SupportFamily

_ROWS = 1000


@dataclass(frozen=True, eq=False)
class DemoNetwork:
    """The trained perceptron, its images and its gradient rows.

    Attributes
    ----------
    model : MLPNet
        Never changed.
    data : ImageData
        4,000 images to train, 1,000 to test.
    layer_map : LayerMap
        All its weights.
    A : Tensor
        (1000, p) gradients of single training images.
    """

    model: MLPNet
    data: ImageData
    layer_map: LayerMap
    A: Tensor

    @classmethod
    def load(cls, seed: int) -> DemoNetwork:
        """Read network and images, and compute the gradients of a thousand drawn images."""
        model, data = load_pretrained("mlpnet_mnist5k"), mnist_subset()
        layer_map = select_layers(model)
        pair = (data.x_train, data.y_train)
        found = gradient_rows(
            model, functional.nll_loss, pair, layer_map, RowChoice(rows=_ROWS, seed=seed)
        )
        return cls(model, data, layer_map, found.A)

    @property
    def p(self) -> int:
        """Number of weights."""
        return self.layer_map.size

    @property
    def dense_accuracy(self) -> float:
        """Test accuracy of the unpruned network in percent."""
        return accuracy(self.model, self.data.x_test, self.data.y_test)

    def problem(self, family: SupportFamily, ridge: float) -> Problem:
        """The pruning problem under a family."""
        w_bar = self.layer_map.weights(self.model)
        return from_gradients(self.A, w_bar, ridge=ridge, supports=family)

    def accuracy_of(self, solution: Solution) -> float:
        """Test accuracy of the network with a solution's weights, in percent."""
        pruned = copy.deepcopy(self.model)
        self.layer_map.write_(pruned, solution.w)
        return accuracy(pruned, self.data.x_test, self.data.y_test)

    def control(self, sparsity: float, seconds: float, seed: int) -> tuple[float, int, float]:
        """Gradual magnitude pruning with training: accuracy in percent, kept weights, seconds."""
        trained = copy.deepcopy(self.model)
        data = self.data
        log = gradual_magnitude_(
            trained, data.x_train, data.y_train, sparsity=sparsity, time_limit=seconds, seed=seed
        )
        kept = sum(int(mask.sum()) for mask in log.masks.values())
        return accuracy(trained, data.x_test, data.y_test), kept, log.seconds

    def warm_up(self) -> None:
        """Let the first optimiser step, which loads modules for a second, happen unmeasured."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        functional.nll_loss(model(self.data.x_train[:8]), self.data.y_train[:8]).backward()
        optimizer.step()


__all__ = ["DemoNetwork"]
