"""Conjugate gradients on a fixed support: better weights after every pass over the data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chita_opt.problem import Problem


def conjugate_refit(problem: Problem, w: Tensor, *, steps: int) -> Iterator[tuple[Tensor, float]]:
    """Yield weights of falling objective on the support of ``w``, one pass each.

    Jacobi-preconditioned conjugate gradients on H_SS at the data's precision; the objective is
    carried along by its exact decrease per step.
    """
    C, mask = problem.curvature, w != 0
    x = w - problem.w_bar
    image = C.image(x, exact=False)
    value = C.energy(image) + problem.separable.value(x)
    yield w, value
    gradient = _on(mask, C.pullback(image, exact=False) + problem.g + problem.rho * x)
    scale = 1.0 / (C.diagonal() + problem.rho).clamp_min(1e-300)
    z = scale * gradient
    direction, gz = -z, float(gradient @ z)
    for _ in range(steps):
        if gz <= 0.0:
            return
        bent = C.image(direction, exact=False)
        curve = 2.0 * C.energy(bent) + float((problem.rho * direction) @ direction)
        step = gz / curve
        w = w + step * direction
        value -= 0.5 * step * gz
        yield w, value
        product = C.pullback(bent, exact=False) + problem.rho * direction
        gradient = gradient + step * _on(mask, product)
        z = scale * gradient
        new = float(gradient @ z)
        direction, gz = -z + (new / gz) * direction, new


def _on(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values))
