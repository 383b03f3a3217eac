r"""Rows whose second moment is the Gauss-Newton matrix in expectation, without the labels.

The curvature of softmax with negative log-likelihood by the scores is
:math:`\mathrm{diag}(p)-pp^\top=\sum_c p_c(e_c-p)(e_c-p)^\top`. With independent signs
:math:`\epsilon_c` the vector :math:`v=\sum_c\epsilon_c\sqrt{p_c}(e_c-p)` has exactly this second
moment, so that one backward pass of v, at the cost of one of the loss, gives a row
:math:`J^\top v` of the Gauss-Newton matrix :math:`J^\top(\mathrm{diag}(p)-pp^\top)J`. Unlike the
empirical Fisher matrix it has no part that is the mean gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import evaluating, model_device
from chita_opt.nn.gradients import GradientRows, gradient_rows
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.sampling import Batch, RowChoice, open_rows

_MEAN_SAMPLES = 1024  # of a row of the mean gradient

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Rows of the Gauss-Newton matrix and the gradient that they do not hold.

    Attributes
    ----------
    rows : GradientRows
        ``A'A / n`` estimates the Gauss-Newton matrix over m, as the rows of mini-batch gradients
        estimate the Fisher matrix over m. Its ``loss_mean`` is that of the loss itself.
    gradient : Tensor
        (p,) float64 mean gradient of the loss over the same samples.
    """

    rows: GradientRows
    gradient: Tensor


def sampled_rows(
    model: nn.Module,
    loss_fn: Loss,
    data: Any,
    layer_map: LayerMap,
    choice: RowChoice,
    *,
    seed: int = 0,
    memory_limit: int | None = None,
) -> SampledRows:
    """Measure rows of the Gauss-Newton matrix at the current weights of a model.

    Parameters
    ----------
    model, data, layer_map, choice, memory_limit
        As for :func:`chita_opt.nn.gradient_rows`.
    loss_fn : callable
        ``cross_entropy`` or ``nll_loss`` of log-probabilities, (samples, classes), or
        ``mse_loss``, of ``torch.nn.functional`` or as their plain modules.
    seed : int
        Of the signs.

    Raises
    ------
    DataError
        If the loss is none of these, or outputs are not (samples, outputs).
    """
    signal = _signal_of(loss_fn)
    source = open_rows(data, choice)
    batches = list(source.chunks(source.rows))
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    with evaluating(model), torch.no_grad():
        output = model(x[:1].to(model_device(model)))
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise DataError("curvature='sampled' needs outputs of shape (samples, outputs)")
    random = torch.Generator().manual_seed(seed)
    coins = torch.randint(2, (len(x), output.shape[1]), generator=random)
    signs = (2 * coins - 1).to(output.dtype)
    own = RowChoice(rows=source.rows, batch_size=source.batch_size)
    found = gradient_rows(
        model, signal, (x, signs.to(x.device)), layer_map, own, memory_limit=memory_limit
    )
    mean = _mean_rows(model, loss_fn, (x, y), layer_map, own)
    rows = GradientRows(
        found.A, found.batch_size, found.samples, mean.loss_mean, found.path, found.reason
    )
    return SampledRows(rows, mean.A.double().mean(0))


def _mean_rows(
    model: nn.Module, loss_fn: Loss, data: Batch, layer_map: LayerMap, choice: RowChoice
) -> GradientRows:
    """A few rows of many samples: all that the mean gradient needs."""
    n, m = choice.rows or 1, choice.batch_size or 1
    most = max(1, _MEAN_SAMPLES // m)
    joined = max(d for d in range(1, min(most, n) + 1) if n % d == 0)
    wide = RowChoice(rows=n // joined, batch_size=m * joined)
    return gradient_rows(model, loss_fn, data, layer_map, wide)


def _softmax_signal(output: Tensor, signs: Tensor) -> Tensor:
    """A function whose gradient by the scores, or by log-probabilities, is v."""
    p = output.softmax(-1).detach()
    a = p.sqrt() * signs
    v = a - p * a.sum(-1, keepdim=True)
    return (v * output).sum(-1).mean()


def _square_signal(output: Tensor, signs: Tensor) -> Tensor:
    """The same for the mean of squares, whose curvature is ``2 I`` over the number of outputs."""
    return (signs * output).sum(-1).mean() * (2.0 / output.shape[-1]) ** 0.5


def _signal_of(loss_fn: Loss) -> Loss:
    plain = getattr(loss_fn, "weight", None) is None and not getattr(loss_fn, "label_smoothing", 0)
    if loss_fn in (functional.cross_entropy, functional.nll_loss):
        return _softmax_signal
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) and plain:
        return _softmax_signal
    if loss_fn is functional.mse_loss or isinstance(loss_fn, nn.MSELoss):
        return _square_signal
    raise DataError(
        f"curvature='sampled' knows the curvature of cross_entropy, nll_loss and mse_loss, not of "
        f"{getattr(loss_fn, '__name__', type(loss_fn).__name__)!r}; use curvature='gradients'"
    )


__all__ = ["SampledRows", "sampled_rows"]
