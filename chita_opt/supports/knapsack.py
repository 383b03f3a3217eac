r"""The multiple-choice knapsack: one option for every item under a budget, exactly.

.. math:: \max\sum_rV_{r,o(r)}\quad\text{s.t. }\sum_rc_{r,o(r)}\le K

The Lagrangian :math:`\min_{\lambda\ge0}\lambda K+\sum_r\max_o(V_{ro}-\lambda c_{ro})` is the linear
relaxation. Its gap to a greedy answer leaves few items undecided (reduced costs), and only these
enter the dynamic program over the budget (Pisinger 1995, Kellerer, Pferschy & Pisinger 2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chita_opt.errors import SupportError

Array = np.ndarray
_STEPS = 200
_ROUNDING = 1e-12  # relative to the sum of all values


@dataclass(frozen=True, eq=False)
class Choice:
    """An optimal choice and the price of the budget.

    Attributes
    ----------
    option : Array
        (items,) int64.
    value : float
        Sum of the chosen values.
    price : float
        Lagrangian price of a unit of the budget.
    upper : float
        Value of the linear relaxation.
    """

    option: Array
    value: float
    price: float
    upper: float


def best_choice(values: Array, costs: Array, budget: int) -> Choice:
    """Solve the knapsack; ties go to the cheaper option, then to the first.

    Parameters
    ----------
    values : Array
        (items, options) float64; -inf where an item lacks an option.
    costs : Array
        (items, options) int64 >= 0.
    budget : int
        K.

    Raises
    ------
    SupportError
        If even the cheapest options exceed the budget.
    """
    finite = np.isfinite(values)
    costs = np.where(finite, costs, np.iinfo(np.int64).max // 4)
    least = costs.min(1)
    if int(least.sum()) > budget:
        raise SupportError(
            f"the cheapest options cost {int(least.sum())}; the budget is {budget}: raise it"
        )
    rank = np.lexsort((costs, -values), axis=1)[:, :1]
    if int(np.take_along_axis(costs, rank, 1).sum()) <= budget:  # the best of each item fit
        return _finish(values, rank[:, 0], 0.0)
    price = best_price(values, costs, budget)
    option = _greedy(values, costs, budget, price)
    return _refine(values, costs, budget, price, option)


def best_price(values: Array, costs: Array, budget: int) -> float:
    r"""The :math:`\lambda\ge0` of the linear relaxation, by Newton steps between two slopes."""
    low, high = 0.0, _price_that_fits(values, costs, budget)
    at_low, at_high = _line(values, costs, low, budget), _line(values, costs, high, budget)
    for _ in range(_STEPS):
        if at_low[1] == at_high[1]:
            break
        # where the tangents of both ends meet; slopes are K - cost: negative left, >= 0 right
        middle = (at_high[0] - at_low[0]) / (at_low[1] - at_high[1])
        if not low < middle < high:
            break
        found = _line(values, costs, middle, budget)
        meet = at_low[0] + at_low[1] * middle
        if found[0] + found[1] * middle <= meet + 1e-15 * abs(meet):
            return middle
        if found[1] < 0.0:
            low, at_low = middle, found
        else:
            high, at_high = middle, found
    return high


def relaxed_value(values: Array, costs: Array, budget: int, price: float) -> float:
    """The Lagrangian at a price: not below the best choice, for any price >= 0."""
    return float(price * budget + (values - price * costs).max(1).sum())


def _line(values: Array, costs: Array, price: float, budget: int) -> tuple[float, float]:
    """Intercept and slope of the Lagrangian at a price; the cheaper option where two are best."""
    option = _cheapest_best(values - price * costs, costs)
    rows = np.arange(len(values))
    return float(values[rows, option].sum()), float(budget - costs[rows, option].sum())


def _cheapest_best(reduced: Array, costs: Array) -> Array:
    """The best option of every item; of equal ones the cheapest."""
    top = reduced.max(1, keepdims=True)
    near = reduced >= top - 1e-14 * np.abs(top)
    return np.where(near, costs, np.iinfo(np.int64).max).argmin(1)


def _price_that_fits(values: Array, costs: Array, budget: int) -> float:
    """A price at which the best options fit the budget."""
    spread = float((values.max(1) - np.where(np.isfinite(values), values, np.inf).min(1)).max())
    price = max(spread, 1e-300)
    rows = np.arange(len(values))
    while int(costs[rows, _cheapest_best(values - price * costs, costs)].sum()) > budget:
        price *= 2.0
    return price


def _greedy(values: Array, costs: Array, budget: int, price: float) -> Array:
    """Cheapest best options at the price, then the best changes that still fit."""
    rows = np.arange(len(values))
    option = _cheapest_best(values - price * costs, costs)
    left = budget - int(costs[rows, option].sum())
    if left < 0:
        option = costs.argmin(1)
        left = budget - int(costs[rows, option].sum())
    while left > 0:
        gain = values - values[rows, option][:, None]
        extra = costs - costs[rows, option][:, None]
        able = (extra <= left) & (gain > 0.0)
        if not able.any():
            break
        loss = np.where(able, price * extra - gain, np.inf)
        r, o = divmod(int(np.argmin(loss)), values.shape[1])
        left -= int(extra[r, o])
        option[r] = o
    return option


def _refine(values: Array, costs: Array, budget: int, price: float, option: Array) -> Choice:
    """Dynamic program over the items that reduced costs leave undecided."""
    rows = np.arange(len(values))
    upper = relaxed_value(values, costs, budget, price)
    lower = float(values[rows, option].sum())
    reduced = values - price * costs
    loss = reduced.max(1, keepdims=True) - reduced
    slack = _ROUNDING * (float(np.abs(values[rows, option]).sum()) + upper)
    open_options = loss <= upper - lower + slack
    if upper - lower <= slack:
        return Choice(option, lower, price, max(upper, lower))
    undecided = np.flatnonzero(open_options.sum(1) > 1)
    best = np.where(open_options, reduced, -np.inf).argmax(1)
    decided = np.setdiff1d(rows, undecided)
    left = budget - int(costs[decided, best[decided]].sum())
    order = undecided[np.argsort(loss[undecided].max(1), kind="stable")]
    found = _dynamic_program(values[order], costs[order], open_options[order], left)
    chosen = best.copy()
    if found is not None:
        chosen[order] = found
        value = float(values[rows, chosen].sum())
        if value > lower:
            option, lower = chosen, value
    return Choice(option, lower, price, max(upper, lower))


def _dynamic_program(values: Array, costs: Array, able: Array, budget: int) -> Array | None:
    """Best options within a budget, by value tables over what is spent beyond the cheapest."""
    cheapest = np.where(able, costs, np.iinfo(np.int64).max).min(1)
    extra = costs - cheapest[:, None]
    budget -= int(cheapest.sum())
    if budget < 0:
        return None
    unit = int(np.gcd.reduce(extra[able])) or 1
    extra, size = extra // unit, budget // unit
    size = min(size, int(np.where(able, extra, 0).max(1).sum()))
    table, picks = np.zeros(size + 1), []
    for r in range(len(values)):
        after = np.full(size + 1, -np.inf)
        pick = np.zeros(size + 1, dtype=np.min_scalar_type(values.shape[1]))
        for o in np.flatnonzero(able[r] & (extra[r] <= size)):
            step = int(extra[r, o])
            candidate = values[r, o] + table[: size + 1 - step]
            better = candidate > after[step:]
            after[step:][better] = candidate[better]
            pick[step:][better] = o
        table = after
        picks.append(pick)
    left, found = size, np.empty(len(values), dtype=np.int64)
    for r in range(len(values) - 1, -1, -1):
        found[r] = picks[r][left]
        left -= int(extra[r, found[r]])
    return found


def _finish(values: Array, option: Array, price: float) -> Choice:
    value = float(values[np.arange(len(values)), option].sum())
    return Choice(option, value, price, value)
