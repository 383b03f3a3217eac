"""A stage of multi-stage pruning whose support is chosen by the actual loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from chita_opt.errors import ProblemError
from chita_opt.nn.stages.state import Note, StageAnswer, StageState
from chita_opt.nn.stages.steps import Solve
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.nn.trust.competition import Candidate, entered, lowest, solved_on
from chita_opt.nn.trust.scores import STAGED, Score, supports_by
from chita_opt.solution import Solution, Status


@dataclass(frozen=True)
class TrustedStep:
    r"""Solve a stage on several supports and keep the weights of lowest held-out loss.

    Supports compete, weights don't: one exact solve each, at the ridge of the stage. A ridge
    chosen stage by stage by the loss damps the late stages and ends lower in loss of the stage but
    not in accuracy. Below the sparsity ``above`` the magnitude support is as good as any.

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
    """

    held_out: HeldOut = field(repr=False)
    scores: tuple[Score, ...] = STAGED
    above: float = 0.85
    late_step: float = 0.5
    late_share: float = 0.375
    search: Solve | None = None

    def __post_init__(self) -> None:
        if not self.scores:
            raise ProblemError("no scores were given; a stage needs at least one")
        if not 0.0 < self.late_step <= 1.0 or not 0.0 <= self.late_share <= 1.0:
            raise ProblemError(
                f"late_step is {self.late_step}, late_share {self.late_share}; give a step in "
                "(0, 1] and a share in [0, 1]"
            )

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
        notes: dict[str, Note] = {
            "support": best.name,
            "held_out_loss": loss,
            "candidates": len(candidates),
        }
        return StageAnswer(w, notes)

    def _searched(self, state: StageState, best: Candidate, search: Solve) -> Candidate:
        """What a search from the best candidate finds in the quadratic model."""
        start = Solution(state.problem, best.w, best.name, Status.FEASIBLE)
        return entered(search.method, search.found(state, start).w, self.held_out)


__all__ = ["TrustedStep"]
