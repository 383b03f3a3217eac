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
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.errors import ProblemError
from chita_opt.formulations.factors import factor_matrix
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

    M = _limits(problem, big_m)
    F = factor_matrix(problem.curvature.factor())
    w_bar, g, rho = (v.tolist() for v in (problem.w_bar, problem.g, problem.rho))
    G, h = problem.supports.rows()
    model = pyo.ConcreteModel(name="big-M pruning")
    model.J, model.I = pyo.RangeSet(0, problem.p - 1), pyo.RangeSet(0, F.shape[0] - 1)
    model.w = pyo.Var(model.J, bounds=lambda _, j: (-M[j], M[j]))
    model.z = pyo.Var(model.J, domain=pyo.Binary)
    model.r = pyo.Var(model.I)

    def step(j: int) -> pyo.Expression:
        return model.w[j] - w_bar[j]

    def image(_: pyo.ConcreteModel, i: int) -> pyo.Expression:
        return model.r[i] == sum(a * step(j) for j, a in _row(F, i))

    def family(_: pyo.ConcreteModel, i: int) -> pyo.Expression:
        entries = _row(G, i)
        if not entries:
            return pyo.Constraint.Skip  # an empty group
        return sum(a * model.z[j] for j, a in entries) <= h[i]

    model.image = pyo.Constraint(model.I, rule=image)
    model.below = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] <= M[j] * m.z[j])
    model.above = pyo.Constraint(model.J, rule=lambda m, j: m.w[j] >= -M[j] * m.z[j])
    model.family = pyo.Constraint(range(len(h)), rule=family)
    separable = sum(g[j] * step(j) + 0.5 * rho[j] * step(j) ** 2 for j in model.J)
    energy = sum(model.r[i] ** 2 for i in model.I)
    model.objective = pyo.Objective(expr=0.5 * energy + separable)
    return model


def _row(matrix: csr_array, i: int) -> list[tuple[int, float]]:
    """(column, value) pairs of one sparse row."""
    span = slice(matrix.indptr[i], matrix.indptr[i + 1])
    return list(zip(matrix.indices[span].tolist(), matrix.data[span].tolist(), strict=True))


def _limits(problem: Problem, big_m: float | Tensor) -> list[float]:
    M = torch.as_tensor(big_m, dtype=torch.float64).cpu()
    M = M.expand(problem.p) if M.ndim == 0 else M
    if M.shape != (problem.p,) or not bool(torch.isfinite(M).all()) or not bool((M > 0).all()):
        raise ProblemError(
            f"big_m has shape {tuple(M.shape)} and smallest entry {float(M.min()):.6g}; give one "
            f"positive finite M, or ({problem.p},) of them, such as proven_big_m(problem, upper)"
        )
    return list(M.tolist())
