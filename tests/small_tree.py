"""A branch and bound of a page, with a log, for problems of at most 14 weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from chita_opt.exact import TreeProof, enumerate_optimum
from chita_opt.problem import Problem
from chita_opt.solution import Solution

Array = np.ndarray
FREE, OUT, IN = -1, 0, 1


@dataclass(frozen=True, eq=False)
class Logged:
    """What ``save_proof`` takes."""

    solution: Solution
    proof: TreeProof | None
    optimum: float


@dataclass
class SmallTree:
    """Depth-first search whose split is a share of the smallest eigenvalue.

    With ``ascents`` steps towards the relaxation's optimum at each node; weights are fixed by their
    bounds if ``fix``; the least likely weight is branched on if ``slow``, for a large tree.
    """

    problem: Problem
    cutoff: float
    ascents: int = 20
    fix: bool = True
    share: float = 0.9
    slow: bool = False
    steps: list[tuple[int, int, int, int]] = field(default_factory=list)
    fixings: list[tuple[int, int, int]] = field(default_factory=list)
    witnesses: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        C, rho = self.problem.curvature.dense().numpy(), self.problem.rho.numpy()
        w_bar, g = self.problem.w_bar.numpy(), self.problem.g.numpy()
        self.H = 0.5 * (C + C.T) + np.diag(rho)
        self.b, self.at_zero = self.H @ w_bar - g, self.problem.prune_all
        self.d = np.full(len(w_bar), self.share * float(np.linalg.eigvalsh(self.H)[0]))

    def run(self) -> TreeProof:
        self.visit(np.full(len(self.b), FREE), -1, -1)
        columns = list(zip(*self.steps, strict=True))
        fixings = np.array(sorted(self.fixings), dtype=np.int64).reshape(-1, 3)
        W = np.array(self.witnesses).reshape(-1, len(self.b))
        names = ("parent", "side", "branch", "witness_row")
        return TreeProof(
            cutoff=self.cutoff,
            **{name: np.array(c) for name, c in zip(names, columns, strict=True)},
            fix_step=fixings[:, 0], fix_index=fixings[:, 1], fix_value=fixings[:, 2],
            witnesses=W, splits=np.tile(self.d, (len(W), 1)),
        )  # fmt: skip

    def visit(self, state: Array, parent: int, side: int) -> None:
        step = len(self.steps)
        self.steps.append((parent, side, -1, -1))
        if not self.allowed(state == IN):
            return
        exact = self.allowed(state != OUT)
        v = self.point((state != OUT).astype(float), state) if exact else self.ascend(state)
        self.witnesses.append(v)
        self.steps[step] = (parent, side, -1, len(self.witnesses) - 1)
        if exact or self.bound(v, state) >= self.cutoff:
            return
        after = self.fixed(v, state, step)
        free = np.flatnonzero(after == FREE)
        if not len(free):
            self.visit(after, step, -1)
            return
        branch = int(free[np.argmax(np.abs(v[free]) * (-1.0 if self.slow else 1.0))])
        self.steps[step] = (parent, side, branch, len(self.witnesses) - 1)
        for value in (OUT, IN):
            child = after.copy()
            child[branch] = value
            self.visit(child, step, value)

    def fixed(self, v: Array, state: Array, step: int) -> Array:
        after = state.copy()
        for j in np.flatnonzero(state == FREE) if self.fix else ():
            for value in (OUT, IN):
                against = state.copy()
                against[j] = 1 - value
                if after[j] == FREE and self.bound(v, against) >= self.cutoff:
                    after[j] = value
                    self.fixings.append((step, int(j), value))
        return after

    def allowed(self, mask: Array) -> bool:
        return self.problem.supports.contains(torch.from_numpy(np.asarray(mask)))

    def best(self, gains: Array, state: Array) -> Array:
        """Indicators of the best mask that keeps what is fixed in."""
        large = 1.0 + 2.0 * gains.sum()
        scores = np.where(state == OUT, 0.0, gains + large * (state == IN))
        mask = self.problem.supports.best_support(torch.from_numpy(scores)).numpy()
        return (mask & (state != OUT)).astype(float)

    def point(self, z: Array, state: Array) -> Array:
        """Minimiser of v'Qv/2 + sum d v^2 / 2z - b'v on z > 0."""
        v, used = np.zeros_like(z), z > 0
        M = self.H[np.ix_(used, used)] + np.diag(self.d[used] / z[used] - self.d[used])
        v[used] = np.linalg.solve(M, self.b[used])
        return v

    def gains(self, v: Array) -> Array:
        r = self.b - self.H @ v + self.d * v
        return r * r / (2.0 * self.d)

    def bound(self, v: Array, state: Array) -> float:
        if not self.allowed(state == IN):
            return float("inf")
        gains = self.gains(v)
        base = self.at_zero - 0.5 * float(v @ (self.H @ v - self.d * v))
        return base - float(gains @ self.best(gains, state))

    def ascend(self, state: Array) -> Array:
        z = np.where(state == FREE, 0.5, (state == IN).astype(float))
        best = v = self.point(z, state)
        for i in range(self.ascents):
            z = z + (2.0 / (i + 4.0)) * (self.best(self.gains(v), state) - z)
            v = self.point(np.where(z > 1e-9, z, 0.0), state)
            best = max(best, v, key=lambda u: self.bound(u, state))
        return best


def log_of(problem: Problem, *, slack: float = 1e-6, **how: Any) -> Logged:
    """Optimum by enumeration, and the log of a search that proves it to within a slack."""
    solution = enumerate_optimum(problem)
    optimum = solution.objective
    cutoff = optimum - slack * (problem.prune_all - problem.dense_minimum)
    return Logged(solution, SmallTree(problem, cutoff, **how).run(), optimum)
