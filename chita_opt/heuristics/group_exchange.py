r"""Exchange of whole groups: one group leaves, one enters, where the objective falls.

Over unions S of groups the objective is :math:`f(0)-\tfrac12b_S^\top H_{SS}^{-1}b_S`. With
:math:`H=A^\top A+R` and the groups' parts :math:`K_g=A_gR_g^{-1}A_g^\top`,
:math:`u_g=A_gR_g^{-1}b_g`,

.. math:: b_S^\top H_{SS}^{-1}b_S=\sum_{g\in S}b_g^\top R_g^{-1}b_g-u_S^\top(I+K_S)^{-1}u_S

is a sum over groups and one system of the size of a sample space, however many weights they hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from chita_opt.curvature import LowRank
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.problem import Problem
from chita_opt.solution import Clock
from chita_opt.supports import WholeGroups

_SMALL = 1500  # weights up to which H is formed
_ROOM = 1 << 26  # float64 numbers that the groups' parts may take
_PAIRS = 200  # exchanges tried before a round gives up
_KICKS, _ENOUGH = 12, 600  # further descents, and unions after which none begins
_LEAST = 1e-9  # relative decrease below which an exchange counts as none


class GroupValues(Protocol):
    """Objective of unions of groups."""

    def begin(self, alive: Tensor) -> None:
        """Values of unions near this one follow."""

    def value(self, alive: Tensor) -> float:
        """Least objective with the groups of a mask (groups,) kept whole."""


class _Matrix:
    """Each union by a factorisation of its part of H."""

    def __init__(self, problem: Problem, labels: Tensor) -> None:
        self.H = problem.curvature.dense() + torch.diag(problem.rho)
        self.b, self.labels = self.H @ problem.w_bar - problem.g, labels
        self.at_zero = problem.prune_all

    def begin(self, alive: Tensor) -> None:
        """Nothing is kept."""

    def value(self, alive: Tensor) -> float:
        """By one Cholesky factorisation."""
        own = alive[self.labels].nonzero()[:, 0]
        L, b = torch.linalg.cholesky(self.H[own[:, None], own]), self.b[own, None]
        half = torch.linalg.solve_triangular(L, b, upper=False)
        return self.at_zero - 0.5 * float(half.square().sum())


class _Parts:
    """The groups' parts of the system in the sample space."""

    def __init__(self, problem: Problem, curvature: LowRank, family: WholeGroups) -> None:
        columns, rho = curvature.A.T, problem.rho  # (p, n)
        b = curvature.product(problem.w_bar) + rho * problem.w_bar - problem.g
        labels, n = family.labels.to(problem.device), curvature.image_size
        self.K = torch.empty(family.count, n, n, dtype=torch.float64, device=problem.device)
        self.u = torch.empty(family.count, n, dtype=torch.float64, device=problem.device)
        for g in range(family.count):
            own = (labels == g).nonzero()[:, 0]
            A = columns[own].double() * curvature.scale**0.5
            scaled = A / rho[own, None]
            self.K[g], self.u[g] = A.T @ scaled, scaled.T @ b[own]
        self.alone = torch.zeros_like(self.u[:, 0]).index_add_(0, labels, b.square() / rho)
        self.at_zero = problem.prune_all
        self.begin(torch.zeros(family.count, dtype=torch.bool, device=problem.device))

    def begin(self, alive: Tensor) -> None:
        """Sum the parts of a union."""
        self.base, self.sum = alive.clone(), torch.eye(self.K.shape[1]).to(self.K)
        for g in alive.nonzero()[:, 0].tolist():
            self.sum += self.K[g]

    def value(self, alive: Tensor) -> float:
        """By one Cholesky factorisation in the sample space."""
        K, u = self.sum.clone(), self.u[alive].sum(0)
        for g in (alive != self.base).nonzero()[:, 0].tolist():
            K.add_(self.K[g], alpha=1.0 if bool(alive[g]) else -1.0)
        x = torch.cholesky_solve(u[:, None], torch.linalg.cholesky(K))[:, 0]
        return self.at_zero - 0.5 * float(self.alone[alive].sum() - u @ x)


def group_values(problem: Problem, family: WholeGroups) -> GroupValues | None:
    """The cheapest way to values of unions; None where none is cheap, or some rho is zero."""
    curvature = problem.curvature
    if not bool((problem.rho > 0.0).all()):
        return None
    if problem.p <= _SMALL:
        return _Matrix(problem, family.labels.to(problem.device))
    if isinstance(curvature, LowRank):
        if family.count * curvature.image_size**2 <= _ROOM:
            return _Parts(problem, curvature, family)
    return None


