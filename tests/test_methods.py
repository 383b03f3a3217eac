"""The published methods: their formulas against explicit inverses, and the defects not repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from chita_opt.certificates.pipeline import Effort, solve_certified
from chita_opt.curvature import BlockDiagonal, Dense, LowRank, SharedRows, without_coupling
from chita_opt.errors import CurvatureError, MethodError
from chita_opt.exact import enumerate_optimum
from chita_opt.heuristics import METHODS, Descent, solve
from chita_opt.heuristics.cbs import Zeroing
from chita_opt.heuristics.magnitude import simple_supports
from chita_opt.heuristics.saliency import DenseMinimum, cheapest_removed, removed_one_by_one
from chita_opt.heuristics.starts import stratified_support
from chita_opt.problem import Problem, from_gradients, from_hessian
from chita_opt.solution import Solution, Status, Trace
from chita_opt.supports import Budget

from .problems import (
    CURVATURES,
    FAMILIES,
    gradients,
    make_problem,
    moved_by_linear_term,
    normal,
    random_problem,
)

EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)
P = 12


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def medium(seed: int = 0, *, n: int = 60, p: int = 900, k: int = 200) -> Problem:
    C = gradients(draw(seed), n, p)
    C = LowRank(C.A.float(), C.scale)
    rho = 0.05 * float(C.diagonal().mean())
    return Problem(C, normal(draw(seed + 1), p), rho, Budget.cardinality(p, k))


def hessian(problem: Problem) -> Tensor:
    return problem.curvature.dense() + torch.diag(problem.rho)


def masked_dense(problem: Problem, mask: Tensor) -> float:
    """Cost of zeroing weights while the others stay."""
    return problem.objective(torch.where(mask, problem.w_bar, 0.0))


# -- blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 5, 12, 40])
@EVERY_FORM
def test_blocks_drop_what_lies_between_them(form: str, block: int) -> None:
    C = CURVATURES[form](draw(), P)
    cut, whole = without_coupling(C, block).dense(), C.dense()
    assert cut.shape == whole.shape
    dropped = cut == 0.0
    torch.testing.assert_close(cut[~dropped], whole[~dropped])
    if not isinstance(C, BlockDiagonal | SharedRows):
        label = torch.arange(P) // block
        torch.testing.assert_close(cut, whole * (label[:, None] == label[None, :]))
    assert torch.linalg.eigvalsh(cut)[0] >= -1e-10 * float(whole.diagonal().max())


def test_blocks_of_gradients_are_not_copied() -> None:
    C = gradients(draw(), 5, P)
    parts = without_coupling(C, [4, 8]).blocks
    assert [part.size for part in parts] == [4, 8]
    assert parts[0].arrays()["columns"].data_ptr() == C.A.T.data_ptr()


def test_wrong_block_sizes_are_refused() -> None:
    C = gradients(draw(), 5, P)
    with pytest.raises(CurvatureError, match="at least one weight"):
        without_coupling(C, 0)
    with pytest.raises(CurvatureError, match="the sum 12"):
        without_coupling(C, [4, 4])


# -- removal statistics -------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [False, True])
@EVERY_FORM
def test_the_removal_cost_is_that_of_a_new_minimum(form: str, linear: bool) -> None:
    """w^2 / 2[H^-1] is what the minimum rises by when one weight is removed."""
    problem = make_problem(form, "cardinality", linear=linear, per_weight=True)
    dense = DenseMinimum.of(problem.curvature, problem.separable)
    H = hessian(problem)
    torch.testing.assert_close(dense.inverse, torch.linalg.inv(H).diagonal())
    torch.testing.assert_close(dense.weights, problem.w_bar - torch.linalg.solve(H, problem.g))
    for q in range(P):
        mask = torch.ones(P, dtype=torch.bool).index_fill(0, torch.tensor(q), False)
        value = problem.curvature.support_solver(problem.separable, mask).value
        rise = value - problem.dense_minimum
        assert float(dense.costs[q]) == pytest.approx(rise, rel=1e-6, abs=1e-10)


def fisher_inverse(A: Tensor, damp: float, *, rows: int | None = None) -> Tensor:
    """WoodFisher's and M-FAC's recursion over the gradients, as published."""
    n, p = A.shape
    inverse = torch.eye(p, dtype=torch.float64) / damp
    for a in A[:rows]:
        h = inverse @ a
        inverse -= torch.outer(h, h) / (n + a @ h)
    return inverse


def test_the_recursion_is_the_factored_inverse() -> None:
    """All n gradients take part: the released M-FAC recursion ends before its last row."""
    A, rho = normal(draw(), 7, P), 0.1
    C = LowRank(A, 1.0 / len(A))
    problem = Problem(C, normal(draw(1), P), rho, Budget.cardinality(P, 4))
    found = DenseMinimum.of(C, problem.separable).inverse
    torch.testing.assert_close(found, fisher_inverse(A, rho).diagonal())
    short = fisher_inverse(A, rho, rows=len(A) - 1).diagonal()
    assert float((found - short).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["cardinality", "n_of_m", "nested_blocks", "pairs"])
@EVERY_FORM
def test_lazy_costs_choose_as_all_costs_do(form: str, family: str) -> None:
    problem = make_problem(form, family, linear=True, per_weight=True, ridge=1.0)
    every = torch.ones(P, dtype=torch.bool)
    solver = problem.curvature.support_solver(problem.separable, every)
    costs = DenseMinimum.of(problem.curvature, problem.separable).costs
    lazy = cheapest_removed(solver, problem.rho, problem.supports.best_support)
    chosen = problem.supports.best_support(costs)
    assert float(costs[lazy].sum()) == pytest.approx(float(costs[chosen].sum()))


# -- WoodFisher and M-FAC -----------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 4, [5, 7]])
def test_woodfisher_keeps_the_dearest_weights_of_its_inverse(block: int | list[int] | None) -> None:
    problem = make_problem("low_rank", "cardinality", per_weight=True)
    model = problem.curvature if block is None else without_coupling(problem.curvature, block)
    inverse = torch.linalg.inv(model.dense() + torch.diag(problem.rho))
    mask = problem.supports.best_support(problem.w_bar.square() / inverse.diagonal())
    found = solve(problem, "woodfisher", block=block)
    assert found.mask.equal(mask)
    on_support = problem.curvature.support_solver(problem.separable, mask).value
    assert found.objective == pytest.approx(on_support)
    published = solve(problem, "woodfisher", block=block, update="published")
    removed = (~mask).nonzero().squeeze(1)
    sums = sum(problem.w_bar[q] / inverse[q, q] * inverse[:, q] for q in removed.tolist())
    expected = torch.where(mask, problem.w_bar - sums, 0.0)
    torch.testing.assert_close(published.w, expected)


@EVERY_FORM
def test_the_published_joint_update_is_no_minimum(form: str) -> None:
    """One removal: both updates agree. Several: the sum of single updates is above the minimum."""
    problem = make_problem(form, "cardinality", seed=3)
    for k in (P - 1, 4):
        family = problem.with_supports(Budget.cardinality(P, k))
        exact, published = (solve(family, "woodfisher", update=u) for u in ("kkt", "published"))
        if k == P - 1:
            torch.testing.assert_close(exact.w, published.w)
        else:
            assert exact.objective < published.objective
            gradient = problem.gradient(exact.w)[exact.mask]
            assert float(gradient.abs().max()) < 1e-9
    mask = solve(family, "mfac").mask
    sums = removed_one_by_one(problem.curvature, problem.separable, mask)
    assert solve(family, "mfac").objective <= problem.objective(sums)
    assert solve(family, "mfac", update="published").w.equal(sums)


def test_an_unknown_update_is_refused() -> None:
    problem = make_problem("dense", "cardinality")
    for name in ("woodfisher", "mfac"):
        with pytest.raises(MethodError, match="kkt or published"):
            solve(problem, name, update="sum")


def test_mfac_with_one_round_is_woodfisher_without_blocks() -> None:
    for seed in range(6):
        problem = make_problem("low_rank", "nested_n_of_m", seed=seed, linear=True)
        one = solve(problem, "mfac", rounds=1)
        assert one.mask.equal(solve(problem, "woodfisher").mask)


@pytest.mark.parametrize("seed", range(4))
def test_mfac_with_many_rounds_is_the_greedy_surgeon(seed: int) -> None:
    """One weight a round: the same support as removing weights one by one from the inverse."""
    problem = make_problem("tall", "cardinality", seed=seed)
    k = problem.supports.max_count
    found = solve(problem, "mfac", rounds=400)
    kept = list(range(P))
    while len(kept) > k:
        mask = torch.zeros(P, dtype=torch.bool).index_fill(0, torch.tensor(kept), True)
        w = problem.curvature.support_solver(problem.separable, mask).weights[kept]
        inverse = torch.linalg.inv(hessian(problem)[kept][:, kept])
        kept.pop(int((w.square() / inverse.diagonal()).argmin()))
    assert found.mask.nonzero().squeeze(1).tolist() == kept


def test_more_rounds_lower_the_objective_here() -> None:
    problem = medium()
    values = [solve(problem, "mfac", rounds=rounds).objective for rounds in (1, 4, 16)]
    assert values == sorted(values, reverse=True)


# -- CBS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["low_rank", "shared_rows", "mixed_blocks"])
def test_cbs_selects_without_updating(form: str) -> None:
    """No swap lowers the cost of zeroing, and selections are near the enumerated best one."""
    near = 0
    for seed in range(8):
        problem = make_problem(form, "cardinality", seed=seed, linear=seed % 2 == 0)
        found = solve(problem, "cbs")
        mask, k = found.mask, problem.supports.max_count
        cost = masked_dense(problem, mask)
        assert float(str(found.stats["selection"])) == pytest.approx(cost)
        for i in mask.nonzero().squeeze(1):
            for j in (~mask).nonzero().squeeze(1):
                swapped = mask.index_fill(0, i, False).index_fill(0, j, True)
                assert masked_dense(problem, swapped) >= cost - 2e-6 * abs(cost) - 1e-12
        index = torch.tensor(list(combinations(range(P), k)))
        every = torch.zeros(len(index), P, dtype=torch.bool).scatter_(1, index, True)
        lowest = min(masked_dense(problem, m) for m in every)
        near += cost <= lowest + 1e-9 * abs(lowest)
        on_support = problem.curvature.support_solver(problem.separable, mask).value
        assert found.objective == pytest.approx(on_support, rel=1e-9, abs=1e-12)
    assert near >= 5


def test_cbs_lets_large_negative_weights_leave() -> None:
    """The released exchange list is ``w > threshold``: this weight is on neither of its sides."""
    H = torch.diag(torch.tensor([0.01, 1.0, 1.0], dtype=torch.float64))
    w_bar = torch.tensor([-3.0, 2.0, 1.0], dtype=torch.float64)
    problem = Problem(Dense(H), w_bar, 0.0, Budget.cardinality(3, 2))
    threshold = 1.5
    assert not bool((w_bar > threshold)[0]) and abs(float(w_bar[0])) > threshold
    found = solve(problem, "cbs", starts=1)
    assert found.mask.tolist() == [False, True, True]


@pytest.mark.parametrize("seed", range(4))
def test_cbs_does_not_see_signs(seed: int) -> None:
    problem = make_problem("low_rank", "cardinality", seed=seed)
    mirrored = replace_w(problem, -problem.w_bar)
    assert solve(mirrored, "cbs").mask.equal(solve(problem, "cbs").mask)


def replace_w(problem: Problem, w_bar: Tensor) -> Problem:
    return Problem(problem.curvature, w_bar, problem.rho, problem.supports, problem.g)


@pytest.mark.parametrize("seed", range(4))
def test_zeroing_knows_its_exchanges(seed: int) -> None:
    m = 9
    A, x = normal(draw(seed), m, m), normal(draw(seed + 9), m)
    W, t = A.T @ A, normal(draw(seed + 20), m)
    inside = torch.rand(m, generator=draw(seed)) < 0.5
    inside[0], inside[1] = True, False
    small, moved = Zeroing(W, t, inside), torch.zeros_like(x)
    for j in torch.randint(0, m, (12,), generator=draw(seed)).tolist():
        moved[j] += -1.0 if bool(small.inside[j]) else 1.0
        small.toggle(j)
        assert small.value == pytest.approx(float(t @ moved + 0.5 * moved @ W @ moved))
    out, into = small.inside.nonzero().squeeze(1), (~small.inside).nonzero().squeeze(1)
    if len(out) and len(into):
        changes = {(a, b): small.exchange(a, b) for a in out.tolist() for b in into.tolist()}
        (change, a, b), *_ = small.best_exchanges(None, out, into)
        assert change == pytest.approx(min(changes.values())) == changes[a, b]


# -- Wanda, I-OBS, block-wise -------------------------------------------------------------------


def test_wanda_within_rows_is_the_published_comparison() -> None:
    rows, width, k = 4, 6, 2
    X, W = normal(draw(), 30, width), normal(draw(1), rows, width)
    C = SharedRows(X.T @ X / len(X), rows)
    problem = Problem(C, W.reshape(-1), 0.0, Budget.per_row(rows, width, k))
    scores = W.abs() * X.square().mean(0).sqrt()
    kept = torch.zeros(rows, width, dtype=torch.bool)
    kept.scatter_(1, scores.topk(k, dim=1).indices, True)
    found = solve(problem, "wanda")
    assert found.mask.reshape(rows, width).equal(kept)
    assert found.w[found.mask].equal(problem.w_bar[found.mask])
    refitted = solve(problem, "wanda", refit=True)
    assert refitted.mask.equal(found.mask) and refitted.objective <= found.objective


@pytest.mark.parametrize("metric", ["full", "diagonal"])
@pytest.mark.parametrize("family", ["cardinality", "n_of_m", "nested_blocks"])
def test_iobs_is_exact_without_coupling(family: str, metric: str) -> None:
    for seed in range(4):
        draws = draw(seed)
        H = torch.diag(0.1 + normal(draws, P).square())
        problem = Problem(Dense(H), normal(draws, P), 0.3, FAMILIES[family](draws, P))
        found = solve(problem, "iobs", metric=metric)
        assert found.objective == pytest.approx(enumerate_optimum(problem).objective)


def test_iobs_is_no_worse_than_the_backsolve() -> None:
    for metric in ("full", "diagonal"):
        problem = medium()
        found, first = solve(problem, "iobs", metric=metric), solve(problem, "backsolve")
        assert found.objective < first.objective
        assert all(b <= a for a, b in pairwise(found.trace.values[:-1]))
    with pytest.raises(MethodError, match="full or diagonal"):
        solve(problem, "iobs", metric="blocks")


def test_blocks_without_coupling_need_no_mending() -> None:
    for family in ("cardinality", "nested_blocks"):
        problem = make_problem("gradient_blocks", family, linear=True)
        for options in ({"as_published": True}, {"sweeps": 0}, {}):
            found = solve(problem, "blockwise", **options)  # type: ignore[arg-type]
            exact = problem.curvature.support_solver(problem.separable, found.mask).value
            assert found.objective == pytest.approx(exact, rel=1e-6)


def test_the_joined_blocks_gain_a_linear_term_once() -> None:
    """Published: every block gains the whole term, and together they end above pruning nothing."""
    p = 40
    A = 1.0 + 0.1 * normal(draw(), 30, p)
    problem = from_gradients(
        A, normal(draw(1), p), ridge=1e-2, supports=Budget.cardinality(p, 30), first_order=1.0
    )
    published = solve(problem, "blockwise", block=4, as_published=True)
    mended = solve(problem, "blockwise", block=4, sweeps=0)
    swept = solve(problem, "blockwise", block=4, sweeps=60)
    assert published.objective > problem.prune_all > 0.0
    assert mended.objective < min(published.objective, solve(problem, "magnitude").objective)
    assert swept.objective == pytest.approx(solve(problem, "backsolve").objective, rel=1e-3)
    assert float(str(mended.stats["step"])) < 0.5


def test_blocks_step_from_the_dense_weights_without_the_others_in_sight() -> None:
    """The released code's supports with a linear term: ours end at or below each, and gain."""
    gained = 0
    for seed in range(12):
        p = 40
        A, w_bar = normal(draw(seed), 60, p), normal(draw(seed + 99), p)
        family = Budget.cardinality(p, 8)
        problem = from_gradients(A, w_bar, ridge=1e-2, supports=family, first_order=0.5)
        whole = simple_supports(problem)
        halves = torch.arange(p) // 20
        counts = torch.bincount(halves[whole[0]], minlength=2)
        model = without_coupling(problem.curvature, 20)
        alone = replace(problem, curvature=model, supports=Budget(halves, counts))
        theirs = []
        for mask in simple_supports(alone):
            w = model.support_solver(problem.separable, mask).weights
            theirs.append(problem.objective(w))
        found = solve(problem, "blockwise", block=20).objective
        assert found <= min(theirs) + 1e-12 * problem.prune_all
        best = min(
            solve(problem, "blockwise", block=20, start=_on(problem, m)).objective for m in whole
        )
        gained += found < best - 1e-9 * problem.prune_all
    assert gained


