r"""Iterative hard thresholding with CHITA's step sizes, for every support family.

On the current support S the exact line search gives
:math:`\tau^\star=\|\nabla_S\|^2/(\nabla_S^\top H\nabla_S)`. If that step keeps the support it is
taken: it needs no look at the data beyond the gradient's own products. Otherwise the largest
support-preserving step :math:`\tau_c` is found by bisection on the family's oracle (which reads no
data), and steps beyond it are tried by doubling while the objective falls (Benbaki et al., CHITA,
ICML 2023, §3.2 and Appendix; the closed form of τ_c there is the cardinality case).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chita_opt.heuristics.incumbent import Incumbent, keep_scores
from chita_opt.heuristics.starts import start_supports
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

_DOUBLINGS = 5
_BISECTIONS = 14


@dataclass(eq=False)
class IhtPoint:
    """Weights, the image of their displacement and their objective (data's precision)."""

    w: Tensor
    image: Tensor
    value: float

    @classmethod
    def at(cls, problem: Problem, w: Tensor) -> IhtPoint:
        """Evaluate at ``w``: half a pass."""
        x = w - problem.w_bar
        image = problem.curvature.image(x, exact=False)
        return cls(w, image, problem.curvature.energy(image) + problem.separable.value(x))


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How far to go on one active set.

    Attributes
    ----------
    max_iter : int
        Gradient steps.
    tol : float
        Stop when the objective falls by less than ``tol`` times its size.
    momentum : bool
        Whether a step that keeps the support minimises over the gradient and the last step
        together, as conjugate gradients do.
    """

    max_iter: int = 200
    tol: float = 1e-7
    momentum: bool = False


def iht(
    problem: Problem,
    *,
    start: Solution | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    starts: int = 1,
    descent: Descent | None = None,
) -> Solution:
    """Iterative hard thresholding over all weights, then an exact backsolve.

    Parameters
    ----------
    problem, start, time_limit
        As for every method.
    seed : int
        Of the random starts.
    starts : int
        Supports to begin from: ``start``'s or the best by :func:`keep_scores`, then random
        stratified ones.
    descent : Descent, optional
        Steps, accuracy and momentum.
    """
    best = Incumbent(problem, time_limit, start)
    steps, status = 0, Status.ITERATION_LIMIT
    with best.until_interrupt():
        first = problem.supports.best_support(keep_scores(problem))
        for w in first_points(problem, start, first, starts, seed):
            point = IhtPoint.at(problem, w)
            best.offer(point.w, point.value)
            done, count = descend(problem, point, best, None, descent or Descent())
            solve_end(problem, point, best, starts)
            status, steps = Status.STATIONARY if done else status, steps + count
            if best.clock.expired:
                break
    return best.finish("iht", status, stats={"iterations": steps})


def first_points(
    problem: Problem, start: Solution | None, first: Tensor, starts: int, seed: int
) -> Iterator[Tensor]:
    """``start``'s weights or the dense ones on ``first``, then on random stratified supports."""
    for number, mask in enumerate(start_supports(problem, first, starts, seed)):
        if number == 0 and start is not None:
            yield start.w
        else:
            yield torch.where(mask, problem.w_bar, torch.zeros_like(problem.w_bar))


def solve_end(problem: Problem, point: IhtPoint, best: Incumbent, starts: int) -> None:
    """Compare the ends of several starts by the exact minimisers on their supports."""
    if starts > 1 and not best.clock.expired:
        solver = problem.curvature.support_solver(problem.separable, point.w != 0, exact=False)
        best.offer(solver.weights, solver.value)


def descend(
    problem: Problem,
    point: IhtPoint,
    best: Incumbent,
    active: Tensor | None,
    descent: Descent,
) -> tuple[bool, int]:
    """Steps on the ``active`` weights (an index; None for all); (whether it converged, steps)."""
    last = None
    for count in range(descent.max_iter):
        value, w, image = point.value, point.w, point.image
        gradient = active_gradient(problem, point, active)
        moved = last is not None and _conjugate_step(problem, point, gradient, *last)
        moved = moved or thresholded_step(problem, point, gradient)
        best.offer(point.w, point.value)
        if not moved or value - point.value <= descent.tol * problem.increase(point.value):
            return True, count + 1
        if best.clock.expired:
            return False, count + 1
        last = (point.w - w, point.image - image) if descent.momentum else None
    return False, descent.max_iter


def _conjugate_step(
    problem: Problem, point: IhtPoint, gradient: Tensor, last: Tensor, last_image: Tensor
) -> bool:
    """Minimise over the gradient on the support and the ``last`` step; False if that leaves it.

    The 2-by-2 system costs the one product that a plain step costs.
    """
    mask = point.w != 0
    inside = torch.where(mask, gradient, torch.zeros_like(gradient))
    if not bool(last.any()) or bool(last[~mask].any()):
        return False
    C, rho = problem.curvature, problem.rho
    image = C.image(inside, exact=False)
    own, other = C.energy(image), C.energy(last_image)
    cross = C.energy(image + last_image) - own - other + float((rho * inside) @ last)
    own = 2.0 * own + float((rho * inside) @ inside)
    other = 2.0 * other + float((rho * last) @ last)
    slopes = (float(inside @ gradient), float(last @ gradient))
    determinant = own * other - cross * cross
    if not determinant > 1e-12 * own * other:
        return False
    a = (slopes[0] * other - slopes[1] * cross) / determinant
    b = (slopes[1] * own - slopes[0] * cross) / determinant
    if not _support_after(problem, point.w - b * last, gradient, a).equal(mask):
        return False
    point.w = point.w - a * inside - b * last
    point.image = point.image - a * image - b * last_image
    point.value -= 0.5 * (a * slopes[0] + b * slopes[1])
    return True


def active_gradient(problem: Problem, point: IhtPoint, active: Tensor | None) -> Tensor:
    """Gradient of f, zero outside ``active``."""
    x = point.w - problem.w_bar
    if active is None:
        Cx = problem.curvature.pullback(point.image, exact=False)
        return Cx + problem.g + problem.rho * x
    gradient = torch.zeros_like(x)
    Cx = problem.curvature.pullback(point.image, index=active, exact=False)
    gradient[active] = Cx + problem.g[active] + problem.rho[active] * x[active]
    return gradient


def thresholded_step(problem: Problem, point: IhtPoint, gradient: Tensor) -> bool:
    """Move ``point`` by one step; False if no step lowered the objective."""
    mask = point.w != 0
    inside = torch.where(mask, gradient, torch.zeros_like(gradient))
    size = float(inside @ inside)
    if size > 0.0:
        image = problem.curvature.image(inside, exact=False)
        bend = 2.0 * problem.curvature.energy(image) + float((problem.rho * inside) @ inside)
        tau = size / max(bend, 1e-300)
    else:
        image, tau = torch.zeros_like(point.image), _outside_step(problem, gradient)
    if _support_after(problem, point.w, gradient, tau).equal(mask):
        drop = tau * size - 0.5 * tau * size
        point.w = point.w - tau * inside
        point.image = point.image - tau * image
        point.value -= drop
        return drop > 0.0
    return _step_beyond(problem, point, gradient, _preserving_step(problem, point, gradient, tau))


def _outside_step(problem: Problem, gradient: Tensor) -> float:
    """Line-search step along the whole gradient, where the support offers none."""
    size = float(gradient @ gradient)
    if size == 0.0:
        return 0.0
    image = problem.curvature.image(gradient, exact=False)
    bend = 2.0 * problem.curvature.energy(image) + float((problem.rho * gradient) @ gradient)
    return size / max(bend, 1e-300)


def _support_after(problem: Problem, w: Tensor, gradient: Tensor, tau: float) -> Tensor:
    """Support after a step of length tau and projection; only non-zero entries count."""
    moved = w - tau * gradient
    return problem.supports.best_support(moved.square()) & (moved != 0)


def _preserving_step(problem: Problem, point: IhtPoint, gradient: Tensor, tau: float) -> float:
    """Largest step (to bisection accuracy) below tau that keeps the support."""
    mask, low, high = point.w != 0, 0.0, tau
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if _support_after(problem, point.w, gradient, middle).equal(mask):
            low = middle
        else:
            high = middle
    return low if low > 0.0 else high


def _step_beyond(problem: Problem, point: IhtPoint, gradient: Tensor, tau: float) -> bool:
    """Try tau just past the preserving step, then doubled, while the objective falls."""
    moved = False
    origin = point.w
    for _ in range(_DOUBLINGS):
        step = origin - tau * gradient
        mask = problem.supports.best_support(step.square())
        trial = IhtPoint.at(problem, torch.where(mask, step, torch.zeros_like(step)))
        if trial.value >= point.value:
            break
        point.w, point.image, point.value = trial.w, trial.image, trial.value
        moved, tau = True, 2.0 * tau
    return moved
