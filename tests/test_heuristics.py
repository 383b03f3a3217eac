"""Methods: planted optima, optimality of each step, and what a limit or Ctrl-C leaves behind."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from chita_opt.certificates import certify
from chita_opt.curvature import BlockDiagonal, Dense, LowRank
from chita_opt.curvature.factors import ColumnFactor
from chita_opt.errors import CurvatureError, MethodError
from chita_opt.exact import enumerate_optimum
from chita_opt.heuristics import METHODS, THOROUGH, RoundingOptions, choose_method, solve
from chita_opt.heuristics.local_search import SearchOptions, exchange_round
from chita_opt.heuristics.refit import conjugate_refit
from chita_opt.heuristics.tableau import Tableau
from chita_opt.problem import Problem, from_gradients
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import Budget, SupportFamily

from .problems import (
    CURVATURES,
    FAMILIES,
    PairBudget,
    gradients,
    make_problem,
    normal,
    single_precision,
)

P = 12
EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)
EVERY_METHOD = pytest.mark.parametrize("name", METHODS)
ONE_SHOT = ("magnitude", "backsolve", "wanda", "woodfisher", "blockwise")
SEARCHES = [name for name in METHODS if name not in ONE_SHOT]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def medium(seed: int = 0, *, n: int = 60, p: int = 900, k: int = 200) -> Problem:
    """A problem with more weights than the exchange search looks at, float32 data."""
    C = gradients(draw(seed), n, p)
    C = LowRank(C.A.float(), C.scale)
    rho = 0.05 * float(C.diagonal().mean())
    return Problem(C, normal(draw(seed + 1), p), rho, Budget.cardinality(p, k))


def objective_on(problem: Problem, mask: Tensor) -> float:
    return problem.curvature.support_solver(problem.separable, mask).value


# -- planted optima -----------------------------------------------------------------------------


def planted(C: LowRank | Dense, supports: SupportFamily, seed: int, noise: float) -> Problem:
    """The unconstrained minimiser is sparse, but the dense weights do not show it.

    Far from its support every weight of the minimiser is at most ``noise``; on it at least 1.
    """
    source = draw(seed)
    p = C.size
    mask = supports.best_support(torch.rand(p, generator=source, dtype=torch.float64))
    size = 1.0 + torch.rand(p, generator=source, dtype=torch.float64)
    target = torch.where(mask, size * normal(source, p).sign(), noise * normal(source, p))
    w_bar, rho = normal(source, p), 0.05 * float(C.diagonal().mean())
    g = C.product(w_bar - target) + rho * (w_bar - target)
    return Problem(C, w_bar, rho, supports, g)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["iht", "chita", "local_search", "relax_round", "auto"])
def test_planted_optimum(name: str, seed: int) -> None:
    """p = 60: no other support can beat the planted one, by the extreme eigenvalues of H."""
    p, k = 60, 9
    A = normal(draw(100 + seed), 240, p)
    C = LowRank(A, 1.0 / len(A))
    problem = planted(C, Budget.cardinality(p, k), seed, noise=0.01)
    H = C.dense() + torch.diag(problem.rho)
    values = torch.linalg.eigvalsh(H)
    best = problem.w_bar - torch.linalg.solve(H, problem.g)
    support = best.square().topk(k).indices
    lost = 0.5 * float(values[-1]) * float(best.square().sum() - best[support].square().sum())
    assert lost < 0.5 * float(values[0]) * float(best[support].square().min())
    solution = solve(problem, name)
    assert set(solution.mask.nonzero().squeeze(1).tolist()) == set(support.tolist())
    certificate = certify(solution)
    assert certificate.relative_gap <= 1e-3
    assert certificate.screening.kept.sum() == k


@pytest.mark.parametrize("family", ["n_of_m", "rows", "blocks", "nested_n_of_m", "nested_blocks"])
@EVERY_FORM
def test_planted_dense_minimum(form: str, family: str) -> None:
    """With the minimiser itself sparse, the optimum is the dense minimum, whatever the data."""
    C = CURVATURES[form](draw(3), P)
    problem = planted(C, FAMILIES[family](draw(4), P), 5, noise=0.0)  # type: ignore[arg-type]
    solution = solve(
        problem, "relax_round", effort=RoundingOptions(tol=1e-4, slack=1.0, max_rounds=4)
    )
    size = problem.prune_all + abs(problem.dense_minimum)
    assert solution.objective == pytest.approx(problem.dense_minimum, abs=1e-9 * size)


# -- each method keeps its promise --------------------------------------------------------------


@EVERY_FORM
def test_magnitude_keeps_the_largest_weights_unchanged(form: str) -> None:
    problem = make_problem(form, "cardinality", linear=True)
    found = solve(problem, "magnitude")
    k = problem.supports.max_count
    kept = problem.w_bar.abs().topk(k).indices
    assert found.nnz == k and found.w[kept].equal(problem.w_bar[kept])


@pytest.mark.parametrize("linear", [False, True])
@EVERY_FORM
def test_backsolve_is_optimal_on_its_support(form: str, linear: bool) -> None:
    problem = make_problem(form, "cardinality", linear=linear, per_weight=True)
    found = solve(problem, "backsolve")
    gradient = problem.gradient(found.w)[found.mask]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-9)
    if not linear:
        assert found.mask.equal(solve(problem, "magnitude").mask)
    start = solve(problem, "local_search")
    again = solve(problem, "backsolve", start=start)
    assert again.mask.equal(start.mask)


@pytest.mark.parametrize("name", ["iht", "chita", "local_search", "relax_round"])
@EVERY_FORM
def test_answers_are_exact_on_their_support(form: str, name: str) -> None:
    """Also for float32 data: the last solve is exact to float64."""
    problem = single_precision(make_problem(form, "cardinality", linear=True))
    found = solve(problem, name)
    gradient = problem.gradient(found.w)[found.mask]
    size = float(problem.gradient(torch.zeros_like(found.w)).abs().max())
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-10 * size)


@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "n_of_m", "pairs"])
@EVERY_FORM
def test_local_search_leaves_no_better_exchange(form: str, family: str) -> None:
    """All p weights are candidates here, so no allowed swap of two of them may help."""
    problem = make_problem(form, family, linear=True, seed=2)
    found = solve(problem, "local_search")
    assert found.status is Status.STATIONARY
    mask = found.mask.clone()
    for i in mask.nonzero().squeeze(1):
        for j in (~mask).nonzero().squeeze(1):
            swapped = mask.index_fill(0, i, False).index_fill(0, j, True)
            if problem.supports.contains(swapped):
                drop = found.objective - objective_on(problem, swapped)
                assert drop <= 1e-5 * abs(found.objective)


@EVERY_METHOD
@pytest.mark.parametrize("family", ["cardinality", "nested_n_of_m", "pairs"])
def test_any_start_is_improved(name: str, family: str) -> None:
    for seed in range(6):
        problem = make_problem("low_rank", family, seed=seed, linear=seed % 2 == 0)
        method = METHODS[name]
        if not (method.improves_start and method.serves(problem)):
            continue
        source = draw(seed)
        mask = problem.supports.best_support(torch.rand(P, generator=source).double())
        w = torch.where(mask, normal(source, P), 0.0)
        start = Solution(problem, w, "random", Status.FEASIBLE)
        found = solve(problem, name, start=start)
        assert found.objective <= start.objective
        optimum = enumerate_optimum(problem)
        kept = solve(problem, name, start=optimum)
        assert kept.objective == pytest.approx(optimum.objective, rel=1e-9, abs=1e-12)


@EVERY_METHOD
@pytest.mark.parametrize("linear", [False, True])
def test_traces_fall(name: str, linear: bool) -> None:
    problem = make_problem("tall", "cardinality", linear=linear, seed=4)
    found = solve(problem, name)
    values, seconds = found.trace.values, found.trace.seconds
    slack = 1e-9 * problem.prune_all
    assert all(b <= a + slack for a, b in pairwise(values))
    assert seconds == sorted(seconds) and seconds[-1] <= found.seconds
    assert values[-1] == pytest.approx(found.objective, rel=1e-6, abs=slack)


@EVERY_METHOD
def test_medium_problems_with_float32_data(name: str) -> None:
    """Leverages choose the exchanges here, and supports are solved in the sample space."""
    problem = medium()
    found = solve(problem, name)
    assert found.is_feasible and found.nnz <= 200
    magnitude = solve(problem, "magnitude")
    assert found.objective <= magnitude.objective * (1.0 + 1e-12)
    again = solve(problem, name)
    assert again.w.equal(found.w), "the same call gives the same weights"
    if name in SEARCHES:
        better = solve(problem, name, start=solve(problem, "backsolve"))
        assert better.objective <= solve(problem, "backsolve").objective * (1.0 + 1e-9)


def test_the_default_is_the_best_here() -> None:
    others = [name for name in METHODS if name != "best"]  # which begins with more of the same
    values = {name: solve(medium(), name).objective for name in others}
    best = min(values.values())
    assert values["relax_round"] <= best * (1.0 + 2e-3)
    assert certify(solve(medium())).relative_gap <= 0.02


def test_random_roundings_use_their_seed() -> None:
    problem = medium(7, n=80, p=400, k=40)
    plain = solve(problem, "relax_round")
    options: dict[str, Any] = {"effort": replace(THOROUGH, roundings=8, max_rounds=4)}
    a = solve(problem, "relax_round", seed=1, **options)
    assert a.w.equal(solve(problem, "relax_round", seed=1, **options).w)
    assert a.objective <= plain.objective * (1.0 + 1e-6)


def test_coordinate_descent_converges_to_the_backsolve() -> None:
    problem = make_problem("tall", "cardinality", linear=True)
    exact = solve(problem, "backsolve")
    for block in (1, 3, 128):
        found = solve(problem, "coordinate_descent", sweeps=2000, block=block, tol=1e-14)
        assert found.mask.equal(exact.mask)
        assert found.objective == pytest.approx(exact.objective, rel=1e-6)


def test_fewer_candidates_still_improve() -> None:
    problem = medium()
    start = solve(problem, "backsolve")
    few = solve(problem, "local_search", start=start, candidates=20, max_rounds=3)
    many = solve(problem, "local_search", start=start)
    assert many.objective <= few.objective * (1.0 + 1e-3) <= start.objective
    assert few.stats["rounds"] in (1, 2, 3)


# -- limits -------------------------------------------------------------------------------------


@EVERY_METHOD
def test_a_time_limit_returns_a_feasible_answer(name: str) -> None:
    problem = medium()
    found = solve(problem, name, time_limit=1e-9)
    assert found.is_feasible and found.seconds < 2.0
    expected = {Status.TIME_LIMIT} if name in SEARCHES else {Status.FEASIBLE}
    assert found.status in expected
    assert found.objective <= problem.prune_all
    certificate = certify(found)
    assert certificate.lower <= found.objective


@pytest.mark.parametrize("name", SEARCHES)
def test_an_interrupt_returns_the_incumbent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at any product with the data: the answer so far, and a certificate later."""
    problem = medium(n=30, p=300, k=60)
    start = solve(problem, "magnitude")
    limit = start.objective * (1.0 + 1e-9)
    for call in (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 25, 40, 80, 200, 1000):
        found, interrupted = interrupted_solve(problem, name, start, call, monkeypatch)
        assert found.is_feasible and found.objective <= limit
        if not interrupted:
            break
        assert found.status is Status.INTERRUPTED, f"call {call} went unnoticed"
        if call % 5 == 0:
            certificate = certify(found, tol=1e-2)
            assert certificate.lower <= found.objective <= certificate.upper
    assert call > (2 if name == "alps" else 4)  # one eigendecomposition, few products


