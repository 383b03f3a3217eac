"""Random supports near magnitude, to start from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chita_opt.problem import Problem

_MOST_CHUNKS = 1000


def start_supports(problem: Problem, first: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """The ``first`` support, then ``count - 1`` random stratified ones."""
    yield first
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count - 1):
        yield stratified_support(problem, draw)


def stratified_support(problem: Problem, draw: torch.Generator) -> Tensor:
    """A random support of large weights: the same share by magnitude in every random chunk.

    The weights are dealt into about sqrt(p) chunks (at most 1000); a weight's score is its rank by
    magnitude in its chunk (CBS, ICML 2022, the start of its local search).
    """
    p = problem.p
    chunks = max(1, min(round(p**0.5), _MOST_CHUNKS))
    deep = -(-p // chunks)
    order = torch.randperm(p, generator=draw)
    dealt = torch.full((deep * chunks,), -1.0, dtype=torch.float64)
    dealt[:p] = problem.scores.cpu()[order]
    ranks = dealt.reshape(deep, chunks).argsort(dim=0, stable=True).argsort(dim=0)
    scores = torch.empty(p, dtype=torch.float64)
    scores[order] = (ranks.double().reshape(-1)[:p] + 1.0) / deep
    return problem.supports.best_support(scores.to(problem.device))
