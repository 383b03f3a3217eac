"""One pruning step: by magnitude, or by a step on the quadratic model around the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import MethodError
from chita_opt.nn.gradual_training.objective import LossFunction
from chita_opt.nn.gradual_training.options import GradualOptions
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_problem import build_problem
from chita_opt.nn.stages import StageAnswer, StageState, Step
from chita_opt.nn.stages.state import Note
from chita_opt.supports import SupportFamily

MAGNITUDE = "magnitude"  # needs no quadratic model and therefore no gradients


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a pruning step leaves.

    Attributes
    ----------
    weights, mask : Tensor
        (p,) float64 and bool.
    notes, carry : Mapping
        Of the step; see :class:`~chita_opt.nn.stages.StageAnswer`.
    """

    weights: Tensor
    mask: Tensor
    notes: Mapping[str, Note] = field(default_factory=dict)
    carry: Mapping[str, Note] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class PruningStep:
    """Everything that pruning steps share.

    Attributes
    ----------
    method : "magnitude" or Step
        How weights are chosen.
    loss_fn, data
        For the gradients; held-out samples are not among the data.
    layer_map : LayerMap
        The weights.
    families : tuple of SupportFamily
        What each step may keep.
    options : GradualOptions
        How gradients are measured, and whether weights may return.
    """

    method: str | Step
    loss_fn: LossFunction
    data: Any
    layer_map: LayerMap
    families: tuple[SupportFamily, ...]
    options: GradualOptions

    def __call__(
        self, number: int, model: nn.Module, mask: Tensor, carry: Mapping[str, Note]
    ) -> Pruned:
        """Prune the weights of a model, which stays as it is.

        Raises
        ------
        MethodError
            If the step's answer is not in the family.
        """
        family, weights = self.families[number], self.layer_map.weights(model)
        if isinstance(self.method, str):
            chosen = largest_support(family, weights)
            if self.options.returning == "never":
                chosen &= mask
            return Pruned(torch.where(chosen, weights, 0.0), chosen)
        state = self._posed(number, model, carry)
        answer = self.method(state)
        chosen = (answer.weights != 0).to(weights.device)
        if not family.contains(chosen):
            raise MethodError(
                f"the step answered {int(chosen.sum())} weights in a pattern outside {family.name}"
            )
        if self.options.returning == "never" and bool((chosen & ~mask).any()):
            answer = _without_returns(state, answer, mask)
        new = answer.weights.to(weights.device, torch.float64)
        return Pruned(new, new != 0, dict(answer.notes), dict(answer.carry))

    def _posed(self, number: int, model: nn.Module, carry: Mapping[str, Note]) -> StageState:
        own = self.options.of_stage(number)
        network = build_problem(
            model, self.loss_fn, self.data, self.layer_map, self.families[number], own
        )
        return StageState(
            stage=number,
            stages=self.options.stages,
            problem=network.problem,
            model=model,
            layer_map=self.layer_map,
            batch_size=own.batch_size,
            alpha=own.alpha,
            ridge=own.ridge,
            loss=network.notes["calibration_loss"],
            seed=own.seed,
            carry=carry,
        )


def largest_support(family: SupportFamily, weights: Tensor) -> Tensor:
    """The mask of the family that keeps the largest squares, (p,) bool on the weights' device."""
    return family.best_support(weights.square()).to(weights.device)


def _without_returns(state: StageState, answer: StageAnswer, mask: Tensor) -> StageAnswer:
    """The largest answered weights among those that were left, solved again."""
    problem = state.problem
    live = mask.to(answer.weights.device)
    chosen = largest_support(problem.supports, torch.where(live, answer.weights, 0.0)) & live
    solver = problem.curvature.support_solver(problem.separable, chosen, exact=False)
    return replace(answer, weights=solver.weights)


__all__ = ["MAGNITUDE", "Pruned", "PruningStep", "largest_support"]
