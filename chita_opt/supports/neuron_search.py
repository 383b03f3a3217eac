r"""Choosing neurons whose weights count in pairs: a good choice, and a bound on the best.

.. math:: \max_h\ a^\top h+\tfrac12h^\top Wh\quad\text{s.t. }\sum_{n\in g}h_n\le K_g,\quad
          h\in\{0,1\}^N,\qquad W\ge0\text{ symmetric, zero diagonal}

With one group this holds densest-k-subgraph, so it is NP-hard. The choice is greedy removal
followed by exchanges within groups. The bound splits each pair, :math:`C+C^\top=W`, and lets every
neuron choose its own partners (Caprara, Pisinger & Toth 1999, "Exact solution of the quadratic
knapsack problem"):

.. math:: \sum_g\mathrm{Top}_{K_g}\Big(a_n+\sum_{g'}\mathrm{Top}_{K_{g'}-[n\in g']}(C_{nm},\
          m\in g')\Big)_{n\in g},

which is valid for every split and, at the best split, the linear relaxation with the products of
rows and neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chita_opt.supports.base import Array

_BOUND_STEPS = 60


@dataclass(frozen=True, eq=False)
class NeuronChoice:
    """Which neurons may be kept and what they are worth.

    Attributes
    ----------
    alone : ndarray
        (N,) a, the value of a neuron by itself.
    pairs : ndarray
        (N, N) W, what two neurons are worth together.
    groups : ndarray
        (N,) group of each neuron.
    caps : ndarray
        (G,) most neurons of each group.
    """

    alone: Array
    pairs: Array
    groups: Array
    caps: Array

    def value(self, kept: Array) -> float:
        """Sum over the kept neurons and pairs."""
        return float(self.alone[kept].sum() + 0.5 * self.pairs[np.ix_(kept, kept)].sum())

    def top(self, values: Array) -> Array:
        """(N,) bool: the largest values of each group up to its cap, ties by index."""
        chosen = np.zeros(len(values), dtype=bool)
        for g, cap in enumerate(self.caps):
            own = np.flatnonzero(self.groups == g)
            chosen[own[np.argsort(-values[own], kind="stable")[:cap]]] = True
        return chosen


@dataclass(frozen=True, eq=False)
class SplitBound:
    """A split of the pairs and the bound that it proves.

    Attributes
    ----------
    value : float
        Not below the best value.
    shares : ndarray
        (N, N) C: what neuron n counts of its pair with m.
    levels : ndarray
        (N, G): the first share of group g that neuron n leaves out.
    worth : ndarray
        (N,) the most that each neuron can count.
    """

    value: float
    shares: Array
    levels: Array
    worth: Array


def best_neurons(choice: NeuronChoice) -> Array:
    """(N,) bool: a good choice; the best one where there are no pairs."""
    if not choice.pairs.any():
        return choice.top(choice.alone)
    starts = [_without_weakest(choice), choice.top(_split(choice, 0.5 * choice.pairs).worth)]
    ends = [_exchanged(choice, start) for start in starts]
    return max(ends, key=choice.value)


def _without_weakest(choice: NeuronChoice) -> Array:
    """Remove the neuron that the others miss least until every group is within its cap."""
    kept = np.ones(len(choice.alone), dtype=bool)
    worth = choice.alone + choice.pairs.sum(1)
    counts = np.bincount(choice.groups, minlength=len(choice.caps))
    while (over := counts > choice.caps).any():
        n = int(np.where(kept & over[choice.groups], worth, np.inf).argmin())
        kept[n] = False
        counts[choice.groups[n]] -= 1
        worth = worth - choice.pairs[n]
    return kept


def _exchanged(choice: NeuronChoice, kept: Array) -> Array:
    """Best exchanges of two neurons of a group until none gains."""
    kept = kept.copy()
    worth = choice.alone + choice.pairs[:, kept].sum(1)
    for _ in range(10 * len(kept)):
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        if not len(inside) or not len(outside):
            break
        gains = worth[outside][None, :] - worth[inside][:, None]
        gains -= choice.pairs[np.ix_(inside, outside)]
        gains[choice.groups[inside][:, None] != choice.groups[outside][None, :]] = -np.inf
        i, j = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[i, j] <= 1e-12 * abs(worth).max():
            break
        leaving, entering = inside[i], outside[j]
        kept[leaving], kept[entering] = False, True
        worth = worth - choice.pairs[leaving] + choice.pairs[entering]
    return kept


def split_bound(choice: NeuronChoice, target: float) -> SplitBound:
    """Bound by subgradient steps on the split; ``target`` is the value of a choice at hand."""
    best = found = _split(choice, 0.5 * choice.pairs)
    shares = best.shares
    if not choice.pairs.any():
        return best
    for _ in range(_BOUND_STEPS):
        if best.value <= target * (1.0 + 1e-12):
            break
        direction = _wanted(choice, found)
        direction = direction - direction.T
        length = float(np.square(direction).sum())
        if not length:
            break
        moved = shares - (found.value - target) / length * direction
        shares = np.clip(moved, 0.0, choice.pairs)
        upper = np.triu(np.ones_like(shares, dtype=bool))
        shares = np.where(upper, shares, choice.pairs - shares.T)
        found = _split(choice, shares)
        best = min(best, found, key=lambda b: b.value)
    return best


def _split(choice: NeuronChoice, shares: Array) -> SplitBound:
    """The bound at one split."""
    count, caps = len(choice.alone), choice.caps
    levels, worth = np.zeros((count, len(caps))), choice.alone.copy()
    for g, cap in enumerate(caps):
        members = choice.groups == g
        own = -np.sort(-shares[:, members], axis=1)
        partners = np.where(members, max(cap - 1, 0), cap)
        if own.shape[1]:
            padded = np.concatenate([own, np.zeros((count, 1))], axis=1)
            at = np.minimum(partners, own.shape[1])
            levels[:, g] = padded[np.arange(count), at]
            worth += partners * levels[:, g]
            worth += np.maximum(own - levels[:, g : g + 1], 0.0).sum(1)
    value = sum(
        float(-np.sort(-worth[choice.groups == g])[:cap].sum()) for g, cap in enumerate(caps)
    )
    return SplitBound(value, shares, levels, worth)


def _wanted(choice: NeuronChoice, bound: SplitBound) -> Array:
    """(N, N): the partners that each neuron of the bound's maximum chooses."""
    inside = choice.top(bound.worth)
    partners = bound.shares > bound.levels[:, choice.groups]
    return (inside[:, None] & partners).astype(np.float64)
