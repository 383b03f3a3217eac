"""Support families: the oracle and everything that leans on it, against enumeration."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.exact.enumerate import maximal_masks
from chita_opt.supports import Budget, SupportFamily, family_from_text, keep_count

from .problems import FAMILIES, PairBudget

TIED = st.integers(0, 3).map(float)
SPREAD = st.floats(0.0, 1e3, allow_subnormal=False)


@st.composite
def budgets(draw: st.DrawFn, largest: int = 9) -> Budget:
    """Any partition, also with empty groups and caps of zero, with or without a total."""
    p = draw(st.integers(1, largest))
    groups = draw(st.integers(1, 4))
    labels = torch.tensor(draw(st.lists(st.integers(0, groups - 1), min_size=p, max_size=p)))
    if draw(st.booleans()):
        labels = labels.sort().values
    sizes = torch.bincount(labels, minlength=groups).tolist()
    budget = Budget(labels, torch.tensor([draw(st.integers(0, size)) for size in sizes]))
    if draw(st.booleans()):
        budget = Budget.nested(budget, draw(st.integers(0, int(budget.caps.sum()))))
    return budget


@st.composite
def pairs(draw: st.DrawFn) -> PairBudget:
    half = draw(st.integers(1, 4))
    return PairBudget(2 * half, draw(st.integers(0, half)), draw(st.booleans()))


FAMILY = st.one_of(budgets(), pairs())


def scores_for(data: st.DataObject, family: SupportFamily) -> Tensor:
    kind = data.draw(st.sampled_from([TIED, SPREAD]))
    values = data.draw(st.lists(kind, min_size=family.size, max_size=family.size))
    return torch.tensor(values, dtype=torch.float64)


def members(family: SupportFamily) -> Tensor:
    """All masks of a small family, by the definition of each family."""
    masks = torch.tensor(list(product((False, True), repeat=family.size)))
    if isinstance(family, PairBudget):
        return masks[masks.reshape(len(masks), -1, 2).any(2).sum(1) <= family.k]
    assert isinstance(family, Budget)
    allowed = torch.ones(len(masks), dtype=torch.bool)
    for group, cap in enumerate(family.caps.tolist()):
        allowed &= masks[:, family.labels == group].sum(1) <= cap
    if family.total is not None:
        allowed &= masks.sum(1) <= family.total
    return masks[allowed]


def bounded_value(family: SupportFamily, scores: Tensor, y: np.ndarray) -> float:
    """The bound on the best value that row multipliers prove."""
    return family.rows().bound(scores.numpy(), y)


@given(FAMILY, st.data())
def test_the_oracle_is_optimal(family: SupportFamily, data: st.DataObject) -> None:
    scores = scores_for(data, family)
    mask = family.best_support(scores)
    best = float((members(family).double() @ scores).max())
    assert mask.dtype == torch.bool and family.contains(mask)
    assert float(scores[mask].sum()) == pytest.approx(best, rel=1e-12, abs=1e-300)
    assert family.best_value(scores) == pytest.approx(best, rel=1e-12, abs=1e-300)


@given(budgets(), st.data())
def test_ties_go_to_the_lowest_index(budget: Budget, data: st.DataObject) -> None:
    """The mask is that of the greedy algorithm, which takes weights in order of (score, index)."""
    scores = scores_for(data, budget)
    mask = torch.zeros(budget.size, dtype=torch.bool)
    for j in sorted(range(budget.size), key=lambda j: (-float(scores[j]), j)):
        mask[j] = True
        mask[j] = budget.contains(mask)
    assert budget.best_support(scores).equal(mask)


@given(FAMILY, st.data())
def test_float32_scores_are_served(family: SupportFamily, data: st.DataObject) -> None:
    scores = scores_for(data, family).float()
    assert family.best_support(scores).equal(family.best_support(scores.double()))


@given(FAMILY)
def test_contains(family: SupportFamily) -> None:
    allowed = {tuple(mask) for mask in members(family).tolist()}
    for mask in product((False, True), repeat=family.size):
        assert family.contains(torch.tensor(mask)) == (mask in allowed)


@given(FAMILY)
def test_closed_under_removal(family: SupportFamily) -> None:
    for mask in members(family)[:64]:
        for j in mask.nonzero().squeeze(1):
            assert family.contains(mask.index_fill(0, j, False))


@given(FAMILY)
def test_rows_hold_for_every_mask(family: SupportFamily) -> None:
    rows = family.rows()
    masks = members(family)
    u = np.array([family.auxiliary(mask) for mask in masks])
    assert rows.G.shape == (len(rows.h), family.size)
    assert rows.G.data.min(initial=0.0) >= 0.0
    assert np.isin(u, (0.0, 1.0)).all()
    assert (masks.double().numpy() @ rows.G.T + u @ rows.E.T <= rows.h).all()


@given(budgets())
def test_the_rows_of_a_budget_hold_for_no_other_mask(budget: Budget) -> None:
    rows = budget.rows()
    masks = np.array(list(product((0.0, 1.0), repeat=budget.size)))
    assert int(rows.allow(masks).sum()) == len(members(budget))


@given(st.one_of(budgets(), pairs().filter(lambda family: family.tight)), st.data())
def test_the_vertices_of_the_rows_are_masks(family: SupportFamily, data: st.DataObject) -> None:
    """A linear program over the rows has the oracle's value."""
    scores = scores_for(data, family)
    rows = family.rows()
    cost = np.concatenate([-scores.numpy(), np.zeros(rows.q)])
    solved = linprog(cost, A_ub=rows.joint, b_ub=rows.h, bounds=(0, 1), method="highs")
    assert -solved.fun == pytest.approx(family.best_value(scores), rel=1e-7, abs=1e-7)


