"""From weights and held-out samples to a trust report."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from chita_opt.curvature import LowRank
from chita_opt.nn.trust.calibration import HeldOut
from chita_opt.nn.trust.gates import flipped_shares
from chita_opt.nn.trust.verdict import TrustReport, TrustThresholds, judge
from chita_opt.problem import Problem


def predicted_increase(
    problem: Problem, w: Tensor, batch_size: int, gradient: Tensor | None = None
) -> float | None:
    r"""Modelled increase of the loss at w with the linear term and without the ridge.

    With rows :math:`a_i` that are gradients of mean losses of m samples and d = w - w_bar,

    .. math:: \frac1n\sum_i a_i^\top d+\frac{m}{2n}\sum_i (a_i^\top d)^2 .

    The factor m undoes the averaging: the rows' second moment is 1/m of the Fisher matrix of
    single samples. The linear term is the rows' own mean, whether or not the problem has one, or
    ``gradient`` (p,), where the curvature is not made of such rows.

    Returns
    -------
    float or None
        None where the curvature is not that of the loss.
    """
    C, d = problem.curvature, w - problem.w_bar
    if gradient is not None:
        return float(gradient @ d) + batch_size * C.quadratic(d)
    if not isinstance(C, LowRank):
        return None
    along = C.image(d) / C.scale**0.5
    return float(along.mean() + 0.5 * batch_size * along.square().mean())


def measure_trust(
    problem: Problem,
    w: Tensor,
    held_out: HeldOut,
    *,
    batch_size: int = 1,
    gradient: Tensor | None = None,
    thresholds: TrustThresholds | None = None,
) -> TrustReport:
    """Compare the quadratic model with the network at the weights w.

    Parameters
    ----------
    problem : Problem
        The problem around the dense weights ``problem.w_bar``.
    w : Tensor
        (p,) weights.
    held_out : HeldOut
        Samples that neither made the problem nor chose w.
    batch_size : int
        Samples of a gradient row, m.
    gradient : Tensor, optional
        (p,) mean gradient of the loss, where the curvature is not made of gradient rows.
    thresholds : TrustThresholds, optional
        Where trust ends.

    Returns
    -------
    TrustReport
    """
    predicted = predicted_increase(problem, w, batch_size, gradient)
    return compared(predicted, problem.w_bar, w, held_out, thresholds)


def compared(
    predicted: float | None,
    before: Tensor,
    after: Tensor,
    held_out: HeldOut,
    thresholds: TrustThresholds | None = None,
) -> TrustReport:
    """What a step from weights to others (p,) did to the network, beside what was predicted."""
    layer_map = held_out.layer_map
    pieces = (after != 0).split(layer_map.sizes)
    actual = accuracy = accuracy_before = None
    if held_out.has_loss:
        loss, accuracy = held_out.loss_and_accuracy(after)
        loss_before, accuracy_before = held_out.loss_and_accuracy(before)
        actual = loss - loss_before
    report = TrustReport(
        predicted=predicted,
        actual=actual,
        samples=held_out.size,
        accuracy=accuracy,
        dense_accuracy=accuracy_before,
        flipped=flipped_shares(held_out, before, after),
        kept={
            item.name: float(part.double().mean())
            for item, part in zip(layer_map, pieces, strict=True)
        },
    )
    verdict, reasons = judge(report, thresholds or TrustThresholds())
    return replace(report, verdict=verdict, reasons=reasons)


__all__ = ["compared", "measure_trust", "predicted_increase"]
