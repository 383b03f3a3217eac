"""Incumbents of the tree search: supports solved exactly, promising ones improved by swaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chita_opt.curvature import Dense, LowRank
from chita_opt.exact.quadratic import Quadratic
from chita_opt.heuristics.incumbent import check_start, complete, keep_scores
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.methods import solve
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

_NEAR = 0.05  # relative distance to the incumbent within which a support is improved by swaps
_SEARCH_SHARE = 0.15  # share of the time that swap searches may take
_KICK_EVERY = 5  # weights for one kick
_KICKED = 0.05, 0.3  # shares of the kept weights that a kick drops
_KICK_SECONDS, _KICK_SHARE = 3.0, 0.05  # time for them, without a limit and as a share of it


class Incumbents:
    """The best weights so far; supports come in, values come out.

    Parameters
    ----------
    problem, quadratic : Problem, Quadratic
        What is minimised.
    clock : Clock
        Of the whole call.
    start : Solution, optional
        First incumbent.
    """

    def __init__(
        self, problem: Problem, quadratic: Quadratic, clock: Clock, start: Solution | None
    ) -> None:
        self.problem, self.quadratic, self.clock = problem, quadratic, clock
        self.twin = _with_matrix(problem, quadratic)
        self.w = np.zeros(problem.p)
        self.value = problem.prune_all
        self.floor = problem.dense_minimum
        self.seen: set[bytes] = set()
        self.spent = 0.0
        self.start = start
        if start is not None:
            check_start(problem, start)
            self.take(start)

    def find(self) -> None:
        """The default heuristic, then exact swaps; at most half of the time."""
        left = self.clock.remaining
        limit = None if left is None else 0.25 * left
        first = self.start
        if first is None:
            first = solve(self.problem, time_limit=limit)
            self.take(first)
        self._swap(first.w.cpu(), time_limit=limit)

    def kick(
        self,
        seconds: float | None = None,
        *,
        shares: tuple[float, float] = _KICKED,
        seed: int = 0,
    ) -> None:
        """Leave the swap search's optimum: drop some kept weights, fill up at random, swap again.

        An incumbent a hair better closes many nodes, so this pays early in a tree that is not
        small; without ``seconds`` it takes no longer than everything before it. ``shares`` are the
        least and the most of the kept weights that are dropped.
        """
        problem, draw = self.problem, torch.Generator().manual_seed(seed)
        worth = keep_scores(problem).cpu()
        if seconds is None:
            limit = self.clock.limit
            most = _KICK_SECONDS if limit is None else _KICK_SHARE * limit
            seconds = min(most, self.clock.elapsed)
        end = self.clock.elapsed + seconds
        for _ in range(problem.p // _KICK_EVERY):
            kept = torch.from_numpy(np.flatnonzero(self.w))
            if self.clock.elapsed > end or not len(kept):
                return
            share = shares[0] + (shares[1] - shares[0]) * float(torch.rand((), generator=draw))
            count = max(2, int(share * len(kept)))
            mask = torch.zeros(problem.p, dtype=torch.bool)
            mask[kept[torch.randperm(len(kept), generator=draw)[count:]]] = True
            scores = worth * torch.rand(problem.p, generator=draw, dtype=torch.float64)
            support = complete(problem, mask.to(problem.device), scores.to(problem.device))
            w = np.zeros(problem.p)
            index = np.flatnonzero(support.cpu().numpy())
            w[index] = self.quadratic.solve(index)[0]
            self._swap(torch.from_numpy(w), time_limit=max(end - self.clock.elapsed, 1e-3))

    def offer(self, support: Array) -> float:
        """Solve on ``support`` (index array), improve it if it is good; the best value so far."""
        mask = np.zeros(self.problem.p, dtype=bool)
        mask[support] = True
        key = np.packbits(mask).tobytes()
        if key in self.seen:
            return self.value
        self.seen.add(key)
        if not self.problem.supports.contains(torch.from_numpy(mask)):
            return self.value
        w, value = self.quadratic.solve(support)
        if value < self.value + _NEAR * max(self.value - self.floor, 0.0):
            full = np.zeros(self.problem.p)
            full[support] = w
            found = Solution(self.problem, torch.from_numpy(full), "rounding", Status.FEASIBLE)
            self.take(found)
            begin = self.clock.elapsed
            if self.spent <= _SEARCH_SHARE * begin + 0.1:
                self._swap(found.w, max_rounds=3)
                self.spent += self.clock.elapsed - begin
        return self.value

    def _swap(self, w: Tensor, **limits: Any) -> None:
        """Improve weights by exact swaps."""
        start = Solution(self.twin, w.to(self.twin.device), "rounding", Status.FEASIBLE)
        better = local_search(self.twin, start=start, **limits)
        self.take(replace(better, problem=self.problem, w=better.w.to(self.problem.device)))

    def take(self, found: Solution) -> None:
        """Keep a solution if it is feasible and better; pass an interrupt on."""
        if found.is_feasible and found.objective < self.value:
            self.value, self.w = found.objective, found.w.cpu().numpy()
            self.clock.record(self.value)
        if found.status is Status.INTERRUPTED:  # the heuristics end quietly on Ctrl-C
            raise KeyboardInterrupt


def _with_matrix(problem: Problem, quadratic: Quadratic) -> Problem:
    """Gradients as the matrix that the tree has formed anyway: swaps read its entries."""
    if not isinstance(problem.curvature, LowRank):
        return problem
    C = torch.from_numpy(quadratic.H - np.diag(problem.rho.cpu().numpy()))
    w_bar, rho, g = problem.w_bar.cpu(), problem.rho.cpu(), problem.g.cpu()
    return Problem(Dense(C), w_bar, rho, problem.supports, g)
