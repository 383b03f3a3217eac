r"""The dual bound: any witness gives a lower bound, for every family and curvature form.

Split the Hessian as :math:`C+\mathrm{diag}(\rho)=Q+\mathrm{diag}(d)` with
:math:`Q=C-\mathrm{diag}(e)\succeq0` and :math:`d=\rho+e>0`. For any v, convexity gives
:math:`\tfrac12x^\top Qx\ge v^\top Qx-\tfrac12v^\top Qv`; the rest separates over the weights. With
:math:`q=Qv+g` and :math:`c=d\circ\bar w-q`,

.. math::
    f(w)\;\ge\;\mathrm{LB}(v)=-\tfrac12v^\top Qv
      +\sum_j\Big(\tfrac{d_j}{2}\bar w_j^2-q_j\bar w_j\Big)
      -\max_{z\in\mathcal S}\sum_jz_j\frac{c_j^2}{2d_j}.

The maximum is the family's oracle. For gradients and e = 0, v enters only through
:math:`r=\sqrt{s}Av`, and any r serves. The best value over v is that of the perspective relaxation
(Frangioni & Gentile 2006; Günlük & Linderoth 2010; dual form: Xie & Deng 2020, Bertsimas & Van
Parys 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chita_opt.bounds.splits import less_diagonal
from chita_opt.errors import ProblemError
from chita_opt.problem import Problem
from chita_opt.solution import Trace


@dataclass(frozen=True, eq=False)
class DualPoint:
    """The bound at a witness and what the oracle saw there.

    Attributes
    ----------
    value : float
        LB(v), float64.
    pull, gains : Tensor
        (p,) float64: c, and ``c^2 / 2d``, what keeping each weight is worth.
    mask : Tensor
        (p,) bool, the oracle's answer.
    """

    value: float
    pull: Tensor
    gains: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Bound:
    """A lower bound on the optimum with its witness.

    Attributes
    ----------
    value : float
        The bound, re-evaluated in float64 from the data.
    witness : Tensor
        An image (see ``Curvature.image``) of C, or of C - diag(split).
    split : Tensor or None
        (p,) the diagonal e moved from the curvature to the ridge.
    proof : str
        "dual": :func:`dual_point` reproduces the value. "trivial": zero witness, no search.
    relaxation_upper : float
        Primal value of the relaxation at ``z``: its optimum, and so every dual bound of this
        split, lies in [value, relaxation_upper]. Infinite if unknown.
    z : Tensor or None
        (p,) in [0, 1], the relaxation's indicators; what rounding starts from.
    seconds : float
        Wall time.
    trace : Trace
        Best bound over time.
    stats : Mapping
        Counters, the solver's path and what stopped it.
    """

    value: float
    witness: Tensor
    split: Tensor | None
    proof: str
    relaxation_upper: float = float("inf")
    z: Tensor | None = None
    seconds: float = 0.0
    trace: Trace = field(default_factory=Trace)
    stats: Mapping[str, float | str] = field(default_factory=dict)


def dual_point(problem: Problem, witness: Tensor, split: Tensor | None = None) -> DualPoint:
    """Evaluate the dual bound at a witness, in float64 from the data.

    That Q is positive semidefinite is the caller's part; ``splits`` proves it.

    Raises
    ------
    ProblemError
        If some ``d = rho + e`` is not positive: the separable part then proves nothing.
    """
    Q, d, w_bar = problem.curvature, problem.rho, problem.w_bar
    if split is not None:
        Q, d = less_diagonal(Q, split), d + split
    check_ridge(d)
    q = Q.pullback(witness) + problem.g
    pull = d * w_bar - q
    gains = pull.square() / (2.0 * d)
    base = float((0.5 * d * w_bar - q) @ w_bar) - Q.energy(witness)
    mask = problem.supports.best_support(gains)
    return DualPoint(base - problem.supports.bound_at(gains, mask), pull, gains, mask)


def check_ridge(d: Tensor) -> None:
    """Refuse a separable part that is not strictly convex."""
    lowest = int(d.argmin())
    if not float(d[lowest]) > 0.0:
        raise ProblemError(
            f"the separable curvature of weight {lowest} is {float(d[lowest]):.3g}; a dual bound "
            "needs rho > 0 (raise the ridge), or a positive definite H to split from"
        )


def trivial_bound(problem: Problem, split: Tensor | None = None) -> Bound:
    """The bound at the zero witness: the magnitude tail ``sum over pruned d_j w_bar_j^2 / 2``."""
    Q = problem.curvature if split is None else less_diagonal(problem.curvature, split)
    witness = torch.zeros(Q.image_size, dtype=torch.float64, device=problem.device)
    return Bound(dual_point(problem, witness, split).value, witness, split, "trivial")
