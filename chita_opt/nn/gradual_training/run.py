"""The loop: pruning steps and training steps by plan, rows of the history, the file on disk."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from chita_opt.errors import DataError
from chita_opt.nn.batch_norm import recalibrate_bn_
from chita_opt.nn.evaluation import evaluating, model_device
from chita_opt.nn.gradual_training.checkpoint import RunFile, TrainingState
from chita_opt.nn.gradual_training.interrupts import holding_interrupts
from chita_opt.nn.gradual_training.objective import Objective, measured
from chita_opt.nn.gradual_training.options import GradualOptions
from chita_opt.nn.gradual_training.plan import Plan
from chita_opt.nn.gradual_training.pruning_step import Pruned, PruningStep, largest_support
from chita_opt.nn.gradual_training.recording import HistoryRow, Recorder, recording
from chita_opt.nn.gradual_training.samples import Samples
from chita_opt.nn.gradual_training.trainee import Trainee
from chita_opt.nn.masks import MaskKeeper
from chita_opt.nn.sampling import Batch
from chita_opt.nn.train import make_optimizer
from chita_opt.solution import Clock, Status


@dataclass(kw_only=True, eq=False)
class Run:
    """One call: what is trained, how it is pruned, and how far it is.

    Attributes
    ----------
    trainee, objective, samples
        The network, its loss and the training samples.
    held_out : list of (inputs, targets)
        Samples that neither training nor pruning sees; may be empty.
    plan, pruning, options
        When and how.
    notes : dict
        What the result should tell.
    """

    trainee: Trainee
    objective: Objective
    samples: Samples
    held_out: list[Batch]
    plan: Plan
    pruning: PruningStep
    options: GradualOptions
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = model_device(self.trainee.model)
        size = self.trainee.layer_map.size
        self.state = TrainingState(mask=torch.ones(size, dtype=torch.bool, device=self.device))
        self.optimizer = make_optimizer(self.trainee.model, self.options.recipe)
        self.keeper: MaskKeeper | None = None
        self._written = time.monotonic()

    def run(self, file: RunFile, clock: Clock) -> Status:
        """Go on from the file, if asked to, until the plan, the clock or the user ends it."""
        stored = file.read(self.trainee.model, self.optimizer) if self.options.resume else None
        if stored is not None:
            self.state = stored
            self.state.mask = stored.mask.to(self.device)
            self.notes["resumed_at_step"] = stored.step
            self._keep_masks()
        recorded = recording(self.options, self.plan.total, self.state.step)
        with evaluating(self.trainee.model), recorded as recorder:
            self.trainee.model.train()
            recorder.begin(self.state.history)
            try:
                status = self._loop(file, clock, recorder)
                if status is Status.FEASIBLE:
                    self._end(recorder)
            except KeyboardInterrupt:  # the second Ctrl-C, or one raised by the caller's code
                if self.keeper is not None:
                    self.keeper.apply_()
                status = Status.INTERRUPTED
        return status

    def _loop(self, file: RunFile, clock: Clock, recorder: Recorder) -> Status:
        with holding_interrupts() as interrupts:
            while not self._is_over:
                if interrupts() or clock.expired:
                    self._write(file)
                    return Status.INTERRUPTED if interrupts() else Status.TIME_LIMIT
                if self.state.step in self.plan.prunings[self.state.pruned :]:
                    self._prune(self.state.pruned, recorder)
                    if interrupts() > 1:  # the method may have given up on its own
                        raise KeyboardInterrupt
                    self._write(file)
                else:
                    self._train(recorder)
                    self._write_now_and_then(file)
            self._write(file)
        return Status.FEASIBLE

    @property
    def _is_over(self) -> bool:
        patience, state = self.options.patience, self.state
        return state.step >= self.plan.total or (patience is not None and state.stale >= patience)

    @property
    def _is_free(self) -> bool:
        """Whether pruned weights train on: until the last pruning step, where that is asked for."""
        return self.options.returning == "always" and self.state.pruned < len(self.plan.prunings)

    def _prune(self, number: int, recorder: Recorder) -> None:
        state, trainee, last = self.state, self.trainee, number + 1 == len(self.plan.prunings)
        if self.options.shrinkage and not last:  # only the target moves
            pruned = Pruned(trainee.weights(), state.mask, carry=state.carry)
        else:
            model = trainee.folded()
            with evaluating(model):
                pruned = self.pruning(number, model, state.mask, state.carry)
            trainee.write_(pruned.weights)
        returned = int((pruned.mask & ~state.mask).sum())
        state.mask, state.carry, state.pruned = pruned.mask, pruned.carry, number + 1
        if self.options.reset_optimizer:
            self.optimizer = make_optimizer(trainee.model, self.options.recipe)
        self._keep_masks()
        self._recalibrate()
        notes = {**pruned.notes, "kept": int(pruned.mask.sum()), "returned": returned}
        self._record("pruning", recorder, notes)

    def _train(self, recorder: Recorder) -> None:
        """One training step."""
        state, size = self.state, self.options.recipe.batch_size
        epoch, place = divmod(state.step, self.plan.epoch_steps)
        self.samples.seed_step(state.step)
        x, y = self.samples.batch(epoch, place * size, size)
        x, y = x.to(self.device), y.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(state.step)
        self.optimizer.zero_grad()
        loss = self.objective(self.trainee(x), x, y)
        loss.backward()
        self.optimizer.step()
        self._enforce()
        state.total, state.seen = state.total + len(x) * float(loss.detach()), state.seen + len(x)
        state.step += 1
        if not math.isfinite(state.total):
            raise DataError(
                f"the loss is {float(loss.detach())} at training step {state.step}; lower lr"
            )
        recorder.advance(state.step)
        if place + 1 == self.plan.epoch_steps:
            self._epoch_ends(recorder)

    def _enforce(self) -> None:
        """Hold pruned weights at zero, or shrink those that magnitude would remove."""
        if self.keeper is not None:
            self.keeper.apply_()
        elif self.options.shrinkage and self._is_free and self.state.pruned:
            family = self.pruning.families[self.state.pruned - 1]
            kept = largest_support(family, self.trainee.weights())
            left = (1.0 - self.options.shrinkage) ** (1.0 / self.options.power)
            with torch.no_grad():
                for name, mask in self.trainee.layer_map.unflatten(kept).items():
                    parameter = self.trainee.model.get_parameter(name)
                    parameter.mul_(torch.where(mask, 1.0, left).to(parameter.dtype))

    def _keep_masks(self) -> None:
        masks = self.trainee.layer_map.unflatten(self.state.mask)
        bound = self.state.pruned > 0 and not self._is_free
        self.keeper = MaskKeeper(self.trainee.model, masks) if bound else None

    def _epoch_ends(self, recorder: Recorder) -> None:
        state = self.state
        self._record("epoch", recorder, {})
        loss = state.history[-1].held_out_loss
        if self.options.patience is None or state.pruned < len(self.plan.prunings) or loss is None:
            return
        state.stale += 1
        if state.best_loss is None or loss < state.best_loss:
            own = self.trainee.model.state_dict()
            state.best = {name: value.detach().clone() for name, value in own.items()}
            state.best_loss, state.stale = loss, 0

    def _end(self, recorder: Recorder) -> None:
        """The best epoch's weights under early stopping, and statistics of the final weights."""
        if self.options.patience is not None:
            self.notes["stopped_early"] = self.state.step < self.plan.total
        if self.state.best:
            self.trainee.model.load_state_dict(self.state.best)
        self._recalibrate()
        self._record("end", recorder, {})

    def _recalibrate(self) -> None:
        if self.options.bn_samples:
            model, count = self.trainee.folded(), min(self.options.bn_samples, self.samples.size)
            recalibrate_bn_(model, self.samples.batch(0, 0, count)[0])
            self.trainee.take_buffers_(model)

    def _record(self, event: str, recorder: Recorder, notes: dict[str, Any]) -> None:
        state, weights = self.state, self.trainee.weights()
        loss, correct = None, None
        if self.held_out:
            loss, correct = measured(self.trainee.folded(), self.objective.loss_fn, self.held_out)
        state.history.append(
            HistoryRow(
                state.step,
                state.step / self.plan.epoch_steps,
                event,
                state.total / state.seen if state.seen else None,
                self.plan.rate(min(state.step, self.plan.total - 1)),
                float((weights == 0).double().mean()),
                loss,
                correct,
                notes,
            )
        )
        state.total, state.seen = 0.0, 0
        recorder.row(state.history)

    def _write_now_and_then(self, file: RunFile) -> None:
        every, seconds = self.options.checkpoint_steps, time.monotonic() - self._written
        due = every is not None and self.state.step % every == 0
        if due or seconds >= self.options.checkpoint_seconds:
            self._write(file)

    def _write(self, file: RunFile) -> None:
        file.write(self.state, self.trainee.model, self.optimizer)
        self._written = time.monotonic()


__all__ = ["Run"]
