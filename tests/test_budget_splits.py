"""Value curves of blocks, splits of a budget among them, and what no split can beat."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from chita_opt.certificates import save_proof, verify
from chita_opt.certificates.block_proof import knapsack, priced
from chita_opt.errors import MethodError, ProblemError, SupportError
from chita_opt.exact import (
    CurveOptions,
    TreeOptions,
    ValueCurve,
    enumerate_optimum,
    join_curves,
    solve_blocks,
    split_curves,
    split_into_blocks,
    value_at,
    value_curve,
    value_curves,
)
from chita_opt.exact.budget_split import best_counts, knapsack_counts, priced_bound
from chita_opt.nn import StageOptions, prune
from chita_opt.problem import Problem
from chita_opt.solution import Status
from chita_opt.supports import Budget, split_budget
from chita_opt.supports.base import Array

from .problems import make_problem

SHAPES = {"conv": (4, 2, 3, 3), "wide": (8, 20), "narrow": (3, 5), "bias": (6,)}


# -- simple splits ------------------------------------------------------------------------------


@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=6),
    share=st.floats(0.0, 1.0),
    rule=st.sampled_from(["uniform", "erk", "magnitude"]),
)
def test_counts_sum_to_the_budget_within_the_layers(
    shapes: list[list[int]], share: float, rule: str
) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    sizes = [int(np.prod(shape)) for shape in shapes]
    k = round(share * sum(sizes))
    counts = split_budget(rule, k, named, w=torch.linspace(-1.0, 2.0, sum(sizes)))
    assert sum(counts) == k
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


def test_uniform_rounds_by_largest_remainder() -> None:
    assert split_budget("uniform", 5, {"a": (3,), "b": (3,), "c": (4,)}) == [2, 1, 2]


def test_erk_shares_follow_the_shapes_and_full_layers_are_capped() -> None:
    a, b = split_budget("erk", 600, {"a": (100, 100), "b": (100, 200)})
    assert a / b == pytest.approx(200 / 300, abs=0.01)  # sums of the dimensions
    conv, wide, narrow, bias = split_budget("erk", 100, SHAPES)
    assert narrow == 15 or narrow / 15 > wide / 160
    assert split_budget("erk", 247, SHAPES)[2:] == [15, 6]
    assert sum(split_budget("erk", 247, SHAPES)) == 247
    assert (conv, bias) != (0, 0)


def test_magnitude_counts_the_largest_weights() -> None:
    w = torch.tensor([3.0, -5.0, 0.0, 0.0, 4.0, 1.0])
    assert split_budget("magnitude", 3, {"a": (2,), "b": (4,)}, w=w) == [2, 1]
    assert sum(split_budget("magnitude", 5, {"a": (2,), "b": (4,)}, w=w)) == 5


@pytest.mark.parametrize(
    "split, k, message",
    [
        ("uniform", 300, "253 weights"),
        ("random", 10, "choose uniform"),
        ("magnitude", 10, "needs the 253 dense weights"),
        ({"conv": 1, "wide": 1, "narrow": 1}, 3, "one for each of"),
        ([1, 2, 3], 6, "one for each of"),
        ([1, 2, 16, 1], 20, "narrow, which has 15"),
        ([1, 2, 3, 4], 11, "sum to 10, the budget is 11"),
    ],
)
def test_splits_that_cannot_be_are_refused(split: object, k: int, message: str) -> None:
    with pytest.raises(SupportError, match=message):
        split_budget(split, k, SHAPES)  # type: ignore[arg-type]


def test_prune_under_a_split() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    data = torch.randn(60, 12), torch.randint(4, (60,))

    def counts(split: object, **asked: object) -> list[int]:
        result = prune(
            model, cross_entropy, data, split=split, rows=50, trust=False, certify=False,
            method="backsolve", **asked,  # type: ignore[arg-type]
        )  # fmt: skip
        assert result.keep.k == sum(_kept(result))
        return _kept(result)

    assert counts("uniform", sparsity=0.75) == [24, 8]
    assert counts("erk", k=32) == split_budget("erk", 32, {"a": (8, 12), "b": (4, 8)})
    assert sum(counts("magnitude", sparsity=0.5)) == 64
    assert counts({"0.weight": 30, "2.weight": 3}) == [30, 3]
    with pytest.raises(SupportError, match="sum to 33, the budget is 64"):
        counts({"0.weight": 30, "2.weight": 3}, sparsity=0.5)
    with pytest.raises(SupportError, match="cardinality"):
        counts("erk", support="2:4")
    with pytest.raises(SupportError, match="scope"):
        counts("erk", sparsity=0.5, scope="layer")
    with pytest.raises(ProblemError, match="stages"):
        StageOptions(split="magnitude")


def _kept(result: object) -> list[int]:
    return [int(mask.sum()) for mask in result.masks.values()]  # type: ignore[attr-defined]


# -- curves -------------------------------------------------------------------------------------


def blocks_of(seed: int = 0, linear: bool = False) -> tuple[Problem, list[Problem]]:
    problem = make_problem(
        "gradient_blocks", "cardinality", p=12, seed=seed, linear=linear, ridge=1e-2
    )
    return problem, [block for _, block in split_into_blocks(problem)]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("exact_size", [0, 60])
def test_curves_hold_the_enumerated_values(linear: bool, exact_size: int) -> None:
    _, blocks = blocks_of(1, linear)
    for block, curve in zip(
        blocks, value_curves(blocks, options=CurveOptions(exact_size=exact_size)), strict=True
    ):
        assert curve.ks[0] == 0 and curve.ks[-1] == block.p
        slack = 1e-9 * (abs(block.prune_all) + abs(block.dense_minimum))
        assert curve.w is not None
        for k, upper, lower, w in zip(curve.ks, curve.upper, curve.lower, curve.w, strict=True):
            exact = enumerate_optimum(
                block.with_supports(Budget.cardinality(block.p, int(k)))
            ).objective
            assert lower - slack <= exact <= upper + slack
            assert block.objective(torch.from_numpy(w)) == pytest.approx(upper, abs=slack)
            assert np.count_nonzero(w) <= k
        if exact_size:
            assert curve.status is Status.OPTIMAL
            assert curve.gaps.max() <= 1.01e-6


def test_a_time_limit_leaves_valid_curves() -> None:
    _, blocks = blocks_of(2)
    for options in (CurveOptions(time_limit=1e-3), CurveOptions(time_limit=1e-3, exact_size=0)):
        for block, curve in zip(blocks, value_curves(blocks, options=options), strict=True):
            for k, lower, upper in zip(curve.ks, curve.lower, curve.upper, strict=True):
                exact = enumerate_optimum(
                    block.with_supports(Budget.cardinality(block.p, int(k)))
                ).objective
                assert lower <= exact + 1e-9 and upper >= exact - 1e-9


def test_curves_refuse_what_they_cannot_be() -> None:
    flat = np.array([1.0, 0.5])
    with pytest.raises(ProblemError, match="increasing"):
        ValueCurve(np.array([1, 1]), flat, flat)
    with pytest.raises(ProblemError, match="must fall"):
        ValueCurve(np.array([0, 1]), flat[::-1], flat)
    with pytest.raises(ProblemError, match="one for each"):
        ValueCurve(np.array([0]), flat, flat)
    with pytest.raises(ProblemError, match="lie in"):
        value_curve(blocks_of()[1][0], ks=[99])
    with pytest.raises(ProblemError, match="budget family"):
        value_curve(make_problem("tall", "pairs", p=10))
    with pytest.raises(ProblemError, match="grid"):
        CurveOptions(grid=0)


# -- splits over curves -------------------------------------------------------------------------


def curves_of(draw: np.random.Generator, blocks: int = 4, flat: bool = False) -> list[ValueCurve]:
    """Curves that are not convex, on grids, with bounds a little below."""
    found = []
    for _ in range(blocks):
        inner = np.sort(draw.choice(np.arange(1, 7), size=draw.integers(1, 6), replace=False))
        ks = np.concatenate([[0], inner])
        upper = -np.sort(-draw.exponential(size=len(ks)))
        lower = upper if flat else -np.sort(-np.minimum(upper, upper - 0.1 * draw.random()))
        found.append(ValueCurve(ks, upper, lower, floor=-1.0))
    return found


def least(options: list[tuple[Array, Array]], total: int) -> float:
    """By looking at every combination."""
    choices = product(*(zip(c.tolist(), v.tolist(), strict=True) for c, v in options))
    return min(sum(v for _, v in pick) for pick in choices if sum(c for c, _ in pick) <= total)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), total=st.integers(0, 24))
def test_program_bound_and_price_against_every_combination(seed: int, total: int) -> None:
    curves = curves_of(np.random.default_rng(seed))
    split = split_curves(curves, total)
    assert sum(split.counts) <= total
    assert split.upper == pytest.approx(value_at(curves, split.counts)[0])
    assert split.upper == pytest.approx(least([(c.ks, c.upper) for c in curves], total))
    bounds = [(c.bounded_from, c.lower) for c in curves]
    assert split.lower == pytest.approx(least(bounds, total))
    found = priced_bound(bounds, total)
    assert found.value == pytest.approx(found.minorants)  # duality
    assert found.value <= split.lower + 1e-12
    assert split.price >= 0.0 and split.priced == found.value
    for other in (0.0, 0.5 * split.price, 2.0 * split.price + 0.1):  # no price does better
        worse = sum(float(np.min(v + other * c)) for c, v in bounds) - other * total
        assert worse <= found.value + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_highs_finds_the_same_split(seed: int) -> None:
    draw = np.random.default_rng(seed)
    curves, total = curves_of(draw), int(draw.integers(0, 20))
    ours, theirs = split_curves(curves, total), split_curves(curves, total, method="knapsack")
    assert theirs.upper == pytest.approx(ours.upper)
    assert theirs.lower == pytest.approx(ours.lower)
    assert sum(theirs.counts) <= total


def test_splits_refuse_what_cannot_be_met() -> None:
    curve = ValueCurve(np.array([2, 3]), np.array([1.0, 0.5]), np.array([1.0, 0.5]))
    for solver in (best_counts, knapsack_counts):
        with pytest.raises(ProblemError, match="at least 4"):
            solver([(curve.ks, curve.upper)] * 2, 3)
    with pytest.raises(MethodError, match="greedy"):
        split_curves([curve], 3, method="greedy")  # type: ignore[arg-type]
    with pytest.raises(ProblemError, match="begins at 2"):
        value_at([curve], [1])
    with pytest.raises(ProblemError, match="weights for every block"):
        join_curves(blocks_of()[0], [curve])


@pytest.mark.parametrize("price", [False, True])
def test_a_joined_split_is_proven_by_numpy_alone(price: bool, tmp_path: Path) -> None:
    problem, blocks = blocks_of(3)
    tree = TreeOptions(gap=1e-6, proof=True)
    curves = value_curves(blocks, options=CurveOptions(tree=tree))
    whole = join_curves(problem, curves, price=price)
    assert whole.upper == pytest.approx(solve_blocks(problem).upper, rel=2e-4)
    assert whole.upper == pytest.approx(enumerate_optimum(problem).objective, rel=1e-6)
    report = save_proof(whole, tmp_path / "split.safetensors")
    assert report.lower == pytest.approx(whole.lower, rel=1e-5)
    assert verify(tmp_path / "split.safetensors").lower >= report.lower
    total = problem.supports.max_count
    split, lowers = split_curves(curves, total), [curve.lower for curve in curves]
    assert knapsack(lowers, total) == pytest.approx(split.lower)  # counts are all there
    assert priced(lowers, split.price, total) == pytest.approx(split.priced)
