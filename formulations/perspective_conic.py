r"""The perspective model with binary indicators: rotated second-order cones.

.. math::
    \min_{w,z,s,r}\ & \tfrac12\sum_i r_i^2 + g^\top(w-\bar w)
        + \tfrac12\sum_j d_j\,(s_j - 2\bar w_jw_j + \bar w_j^2)\\
    \text{s.t. } & r=F(w-\bar w),\qquad w_j^2\le s_jz_j\ (s_j\ge0),\qquad Gz\le h,\qquad
        z\in\{0,1\}^p

w (p,) weights, z (p,) indicators (1 keeps), s (p,) the squares' epigraph, r (m,) the image of the
displacement; :math:`F^\top F=C-\mathrm{diag}(e)`, :math:`d=\rho+e>0`; :math:`\bar w, g, \rho` of
the problem; :math:`Gz\le h` the rows of the family. With an M, :math:`|w_j|\le M_jz_j` too.

Strength: the continuous relaxation is :func:`perspective_relaxation` with the same split e; with
the optimal diagonal as e it is the strongest model of this folder that a solver branches on. The
cones imply :math:`w_j=0` where :math:`z_j=0`, so no M is needed; with a proven one the bound is
that of big-M or better.

Size: 3p + m variables, p of them binary, p rotated cones, m rows and those of G (2p more with M).

Source: Frangioni & Gentile, *Mathematical Programming* 106 (2006); Aktürk, Atamtürk & Gürel,
*Operations Research Letters* 37 (2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from chita_opt.bounds.dual import check_ridge
from chita_opt.bounds.splits import split_problem
from chita_opt.formulations.model_parts import add_image, limits_of, new_model
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo


def perspective_miqcp(
    problem: Problem, *, split: Tensor | None = None, big_m: float | Tensor | None = None
) -> pyo.ConcreteModel:
    """Build the model; ``model.w``, ``model.z``, ``model.s``, ``model.r`` are its variables.

    SCIP, Gurobi, CPLEX and Xpress take it; HiGHS does not.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it, any curvature form.
    split : Tensor, optional
        (p,) the diagonal e to move from the curvature to the ridge, with C - diag(e) positive
        semidefinite; none if absent.
    big_m : float or Tensor, optional
        Adds the rows of M, such as :func:`proven_big_m`.

    Raises
    ------
    ProblemError
        If some ``d = rho + e`` is not positive, or M not positive, finite and of shape (p,).
    """
    import pyomo.environ as pyo

    base = problem if split is None else split_problem(problem, split)
    check_ridge(base.rho)
    M = None if big_m is None else limits_of(problem, big_m)
    model = new_model(problem, "perspective pruning")
    add_image(model, problem, base, M)
    model.s = pyo.Var(model.J, domain=pyo.NonNegativeReals)
    model.cones = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] ** 2 <= m.s[j] * m.z[j])
    if M is not None:
        model.below = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] <= M[j] * m.z[j])
        model.above = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] >= -M[j] * m.z[j])
    energy = sum(model.r[i] ** 2 for i in model.I)
    model.objective = pyo.Objective(expr=0.5 * energy + perspective_terms(model, base))
    return model


def perspective_terms(model: pyo.ConcreteModel, base: Problem) -> pyo.Expression:
    """Linear term and the separable quadratic with ``s`` in place of the squares of ``w``."""
    w_bar, g, d = (v.tolist() for v in (base.w_bar, base.g, base.rho))
    return sum(
        g[j] * (model.w[j] - w_bar[j])
        + 0.5 * d[j] * (model.s[j] - 2.0 * w_bar[j] * model.w[j] + w_bar[j] ** 2)
        for j in model.J
    )
