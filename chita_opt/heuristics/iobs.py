"""I-OBS-style iterative hard thresholding, preconditioned by an inverse curvature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chita_opt.curvature import SupportSolver
from chita_opt.errors import MethodError
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.magnitude import one_step_support
from chita_opt.heuristics.saliency import DenseMinimum
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_SHORTEST = 2.0**-20


def iobs(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    metric: str = "full",
    max_iter: int = 30,
    tol: float = 1e-7,
) -> Solution:
    r"""Hard thresholding after quasi-Newton steps, weights judged by what removing them costs.

    From the minimiser w on the current support, :math:`v=w-\tau B^{-1}\nabla f(w)`; the new
    support keeps the weights of largest :math:`v_j^2/[B^{-1}]_{jj}`, and the new w is the exact
    minimiser on it. With B = I this is the fixed-step IHT,
    with B = H and a first step from the dense weights one round of OBS; further steps let weights
    return (Wu et al., "The Iterative Optimal Brain Surgeon", NeurIPS 2024, Alg. 1 and 2). The step
    begins at 1 and is halved until the objective falls.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; ``seed`` is unused.
    metric : {"full", "diagonal"}
        B: all of H, or its diagonal, which needs no n-by-n solve for every weight.
    max_iter : int
        Steps.
    tol : float
        Relative decrease at which it ends.

    Raises
    ------
    MethodError
        If the metric is unknown.
    CurvatureError
        If B is singular: the ridge is zero and C rank deficient.
    """
    best = Incumbent(problem, time_limit, start)
    status, count = Status.ITERATION_LIMIT, 0
    with best.until_interrupt():
        solver = _first(problem, start)
        best.offer(solver.weights, solver.value)
        inverse, move = _metric(problem, metric)
        step = 1.0
        while count < max_iter and not best.clock.expired:
            count += 1
            moved, step = _thresholded(problem, solver, move(solver), inverse, step)
            least = tol * problem.increase(solver.value)
            if moved is None or not solver.value - moved.value > least:
                status = Status.STATIONARY
                break
            solver, step = moved, min(2.0 * step, 1.0)
            best.offer(solver.weights, solver.value)
    return best.finish("iobs", status, stats={"iterations": count})


def _first(problem: Problem, start: Solution | None) -> SupportSolver:
    mask = start.mask if start is not None else one_step_support(problem)
    return problem.curvature.support_solver(problem.separable, mask, exact=False)


def _thresholded(
    problem: Problem, solver: SupportSolver, direction: Tensor, inverse: Tensor, step: float
) -> tuple[SupportSolver | None, float]:
    """The first halved step that lowers the objective, and its minimiser.

    None once the step is so short that the support stays.
    """
    while step >= _SHORTEST:
        v = solver.weights + step * direction
        mask = problem.supports.best_support(v.square() / inverse)
        if mask.equal(solver.mask):
            break
        moved = solver.moved(mask)
        if moved.value < solver.value:
            return moved, step
        step *= 0.5
    return None, step


def _metric(problem: Problem, name: str) -> tuple[Tensor, Callable[[SupportSolver], Tensor]]:
    """``diag(B^-1)``, and the step ``-B^-1 grad f`` from the minimiser on a support."""
    if name == "full":
        minimum = DenseMinimum.of(problem.curvature, problem.separable)
        return minimum.inverse, lambda solver: minimum.weights - solver.weights
    if name != "diagonal":
        raise MethodError(f"metric is {name!r}; give full or diagonal")
    inverse = 1.0 / (problem.curvature.diagonal() + problem.rho).clamp_min(1e-300)
    return inverse, lambda solver: inverse * torch.where(solver.mask, 0.0, solver.pull)
