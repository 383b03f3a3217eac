"""Pyomo models beyond big-M: sizes, values at fixed supports, strength, side constraints."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyomo.environ as pyo
import pytest
import torch

from chita_opt.bounds import safe_split
from chita_opt.errors import ProblemError, SupportError
from chita_opt.exact import enumerate_optimum, enumerate_supports
from chita_opt.exact.enumerate import Enumeration
from chita_opt.formulations import (
    add_weight_cuts,
    big_m_miqp,
    block_widths,
    cost_budget,
    indicator_gdp,
    perspective_miqcp,
    perspective_relaxation,
    proven_big_m,
    removal_costs,
    removal_miqcp,
    sos1_miqp,
    weight_cuts_milp,
)
from chita_opt.formulations.factors import factor_matrix
from chita_opt.formulations.model_parts import SideConstraint
from chita_opt.problem import Problem

from .problems import CURVATURES, FAMILIES, make_problem, set_auxiliary

P = 8
M = 50.0  # above every weight of these instances
EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)

MODELS: dict[str, Callable[[Problem], Any]] = {
    "sos1": sos1_miqp,
    "indicator": lambda problem: indicator_gdp(problem, M),
    "perspective": lambda problem: perspective_miqcp(problem, big_m=M),
    "removal": lambda problem: removal_miqcp(problem, M),
}


def size_of(problem: Problem) -> float:
    return problem.prune_all + abs(problem.dense_minimum)


def assign(model: Any, problem: Problem, w: torch.Tensor, mask: torch.Tensor) -> None:
    """Give every variable of any of the models its value at weights w and a mask."""
    F = factor_matrix(problem.curvature.factor())
    z, x = mask.double(), w - problem.w_bar
    values = {"w": w, "z": z, "u": 1 - z, "v": 1 - z, "x": x, "s": w**2, "r": F @ x.numpy()}
    for name, vector in values.items():
        variable = model.component(name)
        if isinstance(variable, pyo.Var):
            for j, value in enumerate(vector.tolist()):
                variable[j].set_value(value, skip_validation=True)
    set_auxiliary(model, problem, mask)
    if model.component("t") is not None:
        model.t.set_value(problem.objective(w))


def some(truth: Enumeration) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(truth.masks, truth.weights, strict=True))[:5]


def violation(model: Any) -> float:
    """Largest violation of an active row outside disjuncts."""
    rows = model.component_data_objects(pyo.Constraint, active=True, descend_into=pyo.Block)
    return max((max(-row.lslack(), -row.uslack()) for row in rows), default=0.0)


@EVERY_FAMILY
@EVERY_FORM
def test_values_at_fixed_weights_are_those_of_numpy(form: str, family: str) -> None:
    problem = make_problem(form, family, p=P, linear=True)
    truth = enumerate_supports(problem)
    for build in MODELS.values():
        model = build(problem)
        for mask, w in some(truth):
            assign(model, problem, w, mask)
            assert violation(model) <= 1e-8 * size_of(problem)
            expected = problem.objective(w)
            assert pyo.value(model.objective) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@EVERY_FORM
def test_sizes(form: str) -> None:
    problem = make_problem(form, "nested_n_of_m", p=P)
    G = len(problem.supports.rows().h)
    m = factor_matrix(problem.curvature.factor()).shape[0]
    sizes = {
        "sos1": (3 * P + m, m + P + G),
        "indicator": (2 * P + m, m + G),
        "perspective": (3 * P + m, m + 3 * P + G),
        "removal": (2 * P + m + 1, m + 3 * P + 1 + G),
    }
    for name, (variables, rows) in sizes.items():
        model = MODELS[name](problem)
        found = [v for v in model.component_data_objects(pyo.Var, descend_into=pyo.Block)]
        assert (len(found), sum(v.is_binary() for v in found)) == (variables, P), name
        constraints = model.component_data_objects(pyo.Constraint, descend_into=pyo.Block)
        assert len(list(constraints)) == rows, name
    assert len(list(sos1_miqp(problem).component_data_objects(pyo.SOSConstraint))) == P
    milp = weight_cuts_milp(problem, M)
    assert len(list(milp.component_data_objects(pyo.Var))) == 3 * P + 1


def solved(model: Any) -> float:
    """By HiGHS: linear models, and quadratic ones without integers."""
    result = pyo.SolverFactory("highs").solve(model)
    assert result.solver.termination_condition == "optimal"
    return float(pyo.value(model.objective))


@pytest.mark.parametrize("family", ["cardinality", "blocks"])
def test_disjunctions_become_big_m(family: str) -> None:
    problem = make_problem("dense", family, p=6, linear=True)
    best = enumerate_optimum(problem)
    for transformation in ("gdp.bigm", "gdp.hull"):
        model = indicator_gdp(problem, proven_big_m(problem, best.objective))
        pyo.TransformationFactory(transformation).apply_to(model)
        pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
        for j, kept in enumerate(best.mask.tolist()):
            model.z[j].fix(float(kept))
            model.keep[j].binary_indicator_var.fix(float(kept))
            model.prune[j].binary_indicator_var.fix(1.0 - float(kept))
        value = solved(model)
        assert value == pytest.approx(best.objective, rel=1e-5, abs=1e-6 * size_of(problem))


@pytest.mark.parametrize("family", ["cardinality", "nested_blocks", "pairs"])
@EVERY_FORM
def test_saliency_rows_prove_what_big_m_does_not(form: str, family: str) -> None:
    """The removal form's rows alone: a linear program, a bound, and not below the dense minimum."""
    problem = make_problem(form, family, p=P, linear=True)
    truth = enumerate_supports(problem)
    base, costs = removal_costs(problem)
    assert base == pytest.approx(problem.dense_minimum, abs=1e-9 * size_of(problem))
    for j in range(P):
        w = torch.ones(P, dtype=torch.bool)
        w[j] = False
        alone = problem.curvature.support_solver(problem.separable, w).value
        assert float(costs[j]) == pytest.approx(alone - base, rel=1e-6, abs=1e-9 * size_of(problem))
    model = removal_miqcp(problem, M)
    model.loss.deactivate()
    pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
    value = solved(model)
    assert base - 1e-6 * size_of(problem) <= value <= truth.optimum + 1e-6 * size_of(problem)


