r"""The big-M model as a mixed-integer quadratic program.

.. math::
    \min_{w,z,r}\ & \tfrac12\sum_i r_i^2 + g^\top(w-\bar w) + \tfrac12\sum_j\rho_j(w_j-\bar w_j)^2\\
    \text{s.t. } & r = F(w-\bar w),\qquad -M_jz_j\le w_j\le M_jz_j,\qquad Gz\le h,\qquad
        z\in\{0,1\}^p

w (p,) weights, z (p,) indicators (1 keeps), r (m,) the image of the displacement;
:math:`F^\top F=C` with F (m, p), :math:`\bar w, g, \rho` of the problem; :math:`Gz\le h` the rows
of the family, which must hold no other binary point (true of all built-in families).

Strength: that of M. The continuous relaxation proves nothing (zero, without a linear term) once
:math:`z_j=|\bar w_j|/M_j` fits in the family; the perspective relaxation with the rows of M added
is at least as strong. A guessed M that is too small makes the answer wrong without a sign, so M has
no default: give one that is known, or :func:`proven_big_m`.

Size: 2p + m variables, p of them binary, m + 2p rows and those of G.

Source: Bertsimas, King & Mazumder, *Annals of Statistics* 44 (2016), for best subset selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.errors import ProblemError
from chita_opt.formulations.model_parts import add_loss, limits_of, new_model
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo

_LARGEST = 5000  # weights up to which the inverse of the Hessian is formed


def proven_big_m(problem: Problem, upper: float) -> Tensor:
    r"""M (p,) that no solution of objective ``upper`` or better exceeds.

    At the unconstrained minimiser :math:`\hat w` (that is :math:`\bar w` without a linear term),
    :math:`f(w)=f(\hat w)+\tfrac12(w-\hat w)^\top H(w-\hat w)`, so :math:`f(w)\le U` implies

    .. math:: |w_j-\hat w_j|\le\sqrt{2\,(U-f(\hat w))\,[H^{-1}]_{jj}},
              \qquad H=C+\mathrm{diag}(\rho).

    The numerical :math:`\hat w` need not be exact: its remaining gradient :math:`\nabla` widens the
    ellipsoid from :math:`\sqrt{2\Delta}` to :math:`t+\sqrt{t^2+2\Delta}`,
    :math:`t^2=\nabla^\top H^{-1}\nabla`.

    Parameters
    ----------
    problem : Problem
        With a positive definite H; the ridge sees to that.
    upper : float
        Objective of an incumbent (any feasible solution), or any valid upper bound.

    Raises
    ------
    ProblemError
        If ``upper`` lies below the unconstrained minimum, or p exceeds 5000.
    CurvatureError
        If H is singular.
    """
    p = problem.p
    if p > _LARGEST:
        raise ProblemError(f"p is {p}; a proven M inverts the Hessian, up to {_LARGEST} weights")
    every = torch.ones(p, dtype=torch.bool, device=problem.device)
    dense = CholeskySupport.solve(problem.curvature, problem.separable, every)
    slack = upper - problem.objective(dense.weights)
    if not slack >= 0.0:
        raise ProblemError(
            f"upper is {upper}; no weights go below the dense minimum {upper - slack:.12g}. "
            "Give the objective of a feasible solution"
        )
    slack += 1e-12 * (abs(upper) + abs(upper - slack))  # rounding of both objectives
    rest = problem.gradient(dense.weights)
    t = torch.linalg.solve_triangular(dense.L, rest[:, None], upper=False).norm()
    radius = t + (t.square() + 2.0 * slack).sqrt()
    spread = dense.inverse_diagonal(torch.arange(p, device=problem.device)).sqrt()
    # a Cholesky solve of condition kappa is exact to about p * eps * kappa
    kappa = float(torch.linalg.cond(dense.L)) ** 2
    rounding = 1.0 + 4.0 * p * torch.finfo(torch.float64).eps * kappa
    return (dense.weights.abs() + radius * spread) * rounding


def big_m_miqp(problem: Problem, big_m: float | Tensor) -> pyo.ConcreteModel:
    """Build the model; ``model.w``, ``model.z``, ``model.r`` are its variables.

    Solvers of mixed-integer quadratic programs take it (SCIP, Gurobi, CPLEX, Xpress). HiGHS does
    not; it solves the continuous relaxation, and with that the model for a fixed z.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it, any curvature form.
    big_m : float or Tensor
        M > 0, one for all weights or (p,).

    Raises
    ------
    ProblemError
        If M is not positive and finite, or of the wrong shape.
    """
    import pyomo.environ as pyo

    M = limits_of(problem, big_m)
    model = new_model(problem, "big-M pruning")
    add_loss(model, problem, M)
    model.below = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] <= M[j] * m.z[j])
    model.above = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] >= -M[j] * m.z[j])
    return model
