"""The loss that training lowers, and the measures by which the network is followed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import evaluating, model_device
from chita_opt.nn.gradual_training.options import Distillation
from chita_opt.nn.sampling import Batch

LossFunction = Callable[[Any, Any], Tensor]


class Objective:
    """The loss of a batch, with the dense network as a teacher where that is asked for.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(output, target)``, a mean over the batch or one value a sample.
    dense : torch.nn.Module
        The network before pruning; copied if it teaches.
    distillation : Distillation, optional
        How.
    """

    def __init__(
        self, loss_fn: LossFunction, dense: nn.Module, distillation: Distillation | None
    ) -> None:
        self.loss_fn, self.distillation = loss_fn, distillation
        self._teacher = None if distillation is None else copy.deepcopy(dense).eval()

    def __call__(self, output: Tensor, x: Any, y: Tensor) -> Tensor:
        """The mean loss of outputs for inputs x and targets y."""
        loss = self.loss_fn(output, y).mean()
        if self.distillation is None or self._teacher is None:
            return loss
        with torch.no_grad():
            dense = self._teacher(x)
        weight = self.distillation.weight
        distance = distilled(output, dense, self.distillation.temperature)
        return (1.0 - weight) * loss + weight * distance


def distilled(output: Tensor, dense: Tensor, temperature: float) -> Tensor:
    r"""Mean over the samples of :math:`T^2\mathrm{KL}` from the dense network's classes.

    Raises
    ------
    DataError
        If the outputs are not one score per class, (n, classes, ...).
    """
    if output.ndim < 2 or output.shape != dense.shape:
        raise DataError(
            f"distillation compares scores (n, classes, ...); the outputs are "
            f"{tuple(output.shape)} and {tuple(dense.shape)}"
        )
    own = log_softmax(output / temperature, dim=1)
    taught = log_softmax(dense / temperature, dim=1)
    total = kl_div(own, taught, reduction="sum", log_target=True)
    return temperature**2 * total / (output.numel() / output.shape[1])


def measured(
    model: nn.Module, loss_fn: LossFunction, batches: Sequence[Batch]
) -> tuple[float, float | None]:
    """Mean loss over samples, and accuracy in percent where the outputs are scores of classes."""
    device, total, size = model_device(model), 0.0, 0
    right, judged = 0, 0
    with evaluating(model), torch.no_grad():
        for x, y in batches:
            output, y = model(x.to(device)), y.to(device)
            total += len(x) * float(loss_fn(output, y).double().mean())
            size += len(x)
            if output.ndim == y.ndim + 1 and not y.is_floating_point():
                right += int((output.argmax(dim=1) == y).sum())
                judged += y.numel()
    return total / size, 100.0 * right / judged if judged else None


__all__ = ["LossFunction", "Objective", "distilled", "measured"]
