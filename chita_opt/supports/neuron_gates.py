r"""Neurons that are kept or dropped with every weight that enters or leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.base import Array, SupportFamily
from chita_opt.supports.budget import Budget
from chita_opt.supports.linear_rows import LinearRows
from chita_opt.supports.neuron_rows import neuron_rows
from chita_opt.supports.neuron_search import (
    NeuronChoice,
    SplitBound,
    best_neurons,
    split_bound,
)


@dataclass(frozen=True, eq=False)
class NeuronGates(SupportFamily):
    r"""A weight may be kept only where the neurons at both of its ends are.

    .. math:: z_j\le h_{a(j)},\quad z_j\le h_{b(j)},\qquad\sum_{n\in g}h_n\le K_g

    Dropping neuron n of a layer removes its row there and its column in the next layer
    (:meth:`of_chain`); in a recurrent layer it removes rows and columns of all gates
    (:meth:`of_recurrent`, the groups of Wen et al. 2019, arXiv 1906.06847).

    Where no weight lies between two neurons that may both go (one hidden layer), the oracle keeps
    the neurons with the largest sums of scores and is exact, and the rows describe the hull. With
    several hidden layers, or recurrent weights, the best choice holds densest-k-subgraph and is
    **NP-hard**: ``is_exact`` is False, the oracle is greedy removal with exchanges, and
    ``value_bound`` proves how good it is (:mod:`chita_opt.supports.neuron_search`). The rows then
    carry the pairs of neurons as auxiliary variables,

    .. math:: z_j\le y_{nm},\quad y_{nm}\le h_n,\quad y_{nm}\le h_m,\quad
              \sum_{m\in g,m\ne n}y_{nm}\le(K_g-[n\in g])\,h_n ,

    whose linear relaxation is what that bound approaches.

    Attributes
    ----------
    gates : Tensor
        (p, 2) int64, the neurons of each weight; -1 where there is none that may go.
    groups : Tensor
        (N,) int64, group of each neuron (a hidden layer, the inputs).
    caps : Tensor
        (G,) int64, :math:`K_g`.
    """

    gates: Tensor
    groups: Tensor
    caps: Tensor
    binary_auxiliary = False

    def __post_init__(self) -> None:
        if self.gates.ndim != 2 or self.gates.shape[1:] != (2,) or not len(self.gates):
            raise SupportError(f"gates have shape {tuple(self.gates.shape)}; give (p, 2) int64")
        if int(self.gates.min()) < -1 or int(self.gates.max()) >= len(self.groups):
            raise SupportError(f"gates must be numbers of neurons, -1 to {len(self.groups) - 1}")
        sizes = torch.bincount(self.groups, minlength=len(self.caps))
        if len(sizes) > len(self.caps) or bool(((self.caps < 0) | (self.caps > sizes)).any()):
            raise SupportError(
                f"caps {self.caps.tolist()} must lie within the groups' sizes {sizes.tolist()}"
            )

    @classmethod
    def of_chain(cls, sizes: Sequence[int], keep: Sequence[int]) -> NeuronGates:
        """A perceptron with matrices (sizes[l+1], sizes[l]), ``keep[l]`` neurons a hidden layer."""
        hidden = list(sizes[1:-1])
        if len(keep) != len(hidden):
            raise SupportError(f"there are {len(hidden)} hidden layers but {len(keep)} counts")
        ends = np.concatenate([[0], np.cumsum(hidden)])
        names = [np.full(sizes[0], -1)]
        names += [np.arange(a, b) for a, b in pairwise(ends)]
        names += [np.full(sizes[-1], -1)]
        parts = [_crossed(out, into) for into, out in pairwise(names)]
        groups = np.repeat(np.arange(len(hidden)), hidden)
        return cls._from_arrays(np.concatenate(parts), groups, keep)

    @classmethod
    def of_recurrent(
        cls,
        inputs: int,
        hidden: int,
        *,
        keep: int,
        gates: int = 4,
        outputs: int = 0,
        keep_inputs: int | None = None,
    ) -> NeuronGates:
        """A recurrent layer: the input matrix, the recurrent one, the next layer's if any.

        Parameters
        ----------
        inputs, hidden : int
            Matrices of shapes (gates*hidden, inputs) and (gates*hidden, hidden), as PyTorch's.
        keep : int
            Hidden neurons to keep.
        gates : int
            4 for an LSTM, 3 for a GRU, 1 for a plain recurrent layer.
        outputs : int
            Rows of the linear layer that follows, whose columns go with the hidden neurons.
        keep_inputs : int, optional
            Inputs to keep; all where it is left out.
        """
        neurons = np.tile(np.arange(hidden), gates)
        own = np.full(inputs, -1) if keep_inputs is None else hidden + np.arange(inputs)
        parts = [_crossed(neurons, own), _crossed(neurons, np.arange(hidden))]
        parts.append(_crossed(np.full(outputs, -1), np.arange(hidden)))
        groups, caps = np.zeros(hidden, dtype=np.int64), [keep]
        if keep_inputs is not None:
            groups = np.concatenate([groups, np.ones(inputs, dtype=np.int64)])
            caps = [keep, keep_inputs]
        return cls._from_arrays(np.concatenate(parts), groups, caps)

    @classmethod
    def _from_arrays(cls, gates: Array, groups: Array, caps: Sequence[int]) -> NeuronGates:
        counts = torch.tensor(list(caps), dtype=torch.int64)
        return cls(torch.from_numpy(gates), torch.from_numpy(groups.astype(np.int64)), counts)

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of weights p."""
        return len(self.gates)

    @property
    def name(self) -> str:
        """Neurons kept of each group."""
        sizes = torch.bincount(self.groups, minlength=len(self.caps)).tolist()
        kept = ", ".join(f"{k} of {n}" for k, n in zip(self.caps.tolist(), sizes, strict=True))
        return f"neurons ({kept})"

    @property
    def specification(self) -> Mapping[str, Any]:
        """JSON-able description; says whether the oracle is exact."""
        return {
            "family": "neurons",
            "size": self.size,
            "neurons": len(self.groups),
            "caps": self.caps.tolist(),
            "oracle": "exact" if self.is_exact else "heuristic with a bound (NP-hard)",
        }

    @property
    def is_exact(self) -> bool:  # type: ignore[override]
        """Whether no weight lies between two neurons that may both go."""
        return not len(self._pairs[0])

    @property
    def rows_are_tight(self) -> bool:  # type: ignore[override]
        """As ``is_exact``: the rows of single neurons are totally unimodular."""
        return self.is_exact

    @cached_property
    def _ends(self) -> tuple[Array, Array]:
        """(p,) lower and upper neuron; equal where there is one, -1 where there is none."""
        low, high = self.gates.numpy().min(1), self.gates.numpy().max(1)
        return np.where(low < 0, high, low), high

    @cached_property
    def _pairs(self) -> tuple[Array, Array]:
        """Pairs (n, m), n < m, that share weights: (Q, 2), and (p,) each weight's, or -1."""
        low, high = self._ends
        two = np.flatnonzero(low != high)
        codes, label = np.unique(low[two] * len(self.groups) + high[two], return_inverse=True)
        place = np.full(self.size, -1)
        place[two] = label
        return np.stack(np.divmod(codes, len(self.groups)), axis=1), place

    def _choice(self, scores: Tensor) -> NeuronChoice:
        s = self.check_scores(scores).double().cpu().numpy()
        low, high = self._ends
        count = len(self.groups)
        one = (low == high) & (low >= 0)
        alone = np.bincount(low[one], s[one], minlength=count)
        pairs = np.zeros((count, count))
        ends, place = self._pairs
        sums = np.bincount(place[place >= 0], s[place >= 0], minlength=len(ends))
        pairs[ends[:, 0], ends[:, 1]] = pairs[ends[:, 1], ends[:, 0]] = sums
        return NeuronChoice(alone, pairs, self.groups.numpy(), self.caps.numpy())

    def best_support(self, scores: Tensor) -> Tensor:
        """All weights between the chosen neurons; see the class for when this is the best."""
        low, high = self._ends
        kept = np.append(best_neurons(self._choice(scores)), True)  # -1 is always open
        return torch.from_numpy(kept[low] & kept[high]).to(scores.device)

    def _bound(self, scores: Tensor) -> tuple[NeuronChoice, SplitBound]:
        choice = self._choice(scores)
        return choice, split_bound(choice, choice.value(best_neurons(choice)))

    def value_bound(self, scores: Tensor) -> float:
        """The best value where the oracle is exact, else the bound of the split."""
        open_ = float(scores.cpu().double()[torch.from_numpy(self._ends[0] < 0)].sum())
        value = open_ + self._bound(scores)[1].value
        return self.best_value(scores) if self.is_exact else value

    def contains(self, mask: Tensor) -> bool:
        """Whether the neurons that the kept weights touch are within the caps."""
        used = self.gates[self.check_mask(mask).cpu()]
        touched = torch.unique(used[used >= 0])
        counts = torch.bincount(self.groups[touched], minlength=len(self.caps))
        return bool((counts <= self.caps).all())

    def laminar_part(self, mask: Tensor) -> Budget:
        """All weights between the neurons that a mask touches."""
        low, high = self._ends
        used = self.gates[mask.cpu()].numpy()
        touched = np.zeros(len(self.groups) + 1, dtype=bool)
        touched[used] = True
        touched[-1] = True  # -1 is always open
        inside = torch.from_numpy(touched[low] & touched[high])
        caps = torch.tensor([int(inside.sum()), 0])
        return Budget((~inside).long(), caps, title="neurons given")

    def auxiliary(self, mask: Tensor) -> Array:
        """Neurons that kept weights touch, then pairs of them."""
        used = self.gates[mask.cpu()].numpy()
        neurons = np.zeros(len(self.groups) + 1)
        neurons[used] = 1.0
        ends, place = self._pairs
        pairs = np.zeros(len(ends))
        kept = mask.cpu().numpy() & (place >= 0)
        pairs[place[kept]] = 1.0
        return np.concatenate([neurons[:-1], pairs])

    def rows(self) -> LinearRows:
        """Rows of the weights, of the groups, then of the pairs; u holds neurons, then pairs."""
        ends, place = self._pairs
        return neuron_rows(self._ends[0], place, ends, self.groups.numpy(), self.caps.numpy())

    def multipliers(self, scores: Tensor) -> Array:
        """The split of the bound as prices of the rows; no solver."""
        choice, bound = self._bound(scores)
        s = scores.double().cpu().numpy()
        ends = self._pairs[0]
        n, other = ends.reshape(-1), ends[:, ::-1].reshape(-1)
        levels = np.zeros(len(self.caps))
        for g, cap in enumerate(self.caps.tolist()):
            worth = -np.sort(-bound.worth[choice.groups == g])
            levels[g] = worth[cap] if cap < len(worth) else 0.0
        parts = [s[self._ends[0] >= 0], levels]
        if len(ends):
            share, level = bound.shares[n, other], bound.levels[n, choice.groups[other]]
            parts += [np.maximum(share - level, 0.0), bound.levels.reshape(-1)]
        return np.concatenate(parts)


def _crossed(outputs: Array, inputs: Array) -> Array:
    """(rows*cols, 2): the neurons of a matrix's flattened weights."""
    return np.stack([np.repeat(outputs, len(inputs)), np.tile(inputs, len(outputs))], axis=1)
