r"""The multiple-choice knapsack: one option for every item under one budget.

.. math::
    \max_y\ \sum_{r,o}V_{ro}y_{ro}\qquad\text{s.t. }\sum_oy_{ro}=1\ \ \forall r,\qquad
    \sum_{r,o}c_{ro}y_{ro}\le K,\qquad y\in\{0,1\}

V values, c costs; items may have different numbers of options. It chooses

* the block widths of rows and the bit-widths of channels: an option is a width, its cost what it
  keeps;
* the split of a budget of k weights among blocks (rows, layers): the options of block B are its
  counts :math:`\kappa`, with :math:`V=-\phi_B(\kappa)`, the least loss with :math:`\kappa` weights,
  and cost :math:`\kappa` (:mod:`chita_opt.exact.budget_split`).

Strength: its relaxation is the problem over the items' concave majorants (of a split: the convex
minorants of the curves), equal to the Lagrangian dual of the budget; at most two options of one
item lie between 0 and 1.

Size: one binary an option; items + 1 rows.

Source: DARB (Ren et al., AAAI 2020) chooses the widths by density; Kellerer, Pferschy & Pisinger,
*Knapsack Problems* (2004), ch. 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyomo.environ as pyo

Array = np.ndarray


def multiple_choice_milp(
    values: Array | Sequence[Array], costs: Array | Sequence[Array], budget: int
) -> pyo.ConcreteModel:
    """Build the model; ``model.y[r, o]`` chooses.

    Parameters
    ----------
    values, costs : Array or sequence of Array
        (items, options), or one vector of its options for each item.
    budget : int
        K.
    """
    import pyomo.environ as pyo

    model = pyo.ConcreteModel(name="multiple choice")
    options = [range(len(own)) for own in values]
    model.R = pyo.RangeSet(0, len(options) - 1)
    model.RO = pyo.Set(dimen=2, initialize=[(r, o) for r, own in enumerate(options) for o in own])
    model.y = pyo.Var(model.RO, domain=pyo.Binary)
    model.one = pyo.Constraint(model.R, rule=lambda m, r: sum(m.y[r, o] for o in options[r]) == 1)
    spent = sum(int(costs[r][o]) * model.y[r, o] for r, o in model.RO)
    model.budget = pyo.Constraint(expr=spent <= int(budget))
    won = sum(float(values[r][o]) * model.y[r, o] for r, o in model.RO)
    model.objective = pyo.Objective(expr=won, sense=pyo.maximize)
    return model
