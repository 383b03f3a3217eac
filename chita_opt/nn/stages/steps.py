"""Steps of multi-stage pruning: a fast one, and any method of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from chita_opt.errors import MethodError
from chita_opt.heuristics import METHODS, solve
from chita_opt.heuristics.magnitude import one_step_point
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.stages.state import StageAnswer, StageState
from chita_opt.solution import Solution, Status
from chita_opt.supports import SupportFamily

_TIE = 1e-12  # of the largest magnitude, times the share of the largest gradient


@dataclass(frozen=True)
class Refit:
    r"""The support by a score among all weights, then the weights on it solved exactly.

    Attributes
    ----------
    score : {"magnitude", "step"}
        Largest :math:`|w_j|`, or largest after one gradient step with exact line search, by which
        pruned weights return sooner. Equal magnitudes, as those of pruned weights, are told apart
        by the gradient.
    layer_power : float
        Scores are divided by the root mean square of their layer's live weights to this power:
        0 compares weights of different layers as they are, 1 as shares of their layer. At high
        sparsity plain magnitude empties layers of small weights: a perceptron at 98 % keeps 55 of
        its first layer's 31,360 weights.
    above : float
        Sparsity of a stage above which ``layer_power`` applies.
    exact : bool
        Solve to float64 rather than to the precision of the gradient rows.
    """

    score: Literal["magnitude", "step"] = "magnitude"
    layer_power: float = 0.5
    above: float = 0.9
    exact: bool = False

    def __post_init__(self) -> None:
        if self.score not in ("magnitude", "step"):
            raise MethodError(f"score is {self.score!r}; choose 'magnitude' or 'step'")
        if not 0.0 <= self.layer_power <= 1.0:
            raise MethodError(f"layer_power is {self.layer_power}; give a number in [0, 1]")

    def __call__(self, state: StageState) -> StageAnswer:
        """Solve one stage."""
        problem = state.problem
        scores = self.scores(state)
        scores = scores if state.live is None else scores[state.live]
        mask = problem.supports.best_support(scores.square())
        solver = problem.curvature.support_solver(problem.separable, mask, exact=self.exact)
        return StageAnswer(state.embedded(solver.weights), {"objective": solver.value})

    def stays_live(self, weights: Tensor, supports: SupportFamily, layer_map: LayerMap) -> bool:
        """Whether magnitude alone decides, and among weights that are not zero."""
        if self.score != "magnitude":
            return False
        scores = self._scaled(weights.abs(), weights, supports.max_count, layer_map)
        return not bool((supports.best_support(scores.square()) & (weights == 0)).any())

    def scores(self, state: StageState) -> Tensor:
        """The score of every weight, (p,) float64."""
        problem, weights = state.problem, state.weights
        if self.score == "step":
            scores = one_step_point(problem).abs()
        else:
            scores = weights.abs()
            steepest = float(problem.g.abs().max())
            if steepest > 0.0:
                g = state.embedded(problem.g)
                scores = scores + _TIE * float(scores.max()) / steepest * g.abs()
        return self._scaled(scores, weights, state.k, state.layer_map)

    def _scaled(self, scores: Tensor, weights: Tensor, k: int, layer_map: LayerMap) -> Tensor:
        if 1.0 - k / layer_map.size <= self.above:
            return scores
        return layer_scaled(scores, weights, layer_map, self.layer_power)


def layer_scaled(scores: Tensor, weights: Tensor, layers: LayerMap, power: float) -> Tensor:
    """Scores over the root mean square of each layer's live weights, to a power.

    A layer of larger weights is no more worth keeping for that: its activations may be smaller.
    Parameters without live weights keep their scores.
    """
    if not power:
        return scores
    scaled = scores.clone()
    for item in layers:
        part = slice(item.start, item.stop)
        live = weights[part][weights[part] != 0]
        if len(live):
            scaled[part] /= live.square().mean().sqrt() ** power
    return scaled


@dataclass(frozen=True)
class Solve:
    """One method of the table on every stage's problem, or the hybrid.

    Attributes
    ----------
    method : str
        A name of ``METHODS``, "auto", or "hybrid" (:func:`chita_opt.exact.hybrid`).
    seconds : float
        Of the hybrid, in a stage without a time limit.
    """

    method: str = "auto"
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.method not in ("auto", "hybrid") and self.method not in METHODS:
            raise MethodError(
                f"method {self.method!r} is not known; choose fast, blocks, hybrid, auto, "
                f"{', '.join(METHODS)}"
            )
        if not self.seconds > 0.0:
            raise MethodError(f"seconds is {self.seconds}; give the hybrid more than 0")

    def __call__(self, state: StageState) -> StageAnswer:
        """Solve one stage."""
        found = self.found(state)
        return StageAnswer(found.w, {"objective": found.objective, "method": found.method})

    def found(self, state: StageState, start: Solution | None = None) -> Solution:
        """The stage's solution, never worse than a start; Ctrl-C is passed on to the stages."""
        problem, seed, limit = state.problem, state.seed, state.time_limit
        if self.method == "hybrid":
            from chita_opt.exact import hybrid  # the room starts slowly

            limit = self.seconds if limit is None else limit
            found = hybrid(problem, start=start, time_limit=limit, seed=seed).solution
        else:
            found = solve(problem, self.method, start=start, time_limit=limit, seed=seed)
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return found


__all__ = ["Refit", "Solve", "layer_scaled"]