def test_the_removal_form_keeps_more_where_little_is_pruned() -> None:
    problem = make_problem("dense", "everything", p=P)
    relaxed = removal_miqcp(problem, M)
    assert solved_without_loss(relaxed) == pytest.approx(0.0, abs=1e-6)
    tight = removal_miqcp(problem.with_supports(FAMILIES["nothing"](torch.Generator(), P)), M)
    costs = removal_costs(problem)[1]
    assert solved_without_loss(tight) == pytest.approx(float(costs.max()), rel=1e-6)


def solved_without_loss(model: Any) -> float:
    model.loss.deactivate()
    return solved(model)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("family", ["cardinality", "n_of_m", "pairs"])
@EVERY_FORM
def test_weight_cuts_touch_and_stay_below(form: str, family: str, split: bool) -> None:
    problem = make_problem(form, family, p=P, linear=True)
    e = safe_split(problem.curvature) if split else None
    best = enumerate_optimum(problem)
    big_m = proven_big_m(problem, best.objective)
    tangents = [best.w, problem.w_bar]
    model = weight_cuts_milp(problem, big_m, tangents, split=e)
    tolerance = 1e-6 * size_of(problem)
    assert solved(model) <= best.objective + tolerance
    for j, kept in enumerate(best.mask.tolist()):
        model.z[j].fix(float(kept))
    assert solved(model) == pytest.approx(best.objective, abs=10 * tolerance)


def test_weight_cuts_in_rounds_reach_the_optimum() -> None:
    problem = make_problem("tall", "cardinality", p=6)
    best = enumerate_optimum(problem)
    model = weight_cuts_milp(problem, proven_big_m(problem, best.objective), [problem.w_bar])
    value = solved(model)
    for _ in range(40):
        mask = torch.tensor([model.z[j].value > 0.5 for j in range(6)])
        w = problem.curvature.support_solver(problem.separable, mask).weights
        add_weight_cuts(model, problem, w)
        new = solved(model)
        assert new >= value - 1e-6 * size_of(problem)
        value = new
        if value >= best.objective - 1e-6 * size_of(problem):
            return
    pytest.fail(f"{value} after 40 rounds, optimum {best.objective}")


def test_models_refuse_what_they_cannot_hold() -> None:
    flat = make_problem("dense", "cardinality", p=P, ridge=0.0)
    for build in (lambda: perspective_miqcp(flat), lambda: weight_cuts_milp(flat, M)):
        with pytest.raises(ProblemError, match="needs rho > 0"):
            build()
    problem = make_problem("dense", "cardinality", p=P)
    guesses = (
        lambda: removal_miqcp(problem, 0.0),
        lambda: indicator_gdp(problem, float("nan")),
        lambda: weight_cuts_milp(problem, torch.ones(3)),
        lambda: perspective_miqcp(problem, big_m=-1.0),
    )
    for guess in guesses:
        with pytest.raises(ProblemError, match="big_m"):
            guess()


# -- side constraints -----------------------------------------------------------------------------


