"""Permutations of columns that let N:M patterns keep more."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import SupportError

Array = np.ndarray
_SMALLEST = 1e-12  # relative gain that counts


def permutation_search(
    scores: Tensor,
    shape: tuple[int, int],
    n: int,
    m: int,
    *,
    axis: int = 1,
    sweeps: int = 20,
    seed: int = 0,
) -> Tensor:
    """Exchange positions between groups as long as the kept scores rise.

    Finding the best permutation is hard in general; this is a local search over swaps of two
    positions of different groups, from the natural order, group pair by group pair.

    Parameters
    ----------
    scores : Tensor
        (rows * cols,) >= 0.
    shape : tuple of int
        (rows, cols).
    n, m : int
        The pattern.
    axis : {0, 1}
        As in :func:`n_of_m_along`.
    sweeps : int
        Rounds over all pairs of groups at most.
    seed : int
        Order in which pairs are visited.

    Returns
    -------
    Tensor
        (length of the axis,) int64; never keeps less than the natural order.

    Raises
    ------
    SupportError
        If the axis is not a multiple of m.
    """
    table = scores.detach().double().cpu().numpy().reshape(shape)
    lines = table if axis == 1 else table.T
    length = lines.shape[1]
    if m < 1 or length % m or not 0 <= n <= m:
        raise SupportError(f"{n}:{m} along axis {axis} does not fit a {shape[0]}x{shape[1]} matrix")
    if length == m or n in (0, m):
        return torch.arange(length)
    search = _Search(np.ascontiguousarray(lines.T), n, m)
    rng = np.random.default_rng(seed)
    for _ in range(sweeps):
        if not sum(search.improve(int(a)) for a in rng.permutation(length // m)):
            break
    return torch.from_numpy(np.sort(search.groups, axis=1).reshape(-1))


class _Search:
    """Groups of positions, and what each group keeps without each of its members."""

    def __init__(self, columns: Array, n: int, m: int) -> None:
        self.columns, self.n, self.m = columns, n, m
        self.groups = np.arange(len(columns)).reshape(-1, m)
        self.group = np.arange(len(columns)) // m
        self.rest = np.empty(len(columns))  # kept sum of the others of its group
        self.level = np.empty_like(columns)  # what a newcomer must exceed, line by line
        for g in range(len(self.groups)):
            self._measure(g)
        self.scale = float(columns.sum())

    def _measure(self, g: int) -> None:
        """Refresh both tables for the members of a group."""
        own = self.groups[g]
        for i, j in enumerate(own):
            others = np.sort(self.columns[np.delete(own, i)], axis=0)
            self.rest[j] = others[self.m - 1 - self.n :].sum()
            self.level[j] = others[self.m - 1 - self.n]

    def improve(self, a: int) -> bool:
        """Carry out the best swap of a member of group a with any other position."""
        own = self.groups[a]
        gain = np.empty((self.m, len(self.columns)))
        for i, j in enumerate(own):
            inward = np.maximum(self.columns - self.level[j], 0.0).sum(1)
            outward = np.maximum(self.columns[j] - self.level, 0.0).sum(1)
            now = np.maximum(self.columns[j] - self.level[j], 0.0).sum()
            gain[i] = inward - now + outward
        gain -= np.maximum(self.columns - self.level, 0.0).sum(1)
        gain[:, own] = -np.inf
        i, j = divmod(int(gain.argmax()), gain.shape[1])
        if not gain[i, j] > _SMALLEST * self.scale:
            return False
        b = int(self.group[j])
        self.groups[b][self.groups[b] == j] = own[i]
        self.group[own[i]], self.group[j] = b, a
        self.groups[a, i] = j
        self._measure(a)
        self._measure(b)
        return True


__all__ = ["permutation_search"]
