"""What every support family owes, held against all masks of a small one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from chita_opt.supports import SupportFamily

EXACT = 1e-12


@cache
def all_masks(p: int) -> Tensor:
    """Every mask of p weights, (2^p, p)."""
    return torch.tensor(list(product((False, True), repeat=p)))


def random_scores(draw: np.random.Generator, p: int) -> Tensor:
    """Spread over decades, or few values with ties and zeros."""
    if draw.random() < 0.5:
        return torch.from_numpy(draw.integers(0, 4, p).astype(np.float64))
    return torch.from_numpy(draw.random(p) * 10.0 ** draw.uniform(-4, 4))


def check_family(
    family: SupportFamily, allowed: Callable[[Tensor], bool], draw: np.random.Generator
) -> None:
    """Members, rows, oracle and bounds of a family against its definition.

    ``allowed`` says by the definition alone whether a mask belongs to the family.
    """
    masks = all_masks(family.size)
    inside = torch.tensor([allowed(mask) for mask in masks])
    assert [family.contains(mask) for mask in masks] == inside.tolist()
    members = masks[inside]
    check_rows(family, members)
    check_laminar_part(family, members, draw)
    for _ in range(3):
        check_oracle(family, members, random_scores(draw, family.size))
    assert members.sum(1).max() <= family.max_count
    if family.is_exact:
        assert int(members.sum(1).max()) == family.max_count


def check_rows(family: SupportFamily, members: Tensor) -> None:
    """Every member satisfies the rows with the auxiliary variables that the family gives it."""
    rows = family.rows()
    assert rows.G.shape == (len(rows.h), family.size)
    assert rows.G.data.min(initial=0.0) >= 0.0
    for mask in members:
        u = family.auxiliary(mask)
        assert u.shape == (rows.q,) and set(np.unique(u)) <= {0.0, 1.0}
        assert (rows.G @ mask.double().numpy() + rows.E @ u <= rows.h + 1e-9).all()


def check_laminar_part(family: SupportFamily, members: Tensor, draw: np.random.Generator) -> None:
    """Where a mask leaves a laminar family, that holds the mask and nothing but members."""
    mask = members[int(draw.integers(len(members)))]
    part = family.laminar_part(mask)
    if part is not None:
        assert part.is_laminar and part.contains(mask)
        for z in all_masks(family.size)[:: max(1, 2**family.size // 64)]:
            assert family.contains(z) or not part.contains(z)


def check_oracle(family: SupportFamily, members: Tensor, scores: Tensor) -> None:
    """The mask is a member and, where the family says so, the best; no bound is below the best."""
    best = float((members.double() @ scores).max())
    near = pytest.approx(best, rel=EXACT, abs=1e-300)
    mask = family.best_support(scores)
    assert mask.dtype == torch.bool and family.contains(mask)
    if family.is_exact:
        assert float(scores[mask].sum()) == near
        assert family.value_bound(scores) == near
    assert family.value_bound(scores) >= best * (1.0 - EXACT)
    assert family.bound_at(scores, mask) >= best * (1.0 - EXACT)
    rows, s, y = family.rows(), scores.numpy(), family.multipliers(scores)
    assert (y >= 0.0).all()
    bound = rows.bound(s, y)
    assert bound >= best * (1.0 - 1e-9)
    cost = np.concatenate([-s, np.zeros(rows.q)]) / (s.max() or 1.0)
    solved = linprog(cost, A_ub=rows.joint, b_ub=rows.h, bounds=(0, 1), method="highs")
    linear = -solved.fun * (s.max() or 1.0)
    assert bound >= linear * (1.0 - 1e-7) - 1e-9
    if family.rows_are_tight:
        assert linear == pytest.approx(best, rel=1e-7, abs=1e-9)
    costs = family.exchange_costs(scores, mask)
    for j in range(family.size):
        other = members[members[:, j] != mask[j]]
        rival = float((other.double() @ scores).max()) if len(other) else -np.inf
        upper = family.bound_at(scores, mask) - rival
        assert float(costs[j]) <= upper + 1e-9 * max(best, 1e-300)
