"""Defects of published pruning codes without a test elsewhere: what they did, what ours does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chita_opt.heuristics import solve
from chita_opt.problem import Problem, from_gradients
from chita_opt.solution import Solution, Status
from chita_opt.supports import Budget, TwoBudgets

from .problems import normal


def gradient_problem(seed: int, ridge: float, n: int = 60, p: int = 400, k: int = 200) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    A = (normal(draw, n, 8) @ normal(draw, 8, p) + 0.3 * normal(draw, n, p)).float()
    return from_gradients(A, normal(draw, p), ridge=ridge, supports=Budget.cardinality(p, k))


def released_backsolve(problem: Problem, mask: Tensor) -> Tensor:
    """Woodbury with 1 / (n lambda)^2, all of it in float32, as CHITA's released code feeds it."""
    C, S = problem.curvature, mask.nonzero().squeeze(1)
    X = C.A.float()  # type: ignore[attr-defined]
    ridge = torch.tensor(len(X) * float(problem.rho[0]), dtype=torch.float32)
    w_bar = problem.w_bar.float()
    right = X[:, S].T @ (X @ w_bar) + ridge * w_bar[S]
    inner = torch.eye(len(X)) + X[:, S] @ X[:, S].T / ridge
    w = torch.zeros_like(w_bar)
    w[S] = right / ridge - X[:, S].T @ torch.linalg.solve(inner, X[:, S] @ right) / ridge**2
    return w.double()


def test_a_backsolve_in_single_precision_loses_small_ridges() -> None:
    """Same support, same data: the released solve is off by far more than what pruning costs."""
    problem = gradient_problem(0, ridge=1e-6)
    found = solve(problem, "magnitude")
    mask = found.w != 0
    ours = problem.curvature.support_solver(problem.separable, mask, exact=False).weights
    H = problem.curvature.dense() + torch.diag(problem.rho)
    S = mask.nonzero().squeeze(1)
    exact = torch.zeros_like(problem.w_bar)
    exact[S] = torch.linalg.solve(H[S][:, S], H[S] @ problem.w_bar)
    best = problem.objective(exact)
    assert problem.objective(released_backsolve(problem, mask)) > 2.0 * best
    assert problem.objective(ours) == pytest.approx(best, rel=1e-3)
    assert solve(problem, "backsolve").objective <= best * (1.0 + 1e-9)


def test_trimming_after_one_budget_is_no_projection_on_two() -> None:
    """FALCON's released IHT thresholds by count, then drops the least |w|/f above the limit."""
    gains = 0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        costs = torch.tensor([1, 4, 16, 64])[torch.randint(4, (60,), generator=draw)]
        family = TwoBudgets(costs, 30, int(costs.sum()) // 4)
        scores = normal(draw, 60).square()
        kept = torch.zeros(60, dtype=torch.bool)
        kept[scores.topk(30).indices] = True
        for j in (scores.sqrt() / costs).argsort().tolist():
            if int(costs[kept].sum()) <= family.limit:
                break
            kept[j] = False
        best = family.best_support(scores)
        assert family.contains(kept) and family.contains(best)
        assert float(scores[best].sum()) >= float(scores[kept].sum())
        gains += float(scores[best].sum()) > 1.001 * float(scores[kept].sum())
    assert gains >= 15


def test_a_swap_optimum_compares_the_least_kept_with_the_best_pruned() -> None:
    """The released local search compares the largest kept score with the largest pruned one.

    So judged, every magnitude support is an optimum; ours ends where no exchange helps.
    """
    problem = gradient_problem(1, ridge=1e-2, n=20, p=40, k=20)
    begin = solve(problem, "magnitude", polish=False)
    found = solve(problem, "local_search", start=begin)
    assert found.objective < begin.objective

    def value(mask: Tensor) -> float:
        return problem.curvature.support_solver(problem.separable, mask).value

    support = found.mask
    for i in support.nonzero().squeeze(1).tolist():
        for j in (~support).nonzero().squeeze(1).tolist():
            other = support.clone()
            other[i], other[j] = False, True
            assert value(other) >= found.objective * (1.0 - 1e-5)


def test_a_given_support_is_not_ignored() -> None:
    """The released prune takes a mask and forgets it; a start here is where methods begin."""
    problem = gradient_problem(2, ridge=1e-3)
    mask = torch.zeros(problem.p, dtype=torch.bool)
    mask[::2] = True
    own = problem.curvature.support_solver(problem.separable, mask).weights
    start = Solution(problem, own, "given", Status.FEASIBLE)
    assert torch.equal(solve(problem, "blockwise", start=start).mask, mask)
    for method in ("local_search", "relax_round", "chita"):
        assert solve(problem, method, start=start).objective <= start.objective + 1e-12
