"""Dual bounds: weak duality for any witness, agreement of paths, and relations that must hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chita_opt.bounds import (
    Bound,
    candidate_splits,
    dual_bound,
    dual_point,
    safe_split,
    screen,
    trivial_bound,
)
from chita_opt.bounds.newton import FreePart, apply_newton
from chita_opt.bounds.newton_choice import newton_system
from chita_opt.bounds.screening import fixed_share
from chita_opt.bounds.splits import less_diagonal, proven_semidefinite, split_problem
from chita_opt.curvature import BlockDiagonal, Dense, LowRank, SharedRows
from chita_opt.errors import ProblemError
from chita_opt.exact import enumerate_optimum
from chita_opt.heuristics import solve
from chita_opt.problem import Problem, from_hessian
from chita_opt.solution import Solution
from chita_opt.supports import Budget

from .problems import CURVATURES, FAMILIES, gradients, make_problem, normal

P = 12
EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)
MATRICES = ["tall", "dense", "shared_rows", "mixed_blocks", "gradient_blocks"]


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def size_of(problem: Problem) -> float:
    """The scale of the problem's values."""
    return problem.prune_all + abs(problem.dense_minimum)


def same(a: Bound, b: Bound, problem: Problem, rel: float = 1e-5) -> None:
    """Equal to what two runs at tol=1e-6 may differ by."""
    assert a.value == pytest.approx(b.value, rel=rel, abs=1e-2 * rel * size_of(problem))


# -- weak duality -------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    st.sampled_from(list(CURVATURES)),
    st.sampled_from(list(FAMILIES)),
    st.integers(0, 10**6),
    st.integers(-4, 1),
    st.floats(-3, 3),
)
def test_any_witness_bounds_any_feasible_point(
    form: str, family: str, seed: int, ridge: int, length: float
) -> None:
    problem = make_problem(
        form, family, seed=seed, linear=seed % 2 == 0, ridge=10.0**ridge, per_weight=True
    )
    source = draw(seed)
    witness = length * normal(source, problem.curvature.image_size)
    bound = dual_point(problem, witness).value
    for _ in range(5):
        w = random_feasible(problem, source)
        assert bound <= problem.objective(w) + 1e-11 * (abs(bound) + size_of(problem))


@settings(max_examples=100)
@given(st.sampled_from(MATRICES), st.sampled_from(list(FAMILIES)), st.integers(0, 10**6))
def test_any_witness_of_any_split_bounds_the_optimum(form: str, family: str, seed: int) -> None:
    problem = make_problem(form, family, p=8, seed=seed, linear=seed % 2 == 0)
    source = draw(seed)
    optimum = enumerate_optimum(problem).objective
    for e in candidate_splits(problem).values():
        split = safe_split(problem.curvature, e)
        assert split is not None
        Q = less_diagonal(problem.curvature, split)
        for length in (0.0, 0.3, 3.0):
            witness = Q.image(length * normal(source, 8))
            value = dual_point(problem, witness, split).value
            assert value <= optimum + 1e-11 * (abs(value) + size_of(problem))


def random_feasible(problem: Problem, source: torch.Generator) -> Tensor:
    """Weights near the dense ones, or solved, on a random allowed support."""
    scores = torch.rand(problem.p, generator=source, dtype=torch.float64)
    mask = problem.supports.best_support(scores)
    if float(scores[0]) < 0.5:
        return problem.curvature.support_solver(problem.separable, mask).weights
    noise = normal(source, problem.p)
    return torch.where(mask, problem.w_bar + noise * scores[0], 0.0)


@EVERY_FORM
def test_the_bound_is_attained_where_the_relaxation_is_tight(form: str) -> None:
    """A family that allows everything: the bound is the dense minimum."""
    problem = make_problem(form, "everything", linear=True)
    bound = dual_bound(problem, tol=1e-7)
    assert bound.value == pytest.approx(problem.dense_minimum, rel=1e-5)


