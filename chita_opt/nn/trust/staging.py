"""Trust in multi-stage pruning: what is held out of all stages, and the step that uses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_options import PruneOptions
from chita_opt.nn.trust.calibration import HeldOut, held_out_of
from chita_opt.nn.trust.setting_aside import set_aside

if TYPE_CHECKING:
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
    """

    data: Any
    choosing: HeldOut | None = None
    auditing: HeldOut | None = None
    reason: str = ""

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
        if wanted is not None and not isinstance(wanted, int):
            held = held_out_of(model, loss_fn, wanted, layer_map)
            return cls(data, *held.halves())
        try:
            rest, batches = set_aside(data, used=used, count=wanted, seed=options.seed)
        except DataError as error:
            if wanted is not None:
                raise
            _log.warning("no samples are held out of the stages: %s", error)
            return cls(data, reason=str(error))
        return cls(rest, *held_out_of(model, loss_fn, batches, layer_map).halves())

    def step(self, search: Solve | None = None) -> Any:
        """The :class:`TrustedStep` of the choosing half; None where nothing is held out."""
        from chita_opt.nn.trust.stage_step import TrustedStep  # it needs stages, which need this

        return None if self.choosing is None else TrustedStep(self.choosing, search=search)

    def report(self, dense: Tensor, w: Tensor) -> dict[str, Any]:
        """Held-out loss and accuracy before and after, on the auditing half."""
        if self.auditing is None:
            return {"reason": self.reason}
        return {
            "samples": self.auditing.size,
            "dense_loss": self.auditing.loss(dense),
            "loss": self.auditing.loss(w),
            "dense_accuracy": self.auditing.accuracy(dense),
            "accuracy": self.auditing.accuracy(w),
        }


__all__ = ["StageTrust"]
