"""Splits of each block's own: never above the optimum, never below the bound that is raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chita_opt.bounds import Bound, dual_bound, dual_point, safe_split
from chita_opt.bounds.newton import FreePart, apply_newton
from chita_opt.bounds.newton_choice import newton_system
from chita_opt.bounds.row_newton import CoupledNewton
from chita_opt.bounds.splits import less_diagonal, split_problem
from chita_opt.certificates import certify, verify_file
from chita_opt.certificates.pipeline import Effort, solve_certified
from chita_opt.curvature import BlockDiagonal, LowRank, SharedRows
from chita_opt.curvature.split_rows import SplitRows
from chita_opt.errors import CertificateError, CurvatureError
from chita_opt.exact import SplitEffort, block_split_bound, enumerate_optimum, lower_bound
from chita_opt.exact import block_splits as room
from chita_opt.heuristics import solve
from chita_opt.nn import prune
from chita_opt.problem import Problem
from chita_opt.supports import Budget

from .forging import Arrays, Claims, forge
from .problems import FAMILIES, make_problem

FORMS = ("shared_rows", "mixed_blocks", "gradient_blocks")
WIDTH, ROWS = 24, 6


def correlated(seed: int = 0, *, k: int = 40, layers: int = 1) -> Problem:
    """Rows of layers whose inputs share a few directions, as hidden activations do."""
    draw = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in range(layers):
        X = torch.randn(80, 6, generator=draw) @ torch.randn(6, WIDTH, generator=draw)
        X = (X + 0.4 * torch.randn(80, WIDTH, generator=draw)).double()
        blocks.append(SharedRows(X.T @ X / 80, ROWS))
    C = blocks[0] if layers == 1 else BlockDiagonal(blocks)
    w_bar = torch.randn(C.size, generator=draw, dtype=torch.float64)
    rho = torch.full_like(w_bar, 0.01 * float(C.diagonal().mean()))
    return Problem(C, w_bar, rho, Budget.cardinality(C.size, k))


def raised(problem: Problem, effort: SplitEffort | None = None) -> tuple[Bound, Bound]:
    """The dual bound and what becomes of it."""
    start = solve(problem)
    first = dual_bound(problem, start=start)
    return first, block_split_bound(problem, start, first, effort)


# -- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("linear", [False, True])
def test_between_the_dual_bound_and_the_optimum(form: str, family: str, linear: bool) -> None:
    problem = make_problem(form, family, linear=linear, ridge=1e-2)
    first, found = raised(problem)
    best = enumerate_optimum(problem).objective
    size = 1e-9 * abs(best) + 1e-12 * abs(problem.prune_all)
    assert first.value <= found.value <= best + size
    assert found.value == pytest.approx(
        dual_point(problem, found.witness, found.split).value, rel=1e-9, abs=size
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_a_quarter_of_a_loose_gap_is_closed(layers: int) -> None:
    problem = correlated(k=40 * layers, layers=layers)
    start = solve(problem)
    first = dual_bound(problem, start=start)
    found = block_split_bound(problem, start, first)
    assert start.objective - found.value < 0.75 * (start.objective - first.value)
    assert found.stats["split"] == "best of each block"
    assert found.trace.rows[-1][1] == pytest.approx(found.value, rel=1e-6)
    assert found.seconds >= first.seconds
    certificate = certify(start, bound=found)
    assert certificate.lower == pytest.approx(found.value, rel=1e-9)
    asked = lower_bound(problem, strength="diagonal", start=start)  # one program for all rows
    assert asked.value >= found.value - 0.02 * (start.objective - first.value)


def test_large_problems_are_raised_block_by_block() -> None:
    problem = correlated(k=120, layers=3)
    assert problem.p > 400
    first, found = raised(problem)
    asked = lower_bound(problem, strength="diagonal", start=solve(problem))
    assert isinstance(asked.witness, Bound)
    assert asked.witness.stats["split"] == "best of each block"
    assert asked.value == pytest.approx(found.value, rel=1e-2) and asked.value > first.value


def test_gradients_that_are_not_searched_stay_gradients() -> None:
    problem = correlated()
    wide = LowRank(torch.randn(4, 30, generator=torch.Generator().manual_seed(0)), 0.25)
    C = BlockDiagonal([problem.curvature, wide])
    e = torch.cat([0.3 * problem.rho * torch.rand(problem.p).double(), torch.zeros(30).double()])
    split = safe_split(C, e)
    assert split is not None and not bool(split[-30:].any())
    rest = less_diagonal(C, split)
    assert isinstance(rest, BlockDiagonal) and isinstance(rest.blocks[1], LowRank)


# -- limits --------------------------------------------------------------------------------------


def test_limits_leave_the_first_bound() -> None:
    problem = correlated()
    for effort in (
        SplitEffort(time_limit=1e-6),
        SplitEffort(work=WIDTH**3),  # a layer is searched whole or not at all
        SplitEffort(memory_limit=1000.0),
    ):
        first, found = raised(problem, effort)
        assert found.value == first.value and found.split is first.split


def test_the_cheapest_layer_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = correlated()
    small = SharedRows(torch.eye(5, dtype=torch.float64) + 0.5, 3)
    C = BlockDiagonal([problem.curvature, small])
    size = C.size
    w_bar = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = Problem(C, w_bar, torch.full_like(w_bar, 0.1), Budget.cardinality(size, 30))
    seen = []
    search = room._Block.best_split

    def spy(block: room._Block, clock: room.Clock, enough: float) -> Tensor | None:
        seen.append(block.problem.p)
        return search(block, clock, enough)

    monkeypatch.setattr(room._Block, "best_split", spy)
    raised(both, SplitEffort(work=3 * 5**3))
    assert seen == [5, 5, 5]


def test_an_interrupt_keeps_the_first_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room._Block, "best_split", stop)
    first, found = raised(correlated())
    assert found.value == first.value and found.stats["stopped"] == "interrupt"


# -- rows with splits of their own ---------------------------------------------------------------


def split_rows(seed: int = 0) -> tuple[SharedRows, SplitRows, Tensor]:
    problem = correlated(seed)
    assert isinstance(problem.curvature, SharedRows)
    draw = torch.Generator().manual_seed(seed)
    lowest = float(torch.linalg.eigvalsh(problem.curvature.H)[0])
    e = lowest * torch.rand(problem.p, generator=draw, dtype=torch.float64)
    split = safe_split(problem.curvature, e)
    assert split is not None and bool((split <= e).all())
    rest = less_diagonal(problem.curvature, split)
    assert isinstance(rest, SplitRows)
    return problem.curvature, rest, split


def lowest_eigenvalue(Q: Tensor) -> float:
    return float(torch.linalg.eigvalsh(Q)[0])


def test_split_rows_are_the_matrix_they_say() -> None:
    C, rest, split = split_rows()
    Q = C.dense() - torch.diag(split)
    x = torch.randn(C.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    same = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(rest.dense(), Q, **same)
    torch.testing.assert_close(rest.product(x), Q @ x, **same)
    torch.testing.assert_close(rest.diagonal(), Q.diagonal(), **same)
    factor = rest.factor()
    torch.testing.assert_close(factor.adjoint(factor.forward(x)), Q @ x, **same)
    torch.testing.assert_close(factor.column_norms(), Q.diagonal(), **same)
    r = rest.dual_of_image(rest.image(x))
    torch.testing.assert_close(rest.image_of_dual(r), x, rtol=1e-6, atol=1e-8)
    assert rest.to("cpu").specification["form"] == "split_rows" and set(rest.arrays()) == {"H", "e"}
    again = 0.5 * lowest_eigenvalue(Q) * torch.ones(C.size, dtype=torch.float64)
    torch.testing.assert_close(less_diagonal(rest, again).dense(), Q - torch.diag(again), **same)
    mask = torch.arange(C.size) % 3 == 0
    whole = Problem(C, x, torch.full_like(x, 0.1), Budget.cardinality(C.size, C.size))
    other = split_problem(whole, split)
    ours = other.curvature.support_solver(other.separable, mask)
    theirs = C.support_solver(whole.separable, mask)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("pools", ["rows", "one", "none"])
def test_newton_systems_of_split_rows(pools: str) -> None:
    _, rest, _ = split_rows(2)
    factor = rest.factor()
    draw = torch.Generator().manual_seed(3)
    z = torch.rand(factor.size, generator=draw, dtype=torch.float64)
    z[::2] = 0.0
    index = torch.arange(1, factor.size, 4)
    labels = {
        "rows": index // WIDTH,
        "one": torch.zeros_like(index),
        "none": torch.full_like(index, -1),
    }[pools]
    slope = torch.randn(len(index), generator=draw, dtype=torch.float64)
    free = FreePart(index, slope, torch.ones(len(index), dtype=torch.float64), labels)
    system = newton_system(factor, 4e9)
    assert isinstance(system, CoupledNewton) and system.prepare(z, free)
    rhs = torch.randn(factor.dual_size, generator=draw, dtype=torch.float64)
    solved = apply_newton(factor, z, free, system.solve(rhs))
    torch.testing.assert_close(solved, rhs, rtol=1e-6, atol=1e-7)


def test_splits_of_another_shape_are_refused() -> None:
    C, _, split = split_rows()
    with pytest.raises(CurvatureError, match="one diagonal a row"):
        SplitRows(C, split[:WIDTH])


def test_a_split_too_large_in_one_row_is_refused_by_numpy(tmp_path: Path) -> None:
    problem = correlated()
    start = solve(problem)
    certificate = certify(start, bound=raised(problem)[1])
    certificate.save(tmp_path / "file")
    assert verify_file(tmp_path / "file").lower == pytest.approx(certificate.lower, rel=1e-12)

    def raise_one(arrays: Arrays, _: Claims) -> None:
        assert len(np.unique(arrays["bound.split"].reshape(ROWS, -1), axis=0)) == ROWS
        arrays["bound.split"][-3] += 10.0

    with pytest.raises(CertificateError, match="positive semidefinite"):
        verify_file(forge(tmp_path / "file", tmp_path / "other", raise_one))


# -- where users meet it -------------------------------------------------------------------------


def test_certificates_of_layer_inputs_use_it() -> None:
    problem = correlated()
    plain = dual_bound(problem, start=solve(problem))
    quick = solve_certified(problem)
    patient = solve_certified(problem, Effort(time_limit=5.0))
    for certificate in (quick, patient):
        assert certificate.lower > plain.value
        assert certificate.gap < 0.7 * (certificate.upper - plain.value)
    loose = solve_certified(problem, Effort(target_gap=0.99))
    assert loose.bound.stats["split"] != "best of each block"


def test_hybrid_pruning_with_budgets_of_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    result = prune(
        net, None, torch.randn(60, 12), sparsity=0.6, curvature="inputs", scope="layer",
        rows=60, ridge=0.1, method="hybrid", time_limit=3.0,
    )  # fmt: skip
    assert result.certificate is not None
    assert result.certificate.lower <= result.objective
