"""Families of budgets: counts, costs, latencies and minima, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports.latency_table import LatencyTable
from chita_opt.supports.minimum_keeps import MinimumKeeps
from chita_opt.supports.nested_groups import NestedGroups, TreePrices
from chita_opt.supports.two_budgets import TwoBudgets
from chita_opt.supports.two_budgets_oracle import (
    CostClasses,
    best_two_budgets,
    integer_program,
)

from .family_checks import all_masks, check_family, random_scores


def two_budgets(draw: np.random.Generator, p: int) -> TwoBudgets:
    """Few costs or as many as weights, some of them zero."""
    high = int(draw.choice([3, 7, 1000]))
    costs = torch.from_numpy(draw.integers(0, high, p))
    limit = int(draw.integers(0, int(costs.sum()) + 1))
    return TwoBudgets(costs, int(draw.integers(0, p + 1)), limit)


def minimum_keeps(draw: np.random.Generator, p: int) -> MinimumKeeps:
    layers = torch.from_numpy(np.sort(draw.integers(0, 3, p)))
    sizes = torch.bincount(layers, minlength=3)
    minima = torch.tensor([int(draw.integers(0, min(2, n) + 1)) for n in sizes.tolist()])
    k = int(draw.integers(int(minima.sum()), p + 1))
    if draw.random() < 0.5:
        return MinimumKeeps.of_count(layers, minima, k)
    costs = torch.from_numpy(draw.integers(0, 6, 3))
    least = int(minima @ costs)
    limit = int(draw.integers(least, int(sizes @ costs) + 1))
    return MinimumKeeps(TwoBudgets(costs[layers], k, limit), layers, minima)


@pytest.mark.parametrize("seed", range(40))
def test_two_budgets(seed: int) -> None:
    draw = np.random.default_rng(seed)
    family = two_budgets(draw, int(draw.integers(1, 10)))

    def allowed(mask: Tensor) -> bool:
        return int(mask.sum()) <= family.k and int(family.costs[mask].sum()) <= family.limit

    check_family(family, allowed, draw)


@pytest.mark.parametrize("seed", range(40))
def test_minimum_keeps(seed: int) -> None:
    draw = np.random.default_rng(seed)
    family = minimum_keeps(draw, int(draw.integers(3, 10)))

    def allowed(mask: Tensor) -> bool:
        """Weights can be added until every layer has its minimum, within the budgets."""
        larger = all_masks(family.size)
        larger = larger[(larger | ~mask).all(1)]
        counts = torch.stack([larger[:, family.layers == i].sum(1) for i in range(3)], 1)
        enough = (counts >= family.minima).all(1)
        cost = (larger * family.budget.costs).sum(1)
        return bool((enough & (larger.sum(1) <= family.budget.k)
                     & (cost <= family.budget.limit)).any())  # fmt: skip

    check_family(family, allowed, draw)


@pytest.mark.parametrize("seed", range(30))
def test_search_and_integer_program_agree(seed: int) -> None:
    """Two ways to the optimum, at sizes that enumeration does not reach."""
    draw = np.random.default_rng(seed)
    p = int(draw.integers(20, 400))
    costs = draw.choice([1, 4, 16, 64], p) if seed % 2 else draw.integers(1, 1000, p)
    scores = random_scores(draw, p).numpy()
    k, limit = int(draw.integers(1, p)), int(draw.uniform(0.05, 0.9) * costs.sum())
    classes = CostClasses.of(costs)
    found = best_two_budgets(scores, classes, k, limit)
    ranking = classes.ranked(scores)
    counts = np.zeros(len(classes.costs), dtype=np.int64)
    solved = integer_program(ranking, k, limit, counts, (0.0, 0.0))
    assert found.mask.sum() <= k and costs[found.mask].sum() <= limit
    assert ranking.value(solved) == pytest.approx(found.value, rel=1e-9)
    assert found.upper <= ranking.dual(k, limit, *found.prices) * (1 + 1e-12)


def test_rounding_loses_at_most_two_weights() -> None:
    draw = np.random.default_rng(3)
    for _ in range(50):
        family = two_budgets(draw, 60)
        scores = random_scores(draw, 60)
        rounded = float(scores[family.rounded_support(scores)].sum())
        assert family.contains(family.rounded_support(scores))
        assert rounded >= family.value_bound(scores) - 2.0 * float(scores.max()) - 1e-9


def test_without_costs_it_is_a_cardinality() -> None:
    scores = torch.rand(50, dtype=torch.float64)
    family = TwoBudgets(torch.zeros(50, dtype=torch.int64), 12, 0)
    assert family.best_support(scores).equal(scores >= scores.topk(12).values[-1])


def test_loosened_budgets_end_at_the_family() -> None:
    family = TwoBudgets.per_layer([4, 6], [9, 1], k=3, limit=10)
    assert (family.loosened(0.0).k, family.loosened(0.0).limit) == (10, 42)
    assert (family.loosened(1.0).k, family.loosened(1.0).limit) == (3, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoBudgets(torch.ones(3), 1, 1), "whole numbers"),
        (lambda: TwoBudgets(torch.tensor([-1, 2]), 1, 1), "smallest cost"),
        (lambda: TwoBudgets(torch.tensor([1, 2]), 3, 1), "k is 3"),
        (lambda: TwoBudgets(torch.tensor([1, 2]), 1, 4), "limit is 4"),
        (lambda: TwoBudgets.per_layer([1], [1, 2], k=1, limit=1), "1 layers but 2 costs"),
        (
            lambda: MinimumKeeps.of_count(torch.tensor([0, 0]), torch.tensor([3]), 1),
            "lower it",
        ),
        (
            lambda: MinimumKeeps.of_count(torch.tensor([0, 0]), torch.tensor([2]), 1),
            "lower the minima",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(SupportError, match=message):
        make()


@pytest.mark.parametrize("seed", range(40))
def test_latency_table(seed: int) -> None:
    draw = np.random.default_rng(seed)
    p = int(draw.integers(2, 10))
    sizes = [p // 2, p - p // 2]
    tables = [
        (np.unique(draw.integers(0, n + 1, 4)).tolist(), draw.integers(0, 9, 4).tolist())
        for n in sizes
    ]
    tables = [(counts, times[: len(counts)]) for counts, times in tables]
    limit = sum(min(times) for _, times in tables) + int(draw.integers(0, 9))
    family = LatencyTable.of_tables(sizes, tables, limit)

    def allowed(mask: Tensor) -> bool:
        total = 0.0
        for part, (counts, times) in zip(mask.split(sizes), tables, strict=True):
            fits = [t for n, t in zip(counts, times, strict=True) if n >= int(part.sum())]
            total += min(fits, default=np.inf)
        return total <= limit

    check_family(family, allowed, draw)


@pytest.mark.parametrize("seed", range(60))
def test_nested_groups(seed: int) -> None:
    draw = np.random.default_rng(seed)
    p = int(draw.integers(2, 10))
    channels = torch.from_numpy(draw.integers(0, 4, p))
    layers = torch.tensor([0, 0, 1, 1] if seed % 2 else [0, 1, 1, 2])
    prices = TreePrices(*draw.integers(0, 4, 3).tolist())
    if prices == TreePrices(0, 0, 0):
        prices = TreePrices(1, 2, 3)
    family = NestedGroups(channels, layers, prices, int(draw.integers(0, 12)))

    def allowed(mask: Tensor) -> bool:
        kept = {int(c) for c in channels[mask]}
        opened = {int(layers[c]) for c in kept}
        cost = prices.weight * int(mask.sum()) + prices.channel * len(kept)
        return cost + prices.layer * len(opened) <= family.limit

    check_family(family, allowed, draw)


def test_nested_groups_without_prices_of_groups_are_a_cardinality() -> None:
    scores = torch.rand(300, dtype=torch.float64)
    family = NestedGroups.of_layers([(10, 20), (20, 5)], TreePrices(2), 2 * 77)
    assert family.best_support(scores).equal(scores >= scores.topk(77).values[-1])


def test_whole_channels() -> None:
    scores = torch.rand(300, dtype=torch.float64)
    family = NestedGroups.of_layers([(10, 20), (20, 5)], TreePrices(0, 1), 12)
    sums = torch.cat([scores[:200].reshape(10, 20).sum(1), scores[200:].reshape(20, 5).sum(1)])
    assert family.best_value(scores) == pytest.approx(float(sums.topk(12).values.sum()))
