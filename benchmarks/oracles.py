"""Oracles of all support families against enumeration and HiGHS, on random cases.

Half of the cases have at most nine weights and are enumerated through ``contains``; the others
have up to twenty-four and are solved by HiGHS over the family's rows. A value differs if it is off
by more than 1e-9 of itself, or if the oracle's mask is outside the family.

Families whose best mask is NP-hard, or for which no exact oracle is known, have a table of their
own: nothing may lie outside of the family or above ``value_bound``, nor the best value above it;
how often the heuristic finds the best, and how far both are from it, is what the table says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from measuring import report
from scipy.optimize import Bounds, LinearConstraint, milp

import chita_opt as co
from chita_opt.supports import (
    BlockWidths,
    LatencyTable,
    LayerFamilies,
    MinimumKeeps,
    NestedGroups,
    NeuronGates,
    ProcessorPartition,
    TreePrices,
    TwoBudgets,
    WholeGroups,
    block_max,
    fixed_widths,
    intersection,
    n_of_m_along,
)

Draw = np.random.Generator
Family = co.SupportFamily
SMALL, LARGE = 9, 24
COLUMNS = (
    "family", "cases", "enumerated", "by_highs", "wrong", "worst_excess", "rows_tight_%", "seconds",
)  # fmt: skip

BOUNDED_COLUMNS = (
    "family", "cases", "wrong", "found_%", "mean_loss_%", "worst_loss_%", "bound_tight_%",
    "mean_slack_%", "seconds",
)  # fmt: skip


def split(draw: Draw, p: int, parts: int) -> torch.Tensor:
    """Labels of p weights in groups that all hold one."""
    labels = draw.integers(0, parts, p)
    labels[:parts] = np.arange(parts)
    return torch.from_numpy(draw.permutation(labels))


def shape(draw: Draw, p: int, multiple: int = 1) -> tuple[int, int]:
    """A matrix of at most p weights, its columns a multiple."""
    rows = int(draw.integers(1, max(p // (2 * multiple), 1) + 1))
    return rows, max(p // rows // multiple, 1) * multiple


def cardinality(draw: Draw, p: int) -> Family:
    return co.Budget.cardinality(p, int(draw.integers(0, p + 1)))


def nested(draw: Draw, p: int) -> Family:
    labels = split(draw, p, 3)
    sizes = torch.bincount(labels)
    caps = torch.from_numpy(draw.integers(0, sizes.numpy() + 1))
    return co.Budget(labels, caps, int(draw.integers(0, int(caps.sum()) + 1)))


def bmwm(draw: Draw, p: int) -> Family:
    width = int(draw.integers(1, 9))
    return block_max(shape(draw, p), width, int(draw.integers(1, width + 1)))


def darb_given(draw: Draw, p: int) -> Family:
    own = shape(draw, p)
    return fixed_widths(own, draw.choice([0, 1, 2, 4, 8], own[0]).tolist())


def darb(draw: Draw, p: int) -> Family:
    shapes = tuple(shape(draw, p // 2) for _ in range(2))
    size = sum(rows * cols for rows, cols in shapes)
    return BlockWidths(shapes, int(draw.integers(0, size + 1)), (1, 2, 4, 8))


def darb_two(draw: Draw, p: int) -> Family:
    own = shape(draw, p)
    return BlockWidths((own,), int(draw.integers(0, own[0] * own[1] + 1)), (2, 4, 8), keep=2)


def n_of_m(draw: Draw, p: int) -> Family:
    m = int(draw.integers(2, 5))
    rows, cols = shape(draw, p, m)
    n, order = int(draw.integers(0, m + 1)), draw.permutation(cols).tolist()
    if draw.random() < 0.5:
        return n_of_m_along((cols, rows), n, m, axis=0, permutation=order)
    return n_of_m_along((rows, cols), n, m, permutation=order)


def blocks(draw: Draw, p: int) -> Family:
    own = shape(draw, p)
    r, c = (int(side) for side in draw.integers(1, 5, 2))
    return WholeGroups.blocks(own, (r, c), int(draw.integers(0, own[0] * own[1] + 1)))


def groups(draw: Draw, p: int) -> Family:
    labels = split(draw, p, int(draw.integers(1, min(p, 8) + 1)))
    count = int(labels.max()) + 1
    costs = torch.from_numpy(draw.integers(1, 9, count))
    return WholeGroups(labels, int(draw.integers(0, int(costs.sum()) + 1)), costs)


def layers(draw: Draw, p: int) -> Family:
    third = max(p // 3, 2)
    return LayerFamilies((cardinality(draw, third), groups(draw, third), darb(draw, third)))


def two_budgets(draw: Draw, p: int) -> Family:
    costs = torch.from_numpy(draw.choice([0, 1, 2, 5], p))
    limit = int(draw.integers(0, int(costs.sum()) + 1))
    return TwoBudgets(costs, int(draw.integers(0, p + 1)), limit)


def minimum_keeps(draw: Draw, p: int) -> Family:
    sizes, costs = [p // 3, p - p // 3], [3, 1]
    full = sizes[0] * costs[0] + sizes[1] * costs[1]
    k, limit = int(draw.integers(2, p + 1)), int(draw.integers(4, full + 1))
    budget = TwoBudgets.per_layer(sizes, costs, k=k, limit=limit)
    return MinimumKeeps(budget, torch.arange(2).repeat_interleave(torch.tensor(sizes)),
                        torch.tensor([1, 1]))  # fmt: skip


def latency(draw: Draw, p: int) -> Family:
    sizes = [p // 2, p - p // 2]
    tables = [
        ([0, n // 2, n], [0, int(draw.integers(1, 4)), int(draw.integers(4, 7))]) for n in sizes
    ]
    return LatencyTable.of_tables(sizes, tables, int(draw.integers(3, 13)))


def tree(draw: Draw, p: int) -> Family:
    prices = TreePrices(1, int(draw.integers(0, 3)), int(draw.integers(0, 3)))
    limit = int(draw.integers(0, p + 9))
    return NestedGroups(split(draw, p, 4), torch.tensor([0, 0, 1, 1]), prices, limit)


def chain(draw: Draw, p: int) -> Family:
    hidden = int(draw.integers(1, max(p // 3, 1) + 1))
    return NeuronGates.of_chain([p // hidden - 1, hidden, 1], [int(draw.integers(0, hidden + 1))])


def laminar(draw: Draw, p: int) -> Family:
    """Rows inside halves inside the whole, as three budgets."""
    fine = torch.arange(p) // 3
    sizes = torch.bincount(fine)
    halves = fine * 2 // len(sizes)
    caps = torch.from_numpy(draw.integers(0, 4, len(sizes))).minimum(sizes)
    half = int(draw.integers(0, int(torch.bincount(halves).min()) + 1))
    return intersection(
        co.Budget(fine, caps), co.Budget.per_block(halves, half), cardinality(draw, p)
    )


def recurrent(draw: Draw, p: int) -> Family:
    hidden, gates = int(draw.integers(2, 4)), int(draw.integers(1, 3))
    inputs = max((p - gates * hidden**2) // (gates * hidden), 1)
    return NeuronGates.of_recurrent(
        inputs, hidden, gates=gates, keep=int(draw.integers(1, hidden + 1))
    )


def partition(draw: Draw, p: int) -> Family:
    rows = int(draw.integers(2, 5))
    cols = max(p // rows, 2)
    return ProcessorPartition((rows, cols), int(draw.integers(2, max(rows, cols) + 1)))


def both_axes(draw: Draw, p: int) -> Family:
    rows, cols = shape(draw, p, 2)
    columns = torch.arange(rows * cols) % cols
    return intersection(
        co.Budget.n_of_m(rows * cols, 1, 2),
        co.Budget.per_block(columns, int(draw.integers(0, rows + 1))),
    )


def groups_and_costs(draw: Draw, p: int) -> Family:
    return intersection(groups(draw, p), two_budgets(draw, p))


FAMILIES: dict[str, Callable[[Draw, int], Family]] = {
    "cardinality": cardinality,
    "groups with a total": nested,
    "BMWM, m a block": bmwm,
    "DARB, widths given": darb_given,
    "DARB, any widths": darb,
    "DARB, two a block": darb_two,
    "N:M, axis, permuted": n_of_m,
    "blocks whole": blocks,
    "groups whole, costs": groups,
    "layers of three kinds": layers,
    "weights and costs": two_budgets,
    "minimum keeps": minimum_keeps,
    "latency tables": latency,
    "weight in channel in layer": tree,
    "neurons of a chain": chain,
    "laminar intersection": laminar,
}
BOUNDED: dict[str, Callable[[Draw, int], Family]] = {
    "recurrent neurons": recurrent,
    "dealt to processors": partition,
    "N:M and columns": both_axes,
    "groups, and costs": groups_and_costs,
}


def scores_of(draw: Draw, p: int) -> torch.Tensor:
    """Spread over decades, or few values with ties and zeros."""
    if draw.random() < 0.3:
        return torch.from_numpy(draw.integers(0, 4, p).astype(np.float64))
    return torch.from_numpy(draw.random(p) * 10.0 ** draw.uniform(-3, 3))


def enumerated(family: Family, scores: torch.Tensor) -> float:
    """The best value over all masks that the family contains."""
    masks = torch.tensor(list(product((False, True), repeat=family.size)))
    values = masks.double() @ scores
    for i in values.argsort(descending=True).tolist():
        if family.contains(masks[i]):
            return float(values[i])
    raise AssertionError("a family holds the empty mask")


def by_highs(family: Family, scores: torch.Tensor) -> tuple[float, bool]:
    """The best value over the rows, and whether their relaxation has it too."""
    rows = family.rows()
    scale = float(scores.max()) or 1.0
    cost = np.concatenate([-scores.numpy() / scale, np.zeros(rows.q)])
    binary = np.concatenate([np.ones(family.size), np.full(rows.q, family.binary_auxiliary)])
    limits = [LinearConstraint(rows.joint, ub=rows.h)]
    exact = milp(cost, constraints=limits, bounds=Bounds(0, 1), integrality=binary,
                 options={"mip_rel_gap": 0.0})  # fmt: skip
    relaxed = milp(cost, constraints=limits, bounds=Bounds(0, 1))
    return -scale * exact.fun, relaxed.fun >= exact.fun - 1e-9


def check(name: str, cases: int) -> dict[str, Any]:
    """One row of the table."""
    draw = np.random.default_rng(list(FAMILIES).index(name))
    begin, wrong, worst, tight = time.perf_counter(), 0, 0.0, []
    for i in range(cases):
        family = FAMILIES[name](draw, SMALL if i % 2 == 0 else int(draw.integers(10, LARGE + 1)))
        scores = scores_of(draw, family.size)
        mask = family.best_support(scores)
        if family.size <= SMALL:
            best = enumerated(family, scores)
        else:
            best, relaxation = by_highs(family, scores)
            tight.append(relaxation)
        off = abs(float(scores[mask].sum()) - best) / max(best, 1e-300) if best else 0.0
        worst = max(worst, off)
        wrong += off > 1e-9 or not family.contains(mask)
    return {
        "family": name, "cases": cases, "enumerated": cases - len(tight), "by_highs": len(tight),
        "wrong": int(wrong), "worst_excess": worst, "rows_tight_%": 100.0 * float(np.mean(tight)),
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def check_bounded(name: str, cases: int) -> dict[str, Any]:
    """One row of the table of families with a heuristic oracle."""
    draw = np.random.default_rng(100 + list(BOUNDED).index(name))
    begin, wrong, losses, slacks = time.perf_counter(), 0, [], []
    for i in range(cases):
        family = BOUNDED[name](draw, SMALL if i % 2 == 0 else int(draw.integers(10, LARGE + 1)))
        scores = scores_of(draw, family.size)
        mask = family.best_support(scores)
        small = family.size <= SMALL
        best = enumerated(family, scores) if small else by_highs(family, scores)[0]
        value, bound = float(scores[mask].sum()), family.value_bound(scores)
        room = 1e-9 * best
        wrong += not family.contains(mask) or value > best + room or best > bound + room
        if best > 0.0:
            losses.append(100.0 * max(best - value, 0.0) / best)
            slacks.append(100.0 * max(bound - best, 0.0) / best)
    return {
        "family": name, "cases": cases, "wrong": int(wrong),
        "found_%": 100.0 * float(np.mean(np.array(losses) < 1e-7)),
        "mean_loss_%": float(np.mean(losses)), "worst_loss_%": float(np.max(losses)),
        "bound_tight_%": 100.0 * float(np.mean(np.array(slacks) < 1e-7)),
        "mean_slack_%": float(np.mean(slacks)), "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> None:
    """A thousand cases a family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    cases = parser.parse_args().cases
    table = [check(name, cases) for name in FAMILIES]
    wrong = sum(row["wrong"] for row in table)
    report("oracles", table, COLUMNS, f"{cases} cases a family; wrong answers: {wrong}")
    table = [check_bounded(name, cases) for name in BOUNDED]
    wrong = sum(row["wrong"] for row in table)
    report("oracles_bounded", table, BOUNDED_COLUMNS,
           f"heuristic oracles, {cases} cases a family; wrong answers: {wrong}")  # fmt: skip


if __name__ == "__main__":
    main()
