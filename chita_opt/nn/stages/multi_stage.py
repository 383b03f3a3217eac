"""CHITA++: prune a little, measure the gradients again at the pruned weights, prune more."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import MethodError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.layers import select_layers
from chita_opt.nn.mac_budget import mac_budget
from chita_opt.nn.provenance import run_record
from chita_opt.nn.pruning_problem import build_problem
from chita_opt.nn.stages.block_rounds import BlockRounds
from chita_opt.nn.stages.checkpoint import Checkpoint, Progress, run_fingerprint
from chita_opt.nn.stages.options import StageOptions, stage_families
from chita_opt.nn.stages.result import StagedResult, StageRow
from chita_opt.nn.stages.state import LiveStep, StageAnswer, StageState, Step
from chita_opt.nn.stages.steps import Refit, Solve
from chita_opt.nn.trust.staging import LastStep, StageTrust
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Status
from chita_opt.supports import KeepCount, SupportFamily
from chita_opt.supports.restriction import restrict

LossFunction = Callable[[Any, Any], Tensor]
_NOTES = ("curvature", "gradient_path", "path_reason")


def prune_in_stages(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    sparsity: float | None = None,
    support: str | SupportFamily = "cardinality",
    method: str | Step = "fast",
    options: StageOptions | None = None,
    **changes: Any,
) -> StagedResult:
    r"""Prune a model in stages of rising sparsity (CHITA++, ICML 2023, §3.3).

    Every stage measures gradient rows at the weights that the stage before left, poses the
    quadratic problem around them with the stage's number of kept weights, chooses the support among
    all weights (pruned ones may return) and solves the weights on it. A single quadratic model is
    wrong about a network of which little is left; the models of small steps are not. With the
    linear term on, which is the default here, the stages train the network as well: use enough
    data that they do not learn it by heart.

    Parameters
    ----------
    model : torch.nn.Module
        A trained model; neither its weights nor its state change.
    loss_fn : callable
        ``loss_fn(output, target)``, a mean over the batch or one value a sample.
    data : (inputs, targets), Dataset, DataLoader or iterable of batches
        Training data; see :func:`chita_opt.nn.gradient_rows`. Each stage draws its own samples
        where they can be fetched by number.
    sparsity, support
        As for :func:`chita_opt.nn.prune`.
    method : str or Step
        "fast": exact weights at the rows' precision on the largest magnitudes
        (:class:`~chita_opt.nn.stages.Refit`) or, with ``trust`` and data to hold out, on the best
        of several supports by the held-out loss (:class:`~chita_opt.nn.trust.TrustedStep`);
        "blocks": :class:`~chita_opt.nn.stages.BlockRounds`; "hybrid": the supports of "fast" and
        what :func:`chita_opt.exact.hybrid` makes of the best one compete (without data to hold out
        it decides alone); a name of ``METHODS``; or a step of your own.
    options : StageOptions, optional
        Everything else.
    **changes
        Fields of :class:`StageOptions` by name, such as ``stages=8``; they win over ``options``.

    Returns
    -------
    StagedResult
        Masks, weights and the table of stages. ``result.apply_(model)`` writes them.

    Raises
    ------
    LayerError, SupportError, DataError, ProblemError, MemoryLimitError
        As :func:`chita_opt.nn.prune`; DataError also for a checkpoint of another run.
    MethodError
        If a method does not serve, or a step answers weights that its stage does not allow.
    TypeError
        If an option is not known.

    Notes
    -----
    With ``checkpoint="run.safetensors"`` the weights and the table are written after every stage;
    the same call with ``resume=True`` continues there, and where the samples can be fetched by
    number it ends in the same weights, bit for bit, as a run that was never stopped.

    Under ``time_limit`` a stage that seems to be the last one to fit jumps to the final sparsity.
    After Ctrl-C the weights at hand are pruned to the final sparsity by their magnitude, and solved
    again where the stage's problem was ready. The checkpoint keeps the last regular stage.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Linear(8, 3)
    >>> data = torch.randn(64, 8), torch.randint(3, (64,))
    >>> loss = torch.nn.functional.cross_entropy
    >>> result = prune_in_stages(net, loss, data, sparsity=0.5, stages=3, rows=16, batch_size=4)
    >>> [row.kept for row in result.stages]
    [22, 15, 12]
    """
    options = (options or StageOptions()).changed(changes)
    clock = Clock(options.time_limit)
    step = step_of(method)
    layer_map = select_layers(
        model,
        include=options.include,
        exclude=options.exclude,
        biases=options.biases,
        norms=options.norms,
    )
    support, sparsity = mac_budget(support, model, layer_map, data, sparsity)
    families = stage_families(layer_map, support, sparsity, options)
    trust = StageTrust.open(model, loss_fn, data, layer_map, options)
    if method == "fast":
        step = trust.step() or step
    elif method == "hybrid":
        step = trust.step(search=Solve(method)) or step
    checkpoint = Checkpoint(
        options.checkpoint, run_fingerprint(model, layer_map, families, options, step)
    )
    run = _Run(copy.deepcopy(model), loss_fn, trust.data, layer_map, families, options)
    status = run.run(step, checkpoint, clock)
    named = method if isinstance(method, str) else type(method).__name__
    asked = {"method": named, "sparsity": sparsity, "support": families[-1].name}
    run.notes["run"] = run_record(options, **asked)
    run.notes["trust"] = trust.report(layer_map.weights(model), run.progress.weights, run.last_step)
    k, p = families[-1].max_count, layer_map.size
    requested = 1.0 - k / p if sparsity is None else float(sparsity)
    return StagedResult(
        layer_map,
        KeepCount(k, p, requested),
        run.progress.weights,
        {item.name: layer_map.parameter(model, item).dtype for item in layer_map},
        run.progress.rows,
        options.stages,
        status,
        clock.elapsed,
        run.notes,
    )


def step_of(method: str | Step) -> Step:
    """The step for a name of :func:`prune_in_stages`; a step stays what it is."""
    if not isinstance(method, str):
        return method
    own: dict[str, Step] = {"fast": Refit(), "blocks": BlockRounds()}
    return own[method] if method in own else Solve(method)


class _Run:
    """The working copy of the model, and what has been reached with it."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Any,
        layer_map: LayerMap,
        families: tuple[SupportFamily, ...],
        options: StageOptions,
    ) -> None:
        self.model, self.loss_fn, self.data = model, loss_fn, data
        self.layer_map, self.families, self.options = layer_map, families, options
        self.progress = Progress(layer_map.weights(model))
        self.notes: dict[str, Any] = {}
        self.problem: Problem | None = None  # of the stage under way, once it is posed
        self.live: Tensor | None = None  # its weights, where it is not over all of them
        self.buffer: Tensor | None = None  # memory of the gradient rows
        self.last_step: LastStep | None = None

    def run(self, step: Step, checkpoint: Checkpoint, clock: Clock) -> Status:
        """All stages that are left, or as many as time allows; the weights fit the last family."""
        stored = checkpoint.read() if self.options.resume else None
        if stored is not None:
            self._take(stored)
        try:
            for stage in range(len(self.progress.rows), self.options.stages):
                jumps = stage < self.options.stages - 1 and self._is_last_chance(clock)
                self._stage(stage, step, clock, self.options.stages - 1 if jumps else stage)
                if jumps:
                    self.notes["cut_short"] = f"stage {stage} went to the final sparsity"
                    return Status.TIME_LIMIT
                checkpoint.save(self.progress)
        except KeyboardInterrupt:
            self._finish_quickly()
            return Status.INTERRUPTED
        return Status.FEASIBLE

    def _is_last_chance(self, clock: Clock) -> bool:
        """Whether this stage and a further one like the last would not both fit."""
        if clock.remaining is None:
            return False
        rows = self.progress.rows
        usual = rows[-1].gradients + rows[-1].solve if rows else 0.0
        return clock.expired or clock.remaining < 2.0 * usual

    def _stage(self, stage: int, step: Step, clock: Clock, place: int) -> None:
        """Measure, pose, solve and take over; ``place`` is the stage whose family is used."""
        self.options.tell("stage", stage, self.options.stages)
        begin, before = time.perf_counter(), self.progress
        state = self._posed(stage, place, clock, self._live(step, self.families[place]))
        posed = time.perf_counter()
        answer = step(state)
        weights = self._checked(answer, self.families[place])
        row = StageRow(
            stage,
            state.k,
            int((weights != 0).sum()),
            int(((weights != 0) & (before.weights == 0)).sum()),
            state.loss,
            posed - begin,
            time.perf_counter() - posed,
            dict(answer.notes),
        )
        self._take(Progress(weights, (*before.rows, row), dict(answer.carry)))
        if state.is_last and self.options.trust:
            self.last_step = LastStep.of(state, weights, self.options.curvature)

    def _live(self, step: Step, family: SupportFamily) -> Tensor | None:
        """The weights that are not zero, where the step asks for no others."""
        weights, options = self.progress.weights, self.options
        plain = options.curvature == "gradients" and options.ridge_unit == "absolute"
        if not (plain and isinstance(step, LiveStep)) or options.gradient_file is not None:
            return None
        if bool((weights != 0).all()) or not bool((weights != 0).any()):
            return None
        if not step.stays_live(weights, family, self.layer_map):
            return None
        return (weights != 0).nonzero().squeeze(1)

    def _posed(self, stage: int, place: int, clock: Clock, live: Tensor | None) -> StageState:
        """The problem around the current weights, over those alone that are live if so asked."""
        own, left, family = self.options.of_stage(stage), clock.remaining, self.families[place]
        out = self.buffer
        if live is not None:
            family = restrict(family, torch.zeros_like(self.progress.weights).bool(), live)
            out = None if out is None else out[: len(live)]
        network = build_problem(
            self.model,
            self.loss_fn,
            self.data,
            self.layer_map,
            family,
            own,
            out=out,
            columns=live,
        )
        self.notes |= {name: network.notes[name] for name in _NOTES}
        self.problem, self.live = network.problem, live
        if own.device is None and (live is None or out is None):  # else the rows are elsewhere
            self.buffer = network.problem.curvature.arrays()["columns"]
        return StageState(
            stage=place,
            stages=self.options.stages,
            problem=network.problem,
            model=self.model,
            layer_map=self.layer_map,
            batch_size=own.batch_size,
            alpha=own.alpha,
            ridge=own.ridge,
            loss=network.notes["calibration_loss"],
            seed=own.seed,
            time_limit=None if left is None else left / (self.options.stages - place),
            carry=self.progress.carry,
            live=live,
        )

    def _checked(self, answer: StageAnswer, family: SupportFamily) -> Tensor:
        """The answer's weights in the parameters' types; refused where the family forbids them."""
        if not family.contains(answer.weights != 0):
            raise MethodError(
                f"the step answered {int((answer.weights != 0).sum())} weights in a pattern "
                f"outside {family.name}"
            )
        self.layer_map.write_(self.model, answer.weights)
        return self.layer_map.weights(self.model)

    def _take(self, progress: Progress) -> None:
        self.layer_map.write_(self.model, progress.weights)
        self.progress, self.problem = progress, None

    def _finish_quickly(self) -> None:
        """Prune the weights at hand to the last family; solve them where a problem is posed."""
        final, weights = self.families[-1], self.progress.weights
        mask = final.best_support(weights.square())
        self.notes["cut_short"] = "the weights at hand were pruned by magnitude"
        weights = torch.where(mask, weights, 0.0)
        if self.problem is not None:
            part, live = self.problem.separable, self.live
            place = mask.to(part.g.device) if live is None else mask[live].to(part.g.device)
            solver = self.problem.curvature.support_solver(part, place, exact=False)
            weights = (
                solver.weights if live is None else weights.index_copy(0, live, solver.weights)
            )
            self.notes["cut_short"] += " and solved again"
        self._take(Progress(weights, self.progress.rows))
        self.progress = Progress(self.layer_map.weights(self.model), self.progress.rows)


__all__ = ["prune_in_stages", "step_of"]
