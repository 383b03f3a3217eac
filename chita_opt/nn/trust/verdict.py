"""Whether the quadratic model told the truth about a pruned network, and what follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from chita_opt.errors import ProblemError


class Verdict(StrEnum):
    """How far the quadratic model can be believed at some weights."""

    TRUSTED = "trusted"
    """Predicted and actual loss agree, or the loss hardly rose."""
    DOUBTFUL = "doubtful"
    """The order of candidates by the model is mostly right, its size is not."""
    NOT_TRUSTED = "not trusted"
    """The model says nothing here; prune in stages, or by layer-wise reconstruction."""
    NOT_MEASURED = "not measured"
    """Nothing could be compared; the report says why."""


@dataclass(frozen=True, kw_only=True)
class TrustThresholds:
    """Where trust ends.

    The defaults are read off one network, a 784-40-20-10 perceptron on MNIST at sparsities 0.5 to
    0.98, where the ratio rises from 3 through 6 (at 0.9) to 70: treat them as parameters.

    Attributes
    ----------
    trusted_ratio, doubtful_ratio : float
        Actual over predicted increase of the loss up to which a step is trusted, or doubtful.
    small_increase : float
        An actual change of the loss below this, in its units, is trusted whatever was predicted.
    flipped : float
        Share of rectifiers that switch, in any one layer, above which a step is not trusted.
    kept : float
        Share of a layer's weights that are kept, below which a step is not trusted.
    """

    trusted_ratio: float = 2.0
    doubtful_ratio: float = 5.0
    small_increase: float = 0.02
    flipped: float = 0.15
    kept: float = 0.005

    def __post_init__(self) -> None:
        if not 0.0 < self.trusted_ratio <= self.doubtful_ratio:
            raise ProblemError(
                f"trusted_ratio is {self.trusted_ratio}, doubtful_ratio {self.doubtful_ratio}; "
                "they must be positive and in this order"
            )
        for name in ("small_increase", "flipped", "kept"):
            if not getattr(self, name) >= 0.0:
                raise ProblemError(f"{name} is {getattr(self, name)}; it must be >= 0")


@dataclass(frozen=True)
class TrustReport:
    r"""What the quadratic model predicted and what the held-out samples say.

    Attributes
    ----------
    predicted : float or None
        Modelled increase of the loss, with the linear term and without the ridge,
        :math:`g^\top d+\tfrac{m}{2n}\|Ad\|^2`, in units of the loss; None where the model is not
        one of the loss (layer-wise reconstruction).
    actual : float or None
        Increase of the held-out loss over the dense weights, on samples that made no choice.
    samples : int
        Number of those samples.
    accuracy, dense_accuracy : float or None
        On the same samples, in percent, where outputs are classes.
    flipped : dict or None
        Share of rectifiers that switched, by layer; None where it cannot be measured.
    kept : dict
        Share of kept weights, by layer.
    verdict : Verdict
        The conclusion.
    reasons : tuple of str
        What led to it, in words.
    candidates : tuple of dict
        Every candidate that competed: name, held-out loss on the choosing samples and objective of
        the quadratic problem; empty where nothing competed.
    chosen : str
        Name of the candidate whose weights are the answer; empty where nothing competed.
    passed_over : TrustReport or None
        The report on the method's own answer, where another candidate won.
    interrupted : bool
        Whether Ctrl-C ended the competition.
    """

    predicted: float | None = None
    actual: float | None = None
    samples: int = 0
    accuracy: float | None = None
    dense_accuracy: float | None = None
    flipped: dict[str, float] | None = None
    kept: dict[str, float] = field(default_factory=dict)
    verdict: Verdict = Verdict.NOT_MEASURED
    reasons: tuple[str, ...] = ()
    candidates: tuple[dict[str, Any], ...] = ()
    chosen: str = ""
    passed_over: TrustReport | None = None
    interrupted: bool = False

    @property
    def ratio(self) -> float | None:
        """Actual over predicted increase; None where either is missing or the prediction is 0."""
        if self.predicted is None or self.actual is None or self.predicted == 0.0:
            return None
        return self.actual / self.predicted

    def to_json(self) -> dict[str, Any]:
        """All values as plain JSON-able ones."""
        own = {**asdict(self), "verdict": str(self.verdict), "ratio": self.ratio}
        before = None if self.passed_over is None else self.passed_over.to_json()
        lists = {"reasons": list(self.reasons), "candidates": list(self.candidates)}
        return own | lists | {"passed_over": before}

    @property
    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"trust: {self.verdict}{self._measured()}"]
        lines += [f"  {reason}" for reason in self.reasons]
        if self.chosen:
            lines.append(
                f"  {self.chosen} has the lowest held-out loss of {len(self.candidates)} candidates"
            )
        if self.passed_over is not None:
            before = self.passed_over
            lines.append(
                f"  passed over: {self.candidates[0]['name']}, {before.verdict}{before._measured()}"
            )
        return "\n".join(lines)

    def _measured(self) -> str:
        parts = []
        if self.actual is not None:
            said = "" if self.predicted is None else f" (the model said {self.predicted:+.4g})"
            parts.append(f"held-out loss {self.actual:+.4g}{said} on {self.samples:,} samples")
        if self.accuracy is not None and self.dense_accuracy is not None:
            parts.append(f"accuracy there {self.dense_accuracy:.2f} -> {self.accuracy:.2f} %")
        if self.flipped:
            name, share = max(self.flipped.items(), key=lambda pair: pair[1])
            parts.append(f"up to {100 * share:.1f} % of rectifiers switched ({name})")
        return "".join(f", {part}" for part in parts)


def judge(report: TrustReport, limits: TrustThresholds) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on the measured values of a report, and its reasons.

    A rectifier share or a kept share beyond its limit outweighs a good ratio: there the agreement
    is luck. A ratio is not asked for where the loss hardly changed, and means nothing where the
    prediction is not positive.
    """
    severe = _beyond(report, limits)
    if severe:
        cure = "prune in stages, or use layer-wise reconstruction"
        return Verdict.NOT_TRUSTED, (*severe, cure)
    if report.actual is None:
        if report.flipped is None:
            return Verdict.NOT_MEASURED, ("neither a loss nor rectifiers could be measured",)
        return Verdict.TRUSTED, ("judged by rectifiers and kept weights alone: no loss was given",)
    if abs(report.actual) < limits.small_increase:
        return Verdict.TRUSTED, ()
    if report.predicted is None and report.actual < 0.0:
        return Verdict.TRUSTED, (f"the held-out loss fell by {-report.actual:.3g}",)
    if report.predicted is None:
        return Verdict.DOUBTFUL, (
            f"the held-out loss changed by {report.actual:+.3g} and the model predicts no loss",
        )
    if report.actual <= max(limits.trusted_ratio * report.predicted, 0.0):
        return Verdict.TRUSTED, ()
    ratio = report.ratio
    told = "nothing" if ratio is None or ratio < 0 else f"{ratio:.3g} times less"
    reason = f"the held-out loss rose by {report.actual:.3g}; the model said {told}"
    if report.actual <= limits.doubtful_ratio * report.predicted:
        return Verdict.DOUBTFUL, (reason,)
    return Verdict.NOT_TRUSTED, (reason, "prune in stages, or use layer-wise reconstruction")


def _beyond(report: TrustReport, limits: TrustThresholds) -> tuple[str, ...]:
    found = [
        f"{100 * share:.1f} % of the rectifiers after {name} switched (limit "
        f"{100 * limits.flipped:g} %)"
        for name, share in (report.flipped or {}).items()
        if share > limits.flipped
    ]
    found += [
        f"{name} keeps {100 * share:.2g} % of its weights (limit {100 * limits.kept:g} %)"
        for name, share in report.kept.items()
        if share < limits.kept
    ]
    return tuple(found)


__all__ = ["TrustReport", "TrustThresholds", "Verdict", "judge"]
