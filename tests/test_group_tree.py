"""Branch and bound over groups kept whole: it decides groups, and agrees with enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from chita_opt.exact import TreeOptions, branch_and_bound, enumerate_optimum
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.groups_allowed import GroupsAllowed
from chita_opt.heuristics import solve
from chita_opt.problem import Problem, from_gradients
from chita_opt.solution import Status
from chita_opt.supports import WholeGroups

from .problems import CURVATURES, make_problem

Array = np.ndarray
KINDS = ("groups", "unequal_groups")


def drawn(seed: int, family: str) -> Problem:
    """A small problem of any form of curvature over groups."""
    form = list(CURVATURES)[seed % len(CURVATURES)]
    return make_problem(form, family, p=12, seed=seed, linear=bool(seed % 2))


def groups_of(problem: Problem) -> WholeGroups:
    """Its family, with a type."""
    assert isinstance(problem.supports, WholeGroups)
    return problem.supports


def best_of_whole_groups(problem: Problem) -> float:
    """The optimum over unions of groups within the budget, one by one."""
    family, quadratic, best = groups_of(problem), Quadratic.of(problem), np.inf
    labels = family.labels.numpy()
    for size in range(family.count + 1):
        for chosen in itertools.combinations(range(family.count), size):
            if int(family.group_costs[list(chosen)].sum()) <= family.budget:
                support = np.flatnonzero(np.isin(labels, chosen))
                best = min(best, quadratic.solve(support)[1])
    return best


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("seed", range(14))
def test_the_tree_finds_the_enumerated_optimum(seed: int, family: str) -> None:
    problem = drawn(seed, family)
    found = branch_and_bound(problem, options=TreeOptions(gap=1e-9))
    optimum, scale = enumerate_optimum(problem).objective, abs(problem.prune_all)
    assert found.solution.is_feasible
    assert found.status is Status.OPTIMAL
    assert found.upper == pytest.approx(optimum, abs=1e-9 * scale)
    assert found.lower <= optimum + 1e-9 * scale


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("seed", range(14))
def test_some_optimum_keeps_its_groups_whole(seed: int, family: str) -> None:
    problem = drawn(seed, family)
    optimum, scale = enumerate_optimum(problem).objective, abs(problem.prune_all)
    assert best_of_whole_groups(problem) == pytest.approx(optimum, abs=1e-9 * scale)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_forcing_a_group_costs_what_enumeration_says(seed: int, family: str) -> None:
    problem = drawn(seed, family)
    groups, state = groups_of(problem), np.full(12, FREE, dtype=np.int8)
    part = GroupsAllowed(groups, np.zeros(12, dtype=bool))
    if seed % 3 == 0:
        state[0] = OUT if seed % 2 else IN
    if not part.propagate(state) or not (state == FREE).any():
        return
    free = np.flatnonzero(state == FREE)
    seen = part.restrict(state, free)
    s = np.random.default_rng(seed).exponential(size=len(free))
    masks = _whole(groups, state, free)
    mask, value = seen.best(s)
    assert value == pytest.approx(max(float(s[m].sum()) for m in masks))
    assert any((mask == m).all() for m in masks)
    costs = seen.exchange(s, mask)
    for j in range(len(free)):
        other = [float(s[m].sum()) for m in masks if m[j] != mask[j]]
        assert costs[j] == pytest.approx(value - max(other, default=-np.inf), abs=1e-12)
    assert all((seen.G @ m <= seen.h + 1e-12).all() for m in masks)


def _whole(groups: WholeGroups, state: Array, free: Array) -> list[Array]:
    """Unions of free groups that fit beside the kept ones, over the free weights."""
    labels = groups.labels.numpy()
    held = int(groups.group_costs[np.unique(labels[state == IN])].sum())
    live, found = np.unique(labels[free]), []
    for bits in itertools.product((False, True), repeat=len(live)):
        chosen = live[np.array(bits)]
        if held + int(groups.group_costs[chosen].sum()) <= groups.budget:
            found.append(np.isin(labels[free], chosen))
    return found


def test_a_weight_out_from_the_start_does_not_pull_its_group_out() -> None:
    family, idle = WholeGroups(torch.arange(12) // 3, 6), np.arange(12) == 0
    part, state = GroupsAllowed(family, idle), np.full(12, FREE, dtype=np.int8)
    state[0] = OUT
    assert part.propagate(state)
    assert (state[1:] == FREE).all()
    state[1] = IN
    assert part.propagate(state)
    assert state.tolist() == [OUT, IN, IN] + [FREE] * 9


@pytest.mark.parametrize("keep", [2, 4, 7])
def test_neurons_of_a_layer_are_proven_where_weights_are_not(keep: int) -> None:
    """Two hundred weights in ten rows: proven, and no worse than the heuristic."""
    draw = torch.Generator().manual_seed(keep)
    A = torch.randn(60, 200, generator=draw) * (0.2 + torch.rand(200, generator=draw))
    w_bar = torch.randn(200, generator=draw)
    family = WholeGroups.matrix_rows((10, 20), keep)
    problem = from_gradients(A, w_bar, ridge=0.01, supports=family)
    found = branch_and_bound(problem, options=TreeOptions(gap=1e-6, node_limit=400))
    assert found.status is Status.OPTIMAL
    assert found.upper == pytest.approx(best_of_whole_groups(problem), rel=1e-5)
    assert found.upper <= solve(problem).objective * (1 + 1e-9)


def test_a_proof_log_stays_with_the_rows() -> None:
    """A replay fixes weights one by one: with a log the tree does too, and agrees."""
    problem = drawn(2, "groups")
    logged = branch_and_bound(problem, options=TreeOptions(gap=1e-9, proof=True))
    plain = branch_and_bound(problem, options=TreeOptions(gap=1e-9))
    assert logged.upper == pytest.approx(plain.upper, abs=1e-9 * abs(problem.prune_all))
    assert not isinstance(allowed(problem.supports, proof=True), GroupsAllowed)
    assert isinstance(allowed(problem.supports), GroupsAllowed)