def allowed_masks(problem: Problem, constrain: SideConstraint) -> set[tuple[int, ...]]:
    """Masks for which HiGHS finds the model's rows satisfiable."""
    found = set()
    for mask in product((0, 1), repeat=problem.p):
        model = pyo.ConcreteModel()
        model.J = pyo.RangeSet(0, problem.p - 1)
        model.z = pyo.Var(model.J, domain=pyo.Binary)
        constrain(model)
        for j, kept in enumerate(mask):
            model.z[j].fix(float(kept))
        model.objective = pyo.Objective(expr=0.0)
        solver = pyo.SolverFactory("appsi_highs")
        result = solver.solve(model, load_solutions=False)
        if result.solver.termination_condition == "optimal":
            found.add(mask)
    return found


def test_block_widths_are_those_of_some_choice() -> None:
    """2 rows of 4: every mask against all choices of widths."""
    problem = make_problem("dense", "everything", p=8)
    expected = set()
    for widths in product((1, 2, 4), repeat=2):
        if sum(4 // B for B in widths) > 3:
            continue
        for mask in product((0, 1), repeat=8):
            row = np.array(mask).reshape(2, 4)
            pairs = zip(row, widths, strict=True)
            if all((r.reshape(-1, B).sum(1) <= 1).all() for r, B in pairs):
                expected.add(mask)
    assert allowed_masks(problem, block_widths(2, 4, (1, 2, 4), 3)) == expected


def test_costs_are_limited() -> None:
    problem = make_problem("dense", "everything", p=4)
    costs = [3.0, 0.0, 1.5, 2.0]
    found = allowed_masks(problem, cost_budget(costs, 3.5))
    assert found == {m for m in product((0, 1), repeat=4) if np.dot(costs, m) <= 3.5}
    free = big_m_miqp(problem, M)
    cost_budget([0.0] * 4, 0.0)(free)  # nothing to limit: no row
    assert free.component("cost") is None


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: cost_budget([1.0, -1.0], 3.0), ">= 0"),
        (lambda: cost_budget([1.0], float("inf")), "limit is inf"),
        (lambda: block_widths(2, 4, (3,), 4), "divisors of the 4 columns"),
        (lambda: block_widths(2, 4, (1, 1), 8), "different divisors"),
        (lambda: block_widths(2, 4, (1, 2), 3), "allow wider blocks"),
    ],
)
def test_wrong_side_constraints_are_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(SupportError, match=message):
        wrong()


def test_side_constraints_must_fit_the_model() -> None:
    model = big_m_miqp(make_problem("dense", "cardinality", p=4), M)
    with pytest.raises(SupportError, match="3 costs for 4 weights"):
        cost_budget([1.0, 1.0, 1.0], 2.0)(model)
    with pytest.raises(SupportError, match="exceed the 4 weights"):
        block_widths(1, 4, (2,), 2, first=1)(model)


def test_the_cones_relax_to_the_perspective() -> None:
    """At the relaxation's own point the conic model has the relaxation's value."""
    problem = make_problem("dense", "cardinality", p=6, linear=True)
    relaxed = perspective_relaxation(problem)
    value = relaxed.model.solve(solver="CLARABEL")
    model = perspective_miqcp(problem)
    F = factor_matrix(problem.curvature.factor())
    image = F @ (relaxed.w.value - problem.w_bar.numpy())
    for name, vector in {"w": relaxed.w, "z": relaxed.z, "s": relaxed.s}.items():
        for j in range(6):
            model.component(name)[j].set_value(float(vector.value[j]), skip_validation=True)
    for i, entry in enumerate(image.tolist()):
        model.r[i].set_value(entry)
    assert pyo.value(model.objective) == pytest.approx(value, rel=1e-6)
    assert violation(model) <= 1e-5 * size_of(problem)


def test_weight_cuts_at_fractional_points_approach_the_perspective() -> None:
    """Kelley's method: tangents of Q at w and of the perspective at w / z."""
    problem = make_problem("dense", "cardinality", p=6)
    target = perspective_relaxation(problem).model.solve(solver="CLARABEL")
    model = weight_cuts_milp(problem, M, [problem.w_bar])
    pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
    for _ in range(60):
        value = solved(model)
        assert value <= target + 1e-5 * size_of(problem)
        w = torch.tensor([model.w[j].value for j in range(6)], dtype=torch.float64)
        z = torch.tensor([max(model.z[j].value, 1e-3) for j in range(6)], dtype=torch.float64)
        add_weight_cuts(model, problem, w, ratio=w / z)
    assert value == pytest.approx(target, abs=2e-3 * size_of(problem))
