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

from chita_opt.errors import MethodError
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
    momentum : float
        In [0, 1): before each step, go on by so much of the last one and project, where that
        lowers the objective; 0 for none.
    """

    max_iter: int = 200
    tol: float = 1e-7
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise MethodError(f"momentum is {self.momentum}; it must lie in [0, 1)")


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


def descend(
    problem: Problem,
    point: IhtPoint,
    best: Incumbent,
    active: Tensor | None,
    descent: Descent,
) -> tuple[bool, int]:
    """Steps on the ``active`` weights (an index; None for all); (whether it converged, steps)."""
    last = (point.w, point.image)
    for count in range(descent.max_iter):
        previous, here = point.value, (point.w, point.image)
        if descent.momentum:
            _go_on(problem, point, last, descent.momentum)
        gradient = active_gradient(problem, point, active)
        moved = thresholded_step(problem, point, gradient)
        last = here
        best.offer(point.w, point.value)
        small = descent.tol * max(abs(point.value), 1e-12)
        if not moved or previous - point.value <= small:
            return True, count + 1
        if best.clock.expired:
            return False, count + 1
    return False, descent.max_iter


def _go_on(problem: Problem, point: IhtPoint, last: tuple[Tensor, Tensor], momentum: float) -> None:
    """Extrapolate the last step and project, if the objective falls; data are read only then."""
    v = point.w + momentum * (point.w - last[0])
    mask = problem.supports.best_support(v.square()) & (v != 0)
    if mask.equal(v != 0):
        image = point.image + momentum * (point.image - last[1])
        x = v - problem.w_bar
        value = problem.curvature.energy(image) + problem.separable.value(x)
        trial = IhtPoint(v, image, value)
    else:
        trial = IhtPoint.at(problem, torch.where(mask, v, torch.zeros_like(v)))
    if trial.value < point.value:
        point.w, point.image, point.value = trial.w, trial.image, trial.value


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