@given(FAMILY)
def test_enumeration_finds_the_maximal_masks(family: SupportFamily) -> None:
    masks = members(family)
    codes = {tuple(mask) for mask in masks.tolist()}
    maximal = {
        mask
        for mask in codes
        if not any(not mask[j] and (*mask[:j], True, *mask[j + 1 :]) in codes
                   for j in range(family.size))
    }  # fmt: skip
    found = [tuple(mask) for mask in maximal_masks(family).tolist()]
    assert len(found) == len(set(found)) and set(found) == maximal


@given(FAMILY)
def test_max_count(family: SupportFamily) -> None:
    assert family.max_count == int(members(family).sum(1).max())


@given(budgets(), st.data())
def test_multipliers_of_a_budget_are_tight(budget: Budget, data: st.DataObject) -> None:
    scores = scores_for(data, budget)
    y = budget.multipliers(scores)
    assert y.shape == budget.rows().h.shape and (y >= 0.0).all()
    expected = budget.best_value(scores)
    assert bounded_value(budget, scores, y) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(FAMILY, st.data())
def test_default_multipliers_bound_the_best_value(
    family: SupportFamily, data: st.DataObject
) -> None:
    scores = scores_for(data, family)
    y = SupportFamily.multipliers(family, scores)
    best = family.best_value(scores)
    value = bounded_value(family, scores, y)
    assert (y >= 0.0).all() and value >= best * (1.0 - 1e-12)
    if not isinstance(family, PairBudget) or family.tight:
        assert value == pytest.approx(best, rel=1e-6, abs=1e-6)


@given(FAMILY, st.data())
def test_exchange_costs(family: SupportFamily, data: st.DataObject) -> None:
    """The loss of forcing each weight against the best support, by enumeration and by default."""
    scores = scores_for(data, family)
    mask = family.best_support(scores)
    masks = members(family)
    values = masks.double() @ scores
    best, expected = float(values.max()), torch.full_like(scores, torch.inf)
    for j in range(family.size):
        forced = masks[:, j] != mask[j]
        if bool(forced.any()):
            expected[j] = best - values[forced].max()
    slack = 1e-12 * (1.0 + best)
    costs = family.exchange_costs(scores, mask)
    default = SupportFamily.exchange_costs(family, scores, mask)
    torch.testing.assert_close(costs, expected, rtol=1e-12, atol=slack)
    torch.testing.assert_close(default, expected, rtol=1e-12, atol=slack)


@given(FAMILY, st.data())
def test_can_swap(family: SupportFamily, data: st.DataObject) -> None:
    mask = family.best_support(scores_for(data, family))
    out, into = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    allowed = family.can_swap(mask, out, into)
    if allowed is None:  # always
        allowed = torch.ones(len(out), len(into), dtype=torch.bool)
    assert allowed.shape == (len(out), len(into))
    for a, i in enumerate(out):
        for b, j in enumerate(into):
            trial = mask.index_fill(0, i, False).index_fill(0, j, True)
            assert bool(allowed[a, b]) == family.contains(trial)


