r"""What decoding a pruned weight costs by the format, counted from its real mask.

The paper measures decoders in hardware and prints no formula. What a count can reproduce of it is
how many **steps** a decoder of L lanes takes, which decode L rows side by side and wait for each
other, and how many **operations** on indices there are; either is divided by the weights decoded.
A step decodes one entry a lane.

===========  =====================================================  ===============================
format       steps                                                  operations
===========  =====================================================  ===============================
darb         every row of a group has as many entries: no waiting   2 an entry (take the field, put
                                                                    it beside the counter), 1 a step
                                                                    of a group for the counter
csr          of L rows the longest                                  2 an entry (read the column,
                                                                    compare with the row's end), 2 a
                                                                    row for its pointers
csr_runs     the same, with filling entries                         3 an entry (the column is a sum
                                                                    as well), 2 a row
blocks_4x4   of L/4 block rows the longest, 4 steps a block         3 a block, 1 a weight, 2 a block
                                                                    row
bitmap       one a column                                           1 a bit, 1 a weight
===========  =====================================================  ===============================

*Efficiency* is weights decoded a lane and step: 1 where no lane ever waits, fills or tests a zero.
Weights that a format stores though they are zero are not counted as decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from chita_opt.errors import LayerError
from chita_opt.nn.darb.matrix import DarbMatrix
from chita_opt.nn.darb.storage_sizes import TILE, run_entries, tile_mask


@dataclass(frozen=True)
class DecodingCost:
    """Counts for one weight in one format.

    Attributes
    ----------
    kept : int
        Weights that are not zero.
    steps : int
        Steps of a decoder of ``lanes`` lanes.
    operations : int
        Operations on indices, of all lanes together.
    lanes : int
        Rows decoded side by side.
    """

    kept: int
    steps: int
    operations: int
    lanes: int

    @property
    def operations_per_weight(self) -> float:
        """Operations on indices for each weight that is not zero."""
        return self.operations / self.kept

    @property
    def efficiency(self) -> float:
        """Weights decoded by a lane in a step, at most 1."""
        return self.kept / (self.steps * self.lanes)


def decoding_costs(
    weight: Tensor, matrix: DarbMatrix | None = None, *, lanes: int = 16
) -> dict[str, DecodingCost]:
    """Count steps and operations by format; "darb" where the block-regular form is given.

    Parameters
    ----------
    weight : Tensor
        (rows, ...) with exact zeros where it is pruned, and at least one other.
    matrix : DarbMatrix, optional
        The same weight.
    lanes : int
        Rows decoded side by side, a multiple of 4: whole 4x4 blocks.

    Raises
    ------
    LayerError
        If ``lanes`` is no positive multiple of 4.
    """
    if lanes < TILE or lanes % TILE:
        raise LayerError(f"lanes is {lanes}; give a multiple of {TILE}, the rows of a 4x4 block")
    mask = (weight.detach().cpu() != 0).flatten(1)
    kept, (rows, columns) = int(mask.sum()), mask.shape
    entries, filled, tiles = mask.sum(1), run_entries(mask), tile_mask(mask)
    blocks, groups = int(tiles.sum()), -(-rows // lanes)
    counts = {
        "csr": (_longest(entries, lanes), 2 * kept + 2 * rows),
        "csr_runs": (_longest(filled, lanes), 3 * int(filled.sum()) + 2 * rows),
        "blocks_4x4": (
            TILE * _longest(tiles.sum(1), lanes // TILE),
            (3 + TILE * TILE) * blocks + 2 * len(tiles),
        ),
        "bitmap": (columns * groups, rows * columns + kept),
    }
    if matrix is not None:
        steps = sum(len(g.values) * -(-len(g.rows) // lanes) for g in matrix.groups)
        counters = sum(len(g.values) for g in matrix.groups)
        counts["darb"] = (steps, 2 * matrix.stored + counters)
    return {name: DecodingCost(kept, *count, lanes) for name, count in counts.items()}


def _longest(entries: Tensor, lanes: int) -> int:
    """Sum over groups of so many rows, in order, of the largest number of entries."""
    return int(pad(entries, (0, -len(entries) % lanes)).unflatten(0, (-1, lanes)).amax(1).sum())


__all__ = ["DecodingCost", "decoding_costs"]