@EVERY_FORM
def test_nothing_kept_is_known_exactly(form: str) -> None:
    problem = make_problem(form, "nothing", linear=True)
    bound = dual_bound(problem, tol=1e-7)
    assert bound.value == pytest.approx(problem.prune_all, rel=1e-6)


def test_trivial_bound_is_the_magnitude_tail() -> None:
    problem = make_problem("low_rank", "cardinality", per_weight=True)
    costs = 0.5 * problem.rho * problem.w_bar.square()
    tail = costs.sort().values[: P - problem.supports.max_count].sum()
    bound = trivial_bound(problem)
    assert bound.value == pytest.approx(float(tail)) and bound.proof == "trivial"
    assert dual_bound(problem).value >= bound.value


# -- what a bound says of itself ----------------------------------------------------------------


@EVERY_FORM
@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "pairs"])
def test_a_bound_describes_itself(form: str, family: str) -> None:
    problem = make_problem(form, family, linear=True)
    bound = dual_bound(problem)
    assert bound.value <= bound.relaxation_upper + 1e-12 * size_of(problem)
    assert bound.value == dual_point(problem, bound.witness, bound.split).value
    assert bound.proof == "dual" and bound.seconds > 0.0
    assert bound.stats["stopped"] == "tolerance"
    assert bound.relaxation_upper - bound.value <= 1e-3 * size_of(problem)
    assert bound.z is not None
    rows = problem.supports.rows()
    G, h = rows.G, rows.h
    assert bool(((bound.z >= 0) & (bound.z <= 1)).all())
    assert (G @ bound.z.numpy() <= h + 1e-6).all()
    assert bound.trace.values == sorted(bound.trace.values) or len(candidate_splits(problem))
    assert bound.trace.seconds == sorted(bound.trace.seconds)


@pytest.mark.parametrize("form", MATRICES)
def test_splits_never_hurt(form: str) -> None:
    for seed in range(2):
        problem = make_problem(form, "cardinality", seed=seed)
        with_splits, without = dual_bound(problem), dual_bound(problem, splits="none")
        assert with_splits.value >= without.value - 1e-9 * abs(without.value)
        assert without.stats["split"] == "none"


def test_splits_help_where_the_ridge_is_small() -> None:
    problem = make_problem("dense", "cardinality", ridge=1e-4)
    bound = dual_bound(problem)
    assert bound.stats["split"] != "none" and bound.split is not None
    assert bound.value > 1.5 * dual_bound(problem, splits="none").value


