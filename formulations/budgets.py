r"""Rows that a support family has no word for: costs per weight, and block widths as a decision.

Each function returns a rule that adds its rows to any Pyomo model of this folder, on ``model.z``
(1 keeps); a rule of the user's own is any function that does so.

**Costs per weight** (FLOPs, bytes, energy): :math:`\sum_jc_jz_j\le L`.

**Block widths** (density-adaptive regular blocks): every row of a matrix takes one width B of a
list of divisors of its length, and keeps at most one weight in each of its blocks of B consecutive
weights; the widths are chosen under a budget K of kept weights:

.. math::
    & \sum_By_{rB}=1,\qquad z_i\le\sum_Bz^B_i,\\
    & \sum_{i\in\text{block}}z^B_i\le y_{rB}\quad\text{for all blocks of width B of row r},\\
    & \sum_r\sum_B\tfrac{n}{B}\,y_{rB}\le K,\qquad y\in\{0,1\},\ z^B\ge0

z (p,) indicators, y (rows, widths) choices, z^B (p,) the part of z that width B pays for; n
columns. For one row this extended form is ideal: its continuous relaxation is the convex hull.

Size: rows·widths binaries and p·widths continuous variables; p rows of z, one row for every block
of every width, one for every matrix row, and the budget.

Source: FALCON (Meng et al., AISTATS 2024) for the FLOPs row; DARB (Ren et al., AAAI 2020) for
block widths that are powers of two; the extended form is Balas's union of polyhedra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.formulations.model_parts import SideConstraint

if TYPE_CHECKING:
    import pyomo.environ as pyo


def cost_budget(
    costs: Tensor | Sequence[float], limit: float, *, name: str = "cost"
) -> SideConstraint:
    """``sum of costs of the kept weights <= limit``, as ``model.<name>``.

    Parameters
    ----------
    costs : Tensor or sequence of float
        (p,) >= 0, such as the multiplications that each weight takes part in.
    limit : float
        Same unit, >= 0.
    name : str
        Component of the model; choose another for a second budget.

    Raises
    ------
    SupportError
        If a cost or the limit is negative or not finite, or there are not p costs.
    """
    values = torch.as_tensor(costs, dtype=torch.float64)
    if values.ndim != 1 or not bool((values >= 0).all()) or not bool(torch.isfinite(values).all()):
        raise SupportError("costs must be a vector of finite numbers >= 0, one for every weight")
    if not 0.0 <= limit < float("inf"):
        raise SupportError(f"limit is {limit}; give a finite cost >= 0")

    def add(model: pyo.ConcreteModel) -> None:
        import pyomo.environ as pyo

        if len(values) != len(model.J):
            raise SupportError(f"there are {len(values)} costs for {len(model.J)} weights")
        paid = [(j, c) for j, c in enumerate(values.tolist()) if c > 0.0]
        if paid:  # all free: nothing to limit
            total = sum(c * model.z[j] for j, c in paid)
            model.add_component(name, pyo.Constraint(expr=total <= limit))

    return add


def block_widths(
    rows: int, columns: int, widths: Sequence[int], kept: int, *, first: int = 0
) -> SideConstraint:
    """One block width for every row of a matrix, at most ``kept`` weights in all.

    Adds the block ``model.widths`` with ``y[r, B]`` and ``part[j, B]``.

    Parameters
    ----------
    rows, columns : int
        Shape of the matrix, whose weights are consecutive.
    widths : sequence of int
        Allowed widths, each a divisor of ``columns``; powers of two for shift decoding.
    kept : int
        Budget K.
    first : int
        Index of the matrix's first weight.

    Raises
    ------
    SupportError
        If a width does not divide ``columns``, or even the widest blocks exceed the budget.
    """
    wrong = [B for B in widths if B < 1 or columns % B]
    if wrong or not widths or len(set(widths)) < len(widths):
        raise SupportError(
            f"widths are {list(widths)}; give different divisors of the {columns} columns"
        )
    least = rows * (columns // max(widths))
    if kept < least:
        raise SupportError(
            f"kept is {kept}, but blocks of {max(widths)} keep {least}; allow wider blocks"
        )

    def add(model: pyo.ConcreteModel) -> None:
        import pyomo.environ as pyo

        if not 0 <= first <= len(model.J) - rows * columns:
            raise SupportError(
                f"{rows} x {columns} weights from {first} on exceed the {len(model.J)} weights"
            )
        model.widths = block = pyo.Block()
        block.R, block.B = pyo.RangeSet(0, rows - 1), pyo.Set(initialize=list(widths))
        block.C = pyo.RangeSet(0, columns - 1)
        block.y = pyo.Var(block.R, block.B, domain=pyo.Binary)
        block.part = pyo.Var(block.R, block.C, block.B, bounds=(0.0, 1.0))
        block.one = pyo.Constraint(block.R, rule=lambda b, r: sum(b.y[r, B] for B in widths) == 1.0)
        block.paid = pyo.Constraint(
            block.R,
            block.C,
            rule=lambda b, r, c: (
                model.z[first + r * columns + c] <= sum(b.part[r, c, B] for B in widths)
            ),
        )
        blocks = [(B, i) for B in widths for i in range(columns // B)]
        block.single = pyo.Constraint(
            block.R,
            range(len(blocks)),
            rule=lambda b, r, n: (
                sum(
                    b.part[r, blocks[n][1] * blocks[n][0] + c, blocks[n][0]]
                    for c in range(blocks[n][0])
                )
                <= b.y[r, blocks[n][0]]
            ),
        )
        block.budget = pyo.Constraint(
            expr=sum((columns // B) * block.y[r, B] for r in block.R for B in widths) <= kept
        )

    return add
