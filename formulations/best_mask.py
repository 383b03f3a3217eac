r"""The best mask of a family for given scores, as a linear program with binaries.

.. math::
    \max_{z,u}\ \sum_js_jz_j\qquad\text{s.t. } Gz+Eu\le h,\qquad z\in\{0,1\}^p,\ u\in[0,1]^q

s (p,) scores; :math:`Gz+Eu\le h` the rows of the family with its auxiliary variables u, binary
where the family says so. This is what ``best_support`` answers without a solver.

Strength: the continuous relaxation is the answer itself where the rows describe the convex hull
(``rows_are_tight``).

Size: p binaries, q further variables, the family's rows.

**Multiple choice** (block widths, bit-widths): one option o for every item r under a budget,

.. math::
    \max_y\ \sum_{r,o}V_{ro}y_{ro}\qquad\text{s.t. }\sum_oy_{ro}=1,\qquad
    \sum_{r,o}c_{ro}y_{ro}\le K,\qquad y\in\{0,1\}

V values, c costs. Its relaxation has at most two options of one item between 0 and 1.

Source: DARB (Ren et al., AAAI 2020) chooses the widths by density; Kellerer, Pferschy & Pisinger,
*Knapsack Problems* (2004), ch. 11, for the multiple-choice knapsack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from chita_opt.formulations.model_parts import add_family
from chita_opt.supports import SupportFamily

if TYPE_CHECKING:
    import pyomo.environ as pyo

Array = np.ndarray


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


def multiple_choice_milp(values: Array, costs: Array, budget: int) -> pyo.ConcreteModel:
    """Build the multiple-choice knapsack; ``model.y[r, o]`` chooses.

    Parameters
    ----------
    values, costs : Array
        (items, options).
    budget : int
        K.
    """
    import pyomo.environ as pyo

    items, options = values.shape
    model = pyo.ConcreteModel(name="multiple choice")
    model.R, model.O = pyo.RangeSet(0, items - 1), pyo.RangeSet(0, options - 1)
    model.y = pyo.Var(model.R, model.O, domain=pyo.Binary)
    model.one = pyo.Constraint(model.R, rule=lambda m, r: sum(m.y[r, o] for o in m.O) == 1)
    spent = sum(int(costs[r, o]) * model.y[r, o] for r in model.R for o in model.O)
    model.budget = pyo.Constraint(expr=spent <= int(budget))
    won = sum(float(values[r, o]) * model.y[r, o] for r in model.R for o in model.O)
    model.objective = pyo.Objective(expr=won, sense=pyo.maximize)
    return model
