"""Curvature from gradient rows that stay in a file: solved by streaming, within a memory limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from chita_opt.curvature.checks import finite
from chita_opt.curvature.column_file import MappedColumns
from chita_opt.curvature.factors import ColumnFactor
from chita_opt.curvature.low_rank import LowRank
from chita_opt.errors import CurvatureError, MemoryLimitError

_PIECE = 64 << 20  # bytes of columns in one product over all of A
_VECTORS = 56  # (p,) float64 vectors at once in relax_round and dual_bound; measured
_SQUARES = 10  # (n, n) float64 matrices at once
_COPIES = 8192  # columns copied at once for Gram matrices and candidates


@dataclass(frozen=True, eq=False, kw_only=True)
class MappedFactor(ColumnFactor):
    """F = sqrt(scale) A with its columns in a file, read in pieces and released.

    Attributes
    ----------
    source : MappedColumns
        Where ``columns`` lie.
    window : int
        Bytes of the file that may stay in memory.
    """

    source: MappedColumns
    window: int

    @property
    def whole(self) -> int:
        """Columns in one product over all: a piece."""
        return max(1, min(_PIECE, self.window) // (4 * self.dual_size))

    def pieces(self, index: Tensor | None, count: int) -> Iterator[tuple[slice, Tensor]]:
        """As for columns in memory, at most ``count`` at a time; what was read is given back."""
        start, total = 0, self.size if index is None else len(index)
        while start < total:
            stop, span = self._reach(index, start, min(start + min(count, self.whole), total))
            self.source.reserve(span, self.window)
            place = slice(start, stop)
            yield place, self.columns[place] if index is None else self.columns[index[place]]
            start = stop

    def _reach(self, index: Tensor | None, start: int, stop: int) -> tuple[int, int]:
        """Where a piece ends so that it lies within the window, and how many columns it spans."""
        while index is not None:
            place = index[start:stop]
            span = int(place.max() - place.min()) + 1
            if stop - start == 1 or 4 * span * self.dual_size <= self.window:
                return stop, span
            stop = start + (stop - start) // 2
        return stop, stop - start

    def select(self, index: Tensor) -> Tensor:
        """A copy of the columns at ``index``, read in pieces; for few."""
        out = self.columns.new_empty(len(index), self.dual_size)
        for place, part in self.pieces(index, self.cached):
            out[place] = part
        return out


@dataclass(frozen=True, eq=False, kw_only=True)
class MappedLowRank(LowRank):
    """:class:`LowRank` whose A is read from a file at every use; see :func:`open_gradients`.

    Attributes
    ----------
    source : MappedColumns
        The file.
    window : int
        Bytes of it that may stay in memory.
    """

    source: MappedColumns
    window: int

    def __post_init__(self) -> None:
        for _, part in self.factor_of_rows.pieces(None, self.size):
            finite(part, f"{self.source.path}, in a piece of its columns,")

    @cached_property
    def factor_of_rows(self) -> ColumnFactor:
        """sqrt(scale) A, streamed."""
        return MappedFactor(self.A.T, self.scale, source=self.source, window=self.window)

    def cut(self, start: int, stop: int) -> LowRank:
        """The block of neighbouring weights, in the same file within the same window."""
        part = self.A[:, start:stop]
        return MappedLowRank(part, self.scale, source=self.source, window=self.window)

    def to(self, device: torch.device | str) -> LowRank:
        """Itself on the CPU; a file is not moved elsewhere."""
        if torch.device(device).type != "cpu":
            raise CurvatureError(
                f"gradients in a file are not moved to {device}; load them: LowRank(A.to(device))"
            )
        return self


def solving_bytes(n: int, p: int) -> int:
    """Bytes that ``relax_round`` and ``dual_bound`` hold beside the file, at most.

    Vectors of the weights, systems of the sample space, and copies of a few thousand columns.
    """
    return 8 * (_VECTORS * p + _SQUARES * n * n) + 4 * n * min(p, 3 * _COPIES)


def open_gradients(
    path: str | os.PathLike[str], *, scale: float | None = None, memory_limit: int | None = None
) -> MappedLowRank:
    r"""Curvature ``scale * A'A`` of gradient rows in a file, without loading it.

    Parameters
    ----------
    path : str or path
        Columns of A in ``.npy`` format, as :func:`chita_opt.nn.gradient_file` writes them.
    scale : float, optional
        1/n by default, the empirical Fisher matrix.
    memory_limit : int, optional
        Bytes that ``relax_round`` and ``dual_bound`` on it may use, beyond what the process holds
        already: vectors over the weights, small systems, and pages of the file. Without a limit
        the whole file may stay in memory; the system then takes pages back as it needs them.

    Raises
    ------
    MemoryLimitError
        If vectors and systems alone exceed the limit; the message names what is needed.
    DataError
        If the file cannot be read.
    CurvatureError
        If it holds values that are not finite, or the scale is not positive.
    """
    source = MappedColumns(path)
    p, n = source.tensor.shape
    scale = 1.0 / n if scale is None else scale
    if not 0.0 < scale < float("inf"):
        raise CurvatureError(f"scale is {scale}; it must be positive and finite")
    window = source.tensor.nbytes
    if memory_limit is not None:
        need = solving_bytes(n, p) + min(_PIECE, window)
        if need > memory_limit:
            raise MemoryLimitError(
                f"{n} gradient rows of {p} weights in {path} need at least {need} bytes to solve; "
                f"memory_limit is {memory_limit}: raise it, or select fewer layers"
            )
        window = min(window, memory_limit - solving_bytes(n, p))
    return MappedLowRank(source.tensor.T, scale, source=source, window=window)


__all__ = ["MappedFactor", "MappedLowRank", "open_gradients", "solving_bytes"]
