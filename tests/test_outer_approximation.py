"""Outer approximation with HiGHS: enumeration, bounds, limits and side constraints."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chita_opt.bounds import dual_point
from chita_opt.errors import CurvatureError, MethodError, ProblemError
from chita_opt.exact import enumerate_optimum, enumerate_supports
from chita_opt.exact.outer_approximation import OuterApproximation, outer_approximation
from chita_opt.exact.outer_approximation.master import Master
from chita_opt.exact.outer_approximation.search import Search
from chita_opt.formulations import DualCut, block_widths, cost_budget
from chita_opt.heuristics import magnitude
from chita_opt.instances import correlated_instance, load_instance, planted_instance
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget, keep_count

from .problems import CURVATURES, FAMILIES, PairBudget, make_problem, random_problem


def size_of(problem: Problem) -> float:
    return problem.prune_all + abs(problem.dense_minimum)


def check(found: OuterApproximation, optimum: float) -> None:
    """Every claim of a finished run against the true optimum."""
    problem = found.problem
    slack = 1e-9 * size_of(problem)
    assert found.status is Status.OPTIMAL and found.solution is not None
    assert found.solution.is_feasible
    assert found.lower <= optimum + slack and found.proven <= optimum + slack
    assert found.proven <= found.lower <= found.upper
    allowed = 1.01e-4 * abs(optimum - problem.dense_minimum) + slack
    assert optimum - slack <= found.upper <= optimum + allowed
    if found.bound is not None:
        again = dual_point(problem, found.bound.witness, found.bound.split).value
        assert again == found.bound.value <= optimum + slack
    lowers = [row.lower for row in found.trace]
    assert lowers == sorted(lowers)


@pytest.mark.parametrize("seed", range(0, 140, 2))
def test_random_problems_against_enumeration(seed: int) -> None:
    problem = random_problem(seed)
    check(outer_approximation(problem), enumerate_optimum(problem).objective)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", CURVATURES)
def test_every_family_and_form_without_strong_ridge(form: str, family: str) -> None:
    """A ridge of 1e-4 of the mean diagonal: weak bounds, many rounds."""
    problem = make_problem(form, family, ridge=1e-4, seed=5)
    check(outer_approximation(problem), enumerate_optimum(problem).objective)


def test_rounds_cuts_and_covers_are_needed_and_counted() -> None:
    instance = correlated_instance(40, 14, seed=3)
    problem = instance.problem(ridge=1e-3, supports=Budget.cardinality(14, 5))
    found = outer_approximation(problem, gap=0.0)
    check(found, enumerate_optimum(problem).objective)
    assert found.rounds > 0 and found.cuts > 0 and found.nodes >= 0
    assert "rounds" in str(found) and found.word in str(found)


def test_a_planted_optimum_is_proven_by_a_witness() -> None:
    planted = planted_instance(60, 30)
    found = outer_approximation(planted.problem)
    assert found.upper == pytest.approx(planted.value, rel=1e-6)
    assert found.gap <= 1e-4 and found.word == "dual witness"


def test_rows_that_allow_more_than_the_family() -> None:
    """Masks that the rows allow and the family does not are forbidden with all that hold them."""
    problem = make_problem("dense", "cardinality", p=8, seed=2)
    for k in range(1, 4):
        loose = problem.with_supports(PairBudget(8, k, tight=False))
        truth = enumerate_optimum(loose)
        check(outer_approximation(loose), truth.objective)


# -- starts and limits ----------------------------------------------------------------------------


def hard(p: int = 40, ridge: float = 1e-3) -> Problem:
    instance = correlated_instance(2 * p, p, seed=1)
    return instance.problem(ridge=ridge, supports=Budget.cardinality(p, p // 3))


def test_a_start_is_never_made_worse() -> None:
    problem = make_problem("dense", "cardinality")
    best = enumerate_optimum(problem)
    found = outer_approximation(problem, start=best)
    assert found.upper <= best.objective * (1.0 + 1e-12)
    check(outer_approximation(problem, start=magnitude(problem)), best.objective)


def test_the_time_limit_is_over_the_whole_call() -> None:
    problem = hard(60, 1e-5)
    begin = time.perf_counter()
    found = outer_approximation(problem, time_limit=3.0)
    assert time.perf_counter() - begin < 8.0
    assert found.solution is not None and found.solution.is_feasible
    assert 0.0 < found.lower <= found.upper
    assert found.status in (Status.TIME_LIMIT, Status.OPTIMAL)


def test_the_round_limit_keeps_a_valid_bound() -> None:
    instance = correlated_instance(40, 14, seed=3)
    problem = instance.problem(ridge=1e-4, supports=Budget.cardinality(14, 5))
    found = outer_approximation(problem, round_limit=1)
    optimum = enumerate_optimum(problem).objective
    assert found.rounds <= 1
    assert found.lower <= optimum + 1e-9 * size_of(problem) <= found.upper + 1e-8


def test_ctrl_c_returns_incumbent_and_bound() -> None:
    outer_approximation(hard(8))  # loads what is compiled: the signal is for the search
    problem = hard(60, 1e-6)
    timer = threading.Timer(2.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        found = outer_approximation(problem, gap=0.0, time_limit=60.0)
    finally:
        timer.cancel()
    assert found.status is Status.INTERRUPTED
    assert found.solution is not None and 0.0 < found.lower <= found.upper


def test_an_interrupt_during_swaps_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap search ends quietly on Ctrl-C; the whole search must end as well."""
    module = import_module("chita_opt.exact.outer_approximation.search")
    swaps = module.local_search

    def interrupted(*args: Any, **options: Any) -> Any:
        return replace(swaps(*args, **options), status=Status.INTERRUPTED)

    monkeypatch.setattr(module, "local_search", interrupted)
    found = outer_approximation(hard(30, 1e-3), time_limit=30.0)
    assert found.status is Status.INTERRUPTED and found.solution is not None


