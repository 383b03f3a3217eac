"""Schedules: monotone counts, the exact budget at the end, and the published formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chita_opt.errors import SupportError
from chita_opt.nn.stages.schedules import SCHEDULES, stage_counts, stage_sparsities


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 40_000),
    st.data(),
    st.integers(1, 64),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_counts_never_rise_and_end_at_k(
    schedule: str, size: int, data: st.DataObject, stages: int, base: float
) -> None:
    k = data.draw(st.integers(0, size))
    counts = stage_counts(schedule, size, k, stages, base=base)
    assert len(counts) == stages and counts[-1] == k
    assert all(a >= b for a, b in pairwise(counts)) and counts[0] <= size


@given(st.sampled_from(SCHEDULES), st.floats(0.0, 1.0), st.integers(2, 64))
def test_every_stage_but_the_first_removes_at_least_the_base(
    schedule: str, sparsity: float, stages: int
) -> None:
    shares = stage_sparsities(schedule, sparsity, stages, base=0.1)
    assert shares[-1] == sparsity
    assert all(a <= b + 1e-12 for a, b in pairwise(shares))
    assert min(shares) >= min(0.1, sparsity) - 1e-12


def test_published_values() -> None:
    exp = stage_sparsities("exp", 0.9, 16, base=0.1)
    grown = 0.8 * 2**15 / (2**15 - 1)
    assert exp[:3] == pytest.approx((0.1, 0.1 + grown / 2, 0.1 + grown * 0.75))
    assert stage_sparsities("poly", 0.9, 3, base=0.1) == pytest.approx((0.1, 0.8, 0.9))
    assert stage_sparsities("linear", 0.9, 3, base=0.1) == pytest.approx((0.1, 0.5, 0.9))
    assert stage_sparsities("cosine", 0.9, 3, base=0.1) == pytest.approx((0.1, 0.5, 0.9))
    assert stage_sparsities("mfac", 0.9, 2, base=0.1) == pytest.approx((0.7, 0.9))
    assert stage_sparsities("const", 0.9, 3) == (0.9, 0.9, 0.9)


def test_one_stage_or_a_base_above_the_target_is_the_target() -> None:
    assert stage_counts("exp", 1000, 20, 1) == (20,)
    assert stage_counts("poly", 1000, 950, 3) == (950, 950, 950)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schedule": "cubic"}, "cubic"),
        ({"stages": 0}, "stages is 0"),
        ({"stages": 2.5}, "stages"),
        ({"base": 1.0}, "base is 1.0"),
        ({"base": float("nan")}, "base"),
        ({"k": 11}, "k is 11"),
        ({"k": -1}, "k is -1"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict[str, object], message: str) -> None:
    given = {"schedule": "exp", "size": 10, "k": 5, "stages": 4, "base": 0.1} | change
    with pytest.raises(SupportError, match=message):
        stage_counts(**given)  # type: ignore[arg-type]


def test_a_sparsity_out_of_range_is_named() -> None:
    with pytest.raises(SupportError, match=r"sparsity is 1\.5"):
        stage_sparsities("exp", 1.5, 4)
