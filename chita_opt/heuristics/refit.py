"""Conjugate gradients on a fixed support: better weights after every pass over its columns."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chita_opt.curvature import LowRank
from chita_opt.curvature.factors import GATHERED
from chita_opt.problem import Problem


def conjugate_refit(
    problem: Problem, mask: Tensor, *, steps: int
) -> Iterator[tuple[Tensor, float, Tensor]]:
    """Yield weights of falling objective on ``mask``, their value and their image ``F(w - w_bar)``.

    Jacobi-preconditioned conjugate gradients on H_SS at the data's precision, for gradients
    (:class:`LowRank`). Of a small support only its columns are read, so that a step costs the
    share of a pass that the support is of the weights. The objective is carried along by its
    exact decrease per step.
    """
    C = problem.curvature
    assert isinstance(C, LowRank)
    F, index = C.factor_of_rows, mask.nonzero().squeeze(1)
    at: Tensor | None = index  # the columns that are read: of a large support all, in order
    if len(index) > GATHERED * problem.p:
        index, at = torch.arange(problem.p, device=problem.device), None
    on, rho = mask[index], problem.rho[index]
    x = torch.where(mask, 0.0, -problem.w_bar)
    image = C.image(x, exact=False)
    value = 0.5 * float(image @ image) + problem.separable.value(x)
    yield problem.w_bar + x, value, image
    y = torch.zeros_like(rho)
    gradient = torch.where(on, F.adjoint_at(at, image, exact=False) + problem.g[index], 0.0)
    scale = 1.0 / (F.square_norms(at) + rho).clamp_min(1e-300)
    z = scale * gradient
    direction, gz = -z, float(gradient @ z)
    for _ in range(steps):
        if gz <= 0.0:
            return
        bent = F.forward_at(at, direction)
        curve = float(bent @ bent) + float((rho * direction) @ direction)
        step = gz / curve
        y, image = y + step * direction, image + step * bent
        value -= 0.5 * step * gz
        yield problem.w_bar + x.index_add(0, index, y), value, image
        product = F.adjoint_at(at, bent, exact=False) + rho * direction
        gradient = torch.where(on, gradient + step * product, 0.0)
        z = scale * gradient
        new = float(gradient @ z)
        direction, gz = -z + (new / gz) * direction, new
