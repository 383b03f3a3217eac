"""Neurons that go with all their weights, and processors that share a layer."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from chita_opt.supports.neuron_gates import NeuronGates
from chita_opt.supports.neuron_search import NeuronChoice, best_neurons, split_bound
from chita_opt.supports.processor_partition import ProcessorPartition, given_partition

from .family_checks import check_family

CHAINS = {
    "one_hidden": ([2, 3, 1], [2]),
    "two_hidden": ([2, 2, 2, 1], [1, 1]),
    "wide": ([1, 3, 2, 1], [2, 1]),
}


def neurons_allow(family: NeuronGates) -> list[Tensor]:
    """Masks of all weights between the neurons of each allowed choice."""
    masks = []
    for kept in product((False, True), repeat=len(family.groups)):
        open_ = torch.tensor([*kept, True])
        counts = torch.bincount(family.groups[open_[:-1]], minlength=len(family.caps))
        if bool((counts <= family.caps).all()):
            masks.append(open_[family.gates].all(1))
    return masks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CHAINS)
def test_chain(name: str, seed: int) -> None:
    family = NeuronGates.of_chain(*CHAINS[name])
    masks = neurons_allow(family)
    check_family(family, lambda mask: any(bool((whole | ~mask).all()) for whole in masks),
                 np.random.default_rng(seed))  # fmt: skip
    assert family.is_exact == (name == "one_hidden")
    assert ("exact" in family.specification["oracle"]) == family.is_exact


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {"inputs": 1, "hidden": 2, "gates": 1, "keep": 1},
        {"inputs": 1, "hidden": 2, "gates": 1, "keep": 1, "outputs": 2},
        {"inputs": 2, "hidden": 2, "gates": 1, "keep": 2, "keep_inputs": 1},
        {"inputs": 0, "hidden": 3, "gates": 1, "keep": 2},
        {"inputs": 1, "hidden": 1, "gates": 4, "keep": 0},
    ],
)
def test_recurrent(options: dict[str, int], seed: int) -> None:
    family = NeuronGates.of_recurrent(**options)
    masks = neurons_allow(family)
    check_family(family, lambda mask: any(bool((whole | ~mask).all()) for whole in masks),
                 np.random.default_rng(seed))  # fmt: skip


def random_choice(draw: np.random.Generator) -> NeuronChoice:
    count = int(draw.integers(2, 9))
    groups = np.sort(draw.integers(0, 2, count))
    groups -= groups[0]
    sizes = np.bincount(groups)
    pairs = np.triu(draw.random((count, count)) * (draw.random((count, count)) < 0.7), 1)
    caps = np.array([draw.integers(0, n + 1) for n in sizes])
    return NeuronChoice(draw.random(count), pairs + pairs.T, groups, caps)


@pytest.mark.parametrize("seed", range(100))
def test_choice_and_bound_against_enumeration(seed: int) -> None:
    choice = random_choice(np.random.default_rng(seed))
    count = len(choice.alone)
    values = []
    for size in range(count + 1):
        for kept in combinations(range(count), size):
            mask = np.isin(np.arange(count), kept)
            inside = np.bincount(choice.groups[mask], minlength=len(choice.caps)) <= choice.caps
            values.append(choice.value(mask) if inside.all() else 0.0)
    best, found = max(values), best_neurons(choice)
    assert (np.bincount(choice.groups[found], minlength=len(choice.caps)) <= choice.caps).all()
    assert 0.9 * best - 1e-12 <= choice.value(found) <= best + 1e-12
    bound = split_bound(choice, choice.value(found))
    assert bound.value >= best - 1e-12
    assert bound.shares + bound.shares.T == pytest.approx(choice.pairs)


def test_the_split_beats_the_plain_relaxation() -> None:
    """Where all neurons are alike, half of them are worth a quarter, not half, of all pairs."""
    count = 40
    choice = NeuronChoice(
        np.zeros(count), 1.0 - np.eye(count), np.zeros(count, dtype=np.int64), np.array([20])
    )
    assert split_bound(choice, 0.0).value == pytest.approx(20 * 19 / 2)


def deals(shape: tuple[int, int], parts: int) -> list[Tensor]:
    """Masks of every deal of rows and columns to processors with room."""
    room = [-(-n // parts) for n in shape]
    sides = [
        [p for p in product(range(parts), repeat=n) if np.bincount(p).max() <= r]
        for n, r in zip(shape, room, strict=True)
    ]
    return [
        (torch.tensor(rows)[:, None] == torch.tensor(columns)[None, :]).reshape(-1)
        for rows, columns in product(*sides)
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "parts"), [((2, 4), 2), ((3, 3), 2), ((3, 3), 3), ((4, 2), 3)])
def test_processor_partition(shape: tuple[int, int], parts: int, seed: int) -> None:
    family = ProcessorPartition(shape, parts)
    masks = torch.stack(deals(shape, parts))
    draw = np.random.default_rng(seed)
    check_family(family, lambda mask: bool((masks | ~mask).all(1).any()), draw)
    assert family.max_count == int(masks.sum(1).max())
    scores = torch.from_numpy(draw.random(family.size))
    best = float((masks.double() @ scores).max())
    solved = family.solve_exactly(scores)
    assert solved.optimal and family.contains(solved.mask)
    assert solved.value == pytest.approx(best) == pytest.approx(solved.solver_bound)
    assert float(scores[family.best_support(scores)].sum()) >= 0.9 * best


def test_a_planted_partition_is_found() -> None:
    draw = np.random.default_rng(5)
    rows, columns = draw.permutation(np.arange(40) % 4), draw.permutation(np.arange(60) % 4)
    planted = given_partition(torch.from_numpy(rows), torch.from_numpy(columns))
    inside = planted.best_support(torch.ones(2400, dtype=torch.float64))
    scores = torch.from_numpy(draw.random(2400)) * (0.2 + inside.double())
    family = ProcessorPartition((40, 60), 4)
    assert family.best_support(scores).equal(inside)
    assert family.contains(inside) and int(inside.sum()) == family.max_count == 600
    assert not family.contains(~inside)
