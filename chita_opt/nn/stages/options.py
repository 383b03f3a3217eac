"""What can be chosen about pruning in stages, checked once, and what each stage may keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from chita_opt.errors import ProblemError, SupportError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_options import BLOCKWISE, PruneOptions
from chita_opt.nn.pruning_problem import build_family
from chita_opt.nn.stages.schedules import stage_counts, stage_sparsities
from chita_opt.supports import MinimumKeeps, SupportFamily, TwoBudgets, needs_count


@dataclass(frozen=True, kw_only=True)
class StageOptions(PruneOptions):
    """Options of :func:`chita_opt.nn.prune_in_stages`: those of ``prune``, and the stages.

    Rows average 16 samples and the linear term is on with factor 1/m, the setting in which stages
    pay. No certificate is made: one is about a single quadratic problem, and stages pose several.
    ``target_gap`` has no effect; nor has ``compete``: supports compete in every late stage. What
    the result costs is measured on held-out samples, and the last stage's model is judged there.

    Attributes
    ----------
    stages : int
        Number of stages, T.
    schedule : str
        How the sparsity rises; see :mod:`chita_opt.nn.stages.schedules`.
    base : float
        Sparsity of the first stage.
    checkpoint : path, optional
        File that the weights and the table so far are written to after every stage.
    resume : bool
        Continue from ``checkpoint`` where that file exists.
    """

    batch_size: int = 16
    first_order: float | str = "1/m"
    certify: bool = False
    stages: int = 16
    schedule: str = "exp"
    base: float = 0.1
    checkpoint: str | Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        stage_sparsities(self.schedule, 0.5, self.stages, base=self.base)  # refuses what is wrong
        if self.curvature in BLOCKWISE:
            raise ProblemError(
                f"curvature={self.curvature!r}: stages model the loss by rows of gradients over "
                "all layers; use 'gradients' or 'sampled'"
            )
        if self.split not in (None, "uniform", "erk"):
            raise ProblemError(
                f"split={self.split!r}: stages divide a count of their own each; use 'uniform' or "
                "'erk'"
            )
        if self.engine is not None:
            raise ProblemError(
                "workers and scheduler share out independent layers; a stage's problem is over all "
                "layers: leave them out"
            )
        if self.certify:
            raise ProblemError(
                "certify=True: a certificate is about one quadratic problem and stages pose "
                "several; leave it out, or use prune"
            )
        if self.resume and self.checkpoint is None:
            raise ProblemError("resume needs the checkpoint file to continue from")

    def of_stage(self, stage: int) -> StageOptions:
        """The same options with a seed of the stage's own."""
        return replace(self, seed=(self.seed << 16) + stage)


def stage_families(
    layer_map: LayerMap,
    support: str | SupportFamily,
    sparsity: float | None,
    options: StageOptions,
) -> tuple[SupportFamily, ...]:
    """What each stage may keep; the last one is what was asked for.

    The number of kept weights (of each layer for ``scope="layer"``) follows the schedule, and so do
    both budgets of :class:`~chita_opt.supports.TwoBudgets`. A pattern such as 2:4, or another
    family of the caller's own, holds from the first stage on.

    Raises
    ------
    SupportError
        As :func:`chita_opt.nn.pruning_problem.build_family`.
    """
    final = build_family(layer_map, support, sparsity, options)
    before = options.stages - 1
    if isinstance(final, TwoBudgets | MinimumKeeps):
        shares = stage_sparsities(options.schedule, 1.0, options.stages, base=options.base)
        return (*(final.loosened(share) for share in shares[:before]), final)
    if isinstance(support, SupportFamily) or (sparsity is None and options.k is None):
        return (final,) * options.stages
    if options.scope == "layer":
        if sparsity is None:  # build_family has refused k
            raise SupportError("scope='layer' needs a sparsity")
        shares = stage_sparsities(options.schedule, sparsity, options.stages, base=options.base)
        steps = [build_family(layer_map, support, share, options) for share in shares[:before]]
        return (*steps, final)
    widest = layer_map.size
    if not needs_count(support):
        widest = build_family(layer_map, support, None, replace(options, k=None)).max_count
    counts = stage_counts(
        options.schedule, layer_map.size, final.max_count, options.stages, base=options.base
    )
    steps = [
        build_family(layer_map, support, None, replace(options, k=min(count, widest)))
        for count in counts[:before]
    ]
    return (*steps, final)


__all__ = ["StageOptions", "stage_families"]
