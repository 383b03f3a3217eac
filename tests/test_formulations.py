"""Models: their sizes, their values at fixed supports, and agreement with the dual bound."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from chita_opt.bounds import candidate_splits, dual_bound, dual_point, safe_split
from chita_opt.bounds.splits import less_diagonal
from chita_opt.errors import CurvatureError, ProblemError
from chita_opt.exact import enumerate_optimum, enumerate_supports
from chita_opt.formulations import big_m_miqp, perspective_relaxation, proven_big_m
from chita_opt.formulations.factors import factor_matrix
from chita_opt.problem import Problem

from .problems import CURVATURES, FAMILIES, make_problem, set_auxiliary

P = 12
EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)


def size_of(problem: Problem) -> float:
    return problem.prune_all + abs(problem.dense_minimum)


# -- perspective --------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.1, 1e-3])
@pytest.mark.parametrize(
    "family", ["cardinality", "nested_blocks", "nested_n_of_m", "rows", "pairs"]
)
@EVERY_FORM
def test_clarabel_and_the_dual_bound_agree(form: str, family: str, ridge: float) -> None:
    """Two independent paths to the same number; the conic solution is also a witness."""
    linear = list(CURVATURES).index(form) % 2 == 0
    problem = make_problem(form, family, linear=linear, ridge=ridge, per_weight=True)
    bound = dual_bound(problem, tol=1e-5, splits="none")
    relaxation = perspective_relaxation(problem, split=bound.split)
    value = relaxation.model.solve(solver="CLARABEL")
    assert bound.value == pytest.approx(value, rel=1e-4, abs=1e-5 * size_of(problem))
    assert value <= bound.relaxation_upper + 1e-6 * size_of(problem)
    assert value <= enumerate_optimum(problem).objective + 1e-6 * size_of(problem)
    Q = problem.curvature if bound.split is None else less_diagonal(problem.curvature, bound.split)
    witness = Q.image(torch.from_numpy(relaxation.w.value) - problem.w_bar)
    proven = dual_point(problem, witness, bound.split).value
    assert proven <= value + 1e-6 * size_of(problem)
    assert proven == pytest.approx(value, abs=1e-2 * size_of(problem))


@pytest.mark.parametrize("family", ["cardinality", "nested_n_of_m", "blocks"])
def test_they_agree_on_a_larger_problem(family: str) -> None:
    problem = make_problem("low_rank", family, p=120, ridge=0.02)
    bound = dual_bound(problem, tol=1e-6)
    value = perspective_relaxation(problem).model.solve(solver="CLARABEL")
    assert bound.value == pytest.approx(value, rel=1e-4)
    assert value <= bound.relaxation_upper * (1.0 + 1e-6)


@pytest.mark.parametrize("form", ["tall", "dense", "shared_rows", "mixed_blocks"])
def test_they_agree_for_every_split(form: str) -> None:
    problem = make_problem(form, "cardinality", linear=True, ridge=1e-2)
    best = dual_bound(problem, tol=1e-6)
    values = {}
    for name, e in candidate_splits(problem).items():
        split = safe_split(problem.curvature, e)
        values[name] = perspective_relaxation(problem, split=split).model.solve(solver="CLARABEL")
    assert best.value == pytest.approx(max(values.values()), rel=1e-4)
    assert values[str(best.stats["split"])] == pytest.approx(best.value, rel=1e-4)


@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "pairs"])
@EVERY_FORM
def test_perspective_with_fixed_indicators_is_the_problem(form: str, family: str) -> None:
    problem = make_problem(form, family, linear=True)
    relaxation = perspective_relaxation(problem)
    mask = problem.supports.best_support(problem.scores)
    model = relaxation.model
    fixed = type(model)(model.objective, [*model.constraints, relaxation.z == mask.numpy() * 1.0])
    value = fixed.solve(solver="CLARABEL")
    solver = problem.curvature.support_solver(problem.separable, mask)
    assert value == pytest.approx(solver.value, rel=1e-5, abs=1e-6 * size_of(problem))
    assert relaxation.w.value is not None
    np.testing.assert_allclose(relaxation.w.value, solver.weights.numpy(), atol=1e-3)


@EVERY_FORM
def test_sizes_of_the_perspective(form: str) -> None:
    problem = make_problem(form, "nested_n_of_m")
    relaxation = perspective_relaxation(problem)
    rows = len(problem.supports.rows().h)
    assert [v.size for v in (relaxation.w, relaxation.z, relaxation.s)] == [P, P, P]
    assert {v.name() for v in relaxation.model.variables()} == {"w", "z", "s"}
    sizes = sorted(c.size for c in relaxation.model.constraints)
    assert sizes == sorted([3 * P, rows, P, P])
    assert relaxation.model.is_dcp()


def test_low_rank_data_stay_low_rank() -> None:
    problem = make_problem("low_rank", "cardinality", p=14)
    assert factor_matrix(problem.curvature.factor()).shape == (7, 14)


@EVERY_FORM
def test_factors_have_at_most_p_rows(form: str) -> None:
    """More gradients than weights are condensed; the curvature stays."""
    problem = make_problem(form, "cardinality")
    F = factor_matrix(problem.curvature.factor()).toarray()
    assert len(F) <= P
    np.testing.assert_allclose(F.T @ F, problem.curvature.dense().numpy(), atol=1e-9)


def test_the_perspective_needs_a_ridge() -> None:
    problem = make_problem("dense", "cardinality", ridge=0.0)
    with pytest.raises(ProblemError, match="needs rho > 0"):
        perspective_relaxation(problem)
    split = safe_split(problem.curvature, candidate_splits(problem)["uniform"])
    assert perspective_relaxation(problem, split=split).model.solve(solver="CLARABEL") > 0.0


# -- big-M --------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("ridge", [0.1, 1e-3, 1e-6])
@EVERY_FORM
def test_proven_big_m_holds_for_every_good_solution(form: str, ridge: float, linear: bool) -> None:
    problem = make_problem(form, "cardinality", p=10, linear=linear, ridge=ridge)
    truth = enumerate_supports(problem)
    upper = truth.optimum + 0.3 * (problem.prune_all - truth.optimum)
    M = proven_big_m(problem, upper)
    good = truth.within(upper)
    assert len(good) and bool((good.abs() <= M).all())
    assert bool((proven_big_m(problem, truth.optimum) <= M).all())


@pytest.mark.parametrize("form", ["low_rank", "dense", "shared_rows"])
def test_proven_big_m_is_tight(form: str) -> None:
    """On the boundary of the ellipsoid each weight reaches its M."""
    problem = make_problem(form, "cardinality", linear=True)
    H = problem.curvature.dense() + torch.diag(problem.rho)
    inverse = torch.linalg.inv(H)
    centre = problem.w_bar - inverse @ problem.g
    upper = 0.5 * problem.prune_all
    M = proven_big_m(problem, upper)
    radius = (2.0 * (upper - problem.objective(centre))) ** 0.5
    for j in range(P):
        sign = 1.0 if float(centre[j]) >= 0 else -1.0
        w = centre + sign * radius * inverse[j] / inverse[j, j].sqrt()
        assert problem.objective(w) == pytest.approx(upper, rel=1e-9)
        assert abs(float(w[j])) == pytest.approx(float(M[j]), rel=1e-6)


def test_big_m_below_the_dense_minimum_is_refused() -> None:
    problem = make_problem("dense", "cardinality", linear=True)
    with pytest.raises(ProblemError, match="dense minimum"):
        proven_big_m(problem, problem.dense_minimum - 1.0)
    with pytest.raises(ProblemError, match="dense minimum"):
        proven_big_m(problem, float("nan"))
    assert bool((proven_big_m(problem, problem.dense_minimum + 1e-9) > 0).all())


def test_big_m_needs_a_definite_hessian() -> None:
    with pytest.raises(CurvatureError, match="raise the ridge"):
        proven_big_m(make_problem("deficient", "cardinality", ridge=0.0), 1.0)


def test_big_m_of_a_large_problem_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chita_opt.formulations.big_m._LARGEST", 5)
    with pytest.raises(ProblemError, match="p is 12"):
        proven_big_m(make_problem("dense", "cardinality"), 1.0)


@EVERY_FORM
def test_sizes_of_big_m(form: str) -> None:
    import pyomo.environ as pyo

    problem = make_problem(form, "nested_n_of_m")
    model = big_m_miqp(problem, 10.0)
    rows, m = len(problem.supports.rows().h), factor_matrix(problem.curvature.factor()).shape[0]
    variables = list(model.component_data_objects(pyo.Var))
    assert len(variables) == 2 * P + m
    assert sum(v.is_binary() for v in variables) == P
    assert len(list(model.component_data_objects(pyo.Constraint))) == m + 2 * P + rows
    assert model.objective.polynomial_degree() == 2


@pytest.mark.parametrize("family", FAMILIES)
@EVERY_FORM
def test_big_m_at_fixed_weights_is_the_objective(form: str, family: str) -> None:
    """Every maximal support with its best weights: feasible, at the objective of numpy."""
    import pyomo.environ as pyo

    problem = make_problem(form, family, p=8, linear=True)
    truth = enumerate_supports(problem)
    model = big_m_miqp(problem, proven_big_m(problem, problem.prune_all))
    F = factor_matrix(problem.curvature.factor())
    for mask, w in list(zip(truth.masks, truth.weights, strict=True))[:6]:
        for variable, values in ((model.w, w), (model.z, mask.double()),
                                 (model.r, F @ (w - problem.w_bar).numpy())):  # fmt: skip
            for j, value in enumerate(values.tolist()):
                variable[j].set_value(value)
        set_auxiliary(model, problem, mask)
        for constraint in model.component_data_objects(pyo.Constraint, active=True):
            assert constraint.lslack() >= -1e-9 and constraint.uslack() >= -1e-9
        expected = problem.objective(w)
        assert pyo.value(model.objective) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("form", ["low_rank", "dense", "shared_rows"])
def test_highs_solves_big_m_for_a_fixed_support(form: str) -> None:
    import pyomo.environ as pyo

    problem = make_problem(form, "cardinality", p=8, linear=True)
    best = enumerate_optimum(problem)
    model = big_m_miqp(problem, proven_big_m(problem, best.objective))
    pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
    relaxed = solved(model)
    assert relaxed <= best.objective + 1e-6 * size_of(problem)
    assert relaxed >= problem.dense_minimum - 1e-6 * size_of(problem)
    for j, kept in enumerate(best.mask.tolist()):
        model.z[j].fix(float(kept))
    assert solved(model) == pytest.approx(best.objective, rel=1e-5, abs=1e-6 * size_of(problem))


def solved(model: object) -> float:
    import pyomo.environ as pyo

    pyo.SolverFactory("highs").solve(model)
    return float(pyo.value(model.objective))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "big_m", [0.0, -1.0, float("inf"), float("nan"), torch.ones(3), torch.zeros(P)]
)
def test_a_guessed_big_m_is_refused(big_m: float | torch.Tensor) -> None:
    with pytest.raises(ProblemError, match="big_m"):
        big_m_miqp(make_problem("dense", "cardinality"), big_m)


def test_big_m_has_no_default() -> None:
    with pytest.raises(TypeError, match="big_m"):
        big_m_miqp(make_problem("dense", "cardinality"))  # type: ignore[call-arg]


def test_builders_import_their_languages_late() -> None:
    code = (
        "import sys, chita_opt.formulations; "
        "print(*({'cvxpy', 'pyomo', 'clarabel', 'highspy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""
