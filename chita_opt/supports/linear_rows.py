r"""A family in linear rows, with auxiliary variables where it needs them.

.. math:: Gz+Eu\le h,\qquad z\in[0,1]^p,\quad u\in[0,1]^q,\qquad G\ge0

A mask is in the family if and only if some u satisfies the rows (families with a weaker description
say so). For multipliers :math:`y\ge0`, weak duality bounds the best mask for scores s without a
solver:

.. math:: \max_{z\in\mathcal S}s^\top z\;\le\;
          h^\top y+\sum_j\big(s_j-(G^\top y)_j\big)^++\sum_i\big(-(E^\top y)_i\big)^+ .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import block_diag, coo_array, csr_array, hstack

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class LinearRows:
    """The rows ``G z + E u <= h``.

    Attributes
    ----------
    G : csr_array
        (m, p), entries >= 0.
    h : Array
        (m,) float64.
    E : csr_array
        (m, q), entries of either sign; q = 0 where the family needs no auxiliary variables.
    """

    G: csr_array
    h: Array
    E: csr_array

    @classmethod
    def plain(cls, G: csr_array, h: Array) -> LinearRows:
        """Rows without auxiliary variables."""
        return cls(G, h, csr_array((len(h), 0)))

    @property
    def q(self) -> int:
        """Number of auxiliary variables."""
        return int(self.E.shape[1])

    @property
    def joint(self) -> csr_array:
        """(m, p + q), the matrix over (z, u)."""
        return csr_array(hstack([self.G, self.E], format="csr")) if self.q else self.G

    def bound(self, scores: Array, y: Array) -> float:
        """What multipliers y (m,) >= 0 prove of the largest sum of scores (p,)."""
        excess = np.maximum(scores - self.G.T @ y, 0.0)
        return float(self.h @ y) + float(excess.sum()) + self._auxiliary_part(y)

    def exchange_costs(self, scores: Array, y: Array, mask: Array) -> Array:
        """(p,) not above what the bound at y falls by when a weight is forced against ``mask``."""
        reduced = scores - self.G.T @ y
        return np.where(mask, np.maximum(reduced, 0.0), np.maximum(-reduced, 0.0))

    def allow(self, masks: Array) -> Array:
        """(N,) bool: whether each of the masks (N, p) satisfies every row by itself, for some u.

        Necessary, and sufficient where there are no auxiliary variables.
        """
        least = self.E.minimum(0.0).sum(1) if self.q else 0.0
        return np.asarray((masks @ self.G.T <= self.h - least + 1e-9).all(axis=1))

    def _auxiliary_part(self, y: Array) -> float:
        return float(np.maximum(-(self.E.T @ y), 0.0).sum()) if self.q else 0.0


def side_by_side(parts: Sequence[LinearRows]) -> LinearRows:
    """The rows of families over consecutive ranges of weights, one after the other."""
    G = block_diag([part.G for part in parts], format="csr")
    E = _diagonal([part.E for part in parts])
    return LinearRows(csr_array(G), np.concatenate([part.h for part in parts]), E)


def _diagonal(blocks: Sequence[csr_array]) -> csr_array:
    """Block diagonal of matrices that may have no columns."""
    down = np.cumsum([0, *(block.shape[0] for block in blocks)])
    right = np.cumsum([0, *(block.shape[1] for block in blocks)])
    entries = [block.tocoo() for block in blocks]
    row = np.concatenate([e.row + d for e, d in zip(entries, down[:-1], strict=True)])
    column = np.concatenate([e.col + r for e, r in zip(entries, right[:-1], strict=True)])
    values = np.concatenate([e.data for e in entries])
    return csr_array(coo_array((values, (row, column)), shape=(int(down[-1]), int(right[-1]))))