def exchange_groups(problem: Problem, best: Incumbent, *, thorough: bool = True) -> int:
    """Exchange groups of the incumbent until no tried pair lowers the objective; how many moved.

    A round measures what each kept group is worth and what each other one would bring, and tries
    pairs in the order of the sum of the two. Where that ends after few evaluations, the search goes
    on from random exchanges of two groups. Families without whole groups are left alone, and so
    are problems where values of unions are dear; unless ``thorough``, where they take seconds, too.
    """
    family = problem.supports
    if not isinstance(family, WholeGroups) or not (thorough or problem.p <= _SMALL):
        return 0
    values = None if best.clock.expired else group_values(problem, family)
    if values is None:
        return 0
    labels = family.labels.to(problem.device)
    first = torch.zeros(family.count, dtype=torch.bool, device=problem.device)
    first[labels[best.w != 0]] = True
    search = _Search(values, family, best.clock)
    alive, value = search.descend(first, search.value(first))
    for _ in range(_KICKS):
        if len(search.seen) >= _ENOUGH or best.clock.expired or not bool(alive.any()):
            break
        begin = search.kicked(alive)
        trial, found = search.descend(begin, search.value(begin))
        if found < value:
            alive, value = trial, found
    moved = int((alive & ~first).sum())
    if moved:
        solver = problem.curvature.support_solver(problem.separable, alive[labels])
        best.offer(solver.weights, solver.value)
    return moved


class _Search:
    """Descents by exchanges, and the unions they have evaluated."""

    def __init__(self, values: GroupValues, family: WholeGroups, clock: Clock) -> None:
        self.values, self.clock = values, clock
        self.seen: dict[bytes, float] = {}
        self.cost, self.budget = torch.from_numpy(family.group_costs), family.budget
        self.draw = torch.Generator().manual_seed(0)

    def value(self, alive: Tensor) -> float:
        """Of a union, measured once."""
        key = alive.cpu().numpy().tobytes()
        if key not in self.seen:
            self.seen[key] = self.values.value(alive)
        return self.seen[key]

    def descend(self, alive: Tensor, value: float) -> tuple[Tensor, float]:
        """Exchanges and additions while they help."""
        while not self.clock.expired:
            found = self._better(alive, value)
            if found is None:
                break
            alive, value = found
        return alive, value

    def kicked(self, alive: Tensor) -> Tensor:
        """Two kept groups less, and others in random order as far as they fit."""
        other = alive.cpu().clone()
        kept = other.nonzero()[:, 0]
        gone = kept[torch.randperm(len(kept), generator=self.draw)[:2]]
        other[gone] = False
        left = self.budget - int(self.cost[other].sum())
        for g in torch.randperm(len(other), generator=self.draw).tolist():
            if not bool(other[g]) and int(self.cost[g]) <= left and g not in gone.tolist():
                other[g] = True
                left -= int(self.cost[g])
        return other.to(alive.device)

    def _better(self, alive: Tensor, value: float) -> tuple[Tensor, float] | None:
        """A union that is better by an exchange or an addition, with its value."""
        self.values.begin(alive)
        changes = torch.full((len(alive),), torch.inf, dtype=torch.float64)
        for g in range(len(alive)):
            if self.clock.expired:
                return None
            changes[g] = self.value(_toggled(alive, g)) - value
        enough = _LEAST * abs(value)
        for number, (out, into) in enumerate(self._moves(alive.cpu(), changes)):
            if number >= _PAIRS or self.clock.expired:
                return None
            trial = _toggled(alive, into) if out < 0 else _toggled(_toggled(alive, into), out)
            found = value + float(changes[into]) if out < 0 else self.value(trial)
            if found < value - enough:
                return trial, found
        return None

    def _moves(self, alive: Tensor, changes: Tensor) -> Iterator[tuple[int, int]]:
        """Pairs (leaving, entering) within the budget, best first; -1 where none leaves."""
        cost, left = self.cost, self.budget - int(self.cost[alive].sum())
        inside, outside = alive.nonzero()[:, 0], (~alive).nonzero()[:, 0]
        fitting = outside[cost[outside] <= left]
        for into in fitting[changes[fitting].argsort()].tolist():
            yield -1, into
        fits = cost[outside][None, :] <= left + cost[inside][:, None]
        total = torch.where(fits, changes[inside][:, None] + changes[outside][None, :], torch.inf)
        for place in total.flatten().argsort()[: int(fits.sum())].tolist():
            yield int(inside[place // len(outside)]), int(outside[place % len(outside)])


def _toggled(alive: Tensor, group: int) -> Tensor:
    """A copy with one group the other way."""
    other = alive.clone()
    other[group] = ~other[group]
    return other


__all__ = ["exchange_groups", "group_values"]