def test_splits_of_large_problems_are_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size only the split that looks best is solved; it is still a valid bound."""
    problem = make_problem("dense", "cardinality", ridge=1e-3)
    every = dual_bound(problem)
    monkeypatch.setattr("chita_opt.bounds.root_bound._SOLVE_EVERY_SPLIT", 4)
    guess = dual_bound(problem)
    assert dual_bound(problem, splits="none").value <= guess.value <= every.value * (1 + 1e-4)


def test_guessed_splits_without_a_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("dense", "cardinality", ridge=0.0)
    monkeypatch.setattr("chita_opt.bounds.root_bound._SOLVE_EVERY_SPLIT", 4)
    assert 0.0 < dual_bound(problem).value <= enumerate_optimum(problem).objective


# -- early ends ---------------------------------------------------------------------------------


@EVERY_FORM
def test_target_gap_ends_early(form: str) -> None:
    problem = make_problem(form, "cardinality", linear=True)
    solution = solve(problem)
    full = dual_bound(problem, splits="none", tol=1e-7)
    reached = (solution.objective - full.value) / (solution.objective - problem.dense_minimum)
    gap = 1.5 * reached + 0.02
    bound = dual_bound(problem, start=solution, target_gap=gap, tol=1e-9)
    own = (solution.objective - bound.value) / (solution.objective - problem.dense_minimum)
    assert own <= gap * (1.0 + 1e-9)
    assert bound.stats["stopped"] == "target"


@pytest.mark.parametrize("family", ["cardinality", "blocks", "pairs"])
@EVERY_FORM
def test_a_time_limit_returns_a_valid_bound(form: str, family: str) -> None:
    problem = make_problem(form, family)
    bound = dual_bound(problem, time_limit=1e-6, tol=1e-12)
    assert bound.seconds < 1.0
    assert bound.value <= enumerate_optimum(problem).objective * (1 + 1e-12)
    assert bound.stats["newton_steps"] in (0.0, 1.0)


@pytest.mark.parametrize("call", [5, 9, 20, 50, 100, 150])
@pytest.mark.parametrize("family", ["cardinality", "pairs"])
def test_an_interrupt_returns_a_valid_bound(
    family: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the oracle runs: in the ascent, or between the ascents of two splits."""
    problem = make_problem("dense", family, linear=True)
    optimum = enumerate_optimum(problem).objective
    supports, calls = type(problem.supports), 0
    original = supports.best_support

    def interrupted(self, scores: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(self, scores)

    monkeypatch.setattr(supports, "best_support", interrupted)
    try:
        bound = dual_bound(problem, tol=1e-8)
    except KeyboardInterrupt:
        pytest.fail("the bound so far was lost")
    assert bound.stats["stopped"] == ("interrupt" if calls >= call else "tolerance")
    assert bound.value <= optimum + 1e-12 * size_of(problem)


# -- other ways to the same value ---------------------------------------------------------------


@EVERY_FORM
@pytest.mark.parametrize("family", ["cardinality", "n_of_m", "nested_blocks"])
def test_no_memory_gives_the_same_bound(form: str, family: str) -> None:
    problem = make_problem(form, family, linear=True)
    usual = dual_bound(problem, tol=1e-6, splits="none")
    frugal = dual_bound(problem, tol=1e-6, splits="none", memory_limit=0.0)
    assert "MatrixFree" in str(frugal.stats["newton_system"]) or "blocks" in form
    same(usual, frugal, problem, 1e-4)


@EVERY_FORM
@pytest.mark.parametrize("family", ["cardinality", "nested_n_of_m", "pairs"])
def test_warm_starts_reach_the_same_bound(form: str, family: str) -> None:
    problem = make_problem(form, family, linear=True)
    cold = dual_bound(problem, tol=1e-6, splits="none")
    starts: list[Solution | Bound] = [solve(problem, "magnitude"), solve(problem), cold]
    for start in starts:
        warm = dual_bound(problem, start=start, tol=1e-6, splits="none")
        # 600 tol of the gap to a known objective may be left
        left = 6e-4 * (start.objective - cold.value) if isinstance(start, Solution) else 0.0
        assert warm.value >= cold.value - left - 1e-5 * abs(cold.value)
        close = dual_bound(problem, start=start, tol=1e-7, splits="none")
        slack = 0.1 * left + 2e-6 * size_of(problem)
        assert close.value == pytest.approx(cold.value, rel=2e-4, abs=slack)


class OracleOnly(Budget):
    """A budget that hides its thresholds."""

    @property
    def is_laminar(self) -> bool:
        return False


@EVERY_FORM
@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "n_of_m"])
def test_the_oracle_alone_reaches_the_same_bound(form: str, family: str) -> None:
    problem = make_problem(form, family, linear=True)
    budget = problem.supports
    assert isinstance(budget, Budget)
    hidden = problem.with_supports(OracleOnly(budget.labels, budget.caps, budget.total))
    a = dual_bound(problem, tol=1e-5, splits="none")
    b = dual_bound(hidden, tol=1e-5, splits="none")
    assert b.stats["newton_system"] == "oracle"
    same(a, b, problem, 1e-3)


