"""What can be chosen about pruning while training, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from chita_opt.errors import ProblemError
from chita_opt.nn.stages import StageOptions
from chita_opt.nn.train import TrainingRecipe

Returning = Literal["never", "at_steps", "always"]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    r"""Learn from the dense network beside the targets.

    With logits (or log-probabilities) z of the network in training and Z of the dense one, the
    loss is :math:`(1-a)\,\ell + a\,T^2\,\mathrm{KL}(\mathrm{softmax}(Z/T)\,\|\,
    \mathrm{softmax}(z/T))`, its mean over the samples (Hinton, Vinyals & Dean, "Distilling the
    knowledge in a neural network", 2015).

    Attributes
    ----------
    temperature : float
        T > 0.
    weight : float
        a in [0, 1]; the targets' own loss has the rest.
    """

    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf") or not 0.0 <= self.weight <= 1.0:
            raise ProblemError(
                f"temperature is {self.temperature}, weight {self.weight}; give a temperature > 0 "
                "and a weight in [0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class GradualOptions(StageOptions):
    r"""Options of :func:`chita_opt.nn.prune_and_train`: those of stages, and the training.

    ``stages`` counts the pruning steps; ``schedule`` and ``base`` say how the sparsity rises from
    one to the next, and rows, ridge and so on how the gradients of each are measured. The defaults
    are CHITA's recipe (ICML 2023, its released code): the cubic schedule from one half, rows of 16
    samples without a linear term, the rate's cosine begun anew at every pruning step. With
    ``trust``, samples are held out of training and pruning, to follow the network by.

    Attributes
    ----------
    recipe : TrainingRecipe
        Epochs in all, batch size, optimiser and the highest rate. Without ``cosine`` the rate is
        constant.
    interval : float, optional
        Epochs between two pruning steps, the first of which is at the start; by default
        ``epochs / (stages + 1)``, which gives the last part twice the length of the others.
    warmup : float
        Epochs over which the rate rises from zero at the start.
    lr_min : float
        Rate at the end of every cosine.
    restarts : bool
        Begin the cosine anew at every pruning step, rather than one over the whole run.
    reset_optimizer : bool
        Forget momentum and averages at every pruning step.
    returning : {"never", "at_steps", "always"}
        When pruned weights may come back: never, at a pruning step that chooses them again, or by
        training, without a mask until the last pruning step.
    shrinkage : float
        Iterative soft shrinkage (Wang et al., ICCV 2023, ISS-P): before the last pruning step
        nothing is removed, but after every training step the weights that magnitude would remove
        at this point of the schedule lose this share of themselves. Needs ``returning="always"``.
    power : float
        Powerpropagation (Schwarz et al., NeurIPS 2021): train :math:`\theta` with
        :math:`w=\theta|\theta|^{power-1}` for the selected weights, so that small ones move less
        and pruned ones not at all. 1 is plain training. The result holds w.
    distillation : Distillation, optional
        Learn from the dense network too.
    patience : int, optional
        After the last pruning step, stop once so many epochs in a row did not lower the held-out
        loss, and return the best epoch's weights.
    bn_samples : int
        Measure the statistics of batch normalisation again on so many training samples after every
        pruning step and at the end; 0 leaves them to training.
    checkpoint_steps, checkpoint_seconds
        Training steps and seconds after which the checkpoint is written again; also after every
        pruning step, at the end and when stopped.
    log_file : path, optional
        JSON lines, one for every row of the history.
    tensorboard : path, optional
        Folder for TensorBoard, which must be installed.
    progress_bar : bool
        Show a bar on standard error.
    """

    ridge: float = 1e-4
    first_order: float | str = 0.0
    stages: int = 6
    schedule: str = "poly"
    base: float = 0.5
    recipe: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=7))
    interval: float | None = None
    warmup: float = 0.0
    lr_min: float = 0.0
    restarts: bool = True
    reset_optimizer: bool = True
    returning: Returning = "at_steps"
    shrinkage: float = 0.0
    power: float = 1.0
    distillation: Distillation | None = None
    patience: int | None = None
    bn_samples: int = 0
    checkpoint_steps: int | None = None
    checkpoint_seconds: float = 60.0
    log_file: str | os.PathLike[str] | None = None
    tensorboard: str | os.PathLike[str] | None = None
    progress_bar: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.returning not in ("never", "at_steps", "always"):
            raise ProblemError(
                f"returning is {self.returning!r}; choose 'never', 'at_steps' or 'always'"
            )
        if self.shrinkage and self.returning != "always":
            raise ProblemError(
                f"shrinkage={self.shrinkage} shrinks weights that still train: say "
                "returning='always'"
            )
        self._check_ranges()

    def _check_ranges(self) -> None:
        ranges = (
            ("interval", self.interval, "> 0", lambda x: x > 0.0),
            ("warmup", self.warmup, ">= 0", lambda x: x >= 0.0),
            ("lr_min", self.lr_min, f"in 0..{self.recipe.lr}", lambda x: 0 <= x <= self.recipe.lr),
            ("shrinkage", self.shrinkage, "in [0, 1)", lambda x: 0.0 <= x < 1.0),
            ("power", self.power, "in [1, inf)", lambda x: 1.0 <= x < float("inf")),
            ("patience", self.patience, ">= 1", lambda x: x >= 1),
            ("bn_samples", self.bn_samples, ">= 0", lambda x: x >= 0),
            ("checkpoint_steps", self.checkpoint_steps, ">= 1", lambda x: x >= 1),
            ("checkpoint_seconds", self.checkpoint_seconds, ">= 0", lambda x: x >= 0.0),
        )
        for name, value, limit, holds in ranges:
            if value is not None and not holds(value):
                raise ProblemError(f"{name} is {value}; it must be {limit}")
        if self.patience is not None and not self.trust:
            raise ProblemError(
                "patience watches the loss on held-out samples; leave out trust=False"
            )


__all__ = ["Distillation", "GradualOptions", "Returning"]
