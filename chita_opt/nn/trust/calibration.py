"""Held-out samples: on them the actual loss decides where the quadratic model may not.

They come from the user's training data, from the samples that no gradient row uses. The first half
makes choices, the second half audits them: what was chosen on a sample looks better there than it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from chita_opt.errors import DataError
from chita_opt.nn.evaluation import (
    evaluating,
    full_precision,
    in_passes,
    model_device,
    samples_in_cache,
)
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.row_engines import RowLoss
from chita_opt.nn.sampling import Batch, RowChoice, open_rows, row_order, sample_count

FEWEST = 100
"""Held-out samples below which nothing is measured unless a number was asked for: the loss of
fewer is mostly noise."""
MOST = 5000
"""Held-out samples that are taken where the data have more."""
_BATCH = 1000


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The loss of a network with any weights, on samples that no gradient was taken of.

    Attributes
    ----------
    model : torch.nn.Module
        Run in eval mode with the weights asked for; its own stay.
    loss_fn : callable or None
        ``loss_fn(output, target)``; None where only activations can be compared.
    layer_map : LayerMap
        The weights that vary.
    batches : sequence of (inputs, targets)
        The samples, on the model's device.
    """

    model: nn.Module
    loss_fn: Callable[[Any, Any], Tensor] | None
    layer_map: LayerMap
    batches: Sequence[Batch]

    def __post_init__(self) -> None:
        if not self.size:
            raise DataError("there are no held-out samples; give at least one")

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(len(x) for x, _ in self.batches)

    @property
    def has_loss(self) -> bool:
        """Whether a loss was given."""
        return self.loss_fn is not None

    def outputs(self, w: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Yield the network's output and the targets, batch by batch, at weights w (p,)."""
        selected = self.parameters(w)
        with evaluating(self.model), full_precision(model_device(self.model)), torch.no_grad():
            for x, y in self.batches:
                yield in_passes(partial(self.network.output, selected), x, self._samples), y

    def loss(self, w: Tensor) -> float:
        """Mean loss at the weights w (p,).

        Raises
        ------
        DataError
            If no loss was given.
        """
        if self.loss_fn is None:
            raise DataError("no loss_fn was given: the held-out loss cannot be measured")
        total = 0.0
        for output, y in self.outputs(w):
            total += len(y) * float(self.network.of(output, y))
        return total / self.size

    def accuracy(self, w: Tensor) -> float | None:
        """Share of samples whose largest output is at their class, in percent.

        None where outputs are not (samples, classes) or targets are not whole numbers.
        """
        return self._percent([_right(output, y) for output, y in self.outputs(w)])

    def loss_and_accuracy(self, w: Tensor) -> tuple[float, float | None]:
        """Both by one pass over the samples."""
        total, right = 0.0, []
        for output, y in self.outputs(w):
            total += len(y) * float(self.network.of(output, y))
            right.append(_right(output, y))
        return total / self.size, self._percent(right)

    def _percent(self, right: Sequence[int | None]) -> float | None:
        known = [count for count in right if count is not None]
        return 100.0 * sum(known) / self.size if len(known) == len(right) else None

    def halves(self) -> tuple[HeldOut, HeldOut]:
        """The samples that choose and those that audit; the same samples where there is but one."""
        if self.size < 2:
            return self, self
        x = torch.cat([x for x, _ in self.batches])
        y = torch.cat([y for _, y in self.batches])
        middle = self.size // 2
        return self._of(x[:middle], y[:middle]), self._of(x[middle:], y[middle:])

    def parameters(self, w: Tensor) -> dict[str, Tensor]:
        """The selected parameters at w, by name and in their own types."""
        pieces = w.split(self.layer_map.sizes)
        network = self.network
        return {
            key: piece.reshape(item.shape).to(network.selected[key])
            for key, item, piece in zip(network.keys, self.layer_map, pieces, strict=True)
        }

    @cached_property
    def network(self) -> RowLoss:
        """The network as a function of the selected weights."""
        return RowLoss(self.model, self.loss_fn or _no_loss, self.layer_map)

    @property
    def passes(self) -> Iterator[Tensor]:
        """Inputs, as many at a time as one forward pass should take."""
        for x, _ in self.batches:
            yield from x.split(self._samples)

    @cached_property
    def _samples(self) -> int:
        call = partial(self.network.output, self.network.selected)
        return samples_in_cache(self.model, self.batches[0][0], call)

    def _of(self, x: Tensor, y: Tensor) -> HeldOut:
        batches = tuple(zip(x.split(_BATCH), y.split(_BATCH), strict=True))
        return HeldOut(self.model, self.loss_fn, self.layer_map, batches)


def hold_out(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    data: Any,
    layer_map: LayerMap,
    *,
    used: int,
    count: int | None = None,
    seed: int = 0,
) -> HeldOut:
    """Take samples that the gradient rows of the same seed do not use.

    The rows take the first ``used`` samples of the permutation of ``seed``; these are the next.

    Parameters
    ----------
    model, loss_fn, layer_map
        As for :func:`chita_opt.nn.gradient_rows`; ``loss_fn`` may be None.
    data : (inputs, targets), Dataset, DataLoader or list of batches
        The training data, as given for the rows: samples must be fetched by number.
    used : int
        Samples that the gradient rows use, n * m.
    count : int, optional
        Samples to hold out; 5,000, or what is left, if that is at least 100.
    seed : int
        Of the draw, as for the rows.

    Raises
    ------
    DataError
        If the data cannot be read by number, or too few samples are left.
    """
    size = numbered_samples(data, ", or held-out samples of their own by holdout=(x, y)")
    left = size - used
    wanted = min(MOST, left) if count is None else count
    if wanted < 1 or wanted > left or (count is None and wanted < FEWEST):
        need = FEWEST if count is None else count
        raise DataError(
            f"{max(left, 0)} of {size} samples are not used by gradient rows, {need} are needed "
            "to hold out; lower rows or batch_size, or give more data"
        )
    index = row_order(size, seed)[used : used + wanted]
    source = open_rows(data, RowChoice(index=index[:, None]))
    return held_out_of(model, loss_fn, source.chunks(_BATCH), layer_map)


def held_out_of(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batches: Any,
    layer_map: LayerMap,
) -> HeldOut:
    """The user's own held-out samples: (inputs, targets) or an iterable of such batches.

    Raises
    ------
    DataError
        If the data are malformed or empty.
    """
    if isinstance(batches, tuple | list) and len(batches) == 2 and hasattr(batches[0], "shape"):
        x, y = (torch.as_tensor(part) for part in batches)
        if len(x) != len(y):
            raise DataError(f"holdout has {len(x)} inputs but {len(y)} targets")
        batches = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
    device = model_device(model)
    placed = tuple((x.to(device), y.to(device)) for x, y in batches)
    return HeldOut(model, loss_fn, layer_map, placed)


def _right(output: Any, y: Tensor) -> int | None:
    if not isinstance(output, Tensor) or output.ndim != 2 or y.is_floating_point():
        return None
    return int((output.argmax(1) == y).sum())


def _no_loss(output: Any, target: Any) -> Tensor:
    raise DataError("no loss_fn was given")


def numbered_samples(data: Any, otherwise: str = "") -> int:
    """How many samples can be fetched by number; DataError, with ``otherwise``, where none can."""
    size = sample_count(data)
    if size is None:
        raise DataError(
            f"{type(data).__name__} cannot be read by number, so that no samples can be kept out "
            f"of the gradients: give tensors or a map-style Dataset{otherwise}"
        )
    return size


__all__ = ["FEWEST", "MOST", "HeldOut", "held_out_of", "hold_out", "numbered_samples"]
