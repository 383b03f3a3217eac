"""What a family asks of one row: groups that lie in it, and which rows share a count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chita_opt.heuristics.row_systems import RowSystem
from chita_opt.supports import Budget, SupportFamily
from chita_opt.supports.base import Array

FIXED = -1


@dataclass(frozen=True, eq=False)
class RowQuota:
    """The rules of one row of d weights.

    Attributes
    ----------
    group : Array
        (d,) int64 labels, 0 … groups - 1.
    caps : Array
        (groups,) int64, at most so many kept in each; d where the row alone sets no limit.
    pool : int
        Rows of one pool may pass counts to each other; :data:`FIXED` if the row keeps its count.
    closed : bool
        Whether the caps are all that the family asks of the row.
    """

    group: Array
    caps: Array
    pool: int = FIXED
    closed: bool = False


class RowQuotas:
    """Rules of every row under a family.

    Of a :class:`Budget`, groups inside a row are that row's rules. A row that lies in one larger
    group (cardinality, layers) shares its count with the others there; with a total, rows of
    complete groups share theirs. Where several larger groups cross a row, their counts in it stay
    what they are. Other families set no rule that a row can see.
    """

    def __init__(self, supports: SupportFamily, systems: list[RowSystem]) -> None:
        self.budget = supports if isinstance(supports, Budget) else None
        if self.budget is None:
            return
        self.labels, self.caps = self.budget.labels.numpy(), self.budget.caps.numpy()
        row, rows = np.empty(supports.size, np.int64), 0
        for system in systems:
            count, width = system.index.shape
            numbers = np.arange(rows, rows + count)
            row[system.index.cpu().numpy().ravel()] = numbers.repeat(width)
            rows += count
        first, last = np.full(len(self.caps), rows), np.full(len(self.caps), -1)
        np.minimum.at(first, self.labels, row)
        np.maximum.at(last, self.labels, row)
        self.crosses = first < last

    def of(self, index: Array, inside: Array | None = None) -> RowQuota:
        """The rules of the row with the weights ``index``, of which those ``inside`` are kept."""
        d = len(index)
        if self.budget is None:
            return RowQuota(np.zeros(d, np.int64), np.array([d]))
        names, group = np.unique(self.labels[index], return_inverse=True)
        crosses, caps = self.crosses[names], self.caps[names].copy()
        pool, total = FIXED, self.budget.total
        if len(names) == 1 and crosses[0]:
            pool, caps[0] = int(names[0]), d
        elif crosses.any():
            kept = np.full(d, True) if inside is None else inside
            held = np.bincount(group[kept], minlength=len(names))
            caps = np.where(crosses, held, caps)
        elif total is not None:
            pool = len(self.caps)
        closed = total is None and not crosses.any()
        return RowQuota(group.astype(np.int64), caps.astype(np.int64), pool, closed)
