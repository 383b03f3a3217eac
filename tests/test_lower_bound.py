"""Bounds of several strengths: never above the optimum, never weaker than the one before."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chita_opt.bounds import Bound
from chita_opt.certificates import certify, save_proof, verify
from chita_opt.certificates.block_proof import knapsack, priced
from chita_opt.certificates.certificate import (
    dense_arrays,
    problem_arrays,
    problem_specification,
)
from chita_opt.certificates.pair_bound import evaluate_pairs
from chita_opt.curvature import Dense
from chita_opt.errors import CertificateError, ProblemError
from chita_opt.exact import PairWitness, enumerate_optimum
from chita_opt.exact.strengths import STRENGTHS, lower_bound
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.supports import Budget

from .problems import CURVATURES, FAMILIES, make_problem, random_problem


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", CURVATURES)
def test_strengths_against_enumeration(form: str, family: str) -> None:
    problem = make_problem(form, family)
    best = enumerate_optimum(problem)
    everything = abs(problem.objective(torch.zeros_like(problem.w_bar)))
    size, last = 1e-9 * abs(best.objective) + 1e-12 * everything, -float("inf")
    start = solve(problem)
    for strength in ("dual", "diagonal", "tree"):
        found = lower_bound(problem, strength=strength, start=start)
        short = 1e-4 * (best.objective - problem.dense_minimum) if strength == "tree" else 0.0
        assert last - size - short <= found.value <= best.objective + size, strength
        last = found.value
        if isinstance(found.witness, Bound):
            certificate = certify(start, bound=found.witness)
            assert certificate.lower <= found.value + 10 * size
            if problem.supports.rows_are_tight:  # a certificate asks the rows, not the oracle
                assert certificate.lower == pytest.approx(found.value, rel=1e-6, abs=10 * size)
    assert last >= best.objective - 2e-4 * (best.objective - problem.dense_minimum) - size


def test_the_best_diagonal_beats_simple_splits() -> None:
    """A Hessian that is strong along two weights only."""
    generator = torch.Generator().manual_seed(2)
    F = torch.randn(14, 12, generator=generator, dtype=torch.float64)
    H = F.T @ F / 14 + torch.diag(torch.tensor([5.0, 3.0] + [0.0] * 10, dtype=torch.float64))
    problem = Problem(
        Dense(H), torch.randn(12, generator=generator, dtype=torch.float64),
        torch.full((12,), 1e-3, dtype=torch.float64), Budget.cardinality(12, 5),
    )  # fmt: skip
    start = solve(problem)
    simple = lower_bound(problem, strength="dual", start=start)
    best = lower_bound(problem, strength="diagonal", start=start)
    assert best.value > simple.value
    assert best.value <= enumerate_optimum(problem).objective


def slack_of(problem: Problem) -> float:
    return 1e-9 * (problem.prune_all + abs(problem.dense_minimum))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_every_strength_is_saved_and_verified(strength: str, tmp_path: Path) -> None:
    problem = make_problem("shared_rows", "cardinality", p=9, seed=1, linear=True, ridge=1e-2)
    found = lower_bound(problem, strength=strength)
    written = save_proof(found, tmp_path / "file")
    report, optimum = verify(tmp_path / "file"), enumerate_optimum(problem).objective
    assert found.value - slack_of(problem) <= report.lower <= optimum <= report.upper * (1 + 1e-9)
    assert report.upper == written.upper


# -- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "family"),
    [("low_rank", "cardinality"), ("dense", "nested_blocks"), ("tall", "pairs")],
)
def test_pairs_beat_the_diagonal(form: str, family: str, tmp_path: Path) -> None:
    problem = make_problem(form, family, p=8, seed=4, linear=True, ridge=1e-3)
    diagonal = lower_bound(problem, strength="diagonal")
    found = lower_bound(problem, strength="pairs")
    optimum = enumerate_optimum(problem).objective
    assert diagonal.value - slack_of(problem) <= found.value <= optimum + slack_of(problem)
    if family == "cardinality":
        assert isinstance(found.witness, PairWitness) and len(found.witness.first) > 3
        gaps = [optimum - diagonal.value, optimum - found.value]
        assert gaps[1] < 0.95 * gaps[0]
    save_proof(found, tmp_path / "file")
    assert verify(tmp_path / "file").lower >= found.value - slack_of(problem)


def test_too_many_weights_for_pairs_are_refused() -> None:
    with pytest.raises(ProblemError, match=r"61 weights.*stops at 60"):
        lower_bound(make_problem("dense", "cardinality", p=61), strength="pairs")


def random_pairs(problem: Problem, source: np.random.Generator) -> PairWitness:
    """Any point, any pulls and prices, and a share of H as the split."""
    p = problem.p
    H = problem.curvature.dense().numpy() + np.diag(problem.rho.numpy())
    first, second = np.triu_indices(p, 1)
    chosen = source.choice(len(first), size=min(p, len(first)), replace=False)
    first, second = first[chosen], second[chosen]
    entries = source.normal(size=(len(chosen), 2)) * np.sqrt(H.diagonal().mean())
    L = np.zeros((p, len(chosen)))
    L[first, np.arange(len(chosen))], L[second, np.arange(len(chosen))] = entries.T
    d = H.diagonal() * source.uniform(0.1, 1.0, size=p)
    most = np.linalg.eigvals(np.linalg.solve(H, np.diag(d) + L @ L.T)).real.max()
    share = source.uniform(0.3, 0.999) / most
    pulls = source.normal(size=len(chosen)) * source.choice([0.1, 1.0])
    return PairWitness(
        source.normal(size=p), share * d, first, second, np.sqrt(share) * entries, pulls,
        source.uniform(0.0, 1.2, size=len(chosen)) * 0.5 * pulls**2,
    )  # fmt: skip


def pair_arrays(problem: Problem, witness: PairWitness) -> dict[str, np.ndarray]:
    arrays = problem_arrays(problem) | dense_arrays(problem)
    arrays["solution.w"] = np.zeros(problem.p)
    nothing = torch.zeros(problem.p, dtype=torch.bool)
    arrays["solution.auxiliary"] = problem.supports.auxiliary(nothing).astype(np.float64)
    return arrays | {f"bound.{name}": a for name, a in vars(witness).items()}


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_any_pair_witness_stays_below_the_optimum(seed: int) -> None:
    problem = random_problem(seed)
    witness = random_pairs(problem, np.random.default_rng(seed))
    arrays, described = pair_arrays(problem, witness), problem_specification(problem)
    assert evaluate_pairs(arrays, described).lower <= enumerate_optimum(problem).objective


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("split", lambda a: 1e3 * a, "semidefinite"),
        ("entries", lambda a: 1e3 * a, "semidefinite"),
        ("split", lambda a: -a, "not positive"),
        ("prices", lambda a: a - 1.0, "negative"),
        ("first", lambda a: a + 1, "pairs of two|lie in"),
        ("pulls", lambda a: a[:-1], "must be"),
        ("entries", lambda a: a * np.nan, "finite"),
    ],
)
def test_pair_witnesses_that_prove_nothing_are_refused(name: str, change: object, why: str) -> None:
    problem = make_problem("dense", "cardinality", p=6)
    arrays = pair_arrays(problem, random_pairs(problem, np.random.default_rng(0)))
    arrays["bound.first"], arrays["bound.second"] = np.arange(5), np.arange(5) + 1
    for other in ("entries", "pulls", "prices"):
        arrays[f"bound.{other}"] = 0.01 * arrays[f"bound.{other}"][:5]
    evaluate_pairs(arrays, problem_specification(problem))
    arrays[f"bound.{name}"] = change(arrays[f"bound.{name}"])  # type: ignore[operator]
    with pytest.raises(CertificateError, match=why):
        evaluate_pairs(arrays, problem_specification(problem))


# -- lagrangian ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["shared_rows", "gradient_blocks", "mixed_blocks"])
@pytest.mark.parametrize("linear", [False, True])
def test_the_lagrangian_of_the_total(form: str, linear: bool, tmp_path: Path) -> None:
    problem = make_problem(form, "cardinality", p=12, seed=1, linear=linear, ridge=1e-2)
    found, optimum = lower_bound(problem, strength="lagrangian"), enumerate_optimum(problem)
    assert found.value <= optimum.objective + slack_of(problem)
    diagonal = lower_bound(problem, strength="diagonal").value
    short = 2e-4 * (optimum.objective - problem.dense_minimum)
    assert found.value >= diagonal - short - slack_of(problem)
    save_proof(found, tmp_path / "file")
    report = verify(tmp_path / "file")
    assert found.value - slack_of(problem) <= report.lower <= optimum.objective


def test_the_lagrangian_stops_in_time_and_needs_blocks() -> None:
    problem = make_problem("shared_rows", "cardinality", p=12, ridge=1e-2)
    found = lower_bound(problem, strength="lagrangian", time_limit=1e-6)
    assert found.value <= enumerate_optimum(problem).objective
    with pytest.raises(ProblemError, match="does not fall into blocks"):
        lower_bound(make_problem("dense", "cardinality"), strength="lagrangian")


@settings(max_examples=100)
@given(st.integers(0, 10**6))
def test_joined_bounds_hold(seed: int) -> None:
    """Knapsack and price against all splits of the total; no price beats the knapsack."""
    source = np.random.default_rng(seed)
    values = [np.sort(source.normal(size=source.integers(1, 5)))[::-1].copy() for _ in range(3)]
    total = int(source.integers(0, sum(len(v) - 1 for v in values) + 1))
    best = min(
        sum(v[k] for v, k in zip(values, counts, strict=True))
        for counts in product(*(range(len(v)) for v in values))
        if sum(counts) <= total
    )
    assert knapsack(values, total) <= best <= knapsack(values, total) + 1e-12
    for price in source.exponential(size=4):
        assert priced(values, float(price), total) <= best
    with pytest.raises(CertificateError, match="price"):
        priced(values, -1.0, total)
    values[0][0] = -np.inf
    with pytest.raises(CertificateError, match="nothing is proven of block 0"):
        knapsack(values, total)


def test_unknown_and_oversized_are_refused() -> None:
    problem = make_problem("low_rank", "cardinality")
    with pytest.raises(ProblemError, match="strength is 'best'"):
        lower_bound(problem, strength="best")
    big = Problem(
        Dense(torch.eye(4001, dtype=torch.float64)), torch.ones(4001, dtype=torch.float64),
        torch.ones(4001, dtype=torch.float64), Budget.cardinality(4001, 9),
    )  # fmt: skip
    with pytest.raises(ProblemError, match="4001 weights"):
        lower_bound(big, strength="diagonal")
