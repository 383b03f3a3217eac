r"""Weights that can stand for each other: an order among them that some optimum keeps.

**Zero columns.** A weight on which C does not depend contributes its own gain
:math:`(\rho_j\bar w_j-g_j)^2/2\rho_j` if it is kept, whatever the others do. Within a group of the
budget a larger gain is never worse: once one is out, all smaller ones are.

**Twins.** Let columns i and j of the data be equal up to sign (signs are flipped away) and
:math:`\rho_i=\rho_j`. Moving the value x of a kept weight i to a pruned j changes the objective by
:math:`x(\beta_i-\beta_j)` with :math:`\beta=\rho\bar w-g`. So in the order of beta there is an
optimum whose kept positive twins are the last ones and whose other kept twins are the first ones:
the pruned ones stand together. Once two are out, so are all between them; a kept one beside the
gap keeps all that are farther from it.

Both hold at once: moves stay within one class and one group, none is worse, and they end.
Pixels that are constant over all samples are twins in every row of a network's first layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chita_opt.curvature import LowRank
from chita_opt.exact.quadratic import FREE, IN, OUT
from chita_opt.exact.tree_search.allowed import Allowed, BudgetAllowed, Restricted
from chita_opt.problem import Problem
from chita_opt.supports.base import Array


@dataclass(frozen=True, eq=False)
class Chain:
    """Zero columns of one group, largest gain first."""

    order: Array

    def propagate(self, state: Array) -> bool:
        """Fix what follows; False if the state breaks the order."""
        own = state[self.order]
        out, kept = np.flatnonzero(own == OUT), np.flatnonzero(own == IN)
        first = int(out[0]) if len(out) else len(own)
        last = int(kept[-1]) if len(kept) else -1
        if last > first:
            return False
        state[self.order[first:]] = OUT
        state[self.order[: last + 1]] = IN
        return True


@dataclass(frozen=True, eq=False)
class Twins:
    """Twins of one group, in the order of beta."""

    order: Array

    def propagate(self, state: Array) -> bool:
        """Fix what follows; False if the state breaks the order."""
        own = state[self.order]
        out = np.flatnonzero(own == OUT)
        if not len(out):
            return True
        low, high = int(out[0]), int(out[-1])
        if bool((own[low : high + 1] == IN).any()):
            return False
        state[self.order[low : high + 1]] = OUT
        kept = np.flatnonzero(own == IN)
        below, above = kept[kept < low], kept[kept > high]
        if len(below):
            state[self.order[: below[-1] + 1]] = IN
        if len(above):
            state[self.order[above[0] :]] = IN
        return True


class Ordered(Allowed):
    """A budget on the supports that keep the orders of their chains and twins.

    Parameters
    ----------
    family : BudgetAllowed
        The budget.
    orders : list of Chain or Twins
        Their classes are disjoint.
    """

    def __init__(self, family: BudgetAllowed, orders: list[Chain | Twins]) -> None:
        self.family, self.orders = family, orders
        self.row_count = family.row_count

    def propagate(self, state: Array) -> bool:
        """Counts and orders, until nothing follows any more."""
        while True:
            before = int((state == FREE).sum())
            if not self.family.propagate(state):
                return False
            if not all(order.propagate(state) for order in self.orders):
                return False
            if int((state == FREE).sum()) == before:
                return self.family.propagate(state)

    def holds(self, state: Array) -> bool:
        """Whether the family itself allows what is kept: proposals need no order."""
        return self.family.holds(state)

    def everything(self, state: Array) -> bool:
        """As the budget's."""
        return self.family.everything(state)

    def free_count(self, state: Array) -> int | None:
        """As the budget's: choices against an order are equal to others, and allowed."""
        return self.family.free_count(state)

    def restrict(self, state: Array, free: Array) -> Restricted:
        """As the budget's."""
        return self.family.restrict(state, free)


def ordered(problem: Problem, family: Allowed) -> Allowed:
    """The family with the orders of zero columns and twins, itself where there are none.

    Columns are compared exactly, those of the data for per-sample gradients and those of C
    otherwise, so that no tolerance enters the proof.
    """
    if not isinstance(family, BudgetAllowed):
        return family
    C = problem.curvature
    columns = (C.A if isinstance(C, LowRank) else C.dense()).detach().cpu().numpy().T
    rho = problem.rho.cpu().numpy()
    beta = rho * problem.w_bar.cpu().numpy() - problem.g.cpu().numpy()
    classes: dict[tuple[bytes, float, int], list[int]] = {}
    for j, column in enumerate(columns):
        filled = np.flatnonzero(column)
        sign = float(np.sign(column[filled[0]])) if len(filled) else 0.0
        if not sign and not rho[j] > 0.0:
            continue
        beta[j] *= sign or beta[j] / rho[j]  # of a zero column, twice the gain
        key = (sign * column + 0.0).tobytes() if sign else b""  # + 0.0: no negative zeros
        classes.setdefault((key, rho[j] if sign else 0.0, int(family.labels[j])), []).append(j)
    orders: list[Chain | Twins] = []
    for (key, _, _), members in classes.items():
        if len(members) > 1:
            index = np.array(members)
            order = index[np.argsort(beta[index], kind="stable")]
            orders.append(Twins(order) if key else Chain(order[::-1].copy()))
    return Ordered(family, orders) if orders else family


__all__ = ["Chain", "Ordered", "Twins", "ordered"]
