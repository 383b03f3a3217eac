r"""The disjunction itself: keep the weight, or let it be zero.

.. math::
    \min_{w,r}\ & \tfrac12\sum_i r_i^2 + g^\top(w-\bar w) + \tfrac12\sum_j\rho_j(w_j-\bar w_j)^2\\
    \text{s.t. } & r = F(w-\bar w),\qquad
        \begin{bmatrix}Z_j\\ z_j=1\end{bmatrix}\vee
        \begin{bmatrix}\neg Z_j\\ z_j=0,\ w_j=0\end{bmatrix},\qquad Gz\le h,\qquad |w_j|\le M_j

w (p,) weights, z (p,) indicators (1 keeps), r (m,) the image of the displacement;
:math:`F^\top F=C`, :math:`\bar w, g, \rho` of the problem; :math:`Gz\le h` the rows of the family.

Strength: that of the reformulation which the user chooses. ``gdp.bigm`` and ``gdp.hull`` give the
big-M model (for one weight the hull of w = 0 and a box is big-M); the perspective comes only from
the objective, see :func:`perspective_miqcp`.

Size: 2p + m variables and 2p Boolean ones, p disjunctions of two terms, m rows and those of G.

Source: Raman & Grossmann, *Computers & Chemical Engineering* 18 (1994), generalised disjunctive
programming; indicator constraints as MIP solvers have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from chita_opt.formulations.model_parts import add_loss, limits_of, new_model
from chita_opt.problem import Problem

if TYPE_CHECKING:
    import pyomo.environ as pyo


def indicator_gdp(problem: Problem, big_m: float | Tensor) -> pyo.ConcreteModel:
    """Build the model; ``model.w``, ``model.z``, ``model.r`` are its variables.

    Turn it into a mixed-integer program by ``pyo.TransformationFactory("gdp.bigm")`` (or
    ``"gdp.hull"``), or give it to Pyomo's own GDP solvers.

    Parameters
    ----------
    problem : Problem
        Any family whose rows describe it, any curvature form.
    big_m : float or Tensor
        Bounds M > 0 of the weights, one for all or (p,); the transformations need them.

    Raises
    ------
    ProblemError
        If M is not positive and finite, or of the wrong shape.
    """
    import pyomo.environ as pyo
    import pyomo.gdp as gdp

    model = new_model(problem, "indicator pruning")
    add_loss(model, problem, limits_of(problem, big_m))

    def keep(term: gdp.Disjunct, j: int) -> None:
        term.indicator = pyo.Constraint(expr=model.z[j] == 1.0)

    def prune(term: gdp.Disjunct, j: int) -> None:
        term.indicator = pyo.Constraint(expr=model.z[j] == 0.0)
        term.removal = pyo.Constraint(expr=model.w[j] == 0.0)

    model.keep = gdp.Disjunct(model.J, rule=keep)
    model.prune = gdp.Disjunct(model.J, rule=prune)
    model.choice = gdp.Disjunction(model.J, rule=lambda m, j: [m.keep[j], m.prune[j]])
    return model
