"""Convex relaxations: their order of strength, their multipliers, and proofs without trust."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chita_opt.bounds import dual_point, safe_split
from chita_opt.errors import ProblemError
from chita_opt.exact import enumerate_optimum
from chita_opt.formulations import (
    lagrangian_relaxation,
    optimal_diagonal_relaxation,
    pair_relaxation,
    perspective_relaxation,
    strongest_pairs,
)
from chita_opt.formulations.optimal_diagonal import quadratic
from chita_opt.problem import Problem

from .problems import make_problem

P = 8
FORMS = pytest.mark.parametrize("form", ["low_rank", "tall", "dense"])
FAMILIES = pytest.mark.parametrize("family", ["cardinality", "nested_n_of_m", "pairs"])


def size_of(problem: Problem) -> float:
    return problem.prune_all + abs(problem.dense_minimum)


def test_the_quadratic_is_the_objective() -> None:
    problem = make_problem("shared_rows", "cardinality", linear=True)
    H, b, c = quadratic(problem)
    w = np.random.default_rng(0).normal(size=problem.p)
    value = 0.5 * w @ H @ w - b @ w + c
    assert value == pytest.approx(problem.objective(torch.from_numpy(w)), rel=1e-10)


@FAMILIES
@FORMS
def test_stronger_models_prove_more(form: str, family: str) -> None:
    problem = make_problem(form, family, p=P, linear=True)
    weak = perspective_relaxation(problem).model.solve(solver="CLARABEL")
    diagonal = optimal_diagonal_relaxation(problem).model.solve(solver="CLARABEL")
    model = pair_relaxation(problem, strongest_pairs(problem, 4)).model
    pairs = model.solve(solver="CLARABEL", tol_gap_abs=1e-7, tol_gap_rel=1e-7, tol_feas=1e-7)
    slack = 1e-5 * size_of(problem)
    assert weak <= diagonal + slack and diagonal <= pairs + slack
    assert pairs <= enumerate_optimum(problem).objective + slack


@FAMILIES
@FORMS
def test_the_multipliers_are_the_best_split(form: str, family: str) -> None:
    """The split read off the semidefinite program proves its value by the dual bound."""
    problem = make_problem(form, family, p=P, linear=True)
    relaxation = optimal_diagonal_relaxation(problem)
    value = relaxation.model.solve(solver="CLARABEL")
    d = torch.from_numpy(relaxation.separable_curvature())
    e = safe_split(problem.curvature, d * (1.0 - 1e-7) - problem.rho)
    assert e is not None
    if float((problem.rho + e).min()) <= 1e-9 * float(d.max()):
        pytest.skip("a weight without separable curvature at the optimum")
    image = torch.from_numpy(relaxation.w.value) - problem.w_bar
    proven = dual_point(problem, image, e).value
    assert proven <= enumerate_optimum(problem).objective + 1e-9 * size_of(problem)
    again = perspective_relaxation(problem, split=e).model.solve(solver="CLARABEL")
    assert again == pytest.approx(value, abs=2e-3 * size_of(problem))


def test_sizes() -> None:
    problem = make_problem("dense", "cardinality", p=P)
    relaxation = pair_relaxation(problem, [(0, 1), (2, 5)])
    assert relaxation.W.shape == (P, P)
    assert sum(v.size for v in relaxation.model.variables()) == P + (P + 1) ** 2 + 2
    assert len(pair_relaxation(problem).model.constraints) == 5 + 3 * (P * (P - 1) // 2)


def test_strongest_pairs_come_first() -> None:
    problem = make_problem("tall", "cardinality", p=P)
    H, _, _ = quadratic(problem)
    correlation = np.abs(H / np.sqrt(np.outer(H.diagonal(), H.diagonal())))
    i, j = strongest_pairs(problem, 1)[0]
    assert correlation[i, j] == np.triu(correlation, 1).max()


@pytest.mark.parametrize("pair", [(1, 1), (0, P), (-1, 2)])
def test_a_pair_is_two_weights(pair: tuple[int, int]) -> None:
    with pytest.raises(ProblemError, match="two different weights"):
        pair_relaxation(make_problem("dense", "cardinality", p=P), [pair])


@FAMILIES
@FORMS
def test_every_price_bounds_and_the_best_closes_the_duality(form: str, family: str) -> None:
    problem = make_problem(form, family, p=P, linear=True)
    best = perspective_relaxation(problem)
    value = best.model.solve(solver="CLARABEL")
    G = problem.supports.rows().G
    rows = next(c for c in best.model.constraints if c.size == G.shape[0] and c.is_dcp())
    relaxation = lagrangian_relaxation(problem)
    assert relaxation.model.is_dcp(dpp=True)
    draw = np.random.default_rng(1)
    slack = 1e-5 * size_of(problem)
    for _ in range(3):
        prices = problem.prune_all * draw.exponential(size=G.shape[0]) / P
        relaxation.prices.value = prices
        assert relaxation.model.solve(solver="CLARABEL") <= value + slack
    relaxation.prices.value = np.maximum(np.ravel(best.model.constraints[1].dual_value), 0.0)
    assert rows is not None
    assert relaxation.model.solve(solver="CLARABEL") == pytest.approx(value, abs=slack)