def test_forms_of_one_matrix_agree() -> None:
    source = draw(3)
    C = gradients(source, 20, 4)
    w_bar, H = normal(source, P), C.dense()
    supports = Budget.cardinality(P, 5)
    blocks = torch.block_diag(H, H, H)
    A = torch.block_diag(*[C.A * C.scale**0.5] * 3)
    forms = [Dense(blocks), SharedRows(H, 3), LowRank(A, 1.0), BlockDiagonal([C, Dense(H), C]),
             BlockDiagonal([SharedRows(H, 2), SharedRows(H, 1)])]  # fmt: skip
    problems = [Problem(form, w_bar, 0.05, supports) for form in forms]
    for splits in ("none", "auto"):
        bounds = [dual_bound(problem, tol=1e-7, splits=splits) for problem in problems]
        for problem, bound in zip(problems, bounds, strict=True):
            same(bound, bounds[0], problem, 1e-4)


@pytest.mark.parametrize("memory", [4e9, 0.0])
@EVERY_FORM
def test_newton_systems_solve_what_they_say(form: str, memory: float) -> None:
    """M = I + F diag(s) F' + centred part, formed here column by column."""
    problem = make_problem(form, "blocks")
    factor, source = problem.curvature.factor(), draw(1)
    weights = torch.rand(P, generator=source, dtype=torch.float64)
    index = torch.tensor([0, 2, 3, 5, 8, 9, 11])
    slope, stiffness = normal(source, 7), 0.1 + torch.rand(7, generator=source).double()
    unit = torch.eye(factor.dual_size, dtype=torch.float64)
    for pool in ([-1] * 7, [0] * 7, [0, 0, 1, 1, 2, 2, 2], [-1, 0, 0, -1, 1, 1, 1]):
        free = FreePart(index, slope, stiffness, torch.tensor(pool))
        system = newton_system(factor, memory)
        assert system.prepare(weights, None)  # afterwards small changes of the weights may wait
        assert system.prepare(weights, free)
        rhs = normal(source, factor.dual_size)
        M = torch.stack([apply_newton(factor, weights, free, e) for e in unit])
        torch.testing.assert_close(M, M.T)
        assert float(torch.linalg.eigvalsh(M)[0]) >= 1.0 - 1e-9
        found = system.solve(rhs)
        loose = 1e-2 if memory == 0.0 else 1e-6
        assert float((M @ found - rhs).norm()) <= loose * float(rhs.norm())


# -- relations ----------------------------------------------------------------------------------


@EVERY_FORM
@pytest.mark.parametrize("linear", [False, True])
def test_more_weights_lower_the_bound(form: str, linear: bool) -> None:
    problem = make_problem(form, "cardinality", linear=linear)
    values = [
        dual_bound(problem.with_supports(Budget.cardinality(P, k)), splits="none").value
        for k in (0, 2, 5, 9, P)
    ]
    slack = 1e-4 * size_of(problem)
    assert all(a >= b - slack for a, b in pairwise(values))


@EVERY_FORM
def test_scaling_the_data_scales_the_values(form: str) -> None:
    problem = make_problem(form, "nested_blocks", linear=True)
    for factor in (1e-6, 1e4):
        C = LowRank(_root(problem), factor)
        other = Problem(C, problem.w_bar, factor * problem.rho, problem.supports,
                        factor * problem.g)  # fmt: skip
        base = Problem(LowRank(_root(problem), 1.0), problem.w_bar, problem.rho,
                       problem.supports, problem.g)  # fmt: skip
        a, b = (dual_bound(x, tol=1e-6, splits="none") for x in (base, other))
        assert b.value / factor == pytest.approx(a.value, rel=1e-5, abs=1e-7 * size_of(base))
        assert other.prune_all == pytest.approx(factor * base.prune_all)
        assert solve(other).objective / factor == pytest.approx(
            solve(base).objective, rel=1e-9, abs=1e-9 * size_of(base)
        )


def _root(problem: Problem) -> Tensor:
    """Some A with A'A = C."""
    values, vectors = torch.linalg.eigh(problem.curvature.dense())
    return values.clamp_min(0.0).sqrt()[:, None] * vectors.T


