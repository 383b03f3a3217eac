"""A stage of multi-stage pruning whose support is chosen by the actual loss."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import torch

from chita_opt.errors import CurvatureError, ProblemError
from chita_opt.nn.stages.block_rounds import BlockRounds
from chita_opt.nn.stages.state import Note, StageAnswer, StageState
from chita_opt.nn.stages.steps import Solve
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.nn.trust.competition import Candidate, entered, lowest, solved_on
from chita_opt.nn.trust.scores import STAGED, Score, supports_by
from chita_opt.solution import Solution, Status

_log = logging.getLogger(__name__)
_ALONE = 0.01  # ridge of units that are solved alone, of the problem's: they have fewer weights
_PART = 0.25


@dataclass(frozen=True)
class TrustedStep:
    r"""Solve a stage on several supports and keep the weights of lowest held-out loss.

    Supports compete, weights don't: one exact solve each, at the ridge of the stage. A ridge
    chosen stage by stage by the loss damps the late stages and ends lower in loss of the stage but
    not in accuracy. Below the sparsity ``above`` the magnitude support is as good as any.

    Where the loss rises steeply in spite of that, the rows have promised too much: a few hundred
    gradients do not say how the layers of a deep network repair each other. Then two more compete,
    with the support of :class:`~chita_opt.nn.stages.BlockRounds` from the current weights: its
    weights, each output unit solved alone and without the linear term, and those moved a quarter
    of the way to the minimiser of the whole problem on that support.

    Attributes
    ----------
    held_out : HeldOut
        Samples that no stage uses for gradients. Its layer map must be that of the stages.
    scores : tuple of Score
        The supports that compete.
    above : float
        Sparsity of a stage above which they do.
    late_step, late_share : float
        In the last share of the stages the kept weights go only so far of the way to the minimiser:
        there the noise of a stage's gradients outweighs what is left to gain.
    search : Solve, optional
        Begins where the best of them is, and its weights compete with theirs.
    rounds : BlockRounds
        Solves output units alone; its ``base`` is taken from the current weights.
    rise : float
        Factor of the held-out loss in one stage beyond which that competes.
    """

    held_out: HeldOut = field(repr=False)
    scores: tuple[Score, ...] = STAGED
    above: float = 0.85
    late_step: float = 0.5
    late_share: float = 0.375
    search: Solve | None = None
    rounds: BlockRounds = field(default_factory=lambda: BlockRounds(rounds=3))
    rise: float = 1.3

    def __post_init__(self) -> None:
        if not self.scores:
            raise ProblemError("no scores were given; a stage needs at least one")
        if not 0.0 < self.late_step <= 1.0 or not 0.0 <= self.late_share <= 1.0:
            raise ProblemError(
                f"late_step is {self.late_step}, late_share {self.late_share}; give a step in "
                "(0, 1] and a share in [0, 1]"
            )
        if not self.rise >= 0.0:
            raise ProblemError(f"rise is {self.rise}; give a factor of the loss, 0 or more")

    def __call__(self, state: StageState) -> StageAnswer:
        """Choose support and weights of one stage."""
        scores = self.scores if state.sparsity > self.above else self.scores[:1]
        masks = supports_by(state.problem, state.layer_map, scores)
        candidates = solved_on(state.problem, masks, self.held_out)
        if self.search is not None and state.sparsity > self.above:
            candidates.append(self._searched(state, lowest(candidates), self.search))
        best = lowest(candidates)
        w, loss = best.w, best.loss
        if state.stage >= state.stages - int(self.late_share * state.stages):
            way = state.weights + self.late_step * (w - state.weights)
            w = torch.where(w != 0, way, 0.0)
            loss = self.held_out.loss(w)
        if loss > self.rise * self.held_out.loss(state.weights):
            others = self._by_units(state)
            candidates += others
            best = lowest([Candidate(best.name, w, loss), *others])
            w, loss = best.w, best.loss
        notes: dict[str, Note] = {
            "support": best.name,
            "held_out_loss": loss,
            "candidates": len(candidates),
        }
        return StageAnswer(w, notes)

    def _by_units(self, state: StageState) -> list[Candidate]:
        """Output units solved alone, and a part of the way from there to the whole problem's.

        None where a unit's curvature is singular, as with a ridge of zero.
        """
        problem, p = state.problem, state.layer_map.size
        alone = replace(problem, g=torch.zeros_like(problem.g), rho=_ALONE * problem.rho)
        live = int(state.mask.sum())
        try:
            w = replace(self.rounds, base=1.0 - max(live, 1) / p).solve(alone, state.layer_map)
            (whole,) = solved_on(problem, {"units": w != 0}, self.held_out)
        except CurvatureError as error:
            _log.warning("units were not solved alone: %s", error)
            return []
        way = w + _PART * (whole.w - w)
        return [entered("units", w, self.held_out), entered("units, part", way, self.held_out)]

    def _searched(self, state: StageState, best: Candidate, search: Solve) -> Candidate:
        """What a search from the best candidate finds in the quadratic model."""
        start = Solution(state.problem, best.w, best.name, Status.FEASIBLE)
        return entered(search.method, search.found(state, start).w, self.held_out)


__all__ = ["TrustedStep"]
