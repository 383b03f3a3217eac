r"""A bit-width for every channel, 0 of which prunes it: a quadratic over a multiple choice.

.. math:: \min_y\ \tfrac12\Delta^\top(C+\mathrm{diag}\,\rho)\Delta+g^\top\Delta,\quad
          \Delta=\sum_{c,\beta}y_{c\beta}\,(q_\beta(\bar w_c)-\bar w_c)
          \quad\text{s.t. }\sum_\beta y_{c\beta}=1,\ \ \sum_{c,\beta}\beta\,n_c\,y_{c\beta}\le B

The joint search of pruning and channel-wise precision (Motetti et al. 2024, arXiv 2407.01054) on
the quadratic model of the loss. Where the curvature does not couple channels it is a
multiple-choice knapsack, solved exactly; elsewhere see :mod:`chita_opt.exact.bit_width_search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from chita_opt.curvature import Curvature
from chita_opt.errors import ProblemError
from chita_opt.supports.base import Array
from chita_opt.supports.knapsack import best_choice

BITS = (0, 2, 4, 8)
_SCALES = np.linspace(0.4, 1.0, 25)


def quantised(weights: Tensor, bits: int) -> Tensor:
    r"""Nearest values on the symmetric grid :math:`\{-m,\dots,m\}\cdot s`, m = 2^(bits-1) - 1.

    s is the best of 25 between 0.4 and 1 times :math:`\max|w|/m` by the sum of squared errors; 0
    bits give zeros.

    Raises
    ------
    ProblemError
        For 1 bit, or a negative number: the grid has no values but zero.
    """
    if bits < 0 or bits == 1:
        raise ProblemError(f"bits is {bits}; give 0, or at least 2")
    w = weights.double()
    largest = float(w.abs().max()) if len(w) else 0.0
    if bits == 0 or largest == 0.0:
        return torch.zeros_like(w)
    top = 2 ** (bits - 1) - 1
    steps = torch.from_numpy(_SCALES).to(w.device)[:, None] * largest / top
    values = steps * (w / steps).round().clamp(-top, top)
    return values[int((values - w).square().sum(1).argmin())]


@dataclass(frozen=True, eq=False)
class BitWidthProblem:
    r"""Which precision every channel gets within a number of bits in all.

    Attributes
    ----------
    curvature : Curvature
        C (p, p).
    w_bar : Tensor
        (p,) dense weights.
    rho : Tensor
        (p,) ridge, >= 0.
    channels : Tensor
        (p,) int64, channel of each weight.
    budget : int
        B, bits of all weights together.
    bits : tuple of int
        The choices, rising, 0 among them.
    g : Tensor or None
        (p,) linear term.

    Raises
    ------
    ProblemError
        If sizes disagree, the choices do not rise from 0, or the budget is negative.
    """

    curvature: Curvature
    w_bar: Tensor
    rho: Tensor
    channels: Tensor
    budget: int
    bits: tuple[int, ...] = BITS
    g: Tensor | None = None

    def __post_init__(self) -> None:
        p = self.curvature.size
        for name in ("w_bar", "rho", "channels"):
            if getattr(self, name).shape != (p,):
                raise ProblemError(f"{name} has another size than the curvature's {p} weights")
        if self.bits[0] != 0 or list(self.bits) != sorted(set(self.bits)):
            raise ProblemError(f"bits are {self.bits}; they must rise from 0, which prunes")
        if self.budget < 0 or float(self.rho.min()) < 0.0:
            raise ProblemError(f"budget {self.budget} and the ridge must be >= 0")
        if int(self.channels.min()) < 0:
            raise ProblemError("channels must be numbered from 0")

    @cached_property
    def count(self) -> int:
        """Number of channels."""
        return int(self.channels.max()) + 1

    @cached_property
    def costs(self) -> Array:
        """(channels, choices) int64, bits that each choice takes."""
        sizes = torch.bincount(self.channels, minlength=self.count).numpy()
        return np.outer(sizes, self.bits)

    @cached_property
    def errors(self) -> Tensor:
        """(choices, p): what each choice changes of the weights."""
        out = torch.empty(len(self.bits), len(self.w_bar), dtype=torch.float64)
        w, label = self.w_bar.double().cpu(), self.channels.cpu()
        for c in range(self.count):
            own = label == c
            for i, bits in enumerate(self.bits):
                out[i, own] = quantised(w[own], bits) - w[own]
        return out.to(self.w_bar.device)

    @cached_property
    def quadratic(self) -> tuple[Array, Array]:
        """M (N, N) and q (N,) of f(y) = y'My/2 + q'y; N runs over channels, then choices."""
        count, choices = self.count, len(self.bits)
        M = np.empty((count * choices, count * choices))
        for c in range(count):
            own = (self.channels == c).double()
            for i in range(choices):
                column = own * self.errors[i]
                pull = self.curvature.product(column) + self.rho * column
                M[:, c * choices + i] = self._summed(pull)
        g = torch.zeros_like(self.w_bar.double()) if self.g is None else self.g.double()
        return 0.5 * (M + M.T), self._summed(g)

    def _summed(self, values: Tensor) -> Array:
        """(N,) sums over channels of values (p,) times each choice's errors."""
        sums = torch.zeros(self.count, len(self.bits), dtype=torch.float64, device=values.device)
        sums.index_add_(0, self.channels, (self.errors * values).T.contiguous())
        return sums.cpu().numpy().reshape(-1)

    @cached_property
    def is_uncoupled(self) -> bool:
        """Whether no two channels share curvature."""
        choices = len(self.bits)
        blocks = self.quadratic[0].reshape(self.count, choices, self.count, choices)
        shared = np.asarray(blocks.any(axis=(1, 3)))
        return not shared[~np.eye(self.count, dtype=bool)].any()

    def weights(self, option: Sequence[int] | Array) -> Tensor:
        """(p,) the quantised weights of one choice for each channel."""
        chosen = torch.as_tensor(np.asarray(option), device=self.channels.device)[self.channels]
        return self.w_bar.double() + self.errors.gather(0, chosen[None, :])[0]

    def objective(self, option: Sequence[int] | Array) -> float:
        """Modelled increase of the loss, recomputed from the data in float64."""
        x = self.weights(option) - self.w_bar.double()
        linear = 0.0 if self.g is None else float(self.g.double() @ x)
        return self.curvature.quadratic(x) + 0.5 * float((self.rho * x) @ x) + linear

    def bits_used(self, option: Sequence[int] | Array) -> int:
        """Bits of all weights together."""
        return int(self.costs[np.arange(self.count), np.asarray(option)].sum())

    def cheapest(self, linear: Array) -> tuple[Array, float]:
        """Choices (channels,) that minimise ``linear`` (N,) within the budget, and the value."""
        table = linear.reshape(self.count, len(self.bits))
        option = best_choice(table.max() - table, self.costs, self.budget).option
        return option, float(table[np.arange(self.count), option].sum())