@pytest.mark.parametrize("linear", [False, True])
def test_permuting_the_weights_changes_nothing(linear: bool) -> None:
    problem = make_problem("low_rank", "nested_blocks", linear=linear, per_weight=True)
    C, budget = problem.curvature, problem.supports
    assert isinstance(C, LowRank) and isinstance(budget, Budget)
    order = torch.randperm(P, generator=draw())
    other = Problem(
        LowRank(C.A[:, order], C.scale), problem.w_bar[order], problem.rho[order],
        Budget(budget.labels[order], budget.caps, budget.total), problem.g[order],
    )  # fmt: skip
    same(dual_bound(problem, tol=1e-7), dual_bound(other, tol=1e-7), problem)
    a, b = solve(problem), solve(other)
    assert a.objective == pytest.approx(b.objective, rel=1e-9)
    assert a.mask[order].equal(b.mask)


def test_flipping_signs_changes_nothing() -> None:
    problem = make_problem("tall", "cardinality", linear=True)
    C = problem.curvature
    assert isinstance(C, LowRank)
    signs = torch.where(torch.arange(P) % 3 == 0, -1.0, 1.0).double()
    other = Problem(LowRank(C.A * signs, C.scale), problem.w_bar * signs, problem.rho,
                    problem.supports, problem.g * signs)  # fmt: skip
    same(dual_bound(problem, tol=1e-7), dual_bound(other, tol=1e-7), problem)


def test_repeating_every_sample_changes_nothing() -> None:
    problem = make_problem("low_rank", "n_of_m", linear=True)
    C = problem.curvature
    assert isinstance(C, LowRank)
    twice = LowRank(torch.cat([C.A, C.A]), 0.5 * C.scale)
    other = Problem(twice, problem.w_bar, problem.rho, problem.supports, problem.g)
    options = {"tol": 1e-7, "splits": "none"}
    same(dual_bound(problem, **options), dual_bound(other, **options), problem)  # type: ignore[arg-type]


@EVERY_FORM
def test_families_that_are_one_family(form: str) -> None:
    problem = make_problem(form, "cardinality", linear=True)
    pairs = [
        (Budget.n_of_m(P, 5, P), Budget.cardinality(P, 5)),
        (Budget.nested(Budget.n_of_m(P, 2, 4), 6), Budget.n_of_m(P, 2, 4)),
        (Budget.nested(Budget.per_block(torch.arange(P) % 3, 4), 5), Budget.cardinality(P, 5)),
        (Budget.per_layer([P], [4]), Budget.per_block(torch.zeros(P, dtype=torch.int64), 4)),
    ]
    for a, b in pairs:
        one = dual_bound(problem.with_supports(a), tol=1e-6, splits="none")
        two = dual_bound(problem.with_supports(b), tol=1e-6, splits="none")
        same(one, two, problem)


def test_a_smaller_family_has_a_larger_bound() -> None:
    problem = make_problem("tall", "cardinality")
    inner = dual_bound(problem.with_supports(Budget.nested(Budget.n_of_m(P, 2, 4), 5)))
    for outer in (Budget.n_of_m(P, 2, 4), Budget.cardinality(P, 5)):
        larger = dual_bound(problem.with_supports(outer))
        assert larger.value <= inner.value * (1.0 + 1e-4)


# -- ridge and splits ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["low_rank", "deficient"])
def test_no_ridge_and_no_strength_is_refused(form: str) -> None:
    problem = make_problem(form, "cardinality", ridge=0.0)
    with pytest.raises(ProblemError, match="needs rho > 0"):
        dual_bound(problem)


@pytest.mark.parametrize("form", ["dense", "tall", "shared_rows"])
def test_no_ridge_is_rescued_by_a_definite_matrix(form: str) -> None:
    problem = make_problem(form, "cardinality", ridge=0.0, linear=True)
    bound, optimum = dual_bound(problem), enumerate_optimum(problem).objective
    assert problem.dense_minimum - 1e-9 <= bound.value <= optimum
    assert bound.split is not None and float(bound.split.min()) > 0.0
    with pytest.raises(ProblemError, match="needs rho > 0"):
        dual_bound(problem, splits="none")


