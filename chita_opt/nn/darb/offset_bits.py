"""Offsets of a few bits each as bytes, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import DataError


def pack_offsets(offsets: Tensor, bits: int) -> Tensor:
    """Write offsets of ``bits`` bits one after the other, the lowest bit first.

    Parameters
    ----------
    offsets : Tensor
        uint8 of any shape, read row-major, each below 2**bits.
    bits : int
        From 0 to 8. The last byte is filled up with zeros.

    Returns
    -------
    Tensor
        (ceil(count * bits / 8),) uint8.
    """
    plain = offsets.reshape(-1, 1).numpy()
    spread = (plain >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(spread, bitorder="little"))


def unpack_offsets(packed: Tensor, bits: int, count: int) -> Tensor:
    """Read what :func:`pack_offsets` wrote.

    Raises
    ------
    DataError
        If the length does not fit, or bits after the last offset are set.
    """
    need = packed_bytes(count, bits)
    if packed.shape != (need,):
        raise DataError(f"{count} offsets of {bits} bits take {need} bytes, not {len(packed)}")
    spread = np.unpackbits(packed.numpy(), bitorder="little")
    if spread[count * bits :].any():
        raise DataError("bits after the last offset are set")
    weights = 1 << np.arange(bits, dtype=np.uint8)
    offsets = spread[: count * bits].reshape(count, bits) @ weights
    return torch.from_numpy(offsets.astype(np.uint8))


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that so many offsets take."""
    return -(-count * bits // 8)


__all__ = ["pack_offsets", "packed_bytes", "unpack_offsets"]
