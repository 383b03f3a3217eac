"""Masks as small PNG images inside the page: the whole layer, and a part dot by dot."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
_ROWS, _COLUMNS = 240, 360  # pixels of an overview, at most
_SHOWN_WIDTH, _SHOWN_HEIGHT = 420, 320  # pixels of the page
_PART_ROWS, _PART_COLUMNS = 48, 96  # weights of a part
_EMPTY, _FULL = (255, 255, 255), (18, 52, 110)  # colour of density 0 and 1


@dataclass(frozen=True)
class Picture:
    """An image and what it shows.

    Attributes
    ----------
    uri : str
        ``data:image/png;base64,...``.
    width, height : int
        Pixels.
    note : str
        Which rows and columns, and how many weights a pixel stands for.
    text : str
        The same for readers who do not see it.
    """

    uri: str
    width: int
    height: int
    note: str
    text: str

    @property
    def shown(self) -> int:
        """Width on the page: enlarged by a whole number where it fits so often."""
        scale = min(_SHOWN_WIDTH / self.width, _SHOWN_HEIGHT / self.height)
        return round(self.width * (int(scale) if scale >= 2.0 else scale))


@dataclass(frozen=True)
class MaskPictures:
    """One layer's pictures: all of it and, where that was downsampled, a part."""

    name: str
    whole: Picture
    part: Picture | None
    empty_rows: int
    empty_columns: int
    rows: int
    columns: int


def picture_mask(name: str, mask: Array) -> MaskPictures:
    """Pictures of a mask; a row is an output, a column an input (and place in a kernel)."""
    mask = mask.reshape(len(mask) if mask.ndim > 1 else 1, -1)
    rows, columns = mask.shape
    density, down, across = _density(mask)
    note = _whole_note(mask, down, across, float(density.max()))
    whole = _picture(name, density, note)
    empty_rows, empty_columns = (int((~mask.any(axis=i)).sum()) for i in (1, 0))
    part = None if down * across == 1 else _part(name, mask)
    return MaskPictures(name, whole, part, empty_rows, empty_columns, rows, columns)


def _density(mask: Array) -> tuple[Array, int, int]:
    """Share of kept weights in boxes of down x across weights; the last boxes may be smaller."""
    rows, columns = mask.shape
    down, across = -(-rows // _ROWS), -(-columns // _COLUMNS)
    row_starts, column_starts = np.arange(0, rows, down), np.arange(0, columns, across)
    counts = np.add.reduceat(mask, row_starts, axis=0, dtype=np.int32)
    counts = np.add.reduceat(counts, column_starts, axis=1)
    heights = np.diff(np.append(row_starts, rows))
    widths = np.diff(np.append(column_starts, columns))
    return counts / np.outer(heights, widths), down, across


def _whole_note(mask: Array, down: int, across: int, most: float) -> str:
    rows, columns = mask.shape
    if down * across == 1:
        return f"all {rows:,} × {columns:,} weights, one pixel a weight"
    return (
        f"all {rows:,} × {columns:,} weights, downsampled: a pixel is the share kept of "
        f"{down} × {across} weights, from none (no colour) to {100 * most:.3g} % (full colour)"
    )


def _part(name: str, mask: Array) -> Picture:
    """The part with the most kept weights, among parts side by side."""
    height, width = min(_PART_ROWS, len(mask)), min(_PART_COLUMNS, mask.shape[1])
    tops = range(0, len(mask) - height + 1, height)
    lefts = range(0, mask.shape[1] - width + 1, width)
    corners = [(i, j) for i in tops for j in lefts]
    i, j = max(corners, key=lambda c: int(mask[c[0] : c[0] + height, c[1] : c[1] + width].sum()))
    shown = mask[i : i + height, j : j + width]
    note = (
        f"rows {i + 1:,} to {i + height:,}, columns {j + 1:,} to {j + width:,}: the fullest part "
        "of this size, one dot a weight"
    )
    return _picture(name, shown.astype(float), note)


def _picture(name: str, density: Array, note: str) -> Picture:
    height, width = density.shape
    encoded = base64.b64encode(_png(density)).decode()
    text = f"Mask of {name}, {note}; {100 * density.mean():.3g} % is kept there"
    return Picture(f"data:image/png;base64,{encoded}", width, height, note, text)


def _png(density: Array) -> bytes:
    """A PNG file (its specification, section 11) whose fullest shade is the largest density."""
    height, width = density.shape
    levels = np.rint(255.0 * density / max(float(density.max()), 1e-300)).astype(np.uint8)
    lines = np.zeros((height, width + 1), dtype=np.uint8)  # a zero before each line: unfiltered
    lines[:, 1:] = levels
    shades = np.linspace(_EMPTY, _FULL, 256).round().astype(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", shades.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


__all__ = ["MaskPictures", "Picture", "picture_mask"]
