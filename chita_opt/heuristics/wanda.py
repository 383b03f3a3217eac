"""Wanda-style pruning: magnitude weighed by the curvature's diagonal."""

from __future__ import annotations

import torch

from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status


def wanda(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    refit: bool = False,
) -> Solution:
    r"""Keep the weights of largest :math:`|\bar w_j|\sqrt{H_{jj}}`, unchanged unless refitted.

    H = C + diag(rho). For the inputs x of a layer :math:`\sqrt{C_{jj}}` is the norm of input j,
    which makes this Wanda's score (Sun et al., ICLR 2024, §3; its comparison within a row is the
    family ``Budget.per_row``), and half its square is the cost of Optimal Brain Damage. ``start``
    is ignored: nothing is searched.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method.
    refit : bool
        Whether to solve the kept weights exactly.
    """
    best = Incumbent(problem, time_limit)
    scores = problem.scores * (problem.curvature.diagonal() + problem.rho)
    mask = problem.supports.best_support(scores)
    w = torch.where(mask, problem.w_bar, torch.zeros_like(problem.w_bar))
    best.offer(w, problem.objective(w))
    return best.finish("wanda", Status.FEASIBLE, backsolve=refit)
