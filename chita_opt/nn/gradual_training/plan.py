"""When to prune, and the learning rate of every step."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from chita_opt.errors import ProblemError
from chita_opt.nn.gradual_training.options import GradualOptions


@dataclass(frozen=True)
class Plan:
    r"""Pruning steps and rates, counted in training steps.

    In the cycle from step a to step b (two pruning steps, or the last one and the end) the rate is
    :math:`l+(L-l)\frac{1+\cos(\pi(t-a)/(b-a))}2` (Loshchilov & Hutter, "SGDR", ICLR 2017), times
    :math:`\min(1,(t+1)/u)` for a warm-up of u steps.

    Attributes
    ----------
    epoch_steps, total : int
        Training steps of an epoch, and of the run.
    prunings : tuple of int
        Training steps before which weights are pruned.
    options : GradualOptions
        Rates.
    """

    epoch_steps: int
    total: int
    prunings: tuple[int, ...]
    options: GradualOptions

    @classmethod
    def of(cls, options: GradualOptions, samples: int) -> Plan:
        """The plan for a number of training samples.

        Raises
        ------
        ProblemError
            If two pruning steps fall together, or the last one is not followed by training.
        """
        recipe = options.recipe
        per_epoch = -(-samples // recipe.batch_size)
        total = recipe.epochs * per_epoch
        interval = options.interval
        if interval is None:
            interval = recipe.epochs / (options.stages + 1)
        steps = tuple(round(number * interval * per_epoch) for number in range(options.stages))
        if len(set(steps)) < len(steps) or steps[-1] >= total:
            raise ProblemError(
                f"{options.stages} pruning steps every {interval:g} epochs do not fit into "
                f"{recipe.epochs} epochs of {per_epoch} training steps; give more epochs, fewer "
                "stages or another interval"
            )
        return cls(per_epoch, total, steps, options)

    @property
    def last_pruning(self) -> int:
        """Training steps before the last pruning step."""
        return self.prunings[-1]

    def rate(self, step: int) -> float:
        """The learning rate of a training step, counted from 0."""
        recipe, lowest = self.options.recipe, self.options.lr_min
        rate = recipe.lr
        if recipe.cosine:
            begin, end = self._cycle(step) if self.options.restarts else (0, self.total)
            way = (step - begin) / (end - begin)
            rate = lowest + (recipe.lr - lowest) * 0.5 * (1.0 + math.cos(math.pi * way))
        rising = self.options.warmup * self.epoch_steps
        return rate * min(1.0, (step + 1) / rising) if rising > 0.0 else rate

    def _cycle(self, step: int) -> tuple[int, int]:
        after = bisect_right(self.prunings, step)
        return self.prunings[after - 1], (*self.prunings, self.total)[after]


__all__ = ["Plan"]
