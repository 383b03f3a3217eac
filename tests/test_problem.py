"""The problem: scaling, objective, gradient and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chita_opt.curvature import Dense, LowRank
from chita_opt.errors import CurvatureError, ProblemError
from chita_opt.problem import Problem, from_gradients, from_hessian, from_layer_inputs
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import Budget

from .problems import CURVATURES, FAMILIES, make_problem, normal

P = 12


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("first_order", [0.0, 1.0 / 16.0, 1.0])
def test_the_scaling_of_the_paper(first_order: float) -> None:
    """f = 1/2n |A x|^2 + alpha/n 1'A x + ridge/2 |x|^2, term by term in python floats."""
    n, ridge = 5, 0.03
    rows, w_bar, w = normal(draw(), n, P), normal(draw(1), P), normal(draw(2), P)
    supports = Budget.cardinality(P, 3)
    problem = from_gradients(rows, w_bar, ridge=ridge, supports=supports, first_order=first_order)
    x = (w - w_bar).tolist()
    products = [sum(a * b for a, b in zip(row, x, strict=True)) for row in rows.tolist()]
    expected = sum(r * r for r in products) / (2 * n) + first_order * sum(products) / n
    expected += ridge / 2 * sum(v * v for v in x)
    assert problem.objective(w) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_gradient_and_constants(curvature: str) -> None:
    problem = make_problem(curvature, "cardinality", linear=True, per_weight=True)
    w = normal(draw(3), P).requires_grad_()
    x = w - problem.w_bar
    M = problem.curvature.dense()
    f = 0.5 * x @ M @ x + problem.g @ x + 0.5 * (problem.rho * x) @ x
    (gradient,) = torch.autograd.grad(f, w)
    w, x, f = w.detach(), x.detach(), f.detach()
    torch.testing.assert_close(problem.gradient(w), gradient)
    torch.testing.assert_close(problem.gradient(w, exact=False), gradient)
    assert problem.objective(w) == pytest.approx(float(f), rel=1e-12)
    assert problem.objective(problem.w_bar) == 0.0
    assert problem.prune_all == pytest.approx(problem.objective(torch.zeros(P)))
    H = M + torch.diag(problem.rho)
    lowest = -0.5 * float(problem.g @ torch.linalg.solve(H, problem.g))
    assert problem.dense_minimum == pytest.approx(lowest, rel=1e-9)
    separable = float(f) - 0.5 * float(x @ M @ x)
    assert problem.separable.value(x) == pytest.approx(separable, rel=1e-9)


def test_without_a_linear_term_the_dense_weights_are_best() -> None:
    problem = make_problem("low_rank", "cardinality")
    assert problem.dense_minimum == 0.0
    assert not bool(problem.g.any())


def test_float32_data_keep_float64_results() -> None:
    rows, w_bar = normal(draw(), 4, P).float(), normal(draw(1), P).float()
    problem = from_gradients(rows, w_bar, ridge=0.1, supports=Budget.cardinality(P, 3))
    for results in (problem.w_bar, problem.rho, problem.gradient(w_bar)):
        assert results.dtype == torch.float64
    exact = from_gradients(rows.double(), w_bar.double(), ridge=0.1, supports=problem.supports)
    w = normal(draw(2), P)
    assert problem.objective(w) == pytest.approx(exact.objective(w), rel=1e-13)


def test_constructors_agree() -> None:
    """Gradients, their explicit Hessian, and one row of a layer are the same problem."""
    rows, w_bar, w = normal(draw(), 4, P), normal(draw(1), P), normal(draw(2), P)
    H, supports = rows.T @ rows / 4, Budget.cardinality(P, 3)
    a = from_gradients(rows, w_bar, ridge=0.1, supports=supports)
    b = from_hessian(H, w_bar, ridge=0.1, supports=supports)
    c = from_layer_inputs(H, w_bar[None, :], ridge=0.1, supports=supports)
    for other in (b, c):
        assert a.objective(w) == pytest.approx(other.objective(w), rel=1e-12)
        torch.testing.assert_close(a.gradient(w), other.gradient(w))


def test_layer_inputs_model_the_change_of_the_outputs() -> None:
    inputs, W, V = normal(draw(), 50, 4), normal(draw(1), 3, 4), normal(draw(2), 3, 4)
    H = inputs.T @ inputs / 50
    problem = from_layer_inputs(H, W, ridge=0.0, supports=Budget.per_row(3, 4, 2))
    change = 0.5 * (inputs @ (V - W).T).square().sum(1).mean()
    assert problem.objective(V.reshape(-1)) == pytest.approx(float(change), rel=1e-12)


