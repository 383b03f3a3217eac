"""What one stage of multi-stage pruning is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from chita_opt.nn.layer_map import LayerMap
from chita_opt.problem import Problem
from chita_opt.supports import SupportFamily

Note = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, eq=False)
class StageState:
    r"""The quadratic problem around the weights that the stages before have left.

    The problem is in the units of :func:`chita_opt.from_gradients`. Its rows average m gradients,
    so with :math:`\alpha=1/m` (the usual choice) m times its objective is in units of the loss:
    :math:`g_L^\top d+\tfrac{m}{2n}\|Ad\|^2+\tfrac{m\lambda}{2}\|d\|^2`, with :math:`g_L` the mean
    gradient.

    Attributes
    ----------
    stage, stages : int
        This stage, counted from 0, and how many there are.
    problem : Problem
        ``w_bar`` holds the current weights, pruned ones at zero; ``supports`` is what this stage
        may keep, among all weights, so that pruned ones may return; the curvature is
        :class:`~chita_opt.curvature.LowRank` over rows measured at the current weights. The rows
        lie in a buffer that the next stage overwrites: keep no reference to them.
    model : torch.nn.Module
        A working copy that holds the current weights. A step may evaluate it, and may write other
        weights by ``layer_map.write_`` to try them: the loop writes the answer in any case.
    layer_map : LayerMap
        Where each parameter lies in the flat vectors.
    batch_size : int
        Samples of a row, m.
    alpha, ridge : float
        Factor of the linear term and ridge, as the problem was built with.
    loss : float
        Mean loss of the samples of the rows at the current weights.
    seed : int
        For random draws of this stage; the same when the stage is repeated after a resume.
    time_limit : float, optional
        Seconds that this stage may take; the weights at hand are then the answer.
    carry : Mapping
        What the step of the stage before asked to be handed on; empty at the first stage.
    live : Tensor, optional
        (s,) int64 where the step has asked to do without pruned weights (see
        :class:`LiveStep`): ``problem`` is then over these weights alone, ``weights``, ``mask`` and
        the answer over all.
    """

    stage: int
    stages: int
    problem: Problem
    model: nn.Module
    layer_map: LayerMap
    batch_size: int
    alpha: float
    ridge: float
    loss: float
    seed: int
    time_limit: float | None = None
    carry: Mapping[str, Note] = field(default_factory=dict)
    live: Tensor | None = None

    @property
    def k(self) -> int:
        """Weights that this stage may keep."""
        return self.problem.supports.max_count

    @property
    def sparsity(self) -> float:
        """Share of weights that this stage removes at least."""
        return 1.0 - self.k / self.layer_map.size

    @property
    def weights(self) -> Tensor:
        """The current weights, (p,) float64."""
        return self.problem.w_bar if self.live is None else self.embedded(self.problem.w_bar)

    @property
    def mask(self) -> Tensor:
        """The current support, (p,) bool."""
        return self.weights != 0

    @property
    def is_last(self) -> bool:
        """Whether no stage follows."""
        return self.stage == self.stages - 1

    def embedded(self, values: Tensor) -> Tensor:
        """Values over the problem's weights as a vector over all, zero elsewhere."""
        if self.live is None:
            return values
        return values.new_zeros(self.layer_map.size).index_copy(0, self.live, values)


@dataclass(frozen=True, eq=False)
class StageAnswer:
    """The weights after a stage.

    Attributes
    ----------
    weights : Tensor
        (p,) weights, zero where pruned; their support must belong to the stage's family.
    notes : Mapping
        Plain values for the stage's row in the table, such as a held-out loss.
    carry : Mapping
        Plain values that the next stage's state holds. A step must keep what it remembers here and
        nowhere else: it is written to disk, so that a run that is resumed continues the same.
    """

    weights: Tensor
    notes: Mapping[str, Note] = field(default_factory=dict)
    carry: Mapping[str, Note] = field(default_factory=dict)


@runtime_checkable
class LiveStep(Protocol):
    """A step that may do without the gradients of pruned weights, and then saves their cost."""

    def stays_live(self, weights: Tensor, supports: SupportFamily, layer_map: LayerMap) -> bool:
        """Whether the step's support will lie among the weights that are not zero."""
        ...


Step = Callable[[StageState], StageAnswer]
"""Solves one stage. A saved run is continued only with the same step, which is told by its
``repr`` where it is a dataclass (hide data from it by ``field(repr=False)``), else by its name."""

__all__ = ["LiveStep", "Note", "StageAnswer", "StageState", "Step"]
