"""Gradient rows in a file: the columns of A, read and written in pieces.

The file is a plain ``.npy`` of float32 (p, n): row j holds the n gradients of weight j. It is
mapped, not loaded, and pages that were read are given back, so that p times n may exceed the
memory. Nothing is unpickled.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import DataError

_FLOAT = np.dtype("<f4")


class MappedColumns:
    """Columns (p, n) in mapped memory, which are handed back to the system after use.

    Parameters
    ----------
    path : str or path
        A ``.npy`` file of float32, shape (p, n), in C order.

    Raises
    ------
    DataError
        If it cannot be read or is of another kind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        (p, n), offset = _header(self.path)
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        # Copy on write: a private map, as torch has no read-only tensors. Nobody writes to it.
        array = np.frombuffer(self._map, _FLOAT, p * n, offset).reshape(p, n)
        #: (p, n) float32, backed by the file.
        self.tensor: Tensor = torch.from_numpy(array)
        self._held = 0

    def reserve(self, span: int, limit: int) -> None:
        """Make room for a read within ``span`` neighbouring columns: all held at most ``limit``.

        However few of them are read, the system may map everything in between.
        """
        size = 4 * span * self.tensor.shape[1]
        if self._held + size > limit:
            self.release()
        self._held += size

    def release(self) -> None:
        """Give the pages back; they are read from the file again when they are needed."""
        self._held = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class ColumnWriter:
    """Write the columns of A a few rows of A at a time; see :func:`column_writer`."""

    def __init__(self, path: Path, p: int, n: int) -> None:
        self.shape = (p, n)
        header = {"descr": _FLOAT.str, "fortran_order": False, "shape": self.shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            offset = file.tell()
            _reserve(file, offset + 4 * p * n, path)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._array = np.frombuffer(self._map, _FLOAT, p * n, offset).reshape(p, n)

    def write(self, start: int, block: Tensor, piece: int = 16 << 20) -> None:
        """Write rows ``start ...`` of A from ``block`` (p, rows).

        Pages of the file are held for ``piece`` bytes of columns at a time.
        """
        stop, step = start + block.shape[1], max(1, piece // (4 * self.shape[1]))
        for j in range(0, self.shape[0], step):
            self._array[j : j + step, start:stop] = block[j : j + step].cpu().numpy()
            if hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)  # shared: what was written stays written

    def close(self) -> None:
        """Write everything to the disk."""
        self._map.flush()
        del self._array
        self._map.close()


@contextmanager
def column_writer(path: str | os.PathLike[str], p: int, n: int) -> Iterator[ColumnWriter]:
    """Open a new file of columns (p, n); it appears under its name when all went well, or never.

    Raises
    ------
    DataError
        If the disk has no room for it.
    OSError
        If it cannot be written; an old file is then as it was.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        writer = ColumnWriter(part, p, n)
        try:
            yield writer
        finally:
            writer.close()
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _reserve(file: Any, size: int, path: Path) -> None:
    """Reserve room on the disk: a full one would otherwise end the process (SIGBUS) at a write."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise DataError(f"no room for {size} bytes in {path.parent}: {error.strerror}") from error


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """Shape and place of the data."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(file)
            offset = file.tell()
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not a .npy file: {error}") from error
    if len(shape) != 2 or 0 in shape or dtype != _FLOAT or is_fortran:
        raise DataError(
            f"{path} holds {dtype} of shape {shape}; give float32 (weights, samples) in C order"
        )
    if size < offset + 4 * shape[0] * shape[1]:
        raise DataError(f"{path} has {size} bytes, too few for shape {shape}; it was cut short")
    return (int(shape[0]), int(shape[1])), offset


__all__ = ["ColumnWriter", "MappedColumns", "column_writer"]
