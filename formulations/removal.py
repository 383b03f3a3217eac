r"""The removal form: choose what to prune.

.. math::
    \min_{x,u,r,t}\ & t\\
    \text{s.t. } & t\ge\tfrac12\sum_i r_i^2+g^\top x+\tfrac12\sum_j\rho_jx_j^2,\qquad r=Fx,\\
    & -M_j(1-u_j)\le x_j+\bar w_j\le M_j(1-u_j),\qquad G(\mathbf 1-u)\le h,\qquad u\in\{0,1\}^p,\\
    & t\ \ge\ \hat f+u_j\,\frac{\hat w_j^2}{2[H^{-1}]_{jj}}\quad\text{for every } j

x (p,) displacement from :math:`\bar w`, u (p,) removals (1 prunes), r (m,) its image, t the loss
increase; :math:`F^\top F=C`, :math:`H=C+\mathrm{diag}(\rho)`, :math:`\hat w` the minimiser without
supports and :math:`\hat f` its value (:math:`\bar w` and 0 without a linear term);
:math:`\bar w, g, \rho` of the problem; :math:`Gz\le h` the rows of the family.

Strength: that of big-M, and the last rows: removing j alone costs the optimal-brain-surgeon
saliency, and what else is removed only adds to it. With r removals due, the continuous relaxation
reaches the t at which :math:`\sum_j\min(1,(t-\hat f)/s_j)=p-r'`, :math:`r'` the weights kept; big-M
alone proves nothing there. Best where little is pruned.

Size: 2p + m + 1 variables, p of them binary; m + 3p rows, one convex quadratic row and those of G.

Source: Hassibi & Stork (1992) for the saliency; monotonicity: restricting more weights to zero
never lowers a minimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.formulations.factors import factor_matrix
from chita_opt.formulations.model_parts import add_auxiliary, limits_of, row
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo


def removal_costs(problem: Problem) -> tuple[float, Tensor]:
    r"""The dense minimum, and (p,) what removing each weight alone adds to it.

    Raises
    ------
    CurvatureError
        If H is singular.
    """
    every = torch.ones(problem.p, dtype=torch.bool, device=problem.device)
    dense = CholeskySupport.solve(problem.curvature, problem.separable, every)
    spread = dense.inverse_diagonal(torch.arange(problem.p, device=problem.device))
    return dense.value, dense.weights.square() / (2.0 * spread)


def removal_miqcp(problem: Problem, big_m: float | Tensor) -> pyo.ConcreteModel:
    """Build the model; ``model.x``, ``u``, ``r``, ``t`` are its variables, ``z`` stands for 1 - u.

    SCIP, Gurobi, CPLEX and Xpress take it; HiGHS does not.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it, any curvature form.
    big_m : float or Tensor
        M > 0 for the weights, one for all or (p,), such as :func:`proven_big_m`.

    Raises
    ------
    ProblemError
        If M is not positive and finite, or of the wrong shape.
    CurvatureError
        If H is singular.
    """
    import pyomo.environ as pyo

    M = limits_of(problem, big_m)
    base, saliencies = removal_costs(problem)
    costs = (saliencies * (1.0 - 1e-9)).tolist()  # what rounding may have added
    base -= 1e-12 * (abs(base) + problem.prune_all)
    w_bar, g, rho = (v.tolist() for v in (problem.w_bar, problem.g, problem.rho))
    model = pyo.ConcreteModel(name="removal form of pruning")
    model.J = pyo.RangeSet(0, problem.p - 1)
    model.x = pyo.Var(model.J)
    model.u = pyo.Var(model.J, domain=pyo.Binary)
    model.t = pyo.Var(bounds=(base, None))
    model.z = pyo.Expression(model.J, rule=lambda m, j: 1.0 - m.u[j])
    _add_image(model, problem)
    _add_coverage(model, problem)
    model.below = pyo.Constraint(
        model.J, rule=lambda m, j: m.x[j] + w_bar[j] <= M[j] * (1.0 - m.u[j])
    )
    model.above = pyo.Constraint(
        model.J, rule=lambda m, j: m.x[j] + w_bar[j] >= -M[j] * (1.0 - m.u[j])
    )
    model.saliency = pyo.Constraint(model.J, rule=lambda m, j: m.t >= base + costs[j] * m.u[j])
    separable = sum(g[j] * model.x[j] + 0.5 * rho[j] * model.x[j] ** 2 for j in model.J)
    energy = sum(model.r[i] ** 2 for i in model.I)
    model.loss = pyo.Constraint(expr=0.5 * energy + separable - model.t <= 0.0)
    model.objective = pyo.Objective(expr=model.t)
    return model


def _add_image(model: pyo.ConcreteModel, problem: Problem) -> None:
    import pyomo.environ as pyo

    F = factor_matrix(problem.curvature.factor())
    model.I = pyo.RangeSet(0, F.shape[0] - 1)
    model.r = pyo.Var(model.I)
    model.image = pyo.Constraint(
        model.I, rule=lambda m, i: m.r[i] == sum(a * m.x[j] for j, a in row(F, i))
    )


def _add_coverage(model: pyo.ConcreteModel, problem: Problem) -> None:
    """``G u - E a >= G 1 - h``: enough removals in every group, a the auxiliary variables."""
    import pyomo.environ as pyo

    rows, u = problem.supports.rows(), add_auxiliary(model, problem.supports)

    def rule(_: pyo.ConcreteModel, i: int) -> pyo.Expression:
        entries, extra = row(rows.G, i), row(rows.E, i)
        if not entries and not extra:
            return pyo.Constraint.Skip
        due = sum(a for _, a in entries) - rows.h[i]
        removed = sum(a * model.u[j] for j, a in entries)
        return removed - sum(a * u[j] for j, a in extra) >= due

    model.family = pyo.Constraint(range(len(rows.h)), rule=rule)
