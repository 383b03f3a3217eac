"""Two of every four weights: the pattern that sparse tensor cores multiply with.

Mishra et al., "Accelerating sparse deep neural networks" (2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import DataError, LayerError
from chita_opt.nn.export.matrices import CompactMatrix, rows_cols


@dataclass(frozen=True, eq=False)
class TwoFourMatrix(CompactMatrix):
    """At most two of every four consecutive weights of a row.

    Two values are stored of every four, zeros where fewer are kept; so a kept weight that is
    exactly zero comes back as pruned.

    Attributes
    ----------
    codes : Tensor
        uint8, two bits a value, four values a byte, the first in the highest bits: its place in
        its four. The two places of a four ascend.
    """

    encoding: ClassVar[str] = "2:4"
    codes: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor) -> Self:
        """Read a weight with zeros outside of its mask.

        Raises
        ------
        LayerError
            If the rows do not split into fours, or four weights keep more than two.
        """
        fours = _fours(mask)
        # kept ones first, each lot in its order; two of them, then in their order
        order = fours.logical_not().to(torch.uint8).argsort(dim=2, stable=True)[:, :, :2]
        order = order.sort(2).values
        grid = torch.where(fours, weight.reshape(fours.shape), weight.new_zeros(()))
        values = grid.gather(2, order).flatten(1)
        return cls(tuple(weight.shape), values, _packed(order.flatten()))

    @property
    def _order(self) -> Tensor:
        """(rows, fours, 2) int64 places."""
        rows, columns = self.rows_cols
        return _unpacked(self.codes, self.values.numel()).reshape(rows, columns // 4, 2)

    def dense_mask(self) -> Tensor:
        """The mask, of the parameter's shape: the stored values that are not zero."""
        return self.to_dense() != 0

    def to_dense(self) -> Tensor:
        """The weight with its zeros."""
        order = self._order
        dense = self.values.new_zeros(*order.shape[:2], 4)
        return dense.scatter(2, order, self.values.reshape(order.shape)).reshape(self.shape)

    def places(self) -> dict[str, Tensor]:
        """The codes."""
        return {"codes": self.codes}

    @classmethod
    def from_parts(
        cls, shape: tuple[int, ...], values: Tensor, parts: Mapping[str, Tensor]
    ) -> Self:
        """Check and put together."""
        codes, (rows, columns) = parts["codes"], rows_cols(shape)
        if columns % 4 or values.shape != (rows, columns // 2):
            raise DataError(f"values {tuple(values.shape)} are no half of {rows} x {columns}")
        if codes.dtype != torch.uint8 or codes.shape != (-(-values.numel() // 4),):
            raise DataError(f"codes {tuple(codes.shape)} {codes.dtype} for {values.numel()} values")
        found = cls(shape, values, codes)
        order = found._order
        if bool((order[:, :, 0] >= order[:, :, 1]).any()):
            raise DataError("the two places of a four do not ascend")
        return found


def is_two_of_four(mask: Tensor) -> bool:
    """Whether rows split into fours that keep at most two weights each."""
    columns = rows_cols(tuple(mask.shape))[1]
    return columns % 4 == 0 and not bool((mask.reshape(-1, 4).sum(1) > 2).any())


def _fours(mask: Tensor) -> Tensor:
    """(rows, fours, 4) bool, checked."""
    rows, columns = rows_cols(tuple(mask.shape))
    if columns % 4:
        raise LayerError(
            f"rows of {columns} weights do not split into fours; store this weight as csr or bitmap"
        )
    fours = mask.reshape(rows, -1, 4)
    many = (fours.sum(2) > 2).nonzero()
    if len(many):
        row, four = many[0].tolist()
        raise LayerError(
            f"row {row} keeps {int(fours[row, four].sum())} of the weights {4 * four} to "
            f"{4 * four + 3}, 2:4 allows 2; prune with support='2:4', or store as csr or bitmap"
        )
    return fours


def _packed(codes: Tensor) -> Tensor:
    """Two bits a number, the first in the highest bits."""
    pairs = torch.stack([codes >> 1, codes & 1], 1).to(torch.uint8)
    return torch.from_numpy(np.packbits(pairs.flatten().numpy()))


def _unpacked(packed: Tensor, count: int) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=2 * count).reshape(-1, 2).astype(np.int64)
    return torch.from_numpy(2 * bits[:, 0] + bits[:, 1])


__all__ = ["TwoFourMatrix", "is_two_of_four"]
