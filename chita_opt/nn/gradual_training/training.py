"""``prune_and_train``: prune a little, train, prune more; stopped and continued at any moment."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any

from torch import nn

from chita_opt.errors import DataError
from chita_opt.nn.gradual_training.checkpoint import RunFile, told_options, told_step
from chita_opt.nn.gradual_training.objective import LossFunction, Objective, measured
from chita_opt.nn.gradual_training.options import GradualOptions
from chita_opt.nn.gradual_training.plan import Plan
from chita_opt.nn.gradual_training.pruning_step import MAGNITUDE, PruningStep
from chita_opt.nn.gradual_training.result import GradualResult
from chita_opt.nn.gradual_training.run import Run
from chita_opt.nn.gradual_training.samples import Samples
from chita_opt.nn.gradual_training.trainee import Trainee
from chita_opt.nn.layers import select_layers
from chita_opt.nn.mac_budget import mac_budget
from chita_opt.nn.provenance import run_record
from chita_opt.nn.sampling import Batch
from chita_opt.nn.stages import Step
from chita_opt.nn.stages.multi_stage import step_of
from chita_opt.nn.stages.options import stage_families
from chita_opt.nn.training_checkpoint import digest, tensor_digest
from chita_opt.nn.trust.setting_aside import set_aside
from chita_opt.solution import Clock
from chita_opt.supports import KeepCount, SupportFamily


def prune_and_train(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    sparsity: float | None = None,
    support: str | SupportFamily = "cardinality",
    method: str | Step = "blocks",
    options: GradualOptions | None = None,
    **changes: Any,
) -> GradualResult:
    r"""Prune a model in steps of rising sparsity and train it between them (gradual pruning).

    Before some training steps weights are pruned, on the quadratic model of the loss around the
    weights of that moment or by magnitude; the rate then starts anew from its highest value and
    falls by a cosine, with pruned weights held at zero. After the last pruning step, training goes
    on to the end. This is the gradual setting of CHITA (Benbaki et al., ICML 2023, §4.3).

    Parameters
    ----------
    model : torch.nn.Module
        A trained model; neither its weights nor its state change.
    loss_fn : callable
        ``loss_fn(output, target)``, a mean over the batch or one value a sample.
    data : (inputs, targets), Dataset, DataLoader or list of batches
        Training data whose samples can be fetched by number; a DataLoader's own order and batch
        size are not used. Random augmentation should draw from torch's random numbers, which are
        seeded for every step.
    sparsity, support
        As for :func:`chita_opt.nn.prune`.
    method : str or Step
        "magnitude"; or, on the quadratic model, "blocks", "fast", a name of ``METHODS`` or a step
        of your own, as for :func:`chita_opt.nn.prune_in_stages`.
    options : GradualOptions, optional
        Everything else.
    **changes
        Fields of :class:`GradualOptions` by name, such as ``stages=4``; they win over ``options``.

    Returns
    -------
    GradualResult
        The trained network, masks and history. ``result.apply_(model)`` writes them.

    Raises
    ------
    LayerError, SupportError, ProblemError, MethodError, MemoryLimitError
        As :func:`chita_opt.nn.prune_in_stages`.
    DataError
        If the data do not fit or cannot be fetched by number, the loss is no longer finite, or the
        checkpoint is of another run.
    MissingDependencyError
        If TensorBoard is asked for and not installed.
    TypeError
        If an option is not known.

    Notes
    -----
    With ``checkpoint="run.safetensors"`` the run is on disk every so often, each time whole or not
    at all. The same call with ``resume=True`` continues there, however the run ended: by Ctrl-C, by
    its time limit, by a kill in the middle of a step or of a write. On the CPU, with as many
    threads, the end is the same bit for bit as that of a run that was never stopped: the order of
    an epoch and the random numbers of a step follow from seed and number alone.

    Ctrl-C takes effect after the training or pruning step under way; a second one at once.

    Examples
    --------
    >>> import torch
    >>> from chita_opt.nn import TrainingRecipe, prune_and_train
    >>> net = torch.nn.Linear(8, 3)
    >>> data = torch.randn(64, 8), torch.randint(3, (64,))
    >>> loss = torch.nn.functional.cross_entropy
    >>> recipe = TrainingRecipe(epochs=4, batch_size=16, lr=0.1)
    >>> small = dict(stages=2, rows=3, trust=False, recipe=recipe)
    >>> result = prune_and_train(net, loss, data, sparsity=0.75, **small)
    >>> result.nnz, [row.sparsity for row in result.history if row.event == "pruning"]
    (6, [0.5, 0.75])
    """
    options = (options or GradualOptions()).changed(changes)
    clock = Clock(options.time_limit)
    layer_map = select_layers(
        model,
        include=options.include,
        exclude=options.exclude,
        biases=options.biases,
        norms=options.norms,
    )
    support, sparsity = mac_budget(support, model, layer_map, data, sparsity)
    families = stage_families(layer_map, support, sparsity, options)
    rest, held_out, reason = _split(data, options)
    samples = Samples(rest, options.seed)
    step = MAGNITUDE if method == MAGNITUDE else step_of(method)
    run = Run(
        trainee=Trainee(model, layer_map, options.power),
        objective=Objective(loss_fn, model, options.distillation),
        samples=samples,
        held_out=held_out,
        plan=Plan.of(options, samples.size),
        pruning=PruningStep(
            method=step, loss_fn=loss_fn, data=rest, layer_map=layer_map, families=families,
            options=options,
        ),
        options=options,
    )  # fmt: skip
    k, p = families[-1].max_count, layer_map.size
    told = {
        "model": digest(model),
        "data": samples.fingerprint(),
        "held out": tensor_digest({f"{i}": x for i, (x, _) in enumerate(held_out)}),
        "loss": getattr(loss_fn, "__qualname__", type(loss_fn).__qualname__),
        "budget": f"{[f'{f.name} {f.max_count}' for f in families]} of {p}",
        "method": told_step(step),
        **told_options(options),
    }
    asked = {"method": told["method"], "sparsity": sparsity, "support": families[-1].name}
    run.notes["run"] = run_record(options, **asked)
    if held_out:
        loss, correct = measured(model, loss_fn, held_out)
        run.notes |= {"dense_loss": loss, "dense_accuracy": correct}
    else:
        run.notes["held_out"] = reason
    status = run.run(RunFile(path=options.checkpoint, run=told), clock)
    requested = 1.0 - k / p if sparsity is None else float(sparsity)
    network = copy.deepcopy(run.trainee.folded()).eval()
    returned = layer_map.weights(network) != 0  # by training, where a run was cut short
    return GradualResult(
        network,
        layer_map,
        KeepCount(k, p, requested),
        run.state.mask | returned,
        tuple(run.state.history),
        options.stages,
        status,
        clock.elapsed,
        run.notes,
    )


def _split(data: Any, options: GradualOptions) -> tuple[Any, list[Batch], str]:
    """Data to train on, held-out batches, and why there are none."""
    if not options.trust:
        return data, [], "switched off"
    wanted = options.holdout
    if wanted is not None and not isinstance(wanted, Integral):
        pair = len(wanted) == 2 and all(hasattr(part, "shape") for part in wanted)
        return data, [tuple(wanted)] if pair else list(wanted), ""
    used = 0 if options.rows is None else options.rows * options.batch_size
    count = None if wanted is None else int(wanted)
    try:
        rest, batches = set_aside(data, used=used, count=count, seed=options.seed)
    except DataError as error:
        if wanted is not None or options.patience is not None:
            raise
        return data, [], str(error)
    return rest, batches, ""


__all__ = ["prune_and_train"]