@pytest.mark.parametrize("form", MATRICES)
def test_splits_leave_a_semidefinite_curvature(form: str) -> None:
    problem = make_problem(form, "cardinality", per_weight=True)
    splits = candidate_splits(problem)
    assert set(splits) <= {"uniform", "diagonal", "conditional", "half_ridge"} and splits
    for e in splits.values():
        split = safe_split(problem.curvature, e)
        assert split is not None and bool((split <= e).all())
        Q = less_diagonal(problem.curvature, split)
        gradients = [b for b in getattr(Q, "blocks", [Q]) if isinstance(b, LowRank)]
        rounding = 1e-15 * float(Q.diagonal().sum()) if gradients else 0.0  # semidefinite as such
        assert float(torch.linalg.eigvalsh(Q.dense())[0]) >= -rounding
        other = split_problem(problem, split)
        w = normal(draw(), P)
        assert other.objective(w) == pytest.approx(problem.objective(w), rel=1e-12)


def test_wide_gradients_have_no_split() -> None:
    assert candidate_splits(make_problem("low_rank", "cardinality")) == {}
    assert safe_split(make_problem("low_rank", "cardinality").curvature) is None


def test_semidefiniteness_is_proven_not_guessed() -> None:
    H = torch.eye(5, dtype=torch.float64)
    assert proven_semidefinite(H)
    H[4, 4] = -1e-13
    assert not proven_semidefinite(H)
    H[4, 4] = 0.0
    assert not proven_semidefinite(H)  # true, but not beyond rounding


@pytest.mark.parametrize(
    "options, words",
    [
        ({"splits": "best"}, "splits is 'best'"),
        ({"tol": 0.0}, "tol is 0.0"),
        ({"tol": float("nan")}, "tol is nan"),
        ({"target_gap": 0.1}, "needs start"),
        ({"time_limit": 0.0}, "time_limit"),
    ],
)
def test_refused_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        dual_bound(make_problem("low_rank", "cardinality"), **options)  # type: ignore[arg-type]


def test_refused_target_gap() -> None:
    problem = make_problem("low_rank", "cardinality")
    with pytest.raises(ProblemError, match="target_gap is -1"):
        dual_bound(problem, start=solve(problem, "magnitude"), target_gap=-1.0)


def test_a_split_that_leaves_nothing_is_refused() -> None:
    problem = make_problem("dense", "cardinality")
    with pytest.raises(ProblemError, match="needs rho > 0"):
        dual_point(problem, torch.zeros(P, dtype=torch.float64), -problem.rho)


# -- screening ----------------------------------------------------------------------------------


def test_a_loose_incumbent_fixes_nothing() -> None:
    problem = make_problem("tall", "cardinality")
    found = screen(problem, dual_bound(problem), 1e3 * problem.prune_all)
    assert found.counts == {"kept": 0, "pruned": 0} and fixed_share(found) == 0.0
    assert found.gap_in_gains > 1.0 and found.threshold_gain > 0.0


def test_a_tight_bound_fixes_everything() -> None:
    """Diagonal curvature: the relaxation is exact, so every weight's fate is proven."""
    problem = from_hessian(torch.diag(torch.arange(1.0, 6.0)), torch.ones(5), ridge=1.0,
                           supports=Budget.cardinality(5, 2))  # fmt: skip
    best = enumerate_optimum(problem)
    found = screen(problem, dual_bound(problem, tol=1e-9), best.objective)
    assert found.kept.equal(best.mask) and found.pruned.equal(~best.mask)
    assert fixed_share(found) == 1.0 and found.gap_in_gains < 1e-6


def test_screening_when_nothing_may_be_kept() -> None:
    problem = make_problem("dense", "nothing")
    found = screen(problem, dual_bound(problem), problem.prune_all)
    assert found.pruned.all() and not found.kept.any() and found.threshold_gain == 0.0