def _on(problem: Problem, mask: Tensor) -> Solution:
    """The dense weights on a support."""
    return Solution(problem, torch.where(mask, problem.w_bar, 0.0), "given", Status.FEASIBLE)


@EVERY_FORM
def test_mended_blocks_are_below_published_ones(form: str) -> None:
    for linear in (False, True):
        problem = make_problem(form, "cardinality", linear=linear)
        values = [
            solve(problem, "blockwise", block=3, **options).objective  # type: ignore[arg-type]
            for options in ({"as_published": True}, {"sweeps": 0}, {"sweeps": 1}, {"sweeps": 5})
        ]
        slack = 1e-10 * problem.prune_all
        assert all(b <= a + slack for a, b in pairwise(values))


# -- CHITA's own variants -----------------------------------------------------------------------


def test_dead_columns_are_weights_like_others() -> None:
    """The released active-set code drops columns that are zero, however large their weights."""
    A = normal(draw(), 20, P)
    A[:, 3] = 0.0
    w_bar = normal(draw(1), P)
    w_bar[3] = 30.0
    C = LowRank(A, 1.0 / len(A))
    problem = Problem(C, w_bar, 0.1, Budget.cardinality(P, 4))
    for name in ("chita", "coordinate_descent", "iht", "blockwise"):
        found = solve(problem, name)
        assert float(found.w[3]) == pytest.approx(30.0)


