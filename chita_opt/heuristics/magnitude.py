"""The cheap ends: magnitude pruning, and its support with the weights solved again."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.heuristics.iht import IhtPoint, active_gradient, thresholded_step
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_STEPS = 2  # of thresholding, after which supports change little


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

    With a linear term it is the best of :func:`simple_supports`. (The released ``prune_ls`` takes
    a gradient step there and then keeps the magnitude support whenever the largest entry lies in
    it, though the smallest one decides.) Given a ``start``, its support is taken instead.
    """
    best = Incumbent(problem, time_limit, start)
    winner = None
    for mask in simple_supports(problem) if start is None else [start.mask]:
        solver = problem.curvature.support_solver(problem.separable, mask)
        if best.offer(solver.weights, solver.value) or winner is None:
            winner = solver
        if best.clock.expired:
            break
    return best.finish("backsolve", Status.FEASIBLE, solver=winner)


def simple_supports(problem: Problem) -> list[Tensor]:
    """Supports that cost a pass or two: the magnitude support and, with a linear term, others.

    These are that of one gradient step from the dense weights with the exact line search on the
    magnitude support (CHITA, ICML 2023, §3), that of a few thresholding steps from the pruned
    dense weights (the released block solver steps again in each block), and the magnitude support
    of weights that the data see, should some column of the curvature be zero.
    """
    found = [problem.supports.best_support(problem.scores)]
    if bool(problem.g.any()):
        found.append(one_step_support(problem))
        point = IhtPoint.at(problem, torch.where(found[0], problem.w_bar, 0.0))
        for _ in range(_STEPS):
            thresholded_step(problem, point, active_gradient(problem, point, None))
        found.append(point.w != 0)
        live = problem.curvature.diagonal() > 0.0
        if not bool(live.all()):
            found.append(problem.supports.best_support(problem.scores * live))
    return [m for i, m in enumerate(found) if not any(m.equal(other) for other in found[:i])]


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