# -- smoothing ----------------------------------------------------------------------------------


def smooth_case(data: st.DataObject, budget: Budget) -> tuple[Tensor, Tensor, Tensor]:
    """Gains, centre and smoothing; the smoothing over six orders of magnitude."""
    seed = data.draw(st.integers(0, 10**6))
    draw = torch.Generator().manual_seed(seed)
    gains = scores_for(data, budget)
    gains = gains + 1e-3 * torch.rand(budget.size, generator=draw, dtype=torch.float64)
    centre = torch.rand(budget.size, generator=draw, dtype=torch.float64)
    level = 10.0 ** data.draw(st.integers(-3, 3))
    epsilon = level * (0.5 + torch.rand(budget.size, generator=draw, dtype=torch.float64))
    return gains, centre, epsilon


@given(budgets(), st.data())
def test_smoothed_maximum_is_optimal(budget: Budget, data: st.DataObject) -> None:
    """First-order optimality over the convex hull, which the oracle sees in full."""
    gains, centre, epsilon = smooth_case(data, budget)
    found = budget.smoothed_maximum(gains, centre, epsilon)
    rows = budget.rows()
    G, h = rows.G, rows.h
    assert bool(((found.z >= 0.0) & (found.z <= 1.0)).all())
    assert (G @ found.z.numpy() <= h + 1e-8 * (1.0 + h)).all()
    slope = gains - epsilon * (found.z - centre)
    rise = budget.best_value(slope.clamp_min(0.0)) - float(slope @ found.z)
    assert rise <= 1e-7 * (1.0 + float(gains.sum()) + float(epsilon.sum()))


@given(budgets(), st.data())
def test_smoothed_maximum_does_not_depend_on_its_warm_start(
    budget: Budget, data: st.DataObject
) -> None:
    gains, centre, epsilon = smooth_case(data, budget)
    cold = budget.smoothed_maximum(gains, centre, epsilon)
    elsewhere = budget.smoothed_maximum(gains.flip(0), centre.flip(0), epsilon).multipliers
    warm = budget.smoothed_maximum(gains, centre, epsilon, elsewhere)
    torch.testing.assert_close(cold.z, warm.z, rtol=0.0, atol=1e-7)


def test_a_threshold_near_zero_is_found_between_two_bad_guesses() -> None:
    """Newton steps from both ends of the bracket lead to the other end."""
    budget = Budget(torch.tensor([0, 1, 1, 2, 1, 0]), torch.tensor([0, 2, 1]), total=1)
    base = torch.tensor([3.5218, 4.3506, 8.4157, 0.0508, 6.3681, 10.1661], dtype=torch.float64)
    epsilon = torch.tensor([9.0183, 9.0214, 14.5385, 6.8962, 6.6328, 14.2067], dtype=torch.float64)
    found = budget.smoothed_maximum(base, torch.zeros_like(base), epsilon)
    assert float(found.z.sum()) == pytest.approx(1.0, abs=1e-9)
    assert float(found.multipliers[-1]) > 0.0


@given(budgets(), st.data())
def test_pools_share_a_multiplier(budget: Budget, data: st.DataObject) -> None:
    gains, centre, epsilon = smooth_case(data, budget)
    found = budget.smoothed_maximum(gains, centre, epsilon)
    level = gains - epsilon * (found.z - centre)  # of a free weight: its multiplier
    free = (found.z > 1e-6) & (found.z < 1.0 - 1e-6)
    size = float(gains.abs().max()) + float(epsilon.max())
    for label in found.pool[free].unique().tolist():
        own = level[free & (found.pool == label)]
        expected = 0.0 if label < 0 else float(own.mean())
        torch.testing.assert_close(own, torch.full_like(own, expected), rtol=0.0, atol=1e-9 * size)


