r"""DARB with the widths as a decision: every row takes one block width, under a budget.

.. math::
    \mathcal S=\Big\{z:\ \exists B_r\in\mathcal B:\ \sum_{j\in b}z_j\le m\ \ \text{for every block
    }b\text{ of width }B_r\text{ of row }r,\quad \sum_rc_{r,B_r}\le K\Big\}

:math:`c_{rB}` is the number of weights that row r may keep in blocks of width B: one (or m) for
each block. A row without weights costs nothing. Rows may belong to several matrices that share the
budget.

Oracle: with :math:`V_{rB}` the sum of the m best scores of every block, the best widths are a
multiple-choice knapsack, solved exactly (:mod:`chita_opt.supports.knapsack`).

Rows (Balas's union of polyhedra; ideal for each matrix row by itself):

.. math::
    z_j\le\sum_Bx^B_j,\qquad \sum_{j\in b}x^B_j\le m\,y_{rB},\qquad x^B_j\le y_{rB}\ (m>1),\qquad
    \sum_By_{rB}\le1,\qquad \sum_{r,B}c_{rB}y_{rB}\le K

with auxiliary variables :math:`u=(y,x)`. Their linear program lies above the oracle by less than
the value of one matrix row, the gap of the knapsack.

Source: DARB (Ren et al., AAAI 2020) for the pattern; the paper sets the widths by density
(:func:`chita_opt.supports.published_widths`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.knapsack import Choice, best_choice
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.regular_blocks import fixed_widths

POWERS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, eq=False)
class BlockWidths(SupportFamily):
    """Block widths of every row chosen under a budget of kept weights.

    Attributes
    ----------
    shapes : tuple of (int, int)
        (rows, cols) of each matrix; their weights lie one matrix after the other, by rows.
    budget : int
        K, weights that all rows together may keep.
    widths : tuple of int
        The widths to choose from, ascending.
    keep : int
        m, weights that a block may keep, at most the smallest width.

    Raises
    ------
    SupportError
        If widths, keep, shapes or the budget are out of range.
    """

    shapes: tuple[tuple[int, int], ...]
    budget: int
    widths: tuple[int, ...] = POWERS
    keep: int = 1
    _part: Any = field(init=False, repr=False)
    rows_are_tight = False

    def __post_init__(self) -> None:
        widths = self.widths
        if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
            raise SupportError(f"widths are {widths}; give different widths >= 1, ascending")
        if not 1 <= self.keep <= widths[0]:
            raise SupportError(f"keep is {self.keep}; it must lie in [1, {widths[0]}]")
        if not self.shapes or min(min(shape) for shape in self.shapes) < 1:
            raise SupportError(f"shapes are {self.shapes}; give (rows, cols) of each matrix, >= 1")
        object.__setattr__(self, "_part", [_Matrix(shape, self) for shape in self.shapes])
        if self.budget < 0 or int(self.budget) != self.budget:
            raise SupportError(f"the budget is {self.budget}; it must be a whole number >= 0")

    # -- description ----------------------------------------------------------------------

    @cached_property
    def costs(self) -> Array:
        """(matrix rows, widths) int64: weights that a row may keep at a width."""
        return np.concatenate([part.costs for part in self._part])

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return sum(rows * cols for rows, cols in self.shapes)

    @property
    def name(self) -> str:
        """Short name with the widths and the budget."""
        widths = ",".join(map(str, self.widths))
        return f"darb(widths {widths}; {self.budget} of {self.size})"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description."""
        return {
            "family": "block_widths", "name": self.name, "size": self.size, "keep": self.keep,
            "shapes": [list(s) for s in self.shapes], "widths": list(self.widths),
            "budget": int(self.budget),
        }  # fmt: skip

    # -- oracle ---------------------------------------------------------------------------

    def choose(self, scores: Tensor) -> Choice:
        """The best widths for scores: 0 for a row without weights, else 1 + place in ``widths``."""
        s = self.check_scores(scores).double().cpu().numpy()
        return self._knapsack(self._values(s))

    def best_support(self, scores: Tensor) -> Tensor:
        """Exact: the knapsack over widths, then the best weights of each block."""
        option = self.choose(scores).option
        s = scores.double().cpu().numpy()
        masks, start = [], 0
        for part, own in self._split(s):
            masks.append(part.best_mask(own, option[start : start + part.rows]))
            start += part.rows
        return torch.from_numpy(np.concatenate(masks)).to(scores.device)

    def contains(self, mask: Tensor) -> bool:
        """Whether the cheapest widths that allow the mask are within the budget."""
        return self._cheapest(self.check_mask(mask)) is not None

    def widths_of(self, mask: Tensor) -> list[Tensor]:
        """The cheapest widths that allow a mask of the family, for each matrix: (rows,) int64.

        0 stands for a row without weights.

        Raises
        ------
        SupportError
            If the mask is outside the family.
        """
        option = self._cheapest(self.check_mask(mask))
        if option is None:
            raise SupportError(f"the mask is outside {self.name}")
        width = torch.from_numpy(np.array([0, *self.widths])[option])
        return list(width.split([rows for rows, _ in self.shapes]))

    def laminar_part(self, mask: Tensor) -> Budget:
        """All masks with the widths that a mask has, as budgets on its blocks."""
        labels, caps, first = [], [], 0
        for shape, width in zip(self.shapes, self.widths_of(mask), strict=True):
            part = fixed_widths(shape, width, self.keep)
            labels.append(part.labels + first)
            caps.append(part.caps)
            first += len(part.caps)
        return Budget(torch.cat(labels), torch.cat(caps), title="darb(widths given)")

    def exchange_margins(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Those of the budgets that the mask's widths leave."""
        if not self.contains(mask):
            return super().exchange_margins(scores, mask)
        return self.laminar_part(mask).exchange_margins(scores, mask)

    def can_swap(self, mask: Tensor, outgoing: Tensor, incoming: Tensor) -> Tensor | None:
        """Swaps that keep the widths; others are left to a new choice of widths."""
        return self.laminar_part(mask).can_swap(mask, outgoing, incoming)

    # -- rows -----------------------------------------------------------------------------

    def rows(self) -> LinearRows:
        """The rows above; u holds y (matrix rows x widths) and then x (p x widths)."""
        R, W, p = len(self.costs), len(self.widths), self.size
        each, link = np.arange(p), np.repeat(np.arange(p), W)
        links = _Entries(link, R * W + np.arange(p * W), -np.ones(p * W))
        y = np.arange(R * W)
        parts = [
            (links, np.zeros(p)), self._block_rows(), *self._weight_rows(),
            (_Entries(y // W, y, np.ones(R * W)), np.ones(R)),
            (_Entries(0 * y, y, self.costs.ravel() * 1.0), np.array([float(self.budget)])),
        ]  # fmt: skip
        h = np.concatenate([right for _, right in parts])
        first = np.cumsum([0, *(len(right) for _, right in parts)])
        E = _stacked([e for e, _ in parts], first[:-1], (len(h), R * W + p * W))
        G = csr_array(coo_array((np.ones(p), (each, each)), shape=(len(h), p)))
        return LinearRows(G, h, E)

    def _block_rows(self) -> tuple[_Entries, Array]:
        """``sum of x over a block - m y <= 0``, width by width."""
        R, W = len(self.costs), len(self.widths)
        found, count = [], 0
        for o in range(W):
            block, owner = self._blocks(o)
            x = R * W + np.arange(self.size) * W + o
            found += [
                _Entries(count + block, x, np.ones(self.size)),
                _Entries(count + np.arange(len(owner)), owner * W + o,
                         np.full(len(owner), -float(self.keep))),
            ]  # fmt: skip
            count += len(owner)
        return _joined(found), np.zeros(count)

    def _weight_rows(self) -> list[tuple[_Entries, Array]]:
        """``x - y <= 0``, needed where a block keeps more than one weight."""
        if self.keep == 1:
            return []
        R, W, p = len(self.costs), len(self.widths), self.size
        each, owner = np.arange(p * W), np.repeat(self._row_of, W)
        y = _Entries(each, owner * W + each % W, -np.ones(p * W))
        x = _Entries(each, R * W + each, np.ones(p * W))
        return [(_joined([x, y]), np.zeros(p * W))]

    def _blocks(self, o: int) -> tuple[Array, Array]:
        """At one width: (p,) block of every weight, and (blocks,) matrix row of every block."""
        labels, owners, first, above = [], [], 0, 0
        for part in self._part:
            label = part.labels(self.widths[o])
            count = -(-part.cols // self.widths[o])
            labels.append(label + first)
            owners.append(above + np.repeat(np.arange(part.rows), count))
            first, above = first + count * part.rows, above + part.rows
        return np.concatenate(labels), np.concatenate(owners)

    def auxiliary(self, mask: Tensor) -> Array:
        """Y of the cheapest widths, and x = z there."""
        option = self._cheapest(self.check_mask(mask))
        if option is None:
            raise SupportError(f"the mask is outside {self.name}")
        R, W = len(self.costs), len(self.widths)
        y, x = np.zeros((R, W)), np.zeros((self.size, W))
        live = np.flatnonzero(option)
        y[live, option[live] - 1] = 1.0
        kept = np.flatnonzero(mask.cpu().numpy())
        x[kept, option[self._row_of[kept]] - 1] = 1.0
        return np.concatenate([y.ravel(), x.ravel()])

    def multipliers(self, scores: Tensor) -> Array:
        """From the knapsack's price: scores, the first score beyond each block, row values."""
        s = self.check_scores(scores).double().cpu().numpy()
        values = self._values(s)
        price = self._knapsack(values).price
        worth = np.maximum((values - price * self.costs).max(1), 0.0)
        levels = []
        for o in range(len(self.widths)):
            levels.append(np.concatenate(
                [part.levels(own, self.widths[o]) for part, own in self._split(s)]
            ))  # fmt: skip
        extra = []
        if self.keep > 1:
            above = [s - level[self._blocks(o)[0]] for o, level in enumerate(levels)]
            extra = [np.maximum(np.stack(above, axis=1), 0.0).ravel()]
        return np.concatenate([s, *levels, *extra, worth, [price]])

    # -- parts ----------------------------------------------------------------------------

    @cached_property
    def _row_of(self) -> Array:
        """(p,) matrix row of every weight."""
        cols = np.concatenate([np.full(rows, cols) for rows, cols in self.shapes])
        return np.repeat(np.arange(len(cols)), cols)

    def _split(self, values: Array) -> list[tuple[_Matrix, Array]]:
        """Values (p,) matrix by matrix."""
        ends = np.cumsum([rows * cols for rows, cols in self.shapes])
        return list(zip(self._part, np.split(values, ends[:-1]), strict=True))

    def _cheapest(self, mask: Tensor) -> Array | None:
        """(matrix rows,) the cheapest option that allows a mask; None beyond the budget."""
        z = mask.cpu().numpy().astype(np.float64)
        allowed = np.concatenate([part.allowed(own) for part, own in self._split(z)])
        empty = np.bincount(self._row_of, weights=z, minlength=len(self.costs)) == 0
        dearest = np.iinfo(np.int64).max // (len(self.costs) + 1)
        costs = np.where(allowed, self.costs, dearest)
        costs = np.column_stack([np.where(empty, 0, dearest), costs])
        option = costs.argmin(1)
        total = int(costs[np.arange(len(costs)), option].sum())
        return option if total <= self.budget else None

    def _values(self, scores: Array) -> Array:
        """(matrix rows, widths): the best sum of each row at each width."""
        return np.concatenate([part.values(own) for part, own in self._split(scores)])

    def _knapsack(self, values: Array) -> Choice:
        """The best option of every row; the first is to keep nothing."""
        nothing = np.zeros(len(values))
        costs = np.column_stack([nothing.astype(np.int64), self.costs])
        return best_choice(np.column_stack([nothing, values]), costs, int(self.budget))


class _Matrix:
    """One matrix: its rows cut into blocks of each width."""

    def __init__(self, shape: tuple[int, int], family: BlockWidths) -> None:
        self.rows, self.cols = shape
        self.widths, self.keep = family.widths, family.keep
        full = [self.cols // B for B in self.widths]
        rest = [min(self.cols % B, self.keep) for B in self.widths]
        self.costs = np.tile(self.keep * np.array(full) + np.array(rest), (self.rows, 1))

    def blocks(self, values: Array, width: int, fill: float) -> Array:
        """(rows, blocks, width), the last block filled up."""
        table = values.reshape(self.rows, self.cols)
        missing = -self.cols % width
        if missing:
            table = np.pad(table, ((0, 0), (0, missing)), constant_values=fill)
        return table.reshape(self.rows, -1, width)

    def labels(self, width: int) -> Array:
        """(rows * cols,) block of every weight, row by row."""
        count = -(-self.cols // width)
        return (np.arange(self.rows)[:, None] * count + np.arange(self.cols) // width).ravel()

    def values(self, scores: Array) -> Array:
        """(rows, widths): the best sum of each row at each width."""
        return np.stack([self._value(scores, B) for B in self.widths], axis=1)

    def _value(self, scores: Array, width: int) -> Array:
        blocks = self.blocks(scores, width, 0.0)
        if width <= self.keep:
            return blocks.sum((1, 2))
        if self.keep == 1:
            return blocks.max(2).sum(1)
        return np.partition(blocks, width - self.keep, axis=2)[:, :, width - self.keep :].sum(
            (1, 2)
        )

    def levels(self, scores: Array, width: int) -> Array:
        """(blocks,) what one more weight of a block must exceed; the largest where m is 1."""
        blocks = self.blocks(scores, width, 0.0)
        if self.keep == 1:
            return blocks.max(2).ravel()
        if width <= self.keep:
            return np.zeros(blocks.shape[0] * blocks.shape[1])
        return np.partition(blocks, width - self.keep - 1, axis=2)[:, :, -self.keep - 1].ravel()

    def best_mask(self, scores: Array, option: Array) -> Array:
        """(rows * cols,) bool: the m best of every block at each row's width."""
        mask = np.zeros((self.rows, self.cols), dtype=bool)
        for o, width in enumerate(self.widths):
            own = np.flatnonzero(option == o + 1)
            if len(own):
                blocks = self.blocks(scores, width, -np.inf)[own]
                order = np.argsort(-blocks, axis=2, kind="stable")[:, :, : self.keep]
                chosen = np.zeros(blocks.shape, dtype=bool)
                np.put_along_axis(chosen, order, True, axis=2)
                mask[own] = chosen.reshape(len(own), -1)[:, : self.cols]
        return mask.ravel()

    def allowed(self, z: Array) -> Array:
        """(rows, widths) bool: whether blocks of each width allow a mask."""
        return np.stack(
            [(self.blocks(z, B, 0.0).sum(2) <= self.keep).all(1) for B in self.widths], axis=1
        )


@dataclass(frozen=True, eq=False)
class _Entries:
    row: Array
    column: Array
    value: Array


def _joined(parts: Sequence[_Entries]) -> _Entries:
    return _Entries(
        np.concatenate([e.row for e in parts]),
        np.concatenate([e.column for e in parts]),
        np.concatenate([e.value for e in parts]),
    )


def _stacked(parts: Sequence[_Entries], first: Array, shape: tuple[int, int]) -> csr_array:
    """Groups of rows one below the other."""
    moved = [_Entries(e.row + at, e.column, e.value) for e, at in zip(parts, first, strict=True)]
    every = _joined(moved)
    return csr_array(coo_array((every.value, (every.row, every.column)), shape=shape))


__all__ = ["POWERS", "BlockWidths"]
