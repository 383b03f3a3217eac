r"""Outer approximation in weights and indicators, as a mixed-integer linear program.

.. math::
    \min_{w,z,s,t}\ & t + g^\top(w-\bar w) + \tfrac12\sum_jd_j\,(s_j-2\bar w_jw_j+\bar w_j^2)\\
    \text{s.t. } & t\ \ge\ \tfrac12x_i^\top Qx_i+(Qx_i)^\top(w-\bar w-x_i),\qquad t\ge0,\\
    & s_j\ \ge\ 2w_{ij}w_j-w_{ij}^2z_j,\qquad s_j\ge0,\qquad |w_j|\le M_jz_j,\qquad Gz\le h,\qquad
      z\in\{0,1\}^p

w (p,) weights, z (p,) indicators (1 keeps), s (p,) the squares' epigraph, t the epigraph of
:math:`\tfrac12x^\top Qx`; :math:`w_i` the points that the tangents touch, :math:`x_i=w_i-\bar w`;
:math:`Q=C-\mathrm{diag}(e)`, :math:`d=\rho+e`; :math:`\bar w, g, \rho` of the problem;
:math:`Gz\le h` the rows of the family.

Strength: below the perspective relaxation, which it reaches as points are added. At a fixed z it
is exact once the best weights for that z are among the points.

Size: 3p + 1 variables, p of them binary; 2p rows, those of G, and p + 1 for every point.

Source: Duran & Grossmann, *Mathematical Programming* 36 (1986); tangents of the perspective:
Frangioni & Gentile, *Mathematical Programming* 106 (2006).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from chita_opt.bounds.dual import check_ridge
from chita_opt.bounds.splits import split_problem
from chita_opt.formulations.model_parts import limits_of, new_model
from chita_opt.formulations.perspective_conic import perspective_terms
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo


def weight_cuts_milp(
    problem: Problem,
    big_m: float | Tensor,
    points: Iterable[Tensor] = (),
    *,
    split: Tensor | None = None,
) -> pyo.ConcreteModel:
    """Build the model; ``model.w``, ``z``, ``s``, ``t`` are its variables, ``cuts`` its tangents.

    Any MIP solver takes it. More tangents are added by :func:`add_weight_cuts`.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it, any curvature form.
    big_m : float or Tensor
        M > 0, one for all weights or (p,), such as :func:`proven_big_m`.
    points : iterable of Tensor
        (p,) weights at which the model touches the problem.
    split : Tensor, optional
        (p,) the diagonal e to move from the curvature to the ridge; none if absent.

    Raises
    ------
    ProblemError
        If some ``d = rho + e`` is not positive, or M not positive, finite and of shape (p,).
    """
    import pyomo.environ as pyo

    base = problem if split is None else split_problem(problem, split)
    check_ridge(base.rho)
    M = limits_of(problem, big_m)
    model = new_model(problem, "outer approximation in weights")
    model.w = pyo.Var(model.J, bounds=lambda _, j: (-M[j], M[j]))
    model.s = pyo.Var(model.J, bounds=lambda _, j: (0.0, M[j] ** 2))
    model.t = pyo.Var(domain=pyo.NonNegativeReals)
    model.below = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] <= M[j] * m.z[j])
    model.above = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] >= -M[j] * m.z[j])
    model.cuts = pyo.ConstraintList()
    model.objective = pyo.Objective(expr=model.t + perspective_terms(model, base))
    for point in points:
        add_weight_cuts(model, problem, point, split=split)
    return model


def add_weight_cuts(
    model: pyo.ConcreteModel,
    problem: Problem,
    point: Tensor,
    *,
    ratio: Tensor | None = None,
    split: Tensor | None = None,
) -> list[pyo.Constraint]:
    """Add the tangents at ``point`` (p,) and return them, for persistent solvers.

    The tangents of the squares are taken at ``ratio`` (p,), w / z at a fractional z, or at the
    point itself. ``problem`` and ``split`` must be those that the model was built from.
    """
    base = problem if split is None else split_problem(problem, split)
    x = point - problem.w_bar
    slope = base.curvature.product(x)
    energy = 0.5 * float(x @ slope)
    grad, w_bar = slope.tolist(), problem.w_bar.tolist()
    linear = sum(g * (model.w[j] - w_bar[j]) for j, g in enumerate(grad))
    new = [model.cuts.add(model.t >= linear - energy)]
    for j, a in enumerate((point if ratio is None else ratio).tolist()):
        if a != 0.0:
            new.append(model.cuts.add(model.s[j] >= 2.0 * a * model.w[j] - a * a * model.z[j]))
    return new