def test_an_interrupt_that_a_library_keeps_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("chita_opt.exact.outer_approximation.search")
    heuristic = module.heuristic

    def silent(*args: Any, **options: Any) -> Any:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return heuristic(*args, **options)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(module, "heuristic", silent)
    found = outer_approximation(hard(30, 1e-3), time_limit=30.0)
    assert found.status is Status.INTERRUPTED and found.solution is not None
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_the_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "reduce", interrupt)
    found = outer_approximation(hard())
    assert found.status is Status.INTERRUPTED and found.solution is not None
    assert found.lower <= 0.0 and found.rounds == 0 and found.bound is None


def test_wrong_arguments_are_refused() -> None:
    problem = make_problem("dense", "cardinality")
    for gap in (-0.1, 1.0, float("nan")):
        with pytest.raises(ProblemError, match="gap is"):
            outer_approximation(problem, gap=gap)
    with pytest.raises(ProblemError, match="time_limit"):
        outer_approximation(problem, time_limit=0.0)
    large = make_problem("low_rank", "cardinality", p=1002)
    with pytest.raises(ProblemError, match="1002 weights"):
        outer_approximation(large)
    with pytest.raises(CurvatureError):
        outer_approximation(make_problem("deficient", "cardinality", ridge=0.0))


# -- side constraints -----------------------------------------------------------------------------


