"""Dual cuts: below the truth at every mask, tight where they touch, safe after cleaning."""

from __future__ import annotations

from itertools import product

import numpy as np
import pyomo.environ as pyo
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chita_opt.bounds import candidate_splits, dual_bound, safe_split
from chita_opt.errors import ProblemError
from chita_opt.exact.outer_approximation.covers import shortest_cover
from chita_opt.exact.outer_approximation.cuts import CutMaker
from chita_opt.exact.outer_approximation.split import split_at, weights_at
from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.formulations import DualCut, add_dual_cut, cleaned, dual_cut, dual_cuts_milp
from chita_opt.problem import Problem

from .problems import CURVATURES, FAMILIES, make_problem, normal

P = 8
EVERY_FORM = pytest.mark.parametrize("form", CURVATURES)


def size_of(problem: Problem) -> float:
    return problem.prune_all + abs(problem.dense_minimum)


def truth(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """All 2^p masks and the best objective on each."""
    quadratic = Quadratic.of(problem)
    masks = np.array(list(product((0.0, 1.0), repeat=problem.p)))
    return masks, np.array([quadratic.solve(np.flatnonzero(m))[1] for m in masks])


@EVERY_FORM
def test_a_cut_is_below_the_truth_everywhere_and_touches(form: str) -> None:
    problem = make_problem(form, "cardinality", p=P, linear=True, per_weight=True)
    masks, values = truth(problem)
    split = safe_split(problem.curvature)
    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        cut = dual_cut(problem, problem.curvature.image(normal(draw, P)), split)
        assert (cut.constant - masks @ cut.slopes <= values + 1e-9 * size_of(problem)).all()
    mask = problem.supports.best_support(problem.scores)
    w = problem.curvature.support_solver(problem.separable, mask).weights
    cut = dual_cut(problem, problem.curvature.image(w - problem.w_bar), split)
    at = cut.value(mask.double().numpy())
    assert at == pytest.approx(problem.objective(w), abs=1e-8 * size_of(problem))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_relaxed_master_is_the_dual_bound(family: str) -> None:
    """One cut at the best witness: over the rows its best value is the bound."""
    problem = make_problem("tall", family, p=P)
    bound = dual_bound(problem)
    model = dual_cuts_milp(problem, [dual_cut(problem, bound.witness, bound.split)], lower=-1e6)
    family_rows = problem.supports.rows()
    assert len(list(model.component_data_objects(pyo.Var))) == P + 1 + family_rows.q
    pyo.TransformationFactory("core.relax_integer_vars").apply_to(model)
    pyo.SolverFactory("highs").solve(model)
    slack = 1e-6 * size_of(problem)
    assert pyo.value(model.t) <= bound.value + slack
    if problem.supports.rows_are_tight:
        assert pyo.value(model.t) == pytest.approx(bound.value, abs=slack)


def test_a_cut_must_be_finite_with_slopes_above_zero() -> None:
    for constant, slopes in ((np.nan, [1.0]), (1.0, [-1e-9]), (1.0, [np.inf])):
        with pytest.raises(ProblemError, match="dual cut"):
            DualCut(constant, np.array(slopes))


numbers = st.floats(0.0, 1e6, allow_nan=False).map(lambda x: x if x > 1e-300 else 0.0)


@given(
    constant=st.floats(-1e6, 1e6),
    slopes=st.lists(st.one_of(numbers, st.floats(1e-14, 1e-6)), min_size=1, max_size=6),
    floor=st.one_of(st.just(-np.inf), st.floats(-1e6, 1e6)),
    scale=st.floats(1e-6, 1e6),
    smallest=st.sampled_from([0.0, 1e-9, 1e-6, 1e-2]),
)
def test_cleaning_never_overstates(
    constant: float, slopes: list[float], floor: float, scale: float, smallest: float
) -> None:
    """At every mask the cleaned cut is below the larger of the cut itself and the floor."""
    cut = DualCut(constant, np.array(slopes))
    clean = cleaned(cut, floor=floor, scale=scale, smallest=smallest)
    assert ((clean.slopes == 0.0) | (clean.slopes >= smallest)).all()
    for z in product((0.0, 1.0), repeat=len(slopes)):
        mask = np.array(z)
        rounding = 1e-15 * (abs(constant) + float(cut.slopes @ mask))
        assert scale * clean.value(mask) <= max(cut.value(mask), floor) + rounding


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.floats(-10.0, 10.0))
def test_cleaning_costs_next_to_nothing(slopes: list[float], constant: float) -> None:
    cut = DualCut(constant, np.array(slopes))
    clean = cleaned(cut)
    for z in product((0.0, 1.0), repeat=len(slopes)):
        mask = np.array(z)
        lost = cut.value(mask) - clean.value(mask)
        assert lost <= 1e-10 * (abs(constant) + float(cut.slopes.sum()))