def test_other_supports_and_devices_keep_the_quadratic() -> None:
    problem = make_problem("mixed_blocks", "blocks", linear=True)
    other = problem.with_supports(FAMILIES["cardinality"](draw(), P)).to("cpu")
    w = normal(draw(1), P)
    assert other.objective(w) == problem.objective(w)
    assert other.supports is not problem.supports


C4, ONES = Dense(torch.eye(4)), torch.ones(4)
FOUR = Budget.cardinality(4, 2)
NAN = torch.tensor([0.0, float("nan"), 0.0, 0.0])


@pytest.mark.parametrize(
    "w_bar, rho, supports, g, words",
    [
        (ONES, 0.1, Budget.cardinality(5, 2), None, "over 5 weights, the curvature over 4"),
        (torch.ones(5), 0.1, FOUR, None, r"w_bar is \(5,\)"),
        (torch.ones(4, 1), 0.1, FOUR, None, r"w_bar is \(4, 1\)"),
        ([1.0] * 4, 0.1, FOUR, None, "w_bar is list"),
        (torch.ones(4, dtype=torch.int64), 0.1, FOUR, None, "floating-point"),
        (NAN, 0.1, FOUR, None, r"w_bar\[1\] is nan"),
        (ONES, -0.1, FOUR, None, "rho is -0.1"),
        (ONES, torch.tensor([0.1, 0.1, -1.0, 0.1]), FOUR, None, "rho is -1.0"),
        (ONES, float("inf"), FOUR, None, r"rho\[0\] is inf"),
        (ONES, float("nan"), FOUR, None, r"rho\[0\] is nan"),
        (ONES, torch.ones(3), FOUR, None, r"rho is \(3,\)"),
        (ONES, 0.1, FOUR, NAN, r"g\[1\] is nan"),
        (ONES, 0.1, FOUR, torch.ones(2), r"g is \(2,\)"),
    ],
)
def test_refused_problems(
    w_bar: Tensor, rho: float | Tensor, supports: Budget, g: Tensor | None, words: str
) -> None:
    with pytest.raises(ProblemError, match=words):
        Problem(C4, w_bar, rho, supports, g)


@pytest.mark.parametrize("first_order", [-0.1, 1.1, float("nan")])
def test_refused_first_order(first_order: float) -> None:
    with pytest.raises(ProblemError, match="first_order"):
        from_gradients(torch.ones(2, 4), ONES, ridge=0.1, supports=FOUR, first_order=first_order)


def test_refused_shapes() -> None:
    with pytest.raises((ProblemError, CurvatureError), match="shape"):
        from_gradients(torch.ones(4), ONES, ridge=0.1, supports=FOUR)
    with pytest.raises(ProblemError, match="len"):
        from_layer_inputs(torch.eye(4), torch.ones(2, 3), ridge=0.1, supports=FOUR)
    with pytest.raises(ProblemError, match="w is"):
        Problem(C4, ONES, 0.1, FOUR).objective(torch.ones(3))


def test_errors_are_also_the_builtin_ones() -> None:
    with pytest.raises(ValueError, match="rho"):
        Problem(C4, ONES, -1.0, FOUR)


# -- solutions and clocks -----------------------------------------------------------------------


def test_a_solution_judges_itself() -> None:
    problem = make_problem("low_rank", "cardinality")
    w = problem.w_bar.clone()
    dense = Solution(problem, w, "nothing", Status.FEASIBLE)
    assert (dense.objective, dense.nnz, dense.is_feasible) == (0.0, P, False)
    empty = Solution(problem, torch.zeros(P), "all", Status.FEASIBLE)
    assert empty.w.dtype == torch.float64
    assert empty.objective == pytest.approx(problem.prune_all)
    assert (empty.nnz, empty.sparsity, empty.is_feasible) == (0, 1.0, True)
    assert "all" in str(empty)


@pytest.mark.parametrize("w", [torch.ones(3), torch.full((P,), float("nan"))])
def test_refused_solutions(w: Tensor) -> None:
    with pytest.raises(ProblemError, match="finite"):
        Solution(make_problem("low_rank", "cardinality"), w, "bad", Status.FEASIBLE)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_refused_time_limits(limit: float) -> None:
    with pytest.raises(ProblemError, match="time_limit"):
        Clock(limit)


def test_clock() -> None:
    clock = Clock()
    assert not clock.expired and clock.remaining is None
    clock.record(3.0)
    clock.record(2.0)
    assert clock.trace.values == [3.0, 2.0]
    assert clock.trace.seconds == sorted(clock.trace.seconds)
    tiny = Clock(1e-9)
    assert tiny.expired and tiny.remaining == 1e-3


def test_low_rank_refuses_before_the_problem_does() -> None:
    with pytest.raises(CurvatureError, match="drop that sample"):
        LowRank(torch.tensor([[1.0, float("inf")]]), 1.0)
