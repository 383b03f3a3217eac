"""Gradual magnitude pruning while training: the control that one-shot pruning must be held against.

It needs labels, a training loop and a learning rate, and it proves nothing, but at high sparsity it
gives better networks than any single quadratic model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.layers import select_layers
from chita_opt.nn.masks import MaskKeeper
from chita_opt.nn.train import TrainingRecipe, train_classifier
from chita_opt.solution import Clock
from chita_opt.supports import Budget, keep_count

_STAGES = 8
_PRUNING_PART = 0.5  # of the time; the rest trains on the final mask
_FOREVER = 10**6  # epochs: the time limit ends each stage


@dataclass(frozen=True, eq=False)
class GradualLog:
    """What a gradual pruning run did.

    Attributes
    ----------
    masks : Mapping
        Final masks by parameter name.
    steps : int
        Optimiser steps.
    seconds : float
        Wall time.
    """

    masks: Mapping[str, Tensor]
    steps: int
    seconds: float


def gradual_magnitude_(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    sparsity: float,
    time_limit: float,
    recipe: TrainingRecipe | None = None,
    seed: int = 0,
    layer_map: LayerMap | None = None,
) -> GradualLog:
    r"""Train a model in place while its smallest weights are removed, for a given time.

    In eight stages over the first half of the time the sparsity rises as
    :math:`s(1-(1-t)^3)` (Zhu & Gupta 2017, "To prune, or not to prune"), by magnitude over all
    selected layers together; the second half trains on the final mask, its last part at a tenth of
    the rate.

    Parameters
    ----------
    model : torch.nn.Module
        Maps inputs to log-probabilities; it is changed.
    x, y : Tensor
        (n, ...) inputs and (n,) classes.
    sparsity : float
        Final share of removed weights; rounded as by :func:`chita_opt.keep_count`.
    time_limit : float
        Seconds.
    recipe : TrainingRecipe, optional
        Optimiser, rate and batch size; its epochs and decay are not used. Without it stochastic
        gradient descent with momentum 0.9, rate 0.02 and batches of 64.
    seed : int
        Seed of the sample order.
    layer_map : LayerMap, optional
        What to prune; every supported weight by default.

    Raises
    ------
    DataError
        If the time limit is not positive, or there are no samples.
    """
    if not time_limit > 0:
        raise DataError(f"time_limit is {time_limit}; gradual pruning needs seconds > 0")
    layers = layer_map or select_layers(model)
    recipe = replace(recipe or TrainingRecipe(lr=0.02), epochs=_FOREVER, cosine=False)
    clock, steps = Clock(time_limit), 0
    masks: dict[str, Tensor] = {}
    for stage in range(1, _STAGES + 1):
        reached = sparsity * (1.0 - (1.0 - stage / _STAGES) ** 3)
        masks = _magnitude_masks(model, layers, sparsity if stage == _STAGES else reached)
        until = time_limit * _PRUNING_PART * stage / _STAGES
        steps += _train(model, x, y, masks, until - clock.elapsed, recipe, seed + stage)
    for part, factor in ((0.5, 1.0), (1.0, 0.1)):
        own = replace(recipe, lr=factor * recipe.lr)
        until = time_limit * (_PRUNING_PART + (1.0 - _PRUNING_PART) * part)
        steps += _train(model, x, y, masks, until - clock.elapsed, own, seed + _STAGES + 1)
    return GradualLog(masks, steps, clock.elapsed)


def _magnitude_masks(model: nn.Module, layers: LayerMap, sparsity: float) -> dict[str, Tensor]:
    scores = layers.weights(model).square()
    family = Budget.cardinality(layers.size, keep_count(layers.size, sparsity).k)
    return layers.unflatten(family.best_support(scores))


def _train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    masks: Mapping[str, Tensor],
    seconds: float,
    recipe: TrainingRecipe,
    seed: int,
) -> int:
    """Train on a mask for some seconds; the number of steps. The mask is applied in any case."""
    keeper = MaskKeeper(model, masks)
    if seconds <= 0.0:
        return 0
    log = train_classifier(
        model, x, y, recipe=recipe, seed=seed, mask_keeper=keeper, time_limit=seconds
    )
    return log.steps


__all__ = ["GradualLog", "gradual_magnitude_"]