def test_pools_predict_how_the_maximum_moves() -> None:
    """dz = (dg - mean of dg over the pool) / epsilon for free weights, by differences."""
    checked = 0
    for seed in range(400):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 3, (8,), generator=draw)
        caps = (torch.bincount(labels, minlength=3) + 1) // 2
        total = int(caps.sum()) - 1 if seed % 2 else None
        budget = Budget(labels, caps, total)
        gains, centre, epsilon, change = torch.rand(4, 8, generator=draw, dtype=torch.float64)
        epsilon, change = 0.5 + epsilon, 1e-7 * (change - 0.5)
        if not _away_from_kinks(budget, gains, centre, epsilon):
            continue
        before = budget.smoothed_maximum(gains, centre, epsilon)
        after = budget.smoothed_maximum(gains + change, centre, epsilon)
        free = (before.z > 0.0) & (before.z < 1.0)
        expected = torch.zeros_like(gains)
        for label in before.pool[free].unique().tolist():
            own = free & (before.pool == label)
            stiffness = 1.0 / epsilon[own]
            mean = 0.0 if label < 0 else (stiffness * change[own]).sum() / stiffness.sum()
            expected[own] = stiffness * (change[own] - mean)
        torch.testing.assert_close(after.z - before.z, expected, rtol=0.0, atol=1e-9)
        checked += 1
    assert checked >= 100


def _away_from_kinks(budget: Budget, gains: Tensor, centre: Tensor, epsilon: Tensor) -> bool:
    """Whether a small change neither frees nor fixes a weight, nor moves it to another pool."""
    found = budget.smoothed_maximum(gains, centre, epsilon)
    base = gains + epsilon * centre
    theta, tau = found.multipliers[: len(budget.caps)], found.multipliers[-1]
    v = (base - torch.maximum(theta[budget.labels], tau)) / epsilon
    apart = bool(((theta - tau).abs() > 1e-4).all() | (budget.total is None))
    return bool(((v.abs() > 1e-4) & ((v - 1.0).abs() > 1e-4)).all()) and apart


@given(budgets(), st.data())
def test_smoothing_scale_is_positive(budget: Budget, data: st.DataObject) -> None:
    gains = scores_for(data, budget) + 1e-3
    scale = budget.smoothing_scale(gains)
    assert scale.shape in {(1,), (budget.size,)}
    assert bool((scale > 0.0).all()) and bool(torch.isfinite(scale).all())


def test_a_family_with_only_an_oracle_says_so() -> None:
    family, v = PairBudget(4, 1), torch.ones(4, dtype=torch.float64)
    assert not family.is_laminar
    with pytest.raises(SupportError, match="use its oracle"):
        family.smoothed_maximum(v, v, v)
    with pytest.raises(SupportError, match="use its oracle"):
        family.smoothing_scale(v)


# -- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, sparsity, k",
    [(1000, 0.9, 100), (10, 0.3, 7), (1, 0.5, 1), (5, 0.5, 3), (32360, 0.98, 647), (7, 0.0, 7),
     (7, 1.0, 0), (1000, 0.0005, 1000), (1000, 0.0015, 999), (3, 0.8333333, 1),
     (268336, 0.9, 26834)],
)  # fmt: skip
def test_keep_count(size: int, sparsity: float, k: int) -> None:
    assert keep_count(size, sparsity).k == k


@given(st.integers(1, 10**7), st.integers(0, 10**6))
def test_keep_count_rounds_halves_up(size: int, millionths: int) -> None:
    count = keep_count(size, millionths / 10**6)
    exact = (1 - Fraction(millionths, 10**6)) * size
    assert count.k == floor(exact + Fraction(1, 2))
    assert count.is_exact == (exact == count.k)
    assert count.realised == pytest.approx(1 - count.k / size)
    assert ("asked for" in str(count)) == (not count.is_exact)


@given(st.integers(1, 10**5), st.floats(0, 1), st.floats(0, 1))
def test_keep_count_is_monotone(size: int, a: float, b: float) -> None:
    assert keep_count(size, min(a, b)).k >= keep_count(size, max(a, b)).k


@pytest.mark.parametrize("size, sparsity", [(0, 0.5), (-3, 0.5), (10, 1.01), (10, -0.1),
                                            (10, float("nan")), (2.5, 0.5)])  # fmt: skip
def test_keep_count_refuses(size: int, sparsity: float) -> None:
    with pytest.raises(SupportError, match=r"sparsity|whole number"):
        keep_count(size, sparsity)


# -- construction -------------------------------------------------------------------------------


