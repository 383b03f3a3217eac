"""Every method, family and curvature form against enumeration: one table, no exceptions.

bound <= optimum <= heuristic, screening never wrong, certificates verify. A new method, family or
form is one row of ``METHODS`` or ``tests/problems.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from chita_opt.bounds import Bound, Screening, dual_bound
from chita_opt.certificates import Certificate, certify, verify_file
from chita_opt.exact import Enumeration, enumerate_supports
from chita_opt.heuristics import METHODS, solve
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status

from .problems import CURVATURES, FAMILIES, make_problem, random_problem, single_precision

EXACT = 1e-12  # relative: float64 sums of about a hundred terms
RANDOM_PROBLEMS = 300


@dataclass(frozen=True, eq=False)
class Case:
    """A problem, the truth about it, and a bound."""

    problem: Problem
    truth: Enumeration
    bound: Bound

    @property
    def slack(self) -> float:
        """Rounding of an objective: relative to the terms it is summed from."""
        return EXACT * (self.problem.prune_all + abs(self.problem.dense_minimum) + 1e-300)


def make_case(problem: Problem, *, tol: float = 3e-5, splits: str = "auto") -> Case:
    return Case(problem, enumerate_supports(problem), dual_bound(problem, tol=tol, splits=splits))


@cache
def table(curvature: str, family: str) -> Case:
    i, j = list(CURVATURES).index(curvature), list(FAMILIES).index(family)
    linear, per_weight = (i + j) % 2 == 0, (i + j // 2) % 2 == 0
    problem = make_problem(curvature, family, seed=i, linear=linear, per_weight=per_weight)
    return make_case(problem)


@cache
def random_case(seed: int) -> Case:
    problem = random_problem(seed)
    if seed % 3 == 0:
        problem = single_precision(problem)
    return make_case(problem, tol=1e-3, splits="none" if seed % 2 else "auto")


@cache
def default_solution(seed: int) -> Solution:
    return solve(random_case(seed).problem, seed=seed)


def feasible_start(problem: Problem) -> Solution:
    """A poor but allowed solution: every second weight of the magnitude support, unchanged."""
    mask = problem.supports.best_support(problem.scores)
    mask[::2] = False
    w = torch.where(mask, problem.w_bar, 0.0)
    return Solution(problem, w, "start", Status.FEASIBLE)


def check_solution(solution: Solution, case: Case) -> None:
    problem = case.problem
    assert solution.is_feasible
    assert solution.w.dtype == torch.float64
    x = solution.w - problem.w_bar
    H = problem.curvature.dense() + torch.diag(problem.rho)
    recomputed = 0.5 * float(x @ H @ x) + float(problem.g @ x)
    assert solution.objective == pytest.approx(recomputed, rel=1e-9, abs=case.slack)
    assert solution.objective >= case.truth.optimum - case.slack


def check_certificate(certificate: Certificate, case: Case, path: Path) -> None:
    assert certificate.lower <= case.bound.value <= case.truth.optimum + case.slack
    assert certificate.lower <= case.truth.optimum <= certificate.upper + case.slack
    assert certificate.upper >= certificate.solution.objective - case.slack
    assert certificate.gap >= 0.0
    check_screening(certificate.screening, case, certificate.upper)
    certificate.save(path)
    found = verify_file(path)
    assert (found.upper, found.lower) == (certificate.upper, certificate.lower)
    assert found.nnz == certificate.solution.nnz


def check_screening(screening: Screening, case: Case, upper: float) -> None:
    """No weights that are as good as the incumbent contradict what is proven."""
    assert not bool((screening.kept & screening.pruned).any())
    rivals = case.truth.within(min(upper, case.truth.optimum + case.slack)) != 0
    assert len(rivals) or upper < case.truth.optimum + case.slack
    assert not bool((rivals & screening.pruned).any()), "a weight of an optimum is called pruned"
    assert not bool((~rivals & screening.kept).any()), "a weight off an optimum is called kept"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", METHODS)
def test_method(name: str, curvature: str, family: str, tmp_path: Path) -> None:
    case, method = table(curvature, family), METHODS[name]
    if not method.serves(case.problem):
        assert method.needs_budget or method.needs_smoothing
        assert not case.problem.supports.is_laminar
        return
    solution = solve(case.problem, name)
    check_solution(solution, case)
    assert solution.method == name
    assert solution.seconds >= 0.0 and solution.trace.rows
    check_certificate(certify(solution, bound=case.bound), case, tmp_path / "certificate")
    start = feasible_start(case.problem)
    again = solve(case.problem, name, start=start)
    check_solution(again, case)
    if method.improves_start:
        assert again.objective <= start.objective + case.slack


@pytest.mark.parametrize("seed", range(RANDOM_PROBLEMS))
def test_random_problem(seed: int, tmp_path: Path) -> None:
    case = random_case(seed)
    names = [name for name, method in METHODS.items() if method.serves(case.problem)]
    other = solve(case.problem, names[seed % len(names)], seed=seed)
    for solution in (other, default_solution(seed)):
        check_solution(solution, case)
    check_certificate(certify(solution, bound=case.bound), case, tmp_path / "certificate")


def test_random_problems_cover_every_pair() -> None:
    """Every form meets every family among the random problems, with float32 and float64 data."""
    pairs = {(seed % len(CURVATURES), seed // len(CURVATURES) % len(FAMILIES), seed % 3 == 0)
             for seed in range(RANDOM_PROBLEMS)}  # fmt: skip
    assert len({pair[:2] for pair in pairs}) == len(CURVATURES) * len(FAMILIES)


def test_the_default_is_close_to_the_optimum() -> None:
    """It finds the optimum nine times in ten under budgets, three times in four elsewhere.

    Families that decide before they keep (groups, widths, gates) have no exchange of decisions yet.
    """
    found: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(0, RANDOM_PROBLEMS, 3):
        case = random_case(seed)
        optimal = default_solution(seed).objective <= case.truth.optimum + 1e3 * case.slack
        found[case.problem.supports.is_laminar].append(optimal)
    assert sum(found[True]) >= 0.9 * len(found[True])
    assert sum(found[False]) >= 0.75 * len(found[False])


def test_an_unknown_method_is_refused() -> None:
    from chita_opt.errors import MethodError

    with pytest.raises(MethodError, match="choose auto"):
        solve(table("dense", "cardinality").problem, "anneal")


def test_a_method_that_does_not_serve_is_refused() -> None:
    from chita_opt.errors import MethodError

    with pytest.raises(MethodError, match="does not serve"):
        solve(table("dense", "pairs").problem, "relax_round")
