"""Serve the samples of each gradient row, in order, a few rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from chita_opt.errors import DataError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowChoice:
    """Which samples form which gradient row, and whose gradients a row holds.

    Attributes
    ----------
    rows : int
        Number of rows, n.
    batch_size : int, default 1
        Samples per row, m. With 1, rows are per-sample gradients.
    index : (n, m) array of int, optional
        The samples that form each row. ``rows`` and ``batch_size`` then need not be given.
    seed : int, optional
        Draw the samples by a permutation with this seed rather than taking the first n * m.
    columns : Tensor, optional
        (s,) sorted int64, the weights whose gradients are wanted; all by default.
    """

    rows: int | None = None
    batch_size: int | None = None
    index: Any = None
    seed: int | None = None
    columns: Tensor | None = None


class RowSource(ABC):
    """Samples arranged in ``rows`` groups of ``batch_size``, in row order."""

    def __init__(self, rows: int, batch_size: int) -> None:
        self.rows = rows
        self.batch_size = batch_size

    @abstractmethod
    def first(self, rows: int) -> Batch:
        """Return the samples of the first rows, without using them up."""

    @abstractmethod
    def chunks(self, rows: int) -> Iterator[Batch]:
        """Yield the samples of all rows, ``rows`` rows (the last time fewer) at a time."""

    def take(self, index: Tensor) -> Batch:
        """Return the samples of some numbers, (n,) int64, in whatever row they are."""
        raise DataError(f"these data cannot be read by number: samples {index.tolist()}")

    def samples_of(self, row: int) -> str:
        """Say, for a message, which samples form a row."""
        start = row * self.batch_size
        return f"samples {start} to {start + self.batch_size - 1} in the order of the data"


class _Gathered(RowSource):
    """Samples that can be fetched by number."""

    def __init__(self, size: int, rows: int, batch_size: int, index: Tensor | None) -> None:
        super().__init__(rows, batch_size)
        need = rows * batch_size
        if index is None and need > size:
            raise _too_few(rows, batch_size, size)
        if index is not None and (int(index.min()) < 0 or int(index.max()) >= size):
            bad = int(index.max()) if int(index.max()) >= size else int(index.min())
            raise DataError(f"index names sample {bad}; the data hold samples 0 to {size - 1}")
        self._index = index

    def first(self, rows: int) -> Batch:
        return self._rows(0, min(rows, self.rows))

    def chunks(self, rows: int) -> Iterator[Batch]:
        for start in range(0, self.rows, rows):
            yield self._rows(start, min(start + rows, self.rows))

    def samples_of(self, row: int) -> str:
        if self._index is None:
            return super().samples_of(row)
        return f"samples {self._index[row].tolist()}"

    def _rows(self, start: int, stop: int) -> Batch:
        if self._index is None:
            return self._slice(start * self.batch_size, stop * self.batch_size)
        return self.take(self._index[start:stop].reshape(-1))

    @abstractmethod
    def _slice(self, start: int, stop: int) -> Batch: ...

    @abstractmethod
    def take(self, index: Tensor) -> Batch: ...


class _TensorRows(_Gathered):
    def __init__(self, data: Batch, rows: int, batch_size: int, index: Tensor | None) -> None:
        super().__init__(len(data[0]), rows, batch_size, index)
        self._data = data

    def _slice(self, start: int, stop: int) -> Batch:
        return self._data[0][start:stop], self._data[1][start:stop]

    def take(self, index: Tensor) -> Batch:
        x, y = self._data
        return x[index.to(x.device)], y[index.to(y.device)]


class _DatasetRows(_Gathered):
    def __init__(
        self, dataset: Any, collate: Any, rows: int, batch_size: int, index: Tensor | None
    ) -> None:
        super().__init__(len(dataset), rows, batch_size, index)
        self._dataset, self._collate = dataset, collate

    def _slice(self, start: int, stop: int) -> Batch:
        return _as_batch(self._collate([self._dataset[i] for i in range(start, stop)]))

    def take(self, index: Tensor) -> Batch:
        return _as_batch(self._collate([self._dataset[i] for i in index.tolist()]))


class _StreamRows(RowSource):
    """Batches of any size from an iterable, read once and only as far as needed."""

    def __init__(self, batches: Iterable[Any], rows: int, batch_size: int) -> None:
        super().__init__(rows, batch_size)
        self._batches = iter(batches)
        self._held: list[Batch] = []
        self._count = self._given = 0

    def first(self, rows: int) -> Batch:
        need = min(rows, self.rows) * self.batch_size
        self._fill(need)
        return self._cut(need)[0]

    def chunks(self, rows: int) -> Iterator[Batch]:
        for start in range(0, self.rows, rows):
            need = (min(start + rows, self.rows) - start) * self.batch_size
            self._fill(need)
            batch, rest = self._cut(need)
            self._held, self._count = [rest], self._count - need
            self._given += need
            yield batch

    def _fill(self, need: int) -> None:
        while self._count < need:
            try:
                batch = _as_batch(next(self._batches))
            except StopIteration:
                found = self._given + self._count
                raise _too_few(self.rows, self.batch_size, found) from None
            self._held.append(batch)
            self._count += len(batch[0])

    def _cut(self, need: int) -> tuple[Batch, Batch]:
        x, y = _joined(self._held)
        self._held = [(x, y)]
        return (x[:need], y[:need]), (x[need:], y[need:])


def open_rows(data: Any, choice: RowChoice) -> RowSource:
    """Arrange data in rows; see :func:`chita_opt.nn.gradient_rows` for the data.

    Raises
    ------
    DataError
        If there are too few samples, or the data or the choice are malformed.
    """
    rows, batch_size, seed = choice.rows, choice.batch_size, choice.seed
    chosen = _checked_index(choice.index, rows, batch_size, seed)
    if chosen is not None:
        rows, batch_size = int(chosen.shape[0]), int(chosen.shape[1])
    rows = _positive("rows", rows)
    batch_size = _positive("batch_size", 1 if batch_size is None else batch_size)
    data = _pair_or_same(data)
    by_number = chosen is not None or seed is not None
    if by_number and isinstance(data, Sequence) and not isinstance(data, tuple):
        data = _joined([_as_batch(batch) for batch in data])
    if isinstance(data, tuple):
        chosen = _permuted(len(data[0]), rows, batch_size, seed) if seed is not None else chosen
        return _TensorRows(data, rows, batch_size, chosen)

    dataset, collate, numbered = data, default_collate, not isinstance(data, Sequence)
    if isinstance(data, DataLoader):
        if not by_number:
            return _StreamRows(data, rows, batch_size)  # the loader's own order and workers
        dataset, collate = data.dataset, data.collate_fn
    if numbered and _is_map_style(dataset):
        chosen = _permuted(len(dataset), rows, batch_size, seed) if seed is not None else chosen
        return _DatasetRows(dataset, collate, rows, batch_size, chosen)
    if by_number:
        raise DataError(
            f"seed and index need samples that can be fetched by number; {type(data).__name__} "
            "cannot: give (inputs, targets) tensors or a map-style Dataset"
        )
    if not isinstance(data, Iterable):
        raise DataError(
            "data must be (inputs, targets) tensors, a Dataset, or an iterable of such batches; "
            f"got {type(data).__name__}"
        )
    return _StreamRows(data, rows, batch_size)


def input_batches(data: Any, *, batch_size: int, samples: int | None = None) -> Iterator[Tensor]:
    """Yield the inputs of data with or without targets, batch by batch.

    Parameters
    ----------
    data : Tensor, (inputs, targets), Dataset, DataLoader or iterable of batches
        A batch is a tensor of inputs, or a sequence that begins with one.
    batch_size : int
        Samples of a batch at most, where the data do not come in batches.
    samples : int, optional
        Stop after so many; all when not given.
    """
    size, limit = _positive("batch_size", batch_size), None
    if samples is not None:
        limit = _positive("samples", samples)
    data, seen = _pair_or_same(data), 0
    if isinstance(data, Tensor | np.ndarray) or isinstance(data, tuple):
        inputs = torch.as_tensor(data[0] if isinstance(data, tuple) else data)
        inputs = inputs if limit is None else inputs[:limit]
        data = inputs.tensor_split(max(1, -(-len(inputs) // size)))  # no small last batch
    elif not isinstance(data, Sequence | DataLoader) and _is_map_style(data):
        data = DataLoader(data, batch_size=size)
    for batch in data:
        x = batch if isinstance(batch, Tensor) else batch[0]
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise DataError(f"a batch must be a tensor of inputs, got {type(x).__name__}")
        x = x if limit is None else x[: limit - seen]
        seen += len(x)
        if len(x):
            yield x
        if seen == limit:
            return
    if limit is not None or not seen:
        raise DataError(f"{limit or 1} samples are needed; the data hold {seen}")


def _is_map_style(data: Any) -> bool:
    if isinstance(data, IterableDataset):
        return False
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _pair_or_same(data: Any) -> Any:
    """Turn a pair of arrays into a batch; leave everything else as it is."""
    if isinstance(data, Sequence) and len(data) == 2:
        if all(isinstance(part, Tensor | np.ndarray) for part in data):
            return _as_batch(data)
    return list(data) if isinstance(data, tuple) else data


def _as_batch(batch: Any) -> Batch:
    if not isinstance(batch, Sequence) or len(batch) != 2:
        raise DataError(
            f"a batch must be a pair (inputs, targets), got {type(batch).__name__}; wrap a model "
            "of several inputs so that it takes one tensor"
        )
    x, y = (torch.as_tensor(p) if isinstance(p, np.ndarray) else p for p in batch)
    for name, part in (("inputs", x), ("targets", y)):
        if not isinstance(part, Tensor) or part.ndim == 0:
            raise DataError(f"the {name} of a batch must be a tensor, one sample a row")
    if len(x) != len(y):
        raise DataError(f"a batch holds {len(x)} inputs but {len(y)} targets")
    return x, y


def _joined(batches: Sequence[Batch]) -> Batch:
    if not batches:
        raise DataError("the data hold no batches")
    if len(batches) == 1:
        return batches[0]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _checked_index(
    index: Any, rows: int | None, batch_size: int | None, seed: int | None
) -> Tensor | None:
    if index is None:
        return None
    if seed is not None:
        raise DataError("give either index or seed: an index already says which samples are used")
    chosen = torch.as_tensor(np.asarray(index))
    if chosen.ndim != 2 or chosen.numel() == 0 or chosen.is_floating_point():
        raise DataError(f"index must be an (n, m) array of integers, got shape {chosen.shape}")
    for name, value, size in zip(
        ("rows", "batch_size"), (rows, batch_size), chosen.shape, strict=True
    ):
        if value is not None and value != size:
            raise DataError(f"{name}={value} contradicts index of shape {tuple(chosen.shape)}")
    return chosen.to(torch.int64)


def _positive(name: str, value: int | None) -> int:
    if value is None:
        raise DataError(f"{name} is required (or give index)")
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise DataError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def row_order(size: int, seed: int) -> Tensor:
    """The order in which seeded rows take their samples: a permutation, (size,) int64."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def sample_count(data: Any) -> int | None:
    """Number of samples of data that can be fetched by number; None for a stream."""
    data = _pair_or_same(data)
    if isinstance(data, tuple):
        return len(data[0])
    source: Any = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(source, Sequence):
        return sum(len(_as_batch(batch)[0]) for batch in source)
    return len(source) if _is_map_style(source) else None


def _permuted(size: int, rows: int, batch_size: int, seed: int) -> Tensor:
    if rows * batch_size > size:
        raise _too_few(rows, batch_size, size)
    return row_order(size, seed)[: rows * batch_size].reshape(rows, batch_size)


def _too_few(rows: int, batch_size: int, size: int) -> DataError:
    return DataError(
        f"rows={rows} of batch_size={batch_size} need {rows * batch_size} samples; the data hold "
        f"{size}. Lower rows or batch_size"
    )
