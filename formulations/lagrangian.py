r"""The Lagrangian of the family's rows: a price for every kept weight instead of a count.

.. math::
    L(y)=\min_{w,z,s}\ & \tfrac12\|F(w-\bar w)\|^2 + g^\top(w-\bar w)
        + \tfrac12\sum_jd_j\,(s_j-2\bar w_jw_j+\bar w_j^2) + y^\top(Gz-h)\\
    \text{s.t. } & w_j^2\le s_jz_j,\qquad 0\le z\le1

Symbols as in :func:`perspective_relaxation`; y >= 0 (rows of G) the prices, a parameter of the
model. For a cardinality budget y is one number, the price of a kept weight, and L(y) + yk is the
penalised ("l0-regularised") relaxation.

Strength: L(y) is a lower bound for every y >= 0, concave in y; its maximum is the perspective
relaxation, attained at that relaxation's multipliers. One price serves every layer of a network:
with the budget's row left out the layers are independent.

Size: 3p variables, p three-dimensional cones, as many parameters as G has rows.

Source: Geoffrion, *Mathematical Programming Study* 2 (1974); the penalised form is that of
Hazimeh, Mazumder & Saab, *Mathematical Programming* 196 (2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from chita_opt.formulations.perspective import PerspectiveModel, perspective_relaxation
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class LagrangianModel:
    """The model, its parameter and its variables.

    Attributes
    ----------
    model : cvxpy.Problem
        Set ``prices.value`` and solve; its value is L(y), ``rows.left.value - h`` a supergradient.
    prices : cvxpy.Parameter
        y (rows of G,) >= 0.
    w, z, s : cvxpy.Variable
        (p,) each.
    """

    model: cp.Problem
    prices: cp.Parameter
    w: cp.Variable
    z: cp.Variable
    s: cp.Variable


def lagrangian_relaxation(problem: Problem, *, split: Tensor | None = None) -> LagrangianModel:
    """Build the relaxation of ``problem`` with its rows priced.

    Parameters
    ----------
    problem : Problem
        Any family, any curvature form.
    split : Tensor, optional
        (p,) the diagonal e to move from the curvature to the ridge, with C - diag(e) positive
        semidefinite; none if absent.

    Raises
    ------
    ProblemError
        If some ``d = rho + e`` is not positive.
    """
    import cvxpy as cp

    base: PerspectiveModel = perspective_relaxation(problem, split=split)
    rows, m = base.rows, len(base.rows.h)
    prices = cp.Parameter(m, nonneg=True, name="prices", value=np.zeros(m))
    cones = [c for c in base.model.constraints if isinstance(c, cp.SOC)]
    value = base.model.objective.args[0] + prices @ (rows.left - rows.h)
    model = cp.Problem(cp.Minimize(value), [*cones, *rows.box])
    return LagrangianModel(model, prices, base.w, base.z, base.s)
