"""``prune-and-train``: the user's own network, pruned step by step while it trains."""

from __future__ import annotations

import sys
from pathlib import Path

from chita_opt.cli.gradual_options import GradualChoice, TrainingChoice
from chita_opt.cli.options import (
    BudgetChoice,
    CurvatureChoice,
    LayerChoice,
    NetworkOutput,
    UserCode,
)
from chita_opt.cli.pruning import finish, read_user_code, shared_options
from chita_opt.cli.screen import check_folders
from chita_opt.cli.user_code import LOSSES
from chita_opt.nn.gradual_training import Distillation, GradualOptions, prune_and_train
from chita_opt.nn.train import TrainingRecipe


def run_gradual(
    code: UserCode,
    budget: BudgetChoice,
    options: GradualOptions,
    method: str,
    output: NetworkOutput,
) -> int:
    """Prune and train the user's model, write and print the result."""
    written = (options.checkpoint, options.log_file)
    check_folders(output.out, *(Path(path) for path in written if path is not None))
    model, data, test = read_user_code(code)
    result = prune_and_train(
        model,
        LOSSES[code.loss],
        data,
        sparsity=budget.sparsity,
        support=budget.family,
        method=method,
        options=options,
    )
    settings = {"ridge": options.ridge, "seed": options.seed}
    return finish(code, output, model, test, result, settings)


def library_options(
    budget: BudgetChoice,
    curvature: CurvatureChoice,
    layers: LayerChoice,
    training: TrainingChoice,
    gradual: GradualChoice,
    output: NetworkOutput,
) -> GradualOptions:
    """The library's options for the command line's."""
    distillation = None
    if training.distill:
        distillation = Distillation(weight=training.distill, temperature=training.temperature)
    return GradualOptions(
        **shared_options(budget, curvature, layers, output),
        seed=gradual.seed,
        time_limit=gradual.time_limit,
        stages=gradual.pruning_steps,
        schedule=gradual.schedule,
        base=gradual.base,
        interval=gradual.interval,
        returning=gradual.returning,  # type: ignore[arg-type]
        shrinkage=gradual.shrinkage,
        recipe=_recipe(training),
        lr_min=training.lr_min,
        warmup=training.warmup,
        power=training.power,
        distillation=distillation,
        patience=training.patience,
        bn_samples=training.bn_samples,
        log_file=gradual.log_file,
        tensorboard=gradual.tensorboard,
        checkpoint=gradual.progress_file,
        resume=gradual.resume,
        progress_bar=sys.stderr.isatty(),
    )


def _recipe(training: TrainingChoice) -> TrainingRecipe:
    return TrainingRecipe(
        epochs=training.epochs,
        batch_size=training.train_batch,
        lr=training.lr,
        optimizer=training.optimizer,  # type: ignore[arg-type]
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )


__all__ = ["library_options", "run_gradual"]
