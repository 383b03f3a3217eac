"""Pick the fastest way to compute gradient rows that is right for a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.outer_products import NotApplicable, OuterProducts
from chita_opt.nn.row_engines import (
    Engine,
    LoopRows,
    RowLoss,
    VmapRows,
    counting_saved_bytes,
    in_double,
)

PROBE_ROWS = 2
_PROBE_SAMPLES = 2
_AGREEMENT = 1e-5


@dataclass(frozen=True)
class EngineChoice:
    """An engine that agreed with autograd.

    Attributes
    ----------
    make : type
        The engine's class, to be called with a :class:`RowLoss`.
    row_bytes : int
        Estimated working memory of one row.
    reason : str
        Why faster engines were passed over.
    """

    make: type[OuterProducts] | type[VmapRows] | type[LoopRows]
    row_bytes: int
    reason: str


def choose_engine(loss: RowLoss, x: Tensor, y: Tensor, samples: int) -> EngineChoice:
    """Compare the engines with plain autograd on a few rows and pick the fastest right one.

    Two samples a row are enough for the comparison, and keep its memory small.

    Parameters
    ----------
    loss : RowLoss
        The loss to differentiate.
    x, y : Tensor
        Samples of the first rows; two rows or more show whether samples influence each other.
    samples : int
        Samples per row.
    """
    x = x.unflatten(0, (-1, samples))[:, :_PROBE_SAMPLES]
    y = y.unflatten(0, (-1, samples))[:, :_PROBE_SAMPLES]
    widened = 8 // next(iter(loss.selected.values())).element_size()
    try:
        return _compared(loss.double(), in_double(x), in_double(y), samples, widened)
    except (RuntimeError, TypeError):
        # A model that insists on its precision; any other fault shows again here.
        return _compared(loss, x, y, samples, 1)


def _compared(loss: RowLoss, x: Tensor, y: Tensor, samples: int, widened: int) -> EngineChoice:
    """Compare in the precision of the arguments, ``widened`` times the bytes of the model's own."""
    rows, tried = x.shape[:2]
    x, y = x.flatten(0, 1), y.flatten(0, 1)
    reference = torch.empty(loss.layer_map.size, rows, device=x.device)
    loop = LoopRows(loss)
    with counting_saved_bytes({**loss.fixed, **loop.leaves}) as saved:
        loop.rows_(x, y, reference)
    per_sample = max(1, (saved[0] + 2 * x.nbytes) // (rows * tried * widened))
    reasons: list[str] = []
    for make in (OuterProducts, VmapRows):
        candidate = torch.zeros_like(reference)
        try:
            engine: Engine = make(loss)
            engine.rows_(x, y, candidate)
        except NotApplicable as error:
            reasons.append(str(error))
            continue
        except (RuntimeError, TypeError, ValueError) as error:
            # Autograd could do these rows, so this is a limit of the engine, not of the model.
            reasons.append(f"{make.path} failed: {str(error).partition(chr(10))[0]}")
            continue
        apart = _disagreement(candidate, reference, loss.layer_map)
        if apart is None:
            return EngineChoice(make, engine.row_bytes(per_sample, samples), "; ".join(reasons))
        reasons.append(f"{make.path} differ from autograd: {apart}")
    return EngineChoice(LoopRows, loop.row_bytes(per_sample, samples), "; ".join(reasons))


def _disagreement(candidate: Tensor, reference: Tensor, layer_map: LayerMap) -> str | None:
    """Name the first layer whose rows differ, or return None.

    Entries that are not finite count as agreeing where both are: the rows are checked later.
    """
    candidate, reference = candidate.nan_to_num(), reference.nan_to_num()
    largest = float(reference.abs().max())
    for item in layer_map:
        ours, theirs = candidate[item.start : item.stop], reference[item.start : item.stop]
        gap = float((ours - theirs).abs().max())
        scale = max(float(theirs.abs().max()), 1e-3 * largest)
        if gap > _AGREEMENT * scale:
            return f"{item.name} by {gap / scale if scale else math.inf:.1e} of its largest entry"
    return None
