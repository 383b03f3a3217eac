"""A stage of multi-stage pruning whose support is chosen by the actual loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from chita_opt.errors import ProblemError
from chita_opt.nn.stages.state import Note, StageAnswer, StageState
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.nn.trust.competition import lowest, solved_on
from chita_opt.nn.trust.scores import STAGED, Score, supports_by


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
    """

    held_out: HeldOut = field(repr=False)
    scores: tuple[Score, ...] = STAGED
    above: float = 0.85

    def __post_init__(self) -> None:
        if not self.scores:
            raise ProblemError("no scores were given; a stage needs at least one")

    def __call__(self, state: StageState) -> StageAnswer:
        """Choose support and weights of one stage."""
        scores = self.scores if state.sparsity > self.above else self.scores[:1]
        masks = supports_by(state.problem, state.layer_map, scores)
        candidates = solved_on(state.problem, masks, self.held_out)
        best = lowest(candidates)
        notes: dict[str, Note] = {
            "support": best.name,
            "held_out_loss": best.loss,
            "candidates": len(candidates),
        }
        return StageAnswer(best.w, notes)


__all__ = ["TrustedStep"]