def test_constructors_agree() -> None:
    """The same family said in different ways."""
    p = 12
    draw = torch.Generator().manual_seed(0)
    same = [
        Budget.n_of_m(p, 2, 4),
        Budget.per_row(3, 4, 2),
        Budget.per_layer([4, 4, 4], [2, 2, 2]),
        Budget.per_block(torch.arange(p) // 4, 2),
        Budget.per_row(3, 4, [2, 2, 2]),
        family_from_text("2:4", p),
        family_from_text("blocks:4:2", p),
        family_from_text("rows:4:2", p),
        Budget.nested(Budget.n_of_m(p, 2, 4), 6),
    ]
    for _ in range(20):
        scores = torch.rand(p, generator=draw, dtype=torch.float64).round(decimals=1)
        masks = [family.best_support(scores) for family in same]
        assert all(mask.equal(masks[0]) for mask in masks)


def test_group_layout_does_not_matter() -> None:
    """Consecutive groups of one width take another path than the same groups shuffled."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 5, (12,), generator=draw).double()
    order = torch.randperm(12, generator=draw)
    table = Budget.per_block(torch.arange(12) // 4, [1, 2, 3])
    shuffled = Budget.per_block((torch.arange(12) // 4)[order], [1, 2, 3])
    total = scores[table.best_support(scores)].sum()
    assert scores[order][shuffled.best_support(scores[order])].sum() == total


@pytest.mark.parametrize("family", FAMILIES)
def test_descriptions(family: str) -> None:
    built = FAMILIES[family](torch.Generator().manual_seed(0), 12)
    assert built.name and built.specification["size"] == built.size == 12
    if isinstance(built, Budget) and built.total is not None:
        assert f"total {built.total}" in built.name


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: Budget.cardinality(5, 6), r"k is 6.*\[0, 5\]"),
        (lambda: Budget.cardinality(5, -1), r"k is -1"),
        (lambda: Budget.cardinality(5, 2.5), r"k is 2.5"),  # type: ignore[arg-type]
        (lambda: Budget.n_of_m(10, 2, 4), "do not split"),
        (lambda: Budget.n_of_m(8, 5, 4), "n is 5"),
        (lambda: Budget.n_of_m(8, 0, 0), "do not split"),
        (lambda: Budget.per_row(2, 3, [1]), "2 rows but 1 counts"),
        (lambda: Budget.per_row(2, 3, 4), "3 weights but its cap is 4"),
        (lambda: Budget.per_layer([3], [1, 2]), "1 layers but 2 counts"),
        (lambda: Budget.per_block([0, 0, 2], 1), "group 1 has 0 weights"),
        (lambda: Budget.per_block([0, 1], [1]), "one cap per group"),
        (lambda: Budget.per_block([-1, 0], [1]), "labels run from -1"),
        (lambda: Budget.per_block([], 1), "non-empty"),
        (lambda: Budget.per_block([0, 0], [-1]), "counts >= 0"),
        (lambda: Budget.nested(Budget.cardinality(5, 2), 3), r"total is 3.*\[0, 2\]"),
        (lambda: Budget.nested(Budget.nested(Budget.cardinality(5, 2), 1), 1), "already has"),
        (lambda: Budget(torch.zeros(3), torch.tensor([1])), "int64"),
        (lambda: family_from_text("cardinality", 10), "needs k or a sparsity"),
        (lambda: family_from_text("cardinality", 10, k=1, sparsity=0.5), "give one of them"),
        (lambda: family_from_text("hexagons", 10), "not known; write"),
        (lambda: family_from_text("2:4:6", 12), "not known; write"),
        (lambda: family_from_text("blocks:x:1", 12), "not known; write"),
        (lambda: family_from_text("2:4", 10), "do not split"),
    ],
)
def test_refused_families(build, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SupportError, match=words):
        build()


def test_families_from_text_take_a_total() -> None:
    assert family_from_text("2:4", 12, k=5).max_count == 5
    assert family_from_text("2:4", 12, sparsity=0.75).max_count == 3
    assert family_from_text("cardinality", 1000, sparsity=0.9).max_count == 100


@pytest.mark.parametrize(
    "scores", [torch.ones(3), torch.ones(4, 1), torch.tensor([1.0, float("nan"), 0.0, 1.0])]
)
def test_refused_scores(scores: Tensor) -> None:
    with pytest.raises(SupportError, match="scores"):
        Budget.cardinality(4, 2).best_support(scores)


@pytest.mark.parametrize("mask", [torch.ones(3, dtype=torch.bool), torch.ones(4)])
def test_refused_masks(mask: Tensor) -> None:
    with pytest.raises(SupportError, match="mask"):
        Budget.cardinality(4, 2).contains(mask)
