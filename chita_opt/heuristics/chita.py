"""CHITA single stage (thresholding on an active set, then the backsolve) and CHITA-CD."""

from __future__ import annotations

import torch
from torch import Tensor

from chita_opt.curvature.cholesky import cholesky
from chita_opt.heuristics.iht import IhtPoint, active_gradient, descend, thresholded_step
from chita_opt.heuristics.incumbent import Incumbent
from chita_opt.heuristics.magnitude import one_step_support
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status


def chita(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    max_iter: int = 100,
    max_rounds: int = 10,
    widen: float = 1.5,
    tol: float = 1e-7,
) -> Solution:
    """CHITA's single stage (ICML 2023, §3.2): IHT on an active set that grows, then a backsolve.

    The first active set is the support of a gradient step and its runners-up, ``widen`` times the
    budget in all. When the iteration has settled there, a step over all weights shows which
    others would enter; they join and it is repeated. Unlike the published code, no weight is
    dropped beforehand and the last solve is exact to float64.

    Parameters
    ----------
    problem, start, time_limit, seed
        As for every method; ``seed`` is unused.
    max_iter : int
        Gradient steps on each active set.
    max_rounds : int
        Times the active set may grow.
    widen : float
        Size of the first active set over the budget, >= 1.
    tol : float
        Relative decrease at which a round ends.
    """
    best = Incumbent(problem, time_limit, start)
    status, rounds = Status.ITERATION_LIMIT, 0
    with best.until_interrupt():
        mask = start.mask if start is not None else one_step_support(problem)
        active = _widened(problem, mask, widen)
        w = start.w if start is not None else torch.where(mask, problem.w_bar, 0.0)
        point = IhtPoint.at(problem, w)
        best.offer(point.w, point.value)
        while rounds < max_rounds:
            rounds += 1
            index = active.nonzero().squeeze(1)
            descend(problem, point, best, index, max_iter, tol)
            if best.clock.expired:
                break
            thresholded_step(problem, point, active_gradient(problem, point, None))
            best.offer(point.w, point.value)
            entered = (point.w != 0) & ~active
            if not bool(entered.any()):
                status = Status.STATIONARY
                break
            active |= entered
    return best.finish("chita", status, stats={"rounds": rounds})


def _widened(problem: Problem, mask: Tensor, widen: float) -> Tensor:
    """``mask`` and the family's next best weights, about ``widen`` times as many."""
    extra = round((widen - 1.0) * int(mask.sum()))
    scores = problem.scores.masked_fill(mask, 0.0)
    runners_up = problem.supports.best_support(scores) & (scores > 0)
    ranked = torch.where(runners_up, scores, torch.zeros_like(scores)).argsort(descending=True)
    chosen = ranked[: min(extra, int(runners_up.sum()))]
    return mask.index_fill(0, chosen, True)


def coordinate_descent(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    sweeps: int = 20,
    block: int = 128,
    tol: float = 1e-9,
) -> Solution:
    """CHITA-CD: cyclic exact minimisation over blocks of the support's weights.

    ``block=1`` is the paper's coordinate descent; larger blocks converge in fewer sweeps at the
    same cost. The support is the backsolve's, or the ``start``'s. The published code's iteration
    does nothing without a linear term, because it starts from the residual of the dense weights;
    here it starts from the pruned ones.
    """
    best = Incumbent(problem, time_limit, start)
    status, done = Status.ITERATION_LIMIT, 0
    with best.until_interrupt():
        mask = start.mask if start is not None else one_step_support(problem)
        w = start.w if start is not None else torch.where(mask, problem.w_bar, 0.0)
        point = IhtPoint.at(problem, w)
        best.offer(point.w, point.value)
        index = mask.nonzero().squeeze(1)
        while done < sweeps:
            done += 1
            previous = point.value
            _sweep(problem, point, index, block)
            best.offer(point.w, point.value)
            if previous - point.value <= tol * max(abs(point.value), 1e-300):
                status = Status.STATIONARY
                break
            if best.clock.expired:
                break
    return best.finish("coordinate_descent", status, stats={"sweeps": done}, backsolve=False)


def _sweep(problem: Problem, point: IhtPoint, index: Tensor, block: int) -> None:
    """One pass over the blocks of ``index``; each is minimised exactly, the others fixed."""
    w, image = point.w.clone(), point.image
    for part in index.split(block):
        x = w[part] - problem.w_bar[part]
        gradient = problem.curvature.pullback(image, index=part) + problem.g[part]
        gradient += problem.rho[part] * x
        H = problem.curvature.submatrix(part)
        H.diagonal().add_(problem.rho[part])
        change = torch.zeros_like(w)
        L = cholesky(H, f"the curvature of {len(part)} weights plus the ridge")
        change[part] = -torch.cholesky_solve(gradient[:, None], L).squeeze(1)
        w += change
        image = image + problem.curvature.image(change)
    point.w, point.image = w, image
    point.value = problem.curvature.energy(image) + problem.separable.value(w - problem.w_bar)