def test_coordinate_descent_starts_from_the_pruned_weights() -> None:
    """The released iteration takes the dense residual, a fixed point without a linear term."""
    problem = make_problem("low_rank", "cardinality")
    magnitude, found = solve(problem, "magnitude"), solve(problem, "coordinate_descent")
    assert found.mask.equal(magnitude.mask)
    assert found.objective < 0.999 * magnitude.objective


@pytest.mark.parametrize("name", ["iht", "chita"])
def test_more_starts_never_hurt(name: str) -> None:
    """Before chita's exchanges, which go on from one support only."""
    options = {"exchanges": 0} if name == "chita" else {}
    for seed in range(4):
        problem = medium(seed, n=40, p=200, k=30)
        values = [
            solve(problem, name, starts=starts, seed=1, **options).objective  # type: ignore[arg-type]
            for starts in (1, 4, 8)
        ]
        assert values == sorted(values, reverse=True)
        again = solve(problem, name, starts=4, seed=1)
        assert again.w.equal(solve(problem, name, starts=4, seed=1).w)


@pytest.mark.parametrize("name", ["iht", "chita"])
def test_momentum_falls_and_needs_fewer_steps(name: str) -> None:
    problem = medium(2)
    plain = solve(problem, name, descent=Descent(max_iter=400))
    fast = solve(problem, name, descent=Descent(max_iter=400, momentum=True))
    rounding = 1.0 + 1e-7  # the last value is float64's, those before it the data's float32
    assert all(b <= a * rounding for a, b in pairwise(fast.trace.values))
    assert fast.objective <= plain.objective * 1.02
    if name == "iht":
        assert int(str(fast.stats["iterations"])) < int(str(plain.stats["iterations"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_supports_are_allowed_and_large(family: str) -> None:
    problem = make_problem("dense", family)
    source = draw(3)
    masks = [stratified_support(problem, source) for _ in range(20)]
    assert all(problem.supports.contains(mask) for mask in masks)
    again = draw(3)
    assert all(mask.equal(stratified_support(problem, again)) for mask in masks)


def test_random_supports_keep_the_same_share_of_every_chunk() -> None:
    problem = medium(p=900, k=300)
    mask = stratified_support(problem, draw(5))
    order = torch.randperm(900, generator=draw(5))
    for chunk in range(30):
        own = order[chunk::30]
        assert int(mask[own].sum()) == 10
        kept, rest = problem.scores[own[mask[own]]], problem.scores[own[~mask[own]]]
        assert float(kept.min()) >= float(rest.max())


# -- the portfolio, polish, cost ----------------------------------------------------------------


def test_the_portfolio_is_as_good_as_its_members() -> None:
    problem = medium(1)
    found = solve(problem, "best")
    assert found.objective <= min(
        solve(problem, name).objective * (1.0 + 1e-3)
        for name, method in METHODS.items() if method.serves(problem) and name != "best"
    )  # fmt: skip
    assert found.stats["winner"] in found.stats["objectives"]  # type: ignore[operator]
    assert {"z", "image"} <= set(found.warm)


def test_the_portfolio_finds_small_optima() -> None:
    found = 0
    for seed in range(60):
        problem = random_problem(seed)
        optimum = enumerate_optimum(problem).objective
        slack = 1e-9 * (problem.prune_all + abs(problem.dense_minimum))
        found += solve(problem, "best", patience=2).objective <= optimum + slack
    assert found >= 57


def test_the_portfolio_stops_at_its_relaxation() -> None:
    """Nothing is kicked once the relaxation's value is reached; the seconds are the bound's."""
    problem = medium(4, n=30, p=900, k=600)
    found = solve(problem, "best", gap=1e-2)
    assert found.stats["kicks"] == 0 and found.status is Status.STATIONARY
    certificate = solve_certified(problem, Effort(method="best", time_limit=20.0))
    assert certificate.relative_gap < 1e-2
    assert certificate.solution.method == "best"


def test_the_portfolio_goes_on_from_an_interrupted_answer() -> None:
    problem = medium(2, n=30, p=150, k=30)
    magnitude = solve(problem, "magnitude")
    stopped = replace(magnitude, status=Status.INTERRUPTED, trace=Trace(((100.0, 1.0),)))
    found = solve(problem, "best", start=stopped)
    assert found.status is not Status.INTERRUPTED
    assert found.objective < magnitude.objective and "magnitude" in found.stats["objectives"]
    assert all(seconds < 100.0 for seconds, _ in found.trace.rows)


def test_exchanges_look_as_far_with_a_linear_term() -> None:
    """Objectives of -1e4 over an increase of 1: the tolerance is a share of the increase."""
    draw = torch.Generator().manual_seed(3)
    A, w_bar = normal(draw, 40, 400), normal(draw, 400)
    H = A.T @ A / 40 + 1e-3 * torch.eye(400, dtype=torch.float64)
    family = Budget.cardinality(400, 200)
    plain = from_hessian(H, w_bar, ridge=1e-3, supports=family)
    moved = moved_by_linear_term(plain, normal(draw, 400))
    assert moved.dense_minimum < -100.0
    assert moved.increase(moved.dense_minimum) < 1e-3
    begin = solve(plain, "backsolve")
    own = moved.curvature.support_solver(moved.separable, begin.mask).weights
    same = Solution(moved, own, "backsolve", Status.FEASIBLE)
    first, second = (
        solve(problem, "local_search", start=s) for problem, s in ((plain, begin), (moved, same))
    )
    assert first.objective < begin.objective
    assert moved.increase(second.objective) == pytest.approx(first.objective, rel=1e-3)


def test_a_unit_stands_in_where_there_is_no_dense_minimum() -> None:
    draw = torch.Generator().manual_seed(0)
    A, w_bar = normal(draw, 5, 20), normal(draw, 20)
    problem = from_gradients(
        A, w_bar, ridge=0.0, supports=Budget.cardinality(20, 4), first_order=1.0
    )
    assert problem.increase(2.0) == 2.0 and problem.increase(-2.0) > 0.0
    with pytest.raises(CurvatureError):
        _ = problem.dense_minimum


def test_the_portfolio_keeps_to_its_time() -> None:
    problem = medium(n=100, p=4000, k=400)
    for limit in (0.05, 0.5):
        found = solve(problem, "best", time_limit=limit, patience=10**6)
        assert found.is_feasible and found.seconds < limit + 1.5
        assert found.objective <= solve(problem, "backsolve").objective * (1.0 + 1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_swaps_polish_any_method(name: str) -> None:
    problem = medium(3, n=30, p=150, k=30)
    plain, better = solve(problem, name), solve(problem, name, polish=True)
    assert better.objective <= plain.objective * (1.0 + 1e-12)
    assert better.method == f"{name}+swaps" and better.stats["before_swaps"] == plain.objective
    assert better.seconds >= better.trace.seconds[-1]
    assert all(b <= a * (1.0 + 1e-5) for a, b in pairwise(better.trace.values))  # float32 data
    limited = solve(problem, name, polish=True, time_limit=1e-9)
    assert limited.is_feasible and limited.method == name


def test_cost_in_passes_is_measured_on_request() -> None:
    for form, build in CURVATURES.items():
        problem = Problem(build(draw(), P), normal(draw(1), P), 0.1, Budget.cardinality(P, 4))
        found = solve(problem)
        assert "pass_seconds" not in vars(problem.curvature), form
        assert found.passes() == pytest.approx(found.seconds / problem.curvature.pass_seconds)
        assert found.passes() == found.passes() > 0.0
    halved = Solution(problem, found.w, "half", Status.FEASIBLE, 0.5 * found.seconds)
    assert halved.passes() == pytest.approx(0.5 * found.passes())


FORMULAS: dict[str, Callable[[Problem], Tensor]] = {
    "magnitude": lambda problem: problem.scores,
    "wanda": lambda problem: problem.scores * hessian(problem).diagonal(),
    "woodfisher": lambda problem: DenseMinimum.of(problem.curvature, problem.separable).costs,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMULAS)
def test_one_shot_supports_are_projections_of_scores(name: str, family: str) -> None:
    problem = make_problem("tall", family, linear=False)
    mask = problem.supports.best_support(FORMULAS[name](problem))
    assert solve(problem, name).mask.equal(mask)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("best", "local_search")])
def test_permuted_weights_give_permuted_answers(name: str) -> None:
    """Random starts aside, no method depends on the order of the weights but by ties."""
    p = 60
    C = gradients(draw(), 40, p)
    w_bar, order = normal(draw(1), p), torch.randperm(p, generator=draw(2))
    options = {"starts": 1} if name == "cbs" else {}
    options |= {"block": p} if name in ("blockwise", "coordinate_descent") else {}
    problem = Problem(C, w_bar, 0.1, Budget.cardinality(p, 20))
    moved = Problem(LowRank(C.A[:, order], C.scale), w_bar[order], 0.1, problem.supports)
    if not METHODS[name].serves(problem):
        return
    a, b = solve(problem, name, **options), solve(moved, name, **options)
    assert b.objective == pytest.approx(a.objective, rel=1e-6)
    assert a.mask[order].equal(b.mask)
