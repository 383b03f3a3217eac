"""Plain, repeatable training of a classifier."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import evaluating
from chita_opt.nn.training_checkpoint import TrainingCheckpoint, digest

AfterStep = Callable[[nn.Module], object]


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """How to train: everything but the model, the data and the seed.

    Attributes
    ----------
    epochs : int
        Passes over the data; 0 leaves the model as it is.
    batch_size : int
        Samples in one step; the last step of an epoch takes the rest.
    lr : float
        Learning rate of the first epoch.
    optimizer : {"sgd", "adam", "adamw"}
        Stochastic gradient descent with momentum, Adam, or Adam with decoupled weight decay.
    momentum : float
        Momentum of ``"sgd"``.
    weight_decay : float
        Multiplies ``|w|^2 / 2`` in the loss; for ``"adamw"`` the share of the rate by which weights
        shrink in a step.
    cosine : bool
        Let the rate of epoch e fall as ``lr (1 + cos(pi e / epochs)) / 2``.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.05
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    cosine: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not 0.0 < self.lr < math.inf:
            raise DataError(
                f"need epochs >= 0, batch_size >= 1 and a finite lr > 0; got {self.epochs}, "
                f"{self.batch_size} and {self.lr}"
            )
        if self.optimizer not in ("sgd", "adam", "adamw"):
            raise DataError(f"optimizer {self.optimizer!r} is none of 'sgd', 'adam' and 'adamw'")

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        if not self.cosine:
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))


@dataclass(frozen=True)
class TrainingLog:
    """What a training run did.

    Attributes
    ----------
    losses : tuple of float
        Mean loss over the samples of each finished epoch, as seen while training.
    steps : int
        Optimiser steps taken, those of an unfinished epoch included.
    seconds : float
        Wall-clock time.
    stopped_early : bool
        The time limit ended the run before the last epoch was finished.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float
    stopped_early: bool


@dataclass
class _Clock:
    limit: float | None
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def is_over(self) -> bool:
        return self.limit is not None and self.seconds >= self.limit


def train_classifier(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    recipe: TrainingRecipe | None = None,
    seed: int = 0,
    mask_keeper: AfterStep | None = None,
    time_limit: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> TrainingLog:
    """Train a model in place to small negative log-likelihood.

    The order of the samples and dropout are seeded, so the same call on the same machine with as
    many threads gives the same weights, whatever ran before it; torch's own random state stays.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, ...) inputs to (n, classes) log-probabilities. Its modules keep their train
        or eval flags.
    x : Tensor
        (n, ...) inputs, on the device of the model.
    y : Tensor
        (n,) int64 classes.
    recipe : TrainingRecipe, optional
        Epochs, batch size, rates; the default recipe without it.
    seed : int
        Seed of the sample order and of layers that draw random numbers.
    mask_keeper : callable, optional
        Called with the model after every step: a :class:`~chita_opt.nn.masks.MaskKeeper` sets
        pruned weights back to zero. Masked gradients are not enough, since momentum revives them.
    time_limit : float, optional
        Seconds after which no further step is begun.
    checkpoint : path, optional
        File that is written after every epoch. The same call with a model of the same weights goes
        on from it, and on the CPU ends at the same bits as a run that was never stopped; a finished
        run returns at once.

    Returns
    -------
    TrainingLog
        Loss of each epoch, steps and seconds.

    Raises
    ------
    DataError
        No samples, ``x`` and ``y`` differ in length, or the checkpoint is of another run.
    """
    if not len(x) or len(x) != len(y):
        raise DataError(f"{len(x)} inputs and {len(y)} classes: need as many of each, at least 1")
    recipe = recipe or TrainingRecipe()
    optimizer = make_optimizer(model, recipe)
    order = torch.Generator().manual_seed(seed)
    clock, kept = _Clock(time_limit), None if checkpoint is None else TrainingCheckpoint(checkpoint)
    run = "" if kept is None else f"{recipe}, {seed=}, {len(x)} samples, begins at {digest(model)}"
    losses: list[float] = []
    with _training(model, seed):
        if kept is not None:
            losses += kept.read(model, optimizer, order, run)
        steps = len(losses) * -(-len(x) // recipe.batch_size)
        for epoch in range(len(losses), recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(epoch)
            total = torch.zeros((), dtype=torch.float64, device=x.device)
            for batch in torch.randperm(len(x), generator=order).split(recipe.batch_size):
                if clock.is_over:
                    return TrainingLog(tuple(losses), steps, clock.seconds, stopped_early=True)
                index = batch.to(x.device)
                total += len(batch) * _step(model, optimizer, x[index], y[index])
                if mask_keeper is not None:
                    mask_keeper(model)
                steps += 1
            losses.append(float(total) / len(x))
            if kept is not None:
                kept.write(model, optimizer, order, losses, run)
    return TrainingLog(tuple(losses), steps, clock.seconds, stopped_early=False)


@contextmanager
def _training(model: nn.Module, seed: int) -> Iterator[None]:
    """Train mode and seeded random numbers (dropout) inside; flags and random state as before."""
    with evaluating(model):  # restores every module's own flag and the random state
        model.train()
        torch.manual_seed(seed)
        yield


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = functional.nll_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def make_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """The recipe's optimiser for the parameters of a model that are not frozen."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if recipe.optimizer != "sgd":
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        weights, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
