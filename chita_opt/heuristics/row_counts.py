"""How many weights each row keeps: the best split of a budget over rows whose costs are known."""

from __future__ import annotations

import numpy as np

from chita_opt.supports.base import Array

_BISECTIONS = 60


def split_count(base: Array, values: Array, total: int) -> Array:
    r"""Counts of least total cost among those that keep at most ``total``.

    Row r keeps ``base[r] + c`` weights at the cost ``values[r, c]`` (infinite where unknown). A
    price on each weight finds the counts on the convex hulls of the rows' costs; what is left of
    the total is then filled by the steps that gain most per weight.

    Parameters
    ----------
    base : Array
        (rows,) int64.
    values : Array
        (rows, counts) float64, each row with a finite entry.
    total : int
        At least the sum of the rows' lowest known counts.
    """
    finite = np.isfinite(values)
    counts = np.arange(values.shape[1])
    spread = np.where(finite, values, -np.inf).max(1) - np.where(finite, values, np.inf).min(1)
    low, high = 0.0, 2.0 * float(spread.max()) + 1e-300
    chosen = finite.argmax(1)
    for _ in range(_BISECTIONS):
        price = 0.5 * (low + high)
        trial = (values + price * counts).argmin(1)
        if int((base + trial).sum()) <= total:
            high, chosen = price, trial
        else:
            low = price
    return base + _filled(values, chosen, total - int((base + chosen).sum()))


def _filled(values: Array, chosen: Array, left: int) -> Array:
    """Spend ``left`` more weights on the largest gains per weight."""
    rows, width = values.shape
    chosen = chosen.copy()
    while left > 0:
        steps = np.arange(1, min(left, width - 1) + 1)
        target = chosen[:, None] + steps
        known = np.where(target < width, values[np.arange(rows)[:, None], target % width], np.inf)
        gain = (values[np.arange(rows), chosen][:, None] - known) / steps
        if not gain.size or not gain.max() > 0.0:
            break
        r, s = np.unravel_index(gain.argmax(), gain.shape)
        chosen[r] += steps[s]
        left -= int(steps[s])
    return chosen
