r"""The best mask of a family for given scores, as a linear program with binaries.

.. math::
    \max_{z,u}\ \sum_js_jz_j\qquad\text{s.t. } Gz+Eu\le h,\qquad z\in\{0,1\}^p,\ u\in[0,1]^q

s (p,) scores; :math:`Gz+Eu\le h` the rows of the family with its auxiliary variables u, binary
where the family says so. This is what ``best_support`` answers without a solver.

Strength: the continuous relaxation is the answer itself where the rows describe the convex hull
(``rows_are_tight``).

Size: p binaries, q further variables, the family's rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from chita_opt.formulations.model_parts import add_family
from chita_opt.supports import SupportFamily

if TYPE_CHECKING:
    import pyomo.environ as pyo


def best_mask_milp(supports: SupportFamily, scores: Tensor) -> pyo.ConcreteModel:
    """Build the model of the family's oracle; ``model.z`` (1 keeps), ``model.auxiliary``.

    Parameters
    ----------
    supports : SupportFamily
        Any whose rows describe it.
    scores : Tensor
        (p,) >= 0.
    """
    import pyomo.environ as pyo

    s = supports.check_scores(scores).tolist()
    model = pyo.ConcreteModel(name="best mask")
    model.J = pyo.RangeSet(0, supports.size - 1)
    model.z = pyo.Var(model.J, domain=pyo.Binary)
    add_family(model, supports)
    model.objective = pyo.Objective(
        expr=sum(s[j] * model.z[j] for j in model.J), sense=pyo.maximize
    )
    return model