def constrained_optimum(problem: Problem, allowed: Any) -> float:
    """Best value over all masks of the family that ``allowed`` takes, by brute force."""
    H = problem.curvature.dense() + torch.diag(problem.rho)
    best = np.inf
    for code in range(2**problem.p):
        mask = torch.tensor([bool(code >> j & 1) for j in range(problem.p)])
        if problem.supports.contains(mask) and allowed(mask.numpy()):
            x = torch.where(mask, 0.0, -problem.w_bar)
            S = mask.nonzero().squeeze(1)
            x[S] = torch.linalg.solve(H[S][:, S], (-problem.g - H @ x)[S])
            best = min(best, float(0.5 * x @ H @ x + problem.g @ x))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_a_cost_budget(seed: int) -> None:
    problem = make_problem("tall", "cardinality", p=9, seed=seed, ridge=1e-2)
    costs = np.random.default_rng(seed).uniform(0.5, 2.0, 9)
    limit = 0.35 * float(costs.sum())
    found = outer_approximation(problem, side_constraints=[cost_budget(costs.tolist(), limit)])
    optimum = constrained_optimum(problem, lambda mask: costs @ mask <= limit + 1e-9)
    check(found, optimum)
    assert found.mask is not None and costs @ found.mask.numpy() <= limit + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_block_widths_as_a_decision(seed: int) -> None:
    problem = make_problem("dense", "everything", p=8, seed=seed, ridge=1e-2)
    rule = block_widths(2, 4, (1, 2, 4), 4)
    found = outer_approximation(problem, side_constraints=[rule])

    def allowed(mask: np.ndarray) -> bool:
        def narrowest(row: np.ndarray) -> int:
            fits = [4 // B for B in (1, 2, 4) if (row.reshape(-1, B).sum(1) <= 1).all()]
            return min(fits)

        return sum(narrowest(row) for row in mask.reshape(2, 4)) <= 4

    check(found, constrained_optimum(problem, allowed))


def test_a_rule_of_the_users_own() -> None:
    """Keep weight 3, never both 0 and 1: the family's best support breaks it."""
    problem = make_problem("tall", "cardinality", p=8, seed=1, ridge=1e-2)

    import pyomo.environ as pyo

    def add(model: Any) -> None:
        model.three = pyo.Constraint(expr=model.z[3] >= 1)
        model.pair = pyo.Constraint(expr=model.z[0] + model.z[1] <= 1)

    found = outer_approximation(problem, side_constraints=[add])
    optimum = constrained_optimum(problem, lambda m: m[3] and not (m[0] and m[1]))
    check(found, optimum)
    assert found.mask is not None and bool(found.mask[3])


def test_side_constraints_that_nothing_satisfies() -> None:
    import pyomo.environ as pyo

    problem = make_problem("dense", "cardinality", p=8)
    k = problem.supports.max_count

    def impossible(model: Any) -> None:
        model.many = pyo.Constraint(expr=sum(model.z[j] for j in model.J) >= k + 1)

    with pytest.raises(MethodError, match="no mask satisfies"):
        outer_approximation(problem, side_constraints=[impossible])
    with pytest.raises(MethodError, match="start does not satisfy"):
        outer_approximation(problem, start=magnitude(problem), side_constraints=[impossible])


# -- master ---------------------------------------------------------------------------------------


def test_the_master_keeps_cuts_starts_and_fixings() -> None:
    problem = make_problem("dense", "cardinality", p=6).with_supports(Budget.cardinality(6, 2))
    master = Master(problem, [])
    gains = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    master.add(DualCut(16.0, gains))
    first = master.solve(None, np.inf)
    assert first.status == "optimal" and first.lower == pytest.approx(7.0)
    assert first.masks[-1].tolist() == [True, True] + [False] * 4
    state = np.full(6, -1)
    state[0] = 0
    master.fix(state)
    second = master.solve((first.masks[-1], 7.0), np.inf)  # the start is no longer allowed
    assert second.lower == pytest.approx(9.0) and not second.masks[-1][0]
    master.forbid(np.array([False, True, True, False, False, False]))
    assert master.solve(None, np.inf).lower == pytest.approx(10.0)
    assert master.admits(np.array([True, False, False, False, False, True]))
    assert not master.admits(np.ones(6, dtype=bool))
    assert master.solve(None, np.inf).lower == pytest.approx(10.0)  # as before the question
    master.cut_off(9.5)
    assert master.solve(None, np.inf).status == "infeasible"


def test_a_wrong_word_of_the_solver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from chita_opt.exact.outer_approximation import search
    from chita_opt.exact.outer_approximation.master import Round

    problem = correlated_instance(40, 14, seed=3).problem(
        ridge=1e-4, supports=Budget.cardinality(14, 5)
    )
    strange = Round("kSolveError", -np.inf, [], 0, [])
    monkeypatch.setattr(search.Master, "solve", lambda *_, **__: strange)
    with pytest.raises(MethodError, match="kSolveError"):
        outer_approximation(problem)


# -- named instances ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name, ridge, seconds", [
    ("fc2_p20", 1e-3, 15.0), ("fc3_row3", 1e-3, 15.0), ("fc2_row7", 1e-2, 60.0),
    ("fc2_p50", 1e-2, 60.0),
])  # fmt: skip
@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_named_instances(
    data_root: Path, name: str, ridge: float, seconds: float, sparsity: float
) -> None:
    """Proven, and no worse than the best value known beyond the tolerances of its source."""
    instance = load_instance(data_root / "instances" / f"{name}.npz")
    k = keep_count(instance.p, sparsity).k
    problem = instance.problem(ridge=ridge, supports=Budget.cardinality(instance.p, k))
    found = outer_approximation(problem, time_limit=seconds)
    assert found.status is Status.OPTIMAL and found.gap <= 1e-4
    rows = json.loads((data_root / "instances" / "best_known.json").read_text())["rows"]
    known = next(
        r for r in rows
        if (r["instance"], r["lambda"], r["sparsity"]) == (name, ridge, sparsity)
    )  # fmt: skip
    assert found.upper <= known["upper"] * (1.0 + 2e-4)


def test_solutions_on_every_support_cost_at_least_the_bound() -> None:
    problem = make_problem("low_rank", "nested_blocks", ridge=1e-3, linear=True)
    found = outer_approximation(problem)
    truth = enumerate_supports(problem)
    assert float(truth.values.min()) >= found.lower - 1e-9 * size_of(problem)
    assert isinstance(found.solution, Solution)
