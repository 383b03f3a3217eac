r"""The optimum of small problems by looking at every support.

Families are closed under removing weights, so some optimal support is maximal: nothing can be
added to it. Each maximal support S is solved exactly,

.. math:: H_{SS}x_S = H_{S\bar S}\bar w_{\bar S}-g_S,\qquad x_{\bar S}=-\bar w_{\bar S},\qquad
          f=\tfrac12x^\top Hx+g^\top x,\qquad H=C+\mathrm{diag}(\rho),

in batches of one size. Nothing here is shared with the heuristics and bounds that it judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from chita_opt.curvature.cholesky import cholesky
from chita_opt.errors import ProblemError
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import SupportFamily
from chita_opt.supports.base import Array

MAX_SIZE = 20
_BATCH = 2**14  # supports solved, or masks tested, at a time


@dataclass(frozen=True, eq=False)
class Enumeration:
    """Every maximal support of a problem with its best weights.

    Attributes
    ----------
    problem : Problem
        What was enumerated.
    masks : Tensor
        (N, p) bool, the maximal supports.
    weights : Tensor
        (N, p) float64, the minimisers on them.
    values : Tensor
        (N,) float64, their objectives.
    """

    problem: Problem
    masks: Tensor
    weights: Tensor
    values: Tensor

    @property
    def optimum(self) -> float:
        """The smallest objective of the problem."""
        return float(self.values.min())

    def within(self, value: float) -> Tensor:
        """(M, p) weights of all supports whose objective is at most ``value``."""
        return self.weights[self.values <= value]


def enumerate_optimum(problem: Problem) -> Solution:
    """Solve a problem of at most 20 weights by enumeration; any family, any curvature form.

    Raises
    ------
    ProblemError
        If there are more than 20 weights.
    CurvatureError
        If the curvature plus the ridge is singular on some support.
    """
    clock = Clock()
    found = enumerate_supports(problem)
    best = int(found.values.argmin())
    clock.record(float(found.values[best]))
    stats = {"supports": len(found.values)}
    w = found.weights[best]
    return Solution(problem, w, "enumerate", Status.OPTIMAL, clock.elapsed, clock.trace, stats)


def enumerate_supports(problem: Problem) -> Enumeration:
    """Solve every maximal support of a problem of at most 20 weights.

    Raises
    ------
    ProblemError, CurvatureError
        As :func:`enumerate_optimum`.
    """
    if problem.p > MAX_SIZE:
        raise ProblemError(
            f"the problem has {problem.p} weights; enumeration looks at every support and stops at "
            f"{MAX_SIZE}. Use solve for an answer and certify for a proof of how good it is"
        )
    H = problem.curvature.dense() + torch.diag(problem.rho)
    supports = torch.from_numpy(maximal_masks(problem.supports)).to(problem.device)
    supports = supports[supports.sum(1).argsort(stable=True)]
    sizes = supports.sum(1).tolist()
    weights, values, start = [], [], 0
    for _, group in groupby(sizes):
        end = start + len(list(group))
        for masks in supports[start:end].split(_BATCH):
            x = _displacements(problem, H, masks)
            weights.append(torch.where(masks, problem.w_bar + x, 0.0))
            values.append(0.5 * ((x @ H) * x).sum(1) + x @ problem.g)
        start = end
    return Enumeration(problem, supports, torch.cat(weights), torch.cat(values))


def maximal_masks(supports: SupportFamily) -> Array:
    """All masks of the family to which nothing can be added, (N, p) bool, in binary order.

    The rows of a laminar family describe it exactly. Those of another describe a family that holds
    it: where ``contains`` refuses a maximal mask, those with one weight less take its place.
    """
    p = supports.size
    codes = _maximal_codes(_rows_allow(supports))
    return _bits(codes if supports.is_laminar else _members(supports, codes), p)


def _members(supports: SupportFamily, codes: Array) -> Array:
    """Maximal masks of the family, from the maximal masks of a larger one, as numbers."""
    p, waiting = supports.size, set(codes.tolist())
    members: list[int] = []
    while waiting:
        size = max(code.bit_count() for code in waiting)
        layer = sorted(code for code in waiting if code.bit_count() == size)
        waiting.difference_update(layer)
        for code in layer:
            if supports.contains(torch.from_numpy(_bits(np.array([code]), p)[0])):
                members.append(code)
            else:
                waiting.update(code & ~(1 << j) for j in range(p) if code >> j & 1)
        waiting = {c for c in waiting if not any(c & ~m == 0 for m in members)}
    return np.array(sorted(members), dtype=np.int64)


def _rows_allow(supports: SupportFamily) -> Array:
    """(2^p,) bool: which masks, read as binary numbers, the rows allow."""
    rows = supports.rows()
    codes = np.arange(2**supports.size)
    allowed = np.empty(len(codes), dtype=bool)
    for i in range(0, len(codes), _BATCH):
        Z = _bits(codes[i : i + _BATCH], supports.size).astype(np.float64)
        allowed[i : i + _BATCH] = rows.allow(Z)
    return allowed


def _maximal_codes(allowed: Array) -> Array:
    """Numbers of the allowed masks none of whose one-weight extensions is allowed."""
    codes = np.arange(len(allowed))
    maximal = allowed.copy()
    for j in range(len(allowed).bit_length() - 1):
        larger = codes | 1 << j
        maximal &= (larger == codes) | ~allowed[larger]
    return codes[maximal]


def _bits(codes: Array, p: int) -> Array:
    """(N, p) bool: bit j of every number."""
    return (codes[:, None] >> np.arange(p) & 1).astype(bool)


def _displacements(problem: Problem, H: Tensor, masks: Tensor) -> Tensor:
    """Minimisers x = w - w_bar on supports of one size, (N, p)."""
    x = torch.where(masks, 0.0, -problem.w_bar)
    size = int(masks[0].sum())
    if size == 0:
        return x
    index = masks.nonzero()[:, 1].reshape(-1, size)
    rhs = (-problem.g - x @ H).gather(1, index)
    L = cholesky(H[index[:, :, None], index[:, None, :]], f"the curvature on {size} kept weights")
    return x.scatter(1, index, torch.cholesky_solve(rhs[:, :, None], L)[:, :, 0])
