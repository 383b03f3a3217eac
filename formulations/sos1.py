r"""Special ordered sets: at most one of the weight and its removal is not zero, without an M.

.. math::
    \min_{w,z,v,r}\ & \tfrac12\sum_i r_i^2 + g^\top(w-\bar w)
        + \tfrac12\sum_j\rho_j(w_j-\bar w_j)^2\\
    \text{s.t. } & r = F(w-\bar w),\qquad v_j = 1-z_j,\qquad \{w_j,v_j\}\ \text{SOS1},\qquad
        Gz\le h,\qquad z\in\{0,1\}^p

w (p,) weights, z (p,) indicators (1 keeps), v (p,) removals in [0, 1], r (m,) the image of the
displacement; :math:`F^\top F=C`, :math:`\bar w, g, \rho` of the problem; :math:`Gz\le h` the rows
of the family.

Strength: none before branching. The continuous relaxation is the problem without supports (zero
without a linear term), for every family; a solver that knows bounds of w turns the sets into
big-M rows.

Size: 3p + m variables, p of them binary, p sets, m + p rows and those of G.

Source: Beale & Tomlin (1970) for the sets; Bertsimas, King & Mazumder, *Annals of Statistics* 44
(2016), for their use in subset selection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chita_opt.formulations.model_parts import add_loss, new_model
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo


def sos1_miqp(problem: Problem) -> pyo.ConcreteModel:
    """Build the model; ``model.w``, ``model.z``, ``model.v``, ``model.r`` are its variables.

    SCIP, Gurobi, CPLEX and Xpress take the sets; HiGHS does not. The .gms writer of Pyomo does
    not write them.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it, any curvature form.
    """
    import pyomo.environ as pyo

    model = new_model(problem, "SOS1 pruning")
    add_loss(model, problem, None)
    model.v = pyo.Var(model.J, bounds=(0.0, 1.0))
    model.removal = pyo.Constraint(model.J, rule=lambda m, j: m.v[j] + m.z[j] == 1.0)
    model.sets = pyo.SOSConstraint(model.J, rule=lambda m, j: [m.w[j], m.v[j]], sos=1)
    return model
