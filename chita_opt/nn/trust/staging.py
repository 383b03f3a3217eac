"""Trust in multi-stage pruning: what is held out of all stages, and the step that uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_options import PruneOptions
from chita_opt.nn.trust.calibration import HeldOut, held_out_of
from chita_opt.nn.trust.measuring import compared, predicted_increase
from chita_opt.nn.trust.setting_aside import set_aside
from chita_opt.nn.trust.verdict import TrustThresholds

if TYPE_CHECKING:
    from chita_opt.nn.stages.state import StageState
    from chita_opt.nn.stages.steps import Solve

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StageTrust:
    """Data for the stages, and the held-out halves; None where nothing could be held out.

    Attributes
    ----------
    data : Any
        What gradients may use.
    choosing, auditing : HeldOut or None
        The held-out halves.
    reason : str
        Why there are none.
    thresholds : TrustThresholds or None
        Where trust in the last stage ends.
    """

    data: Any
    choosing: HeldOut | None = None
    auditing: HeldOut | None = None
    reason: str = ""
    thresholds: TrustThresholds | None = None

    @classmethod
    def open(
        cls,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Any,
        layer_map: LayerMap,
        options: PruneOptions,
    ) -> StageTrust:
        """Hold samples out of all stages.

        Raises
        ------
        DataError
            If ``options.holdout`` asks for samples that the data do not have.
        """
        if not options.trust:
            return cls(data, reason="switched off")
        wanted, used = options.holdout, options.rows * options.batch_size
        if wanted is not None and not isinstance(wanted, Integral):
            held = held_out_of(model, loss_fn, wanted, layer_map)
            return cls(data, *held.halves(), thresholds=options.trust_thresholds)
        count = None if wanted is None else int(wanted)
        try:
            rest, batches = set_aside(data, used=used, count=count, seed=options.seed)
        except DataError as error:
            if wanted is not None:
                raise
            _log.warning("no samples are held out of the stages: %s", error)
            return cls(data, reason=str(error))
        halves = held_out_of(model, loss_fn, batches, layer_map).halves()
        return cls(rest, *halves, thresholds=options.trust_thresholds)

    def step(self, search: Solve | None = None) -> Any:
        """The :class:`TrustedStep` of the choosing half; None where nothing is held out."""
        from chita_opt.nn.trust.stage_step import TrustedStep  # it needs stages, which need this

        return None if self.choosing is None else TrustedStep(self.choosing, search=search)

    def report(self, dense: Tensor, w: Tensor, last: LastStep | None = None) -> dict[str, Any]:
        """Held-out loss and accuracy before and after, and what the last stage's model said."""
        if self.auditing is None:
            return {"reason": self.reason}
        dense_loss, dense_accuracy = self.auditing.loss_and_accuracy(dense)
        loss, accuracy = self.auditing.loss_and_accuracy(w)
        found: dict[str, Any] = {
            "samples": self.auditing.size,
            "dense_loss": dense_loss,
            "loss": loss,
            "dense_accuracy": dense_accuracy,
            "accuracy": accuracy,
        }
        if last is not None:
            report = compared(last.predicted, last.before, w, self.auditing, self.thresholds)
            found["last_stage"] = report.to_json()
        return found


@dataclass(frozen=True, eq=False)
class LastStep:
    """What the last stage began from, and the increase of the loss that its model predicted."""

    before: Tensor
    predicted: float | None

    @classmethod
    def of(cls, state: StageState, weights: Tensor, curvature: str) -> LastStep:
        """That of a stage that ended in ``weights``; no prediction where rows are no gradients."""
        own = weights if state.live is None else weights[state.live]
        predicted = None
        if curvature == "gradients":
            predicted = predicted_increase(state.problem, own, state.batch_size)
        return cls(state.weights.clone(), predicted)


__all__ = ["LastStep", "StageTrust"]
