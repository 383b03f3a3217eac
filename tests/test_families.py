"""Groups, block widths, regular blocks, permutations, layers: against their definitions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chita_opt.errors import SupportError
from chita_opt.supports import (
    BlockWidths,
    Budget,
    LayerFamilies,
    NestedGroups,
    SupportFamily,
    WholeGroups,
    block_max,
    family_from_text,
    fixed_widths,
    join_layers,
    kept_by,
    n_of_m_along,
    permutation_search,
    published_widths,
)
from chita_opt.supports.knapsack import best_choice, relaxed_value

from .family_checks import check_family
from .problems import FAMILIES

NUMBERS = st.integers(0, 10**6)


def within_groups(family: WholeGroups, mask: Tensor) -> bool:
    costs = torch.bincount(family.labels) if family.costs is None else family.costs
    live = {int(label) for label in family.labels[mask]}
    return sum(int(costs[g]) for g in live) <= family.budget


def within_widths(family: BlockWidths, mask: Tensor) -> bool:
    spent, at = 0, 0
    for rows, cols in family.shapes:
        for _ in range(rows):
            row = mask[at : at + cols]
            at += cols
            if bool(row.any()):
                spent += min((cost_of(family, row, B) for B in family.widths), default=10**9)
    return spent <= family.budget


def cost_of(family: BlockWidths, row: Tensor, width: int) -> int:
    blocks = row.split(width)
    if any(int(block.sum()) > family.keep for block in blocks):
        return 10**9
    return sum(min(family.keep, len(block)) for block in blocks)


def allowed(family: SupportFamily, mask: Tensor) -> bool:
    """By the definition of each family alone."""
    if isinstance(family, WholeGroups):
        return within_groups(family, mask)
    if isinstance(family, BlockWidths):
        return within_widths(family, mask)
    if isinstance(family, LayerFamilies):
        own = zip(family.parts, family.slices, strict=True)
        return all(allowed(part, mask[s]) for part, s in own)
    assert isinstance(family, Budget)
    held = torch.bincount(family.labels[mask], minlength=len(family.caps))
    return bool((held <= family.caps).all())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "name", ["groups", "unequal_groups", "block_2x2", "darb", "darb_two_a_block",
             "layers_of_many_kinds"],
)  # fmt: skip
def test_families_are_what_they_say(name: str, seed: int) -> None:
    family = FAMILIES[name](torch.Generator().manual_seed(seed), 8 + 2 * (seed % 2))
    check_family(family, lambda mask: allowed(family, mask), np.random.default_rng(seed))


@given(NUMBERS)
def test_can_swap_agrees_with_contains(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    name = ["groups", "unequal_groups", "block_2x2", "layers_of_many_kinds"][seed % 4]
    family = FAMILIES[name](draw, 8)
    mask = family.best_support(torch.rand(8, generator=draw, dtype=torch.float64))
    out, into = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    found = family.can_swap(mask, out, into)
    for a, i in enumerate(out.tolist()):
        for b, j in enumerate(into.tolist()):
            trial = mask.clone()
            trial[i], trial[j] = False, True
            assert found is not None
            assert bool(found[a, b]) <= family.contains(trial)
            if name != "layers_of_many_kinds":
                assert bool(found[a, b]) == family.contains(trial)


@given(NUMBERS)
def test_the_laminar_part_holds_the_mask_and_lies_inside(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    name = ["groups", "unequal_groups", "darb", "darb_two_a_block"][seed % 4]
    family = FAMILIES[name](draw, 8)
    mask = family.best_support(torch.rand(8, generator=draw, dtype=torch.float64))
    part = family.laminar_part(mask)
    assert part is not None and part.is_laminar and part.contains(mask)
    other = part.best_support(torch.rand(8, generator=draw, dtype=torch.float64))
    assert family.contains(other)


@given(NUMBERS)
def test_the_smoothed_maximum_of_groups_is_optimal(seed: int) -> None:
    """First-order optimality over the rows, and the best value where nothing is smoothed."""
    draw = torch.Generator().manual_seed(seed)
    name = ["groups", "unequal_groups", "block_2x2"][seed % 3]
    family = FAMILIES[name](draw, 8)
    gains, centre, epsilon = torch.rand(3, 8, generator=draw, dtype=torch.float64)
    epsilon = (0.1 + epsilon) * 10.0 ** (seed % 5 - 3)
    z = family.smoothed_maximum(gains, centre, epsilon).z
    rows = family.rows()
    u = np.zeros(rows.q)
    np.maximum.at(u, family.labels.numpy(), z.numpy())
    assert (rows.G @ z.numpy() + rows.E @ u <= rows.h + 1e-8).all()
    slope = gains - epsilon * (z - centre)
    sums = torch.zeros(rows.q, dtype=torch.float64).index_add_(0, family.labels, slope)
    whole = sums.clamp_min(0.0)[family.labels] / torch.bincount(family.labels)[family.labels]
    best = rows.bound(whole.numpy(), family.multipliers(whole))  # over the maximal points
    assert best - float(slope @ z) <= 1e-7 * (1.0 + float(gains.sum()))


# -- knapsack -----------------------------------------------------------------------------------


@given(NUMBERS)
def test_the_knapsack_is_optimal(seed: int) -> None:
    draw = np.random.default_rng(seed)
    n, options = draw.integers(1, 5), draw.integers(1, 5)
    values = draw.integers(0, 4, (n, options)) * 1.0 if seed % 3 else draw.random((n, options))
    costs = draw.integers(0, 6, (n, options))
    budget = int(draw.integers(costs.min(1).sum(), costs.max(1).sum() + 2))
    found = best_choice(values, costs, budget)
    rows = np.arange(n)
    best = max(
        values[rows, list(o)].sum()
        for o in product(range(options), repeat=int(n))
        if costs[rows, list(o)].sum() <= budget
    )
    assert costs[rows, found.option].sum() <= budget
    assert found.value == pytest.approx(best, rel=1e-11, abs=1e-300)
    assert found.upper >= best - 1e-12
    assert relaxed_value(values, costs, budget, found.price) >= best - 1e-12


def test_a_knapsack_without_an_answer_is_refused() -> None:
    with pytest.raises(SupportError, match="raise it"):
        best_choice(np.ones((2, 1)), np.full((2, 1), 3), 5)


# -- regular blocks -------------------------------------------------------------------------------


def test_block_max_keeps_the_largest_of_every_block() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 0.0, 5.0, 4.0, 1.0, 9.0, 7.0, 2.0])
    kept = block_max((2, 5), 2).best_support(scores)
    assert kept.nonzero().squeeze(1).tolist() == [1, 2, 4, 5, 7, 9]
    assert block_max((2, 5), 4, 2).max_count == 2 * (2 + 1)
    assert block_max((3, 8), 8).best_value(torch.arange(24.0)) == 7.0 + 15.0 + 23.0


def test_fixed_widths_and_empty_rows() -> None:
    family = fixed_widths((3, 4), [1, 0, 4])
    assert family.max_count == 4 + 0 + 1 == kept_by(torch.tensor([1, 0, 4]), 4)
    assert not family.best_support(torch.ones(12))[4:8].any()
    with pytest.raises(SupportError, match="give 3 widths"):
        fixed_widths((3, 4), [1, 2])
    with pytest.raises(SupportError, match="a block of 2 keeps"):
        fixed_widths((1, 4), [2], keep=3)


@pytest.mark.parametrize(("rounding", "expected"), [("nearest", 4), ("floor", 2), ("ceil", 4)])
def test_published_widths_follow_the_density(rounding: str, expected: int) -> None:
    """Densities 1, 3/8 (between 1/2 and 1/4) and none."""
    scores = torch.zeros(3, 8)
    scores[0], scores[1, :3] = 2.0, 1.0
    widths = published_widths(scores.reshape(-1), (3, 8), 11, rounding=rounding, widest=16)
    assert widths.tolist() == [1, 2 if rounding == "nearest" else expected, 16]


def test_published_widths_refuse() -> None:
    with pytest.raises(SupportError, match="rounding"):
        published_widths(torch.ones(4), (2, 2), 1, rounding="up")
    with pytest.raises(SupportError, match="power of two"):
        published_widths(torch.ones(4), (2, 2), 1, widest=6)
    with pytest.raises(SupportError, match="do not fit"):
        published_widths(torch.ones(4), (2, 2), 5)


@given(NUMBERS)
def test_chosen_widths_are_never_worse_than_the_published_ones(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(4 * 16, generator=draw, dtype=torch.float64) ** 4
    widths = published_widths(scores, (4, 16), 20)
    given_widths = fixed_widths((4, 16), widths)
    chosen = BlockWidths(((4, 16),), kept_by(widths, 16))
    assert chosen.best_value(scores) >= given_widths.best_value(scores) * (1.0 - 1e-12)
    assert chosen.contains(given_widths.best_support(scores))


def test_n_of_m_along_both_axes() -> None:
    along = n_of_m_along((4, 4), 2, 4, axis=0)
    assert along.contains(torch.eye(4, dtype=torch.bool).reshape(-1))
    column = torch.zeros(4, 4, dtype=torch.bool)
    column[:3, 1] = True
    assert not along.contains(column.reshape(-1))
    assert n_of_m_along((4, 4), 2, 4).contains(column.reshape(-1))
    with pytest.raises(SupportError, match="does not fit"):
        n_of_m_along((4, 6), 2, 4)
    with pytest.raises(SupportError, match="permutation"):
        n_of_m_along((4, 4), 2, 4, permutation=[0, 0, 1, 2])


@given(NUMBERS, st.sampled_from([0, 1]))
def test_a_permutation_never_keeps_less(seed: int, axis: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(8 * 12, generator=draw, dtype=torch.float64) ** 6
    order = permutation_search(scores, (8, 12), 1, 4, axis=axis, seed=seed)
    plain = n_of_m_along((8, 12), 1, 4, axis=axis).best_value(scores)
    better = n_of_m_along((8, 12), 1, 4, axis=axis, permutation=order).best_value(scores)
    assert better >= plain * (1.0 - 1e-12)


def test_a_permutation_finds_the_planted_order() -> None:
    """Large columns next to each other: only a permutation keeps them all."""
    scores = torch.ones(3, 8, dtype=torch.float64)
    scores[:, :4] = 10.0
    order = permutation_search(scores.reshape(-1), (3, 8), 2, 4)
    found = n_of_m_along((3, 8), 2, 4, permutation=order).best_value(scores.reshape(-1))
    assert found == 3 * 4 * 10.0


# -- groups and layers ----------------------------------------------------------------------------


def test_constructors_of_groups() -> None:
    scores = torch.arange(24.0).reshape(2, 3, 4)
    filters = WholeGroups.filters((2, 3, 4), 1).best_support(scores.reshape(-1)).reshape(2, 3, 4)
    assert filters[1].all() and not filters[0].any()
    channels = WholeGroups.channels((2, 3, 4), 1).best_support(scores.reshape(-1))
    assert channels.reshape(2, 3, 4)[:, 2].all() and int(channels.sum()) == 8
    columns = WholeGroups.matrix_columns((2, 3), 2).best_support(torch.arange(6.0))
    assert columns.tolist() == [False, True, True] * 2
    ragged = WholeGroups.blocks((3, 5), (2, 2), 6)
    assert ragged.count == 6 and not ragged.uniform
    with pytest.raises(SupportError, match="every group"):
        WholeGroups(torch.tensor([0, 2]), 1)
    with pytest.raises(SupportError, match="budget is -1"):
        WholeGroups(torch.tensor([0, 1]), -1)


def test_budgets_of_layers_join_to_one() -> None:
    joined = join_layers([Budget.cardinality(4, 1), block_max((1, 4), 2)])
    assert isinstance(joined, Budget) and joined.max_count == 3
    mixed = join_layers([Budget.cardinality(4, 1), WholeGroups.matrix_rows((2, 2), 1)])
    assert isinstance(mixed, LayerFamilies) and mixed.max_count == 3 and not mixed.is_laminar


@pytest.mark.parametrize(
    ("text", "k", "count"),
    [("bmwm:4", None, 6 + 3), ("bmwm:4:2", None, 12 + 6), ("darb", 11, 11), ("darb:4", 11, 11),
     ("blocks:2x2", 10, 10), ("neurons", 12, 12), ("filters", 7, 4), ("columns", 8, 6),
     ("channels", 9, 9), ("bmwm:4", 5, 5), ("1:3:columns", None, 8 + 4)],
)  # fmt: skip
def test_families_from_text_over_layers(text: str, k: int | None, count: int) -> None:
    """Layers of 3 x 8 and 3 x 1 x 2 x 2 weights."""
    family = family_from_text(text, 36, k=k, shapes=[(3, 8), (3, 1, 2, 2)])
    assert family.size == 36 and family.max_count == count


@pytest.mark.parametrize(
    ("text", "what"),
    [("darb", "needs k"), ("darb:3", "power of two"), ("neurons:3", "not known"),
     ("blocks:2x", "not known"), ("bmwm:a", "not known"), ("2:4:columns", "does not fit"),
     ("2:4:columnss", "not known"), ("nested:1:2", "not known"), ("nested:1:2:3", "whole price")],
)  # fmt: skip
def test_text_that_is_refused(text: str, what: str) -> None:
    with pytest.raises(SupportError, match=what):
        family_from_text(text, 8, k=None if what == "needs k" else 4)


def test_nested_prices_from_text() -> None:
    """3 channels of 8 and 3 of 4 weights in two layers: 36 + 2 * 6 + 5 * 2 in all."""
    family = family_from_text("nested:1:2:5", 36, sparsity=0.5, shapes=[(3, 8), (3, 1, 2, 2)])
    assert isinstance(family, NestedGroups) and family.limit == 29
    mask = family.best_support(torch.cat([torch.zeros(24), torch.ones(12)]))
    assert not mask[:24].any() and mask[24:].all()  # 12 + 3 * 2 + 5 = 23 of 29


def test_shapes_must_hold_the_weights() -> None:
    with pytest.raises(SupportError, match="do not hold 8"):
        family_from_text("darb", 8, k=4, shapes=[(3, 3)])