def interrupted_solve(
    problem: Problem, name: str, start: Solution, call: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Solution, bool]:
    """Solve with a KeyboardInterrupt at the given product with the data; whether it came."""
    calls = 0

    def interrupting(original):  # type: ignore[no-untyped-def]
        def product(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        return product

    with monkeypatch.context() as patch:
        for method in ("forward", "adjoint", "adjoint_at", "gram"):
            patch.setattr(ColumnFactor, method, interrupting(getattr(ColumnFactor, method)))
        try:
            return solve(problem, name, start=start), calls >= call
        except KeyboardInterrupt:
            pytest.fail(f"{name} lost its incumbent at product {call}")


def test_an_interrupt_before_anything_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning everything is always allowed."""
    problem = medium()

    def interrupt(*args: object, **kwargs: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "best_support", interrupt)
        found = solve(problem, "relax_round")
    assert found.status is Status.INTERRUPTED and found.is_feasible
    assert found.objective == pytest.approx(problem.prune_all)


# -- the tableau --------------------------------------------------------------------------------


def random_tableau(seed: int, m: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    source = draw(seed)
    A = normal(source, 2 * m, m)
    inside = torch.rand(m, generator=source) < 0.5
    return A.T @ A / m, normal(source, m), inside


def value_of(Q: Tensor, q: Tensor, inside: Tensor) -> float:
    T = inside.nonzero().squeeze(1)
    return -0.5 * float(q[T] @ torch.linalg.solve(Q[T][:, T], q[T])) if len(T) else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_toggles_equal_a_fresh_tableau(seed: int) -> None:
    Q, q, inside = random_tableau(seed)
    tableau = Tableau(Q, q, inside)
    for j in torch.randint(0, len(q), (25,), generator=draw(seed)).tolist():
        before = tableau.value
        if bool(tableau.inside[j]):
            assert float(tableau.removal_costs()[j]) == pytest.approx(
                value_of(Q, q, tableau.inside.index_fill(0, torch.tensor(j), False)) - before
            )
        else:
            assert float(tableau.removal_costs()[j]) == float("inf")
        tableau.toggle(j)
        fresh = Tableau(Q, q, tableau.inside)
        torch.testing.assert_close(tableau.V, fresh.V)
        torch.testing.assert_close(tableau.u, fresh.u)
        assert tableau.value == pytest.approx(value_of(Q, q, tableau.inside))


@pytest.mark.parametrize("seed", range(8))
def test_the_best_exchange_is_the_best(seed: int) -> None:
    Q, q, inside = random_tableau(seed)
    inside[0], inside[1] = True, False
    tableau = Tableau(Q, q, inside)
    out, into = inside.nonzero().squeeze(1), (~inside).nonzero().squeeze(1)
    allowed = torch.rand(len(out), len(into), generator=draw(seed)) < 0.7
    allowed[0, 0] = True
    for choice in (allowed, None):
        changes = {}
        for a, i in enumerate(out.tolist()):
            for b, j in enumerate(into.tolist()):
                if choice is None or bool(choice[a, b]):
                    trial = inside.clone()
                    trial[i], trial[j] = False, True
                    changes[i, j] = value_of(Q, q, trial) - tableau.value
        (change, i, j), *_ = tableau.best_exchanges(choice, out, into)
        assert change == pytest.approx(min(changes.values()))
        assert changes[i, j] == pytest.approx(change)


# -- choice and refusal -------------------------------------------------------------------------


def test_the_default_fits_the_problem() -> None:
    assert choose_method(make_problem("low_rank", "blocks")) == "relax_round"
    assert choose_method(make_problem("low_rank", "groups")) == "relax_round"
    assert choose_method(make_problem("low_rank", "darb")) == "alternating"
    assert choose_method(make_problem("low_rank", "pairs")) == "local_search"
    assert choose_method(make_problem("dense", "cardinality", ridge=0.0)) == "chita"
    for problem in (make_problem("dense", "pairs", ridge=0.0), make_problem("dense", "pairs")):
        assert solve(problem).is_feasible


@pytest.mark.parametrize("family", ["cardinality", "pairs", "nested_blocks"])
@pytest.mark.parametrize("form", ["dense", "tall", "shared_rows"])
@EVERY_METHOD
def test_no_ridge(name: str, form: str, family: str) -> None:
    """Where C alone is positive definite, every method that serves gives a sound answer."""
    problem = make_problem(form, family, ridge=0.0, linear=True)
    if METHODS[name].serves(problem):
        found = solve(problem, name)
        optimum = enumerate_optimum(problem).objective
        assert found.is_feasible
        assert found.objective >= optimum - 1e-10 * problem.prune_all
    else:
        assert METHODS[name].needs_ridge
        with pytest.raises(MethodError, match="does not serve"):
            solve(problem, name)


def test_no_ridge_and_too_few_gradients() -> None:
    problem = make_problem("low_rank", "everything", ridge=0.0)
    with pytest.raises(CurvatureError, match="rho"):
        solve(problem)


def test_the_method_itself_refuses() -> None:
    function = METHODS["relax_round"].function
    with pytest.raises(MethodError, match="rho > 0"):
        function(make_problem("dense", "cardinality", ridge=0.0))
    with pytest.raises(MethodError, match="smoothed maximum"):
        function(make_problem("dense", "pairs"))


@EVERY_METHOD
def test_a_start_of_another_problem_is_refused(name: str) -> None:
    problem = make_problem("dense", "cardinality")
    other = make_problem("dense", "cardinality", p=10)
    dense = Solution(problem, problem.w_bar, "dense", Status.FEASIBLE)
    if not METHODS[name].improves_start:
        return  # the start is ignored
    with pytest.raises(MethodError, match="the start has 10 weights"):
        solve(problem, name, start=solve(other, "magnitude"))
    with pytest.raises(MethodError, match="pattern outside"):
        solve(problem, name, start=dense)


# -- the paper's numbers ------------------------------------------------------------------------


def test_families_reach_every_method_through_the_oracle() -> None:
    """A family written outside the package is served by all methods but the one that refuses."""
    problem = medium(p=300, k=1).with_supports(PairBudget(300, 40, tight=False))
    for name, method in METHODS.items():
        if method.serves(problem):
            found = solve(problem, name)
            assert found.is_feasible and found.mask.reshape(-1, 2).any(1).sum() == 40


def test_blocks_are_solved_as_one_problem() -> None:
    """Two blocks and one budget over both: not the two problems side by side."""
    a, b = gradients(draw(), 8, 20), gradients(draw(1), 30, 10)
    w_bar, rho = normal(draw(2), 30), 0.1
    together = Problem(BlockDiagonal([a, b]), w_bar, rho, Budget.cardinality(30, 10))
    dense = Problem(Dense(together.curvature.dense()), w_bar, rho, together.supports)
    assert solve(together).objective == pytest.approx(solve(dense).objective, rel=1e-3)


def test_first_order_terms_move_the_support() -> None:
    """One gradient step with the line search, as the released code takes it."""
    rows, w_bar = normal(draw(), 30, 50) + 0.5, 0.3 * normal(draw(1), 50)
    plain = from_gradients(rows, w_bar, ridge=0.1, supports=Budget.cardinality(50, 10))
    moved = from_gradients(rows, w_bar, ridge=0.1, supports=plain.supports, first_order=1.0)
    a, b = solve(plain, "backsolve"), solve(moved, "backsolve")
    assert not a.mask.equal(b.mask)
    on_magnitude = objective_on(moved, a.mask)
    assert b.objective < on_magnitude


def test_an_unknown_effort_is_refused() -> None:
    with pytest.raises(MethodError, match="effort is 'best'"):
        solve(medium(), "relax_round", effort="best")


def test_thorough_is_never_far_behind_fast() -> None:
    for seed in (1, 2, 3):
        problem = medium(seed)
        fast, thorough = (solve(problem, effort=e).objective for e in ("fast", "thorough"))
        assert thorough <= fast * (1.0 + 1e-2)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_conjugate_refit_falls_to_the_backsolve(share: float) -> None:
    """Both ways of reading the columns: gathered for a small support, in place for a large one."""
    problem = medium(5, n=40, p=150, k=round(150 * share))
    mask = problem.supports.best_support(problem.scores)
    points = list(conjugate_refit(problem, mask, steps=120))
    values = [value for _, value, _ in points]
    assert all(b <= a for a, b in pairwise(values))
    w, value, image = points[-1]
    assert not bool(w[~mask].any())
    exact = problem.curvature.support_solver(problem.separable, mask)
    assert value == pytest.approx(exact.value, rel=1e-5)
    assert problem.objective(w) == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(
        image, problem.curvature.image(w - problem.w_bar), rtol=1e-4, atol=1e-5
    )


def test_swaps_taken_from_one_ranking_leave_no_better_swap() -> None:
    problem = medium(3, n=30, p=60, k=20)
    solver = problem.curvature.support_solver(
        problem.separable, problem.supports.best_support(problem.scores)
    )
    options = SearchOptions(candidates=60, tol=1e-9)
    every = torch.arange(60)
    moved = exchange_round(problem, solver, every, options, Clock(), exact=True)
    assert moved is not None and int(moved.mask.sum()) == 20
    H = problem.curvature.dense() + torch.diag(problem.rho)
    kept, pruned = moved.mask.nonzero().squeeze(1), (~moved.mask).nonzero().squeeze(1)
    tableau = Tableau(H, problem.rho * problem.w_bar - problem.g + problem.curvature.product(
        problem.w_bar), moved.mask)  # fmt: skip
    (change, *_), *_ = tableau.best_exchanges(None, kept, pruned)
    assert change >= -1e-6 * moved.value
