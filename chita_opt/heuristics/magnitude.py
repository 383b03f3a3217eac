"""The cheap ends: magnitude pruning, and its support with the weights solved again."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status


def magnitude(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> Solution:
    r"""Keep the allowed support of largest :math:`\sum\bar w_j^2`, weights unchanged.

    ``start`` is ignored: nothing is searched.
    """
    best = Incumbent(problem, time_limit)
    mask = problem.supports.best_support(problem.scores)
    w = torch.where(mask, problem.w_bar, torch.zeros_like(problem.w_bar))
    best.offer(w, problem.objective(w))
    return best.finish("magnitude", Status.FEASIBLE, backsolve=False)


def backsolve(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
) -> Solution:
    r"""CHITA-BSO: the magnitude support, then the weights solved exactly on it.

    With a linear term the support is that of one gradient step from the dense weights with the
    exact line search on the magnitude support (CHITA, ICML 2023, §3; the released code's
    ``prune_ls``). Given a ``start``, its support is taken instead.
    """
    best = Incumbent(problem, time_limit, start)
    mask = start.mask if start is not None else one_step_support(problem)
    solver = problem.curvature.support_solver(problem.separable, mask)
    best.offer(solver.weights, solver.value)
    return best.finish("backsolve", Status.FEASIBLE, solver=solver)


def one_step_support(problem: Problem) -> Tensor:
    """Support of ``w_bar - tau g`` with the line search's tau on the magnitude support."""
    return problem.supports.best_support(one_step_point(problem).square())


def one_step_point(problem: Problem) -> Tensor:
    """``w_bar - tau g``, tau exact for the gradient on the magnitude support."""
    g = problem.g
    if not bool(g.any()):
        return problem.w_bar
    mask = problem.supports.best_support(problem.scores)
    step = torch.where(mask, g, torch.zeros_like(g))
    size = float(step @ step)
    if size == 0.0:
        return problem.w_bar
    bend = 2.0 * problem.curvature.quadratic(step) + float((problem.rho * step) @ step)
    return problem.w_bar - size / bend * g
