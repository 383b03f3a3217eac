"""Several families at once, against the masks that all of them hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chita_opt.errors import SupportError
from chita_opt.supports import Budget, SupportFamily, TwoBudgets, WholeGroups
from chita_opt.supports.intersections import Intersection, intersection
from chita_opt.supports.laminar_budget import LaminarBudget

from .family_checks import check_family


def nested_sets() -> SupportFamily:
    """Pairs in fours under a total, two groups of another kind inside one of the fours."""
    fours = Budget.per_block(torch.arange(8) // 4, [2, 3])
    return intersection(Budget.n_of_m(8, 1, 2), fours, Budget.cardinality(8, 4))


def both_axes() -> SupportFamily:
    """At most one of two along both axes of a 4x2 matrix."""
    columns = torch.arange(8) // 4 * 2 + torch.arange(8) % 2
    return intersection(Budget.n_of_m(8, 1, 2), Budget.per_block(columns, 1))


def three_ways() -> SupportFamily:
    ring = torch.arange(8).roll(1)
    return intersection(Budget.n_of_m(8, 1, 2), Budget.per_block(ring // 2, 1),
                        Budget.per_block(torch.arange(8) % 3, 2))  # fmt: skip


def groups_and_costs() -> SupportFamily:
    costs = TwoBudgets(torch.tensor([5, 1, 4, 1, 3, 2, 2, 6]), 5, 11)
    return intersection(WholeGroups(torch.arange(8) % 4, 4), costs)


KINDS = {"laminar": nested_sets, "axes": both_axes, "three": three_ways, "costs": groups_and_costs}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_intersection(kind: str, seed: int) -> None:
    family = KINDS[kind]()
    parts = [family] if isinstance(family, LaminarBudget) else list(family.families)
    if kind == "laminar":
        parts = [Budget.n_of_m(8, 1, 2), Budget.per_block(torch.arange(8) // 4, [2, 3]),
                 Budget.cardinality(8, 4)]  # fmt: skip
    draw = np.random.default_rng(seed)
    check_family(family, lambda mask: all(part.contains(mask) for part in parts), draw)
    assert family.is_exact == (kind == "laminar")


@pytest.mark.parametrize("seed", range(20))
def test_two_budgets_leave_no_gap(seed: int) -> None:
    """Row and column counts: the linear program is integral, so that mask and bound meet."""
    draw = np.random.default_rng(seed)
    rows, cols = 12, 9
    family = intersection(
        Budget.per_row(rows, cols, draw.integers(0, 5, rows).tolist()),
        Budget.per_block(torch.arange(rows * cols) % cols, draw.integers(0, 5, cols).tolist()),
    )
    scores = torch.from_numpy(draw.random(rows * cols))
    assert isinstance(family, Intersection) and family.rows_are_tight
    assert family.value_bound(scores) == pytest.approx(family.best_value(scores), rel=1e-9)


def test_what_is_laminar() -> None:
    rows, pairs = Budget.per_row(4, 4, 2), Budget.n_of_m(16, 1, 2)
    assert isinstance(intersection(rows, pairs, Budget.cardinality(16, 5)), LaminarBudget)
    assert isinstance(intersection(Budget.nested(pairs, 6), rows), LaminarBudget)
    columns = Budget.per_block(torch.arange(16) % 4, 2)
    assert isinstance(intersection(rows, columns), Intersection)
    assert intersection(rows) is rows


def test_sizes_must_agree() -> None:
    with pytest.raises(SupportError, match="no intersection"):
        intersection(Budget.cardinality(4, 1), Budget.cardinality(5, 1))