def test_cuts_enter_the_model_as_they_are() -> None:
    problem = make_problem("dense", "everything", p=3)
    model = dual_cuts_milp(problem, lower=-10.0)
    row = add_dual_cut(model, DualCut(2.0, np.array([0.5, 0.0, 3.0])))
    for z in product((0.0, 1.0), repeat=3):
        for j, kept in enumerate(z):
            model.z[j].set_value(kept)
        model.t.set_value(0.0)
        assert row.lslack() == pytest.approx(-2.0 + 0.5 * z[0] + 3.0 * z[2])


# -- cuts of what is still open -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@EVERY_FORM
def test_cuts_with_weights_fixed(form: str, seed: int) -> None:
    """Below the truth at every mask without weights fixed out, whatever it does with the rest."""
    problem = make_problem(form, "cardinality", p=P, seed=seed, linear=True)
    draw = np.random.default_rng(seed)
    state = draw.choice([FREE, IN, OUT], size=P, p=[0.6, 0.2, 0.2]).astype(np.int8)
    state[0] = FREE
    masks, values = truth(problem)
    inside = ~masks[:, state == OUT].any(axis=1)
    maker = CutMaker(Quadratic.of(problem), state)
    z = draw.random(P)
    d = maker.sharp_split(z)
    assert d is not None and (d[state != OUT] > 0.0).all()
    mask = np.where(state == OUT, 0.0, np.where(state == IN, 1.0, z > 0.5))
    w = np.zeros(P)
    w[mask > 0] = maker.quadratic.solve(np.flatnonzero(mask))[0]
    row = int((masks == mask).all(axis=1).argmax())
    for point in (maker.weights(z, d), w, np.where(state == OUT, 0.0, draw.normal(size=P))):
        cut = maker.cut(d, point)
        low = cut.constant - masks @ cut.slopes
        assert (low[inside] <= values[inside] + 1e-12 * size_of(problem)).all()
        if point is w:
            assert low[row] == pytest.approx(values[row], abs=1e-8 * size_of(problem))


@EVERY_FORM
def test_the_split_at_a_point_is_the_best_one(form: str) -> None:
    """No candidate split has a higher relaxation there."""
    problem = make_problem(form, "cardinality", p=P)
    quadratic = Quadratic.of(problem)
    z = np.random.default_rng(0).uniform(0.05, 0.95, P)

    def value(d: np.ndarray) -> float:
        w = weights_at(quadratic.H, quadratic.b, z, d)
        smooth = 0.5 * w @ (quadratic.H - np.diag(d)) @ w - quadratic.b @ w
        return float(smooth + 0.5 * (d * w**2 / z).sum())

    best = split_at(quadratic.H, quadratic.b, z, tol=1e-6)
    assert best is not None
    assert np.linalg.eigvalsh(quadratic.H - np.diag(best))[0] > 0.0
    scale = size_of(problem)
    plain = value(problem.rho.numpy())
    assert value(best) >= plain - 1e-6 * scale
    for e in candidate_splits(problem).values():
        assert value(best) >= value((problem.rho + 0.999 * e).numpy()) - 1e-6 * scale
    for j in range(P):  # and nothing near it either
        for step in (0.98, 1.02):
            other = best.copy()
            other[j] *= step
            if np.linalg.eigvalsh(quadratic.H - np.diag(other))[0] > 0.0:
                assert value(best) >= value(other) - 1e-4 * scale


def test_a_singular_matrix_has_no_split() -> None:
    assert split_at(np.ones((3, 3)), np.ones(3), np.full(3, 0.5)) is None
    assert split_at(np.zeros((2, 2)), np.zeros(2), np.full(2, 0.5)) is None


@given(st.sets(st.integers(0, 9), min_size=1, max_size=4), st.permutations(list(range(10))))
def test_covers_are_irredundant(core: set[int], order: list[int]) -> None:
    """Whatever contains the core excludes; the cover found is the core."""
    found = shortest_cover(np.array(order), lambda held: core <= set(held.tolist()), lambda: False)
    assert found is not None and set(found.tolist()) == core


def test_no_cover_where_nothing_excludes() -> None:
    assert shortest_cover(np.arange(5), lambda held: False, lambda: False) is None
    assert shortest_cover(np.arange(5), lambda held: False, lambda: True) is None
