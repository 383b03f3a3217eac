"""Incumbents of the tree search: supports solved exactly, promising ones improved by swaps."""

from __future__ import annotations

import numpy as np
import torch

from chita_opt.exact.quadratic import Quadratic
from chita_opt.heuristics.incumbent import check_start
from chita_opt.heuristics.local_search import local_search
from chita_opt.heuristics.methods import solve
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports.base import Array

_NEAR = 0.02  # relative distance to the incumbent within which a support is improved by swaps


class Incumbents:
    """The best weights so far; supports come in, values come out.

    Parameters
    ----------
    problem, quadratic : Problem, Quadratic
        What is minimised.
    start : Solution, optional
        First incumbent.
    """

    def __init__(self, problem: Problem, quadratic: Quadratic, start: Solution | None) -> None:
        self.problem, self.quadratic = problem, quadratic
        self.w = np.zeros(problem.p)
        self.value = problem.prune_all
        self.floor = problem.dense_minimum
        self.seen: set[bytes] = set()
        self.start = start
        if start is not None:
            check_start(problem, start)
            self._take(start)

    def find(self, clock: Clock) -> None:
        """The default heuristic, then exact swaps; at most a quarter of the time."""
        limit = None if clock.remaining is None else 0.25 * clock.remaining
        first = self.start or solve(self.problem, time_limit=limit)
        self._take(first)
        self._take(local_search(self.problem, start=first, time_limit=limit))

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
        w, value = self.quadratic.solve(np.flatnonzero(mask))
        near = value < self.value + _NEAR * max(self.value - self.floor, 0.0)
        full = np.zeros(self.problem.p)
        full[mask] = w
        if near:
            found = self._solution(full)
            self._take(found)
            if len(self.seen) < 2000:
                self._take(local_search(self.problem, start=found, max_rounds=3))
        return self.value

    def _solution(self, w: Array) -> Solution:
        return Solution(self.problem, torch.from_numpy(w), "rounding", Status.FEASIBLE)

    def _take(self, found: Solution) -> None:
        if found.is_feasible and found.objective < self.value:
            self.value, self.w = found.objective, found.w.cpu().numpy()
