"""Every curvature form gives the answers of the explicit matrix, and refuses bad data."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from chita_opt.curvature import (
    BlockDiagonal,
    Curvature,
    Dense,
    LowRank,
    SeparablePart,
    SharedRows,
    SupportSolver,
)
from chita_opt.curvature.cholesky import CholeskySupport
from chita_opt.curvature.woodbury import WoodburySupport
from chita_opt.errors import CurvatureError
from chita_opt.formulations.factors import factor_matrix

from .problems import CURVATURES, gradients, gram, normal

P = 12
FORMS = pytest.mark.parametrize("form", CURVATURES)


def close(found: Tensor, expected: Tensor, rtol: float = 1e-9) -> None:
    """Equal to ``rtol`` of the largest entry."""
    size = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0.0, atol=rtol * size + 1e-300)


def draw_for(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(form: str, seed: int = 0) -> tuple[Curvature, Tensor]:
    """A form, and its matrix computed here from the stored arrays."""
    C = CURVATURES[form](draw_for(seed), P)
    return C, explicit(C)


def explicit(C: Curvature) -> Tensor:
    if isinstance(C, LowRank):
        return C.scale * C.A.double().T @ C.A.double()
    if isinstance(C, SharedRows):
        return torch.block_diag(*[C.H] * C.rows)
    if isinstance(C, BlockDiagonal):
        return torch.block_diag(*[explicit(block) for block in C.blocks])
    assert isinstance(C, Dense)
    return C.H


def supports() -> list[Tensor]:
    """Empty, full, and random masks of every size."""
    draw = draw_for(5)
    masks = [torch.zeros(P, dtype=torch.bool), torch.ones(P, dtype=torch.bool)]
    for k in range(1, P):
        masks.append(torch.zeros(P, dtype=torch.bool))
        masks[-1][torch.randperm(P, generator=draw)[:k]] = True
    return masks


def separable(seed: int = 0, level: float = 0.2) -> SeparablePart:
    draw = draw_for(100 + seed)
    rho = level * (0.5 + torch.rand(P, generator=draw, dtype=torch.float64))
    return SeparablePart(normal(draw, P), 0.3 * normal(draw, P), rho)


# -- products -----------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize("exact", [True, False])
def test_products(form: str, exact: bool) -> None:
    C, M = build(form)
    x, index = normal(draw_for(1), P), torch.tensor([7, 0, 11, 3])
    close(C.product(x, exact=exact), M @ x)
    image = C.image(x, exact=exact)
    assert image.shape == (C.image_size,) and image.dtype == torch.float64
    close(C.pullback(image, index=index, exact=exact), (M @ x)[index])
    assert C.quadratic(x) == pytest.approx(0.5 * float(x @ M @ x), rel=1e-12)
    assert C.energy(image) == pytest.approx(0.5 * float(x @ M @ x), rel=1e-12)


@FORMS
def test_sparse_displacements(form: str) -> None:
    """Few non-zero entries take a path that reads only their columns."""
    C, M = build(form)
    for k in (0, 1, 3, P - 1):
        x = torch.zeros(P, dtype=torch.float64)
        x[:k] = normal(draw_for(k), k)
        close(C.product(x), M @ x)


@FORMS
def test_entries(form: str) -> None:
    C, M = build(form)
    rows, cols = torch.tensor([3, 3, 0, 11]), torch.tensor([11, 4, 3])
    close(C.diagonal(), M.diagonal())
    close(C.cross(rows, cols), M[rows][:, cols])
    close(C.submatrix(rows), M[rows][:, rows])
    close(C.dense(), M)
    assert C.size == P


@FORMS
def test_images_are_linear(form: str) -> None:
    C, _ = build(form)
    x, y = normal(draw_for(2), P), normal(draw_for(3), P)
    close(C.image(2.0 * x - y), 2.0 * C.image(x) - C.image(y))


@FORMS
def test_factor(form: str) -> None:
    """F'F = C, and the dual space maps to images and back."""
    C, M = build(form)
    F = C.factor()
    rows = torch.from_numpy(factor_matrix(F).toarray())
    assert rows.shape == (F.dual_size, P) and F.size == P
    close(rows.T @ rows, M)
    close(F.column_norms(), M.diagonal())
    x, r = normal(draw_for(4), P), normal(draw_for(5), F.dual_size)
    for exact in (True, False):
        close(F.forward(x, exact=exact), rows @ x)
        close(F.adjoint(r, exact=exact), rows.T @ r)
    close(C.pullback(C.image_of_dual(r)), rows.T @ r)
    close(C.dual_of_image(C.image(x)), rows @ x)
    close(C.pullback(C.image_of_dual(C.dual_of_image(C.image(x)))), M @ x)


@FORMS
def test_copies_and_descriptions(form: str) -> None:
    C, M = build(form)
    close(C.to("cpu").dense(), M, 1e-15)
    assert C.specification["form"]
    assert all(isinstance(a, Tensor) for a in C.arrays().values())


def test_columns_are_not_copied_twice() -> None:
    columns = normal(draw_for(), 6, 3)
    assert LowRank(columns.T, 1.0).A.data_ptr() == columns.data_ptr()


def test_large_column_stores_are_read_in_blocks() -> None:
    """More columns than one block of the float64 conversion."""
    C = LowRank(normal(draw_for(), 3, 9001).float(), 0.5)
    x = normal(draw_for(1), 9001)
    A = C.A.double()
    close(C.product(x), 0.5 * (A.T @ (A @ x)))
    close(C.diagonal(), 0.5 * A.square().sum(0))


# -- solving on a support -----------------------------------------------------------------------


def check_solver(solver: SupportSolver, M: Tensor, part: SeparablePart, rtol: float = 1e-9) -> None:
    """Against the explicit matrix: KKT on the support, inverses and Schur complements."""
    mask = solver.mask
    H = M + torch.diag(part.rho)
    S, other = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
    x = torch.where(mask, 0.0, -part.w_bar)
    inverse = torch.linalg.inv(H[S][:, S])
    x[S] = inverse @ (-part.g - H @ x)[S]
    close(solver.weights, part.w_bar + x, rtol)
    assert not bool(solver.weights[other].any())
    value = 0.5 * float(x @ H @ x) + float(part.g @ x)
    assert solver.value == pytest.approx(value, rel=rtol, abs=rtol)
    gradient = H @ (solver.weights - part.w_bar) + part.g
    torch.testing.assert_close(
        gradient[S], torch.zeros_like(x[S]), rtol=0.0, atol=rtol * float(H.abs().sum())
    )
    close(solver.pull, part.rho * solver.weights - gradient, rtol)
    schur = H[other][:, other] - H[other][:, S] @ inverse @ H[S][:, other]
    close(solver.inverse_diagonal(S), inverse.diagonal(), rtol)
    close(solver.schur_diagonal(other), schur.diagonal(), rtol)
    close(solver.reduced(other), schur, rtol)
    few, order = other[::2].flip(0), torch.arange(len(other))[::2].flip(0)
    close(solver.schur_diagonal(few), schur.diagonal()[order], rtol)
    close(solver.reduced(few), schur[order][:, order], rtol)
    close(solver.inverse_diagonal(S[::2]), inverse.diagonal()[::2], rtol)


@FORMS
@pytest.mark.parametrize("exact", [True, False])
def test_support_solver(form: str, exact: bool) -> None:
    C, M = build(form)
    part = separable()
    for mask in supports():
        check_solver(C.support_solver(part, mask, exact=exact), M, part)


@FORMS
def test_moved_solver(form: str) -> None:
    C, M = build(form)
    part = separable(1)
    masks = supports()
    solver = C.support_solver(part, masks[P // 2])
    for mask in masks:
        solver = solver.moved(mask)
        assert solver.mask.equal(mask)
        check_solver(solver, M, part)
    again = solver.moved(masks[-1], exact=True)  # the same support, to more digits
    assert again.exact and again.value == pytest.approx(C.support_solver(part, masks[-1]).value)


@pytest.mark.parametrize("n", [2, 5, 12, 30])
def test_low_rank_takes_the_cheaper_way(n: int) -> None:
    C = gradients(draw_for(n), n, P)
    M, part = explicit(C), separable()
    for mask in supports():
        kept = int(mask.sum())
        solver = C.support_solver(part, mask)
        if kept > n:
            assert isinstance(solver, WoodburySupport)
        if 2 * kept <= n:
            assert isinstance(solver, CholeskySupport)
        check_solver(solver, M, part)
        for other in (WoodburySupport.solve(C.factor_of_rows, part, mask),
                      CholeskySupport.solve(C, part, mask)):  # fmt: skip
            close(solver.weights, other.weights)
            assert solver.value == pytest.approx(other.value, rel=1e-10)


def test_no_ridge_is_served_where_the_support_is_small() -> None:
    C = gradients(draw_for(), 6, P)
    part = SeparablePart(separable().w_bar, torch.zeros(P, dtype=torch.float64),
                         torch.zeros(P, dtype=torch.float64))  # fmt: skip
    mask = torch.arange(P) < 4
    check_solver(C.support_solver(part, mask), explicit(C), part, 1e-6)
    with pytest.raises(CurvatureError, match="need rho > 0"):
        C.support_solver(part, torch.ones(P, dtype=torch.bool))


@pytest.mark.parametrize("form", ["dense", "deficient", "shared_rows", "gradient_blocks"])
def test_a_singular_support_names_the_cure(form: str) -> None:
    C = CURVATURES[form](draw_for(), P)
    H = torch.ones(P, P, dtype=torch.float64)
    singular: Curvature = Dense(H) if form in ("dense", "deficient") else SharedRows(H[:4, :4], 3)
    if isinstance(C, BlockDiagonal):
        singular = BlockDiagonal([SharedRows(H[:4, :4], 3)])
    zero = torch.zeros(P, dtype=torch.float64)
    with pytest.raises(CurvatureError, match="raise the ridge"):
        singular.support_solver(
            SeparablePart(zero + 1, zero, zero), torch.ones(P, dtype=torch.bool)
        )


def rational_solve(A: Tensor, scale: float, part: SeparablePart, S: list[int]) -> list[Fraction]:
    """Exact minimiser on S in rational arithmetic: (C + diag(rho))_SS x_S = -g_S - C_SO x_O."""
    rows = [[Fraction(v) for v in row] for row in A.double().tolist()]
    p, s = A.shape[1], Fraction(scale)
    w_bar = [Fraction(v) for v in part.w_bar.tolist()]
    x = [Fraction(0) if j in S else -w_bar[j] for j in range(p)]
    image = [sum(a * v for a, v in zip(row, x, strict=True)) for row in rows]
    system = []
    for i in S:
        line = [s * sum(row[i] * row[j] for row in rows) for j in S]
        line[S.index(i)] += Fraction(float(part.rho[i]))
        force = s * sum(row[i] * r for row, r in zip(rows, image, strict=True))
        system.append([*line, -Fraction(float(part.g[i])) - force])
    for k in range(len(S)):
        for i in range(k + 1, len(S)):
            ratio = system[i][k] / system[k][k]
            system[i] = [a - ratio * b for a, b in zip(system[i], system[k], strict=True)]
    for k in reversed(range(len(S))):
        rest = sum(system[k][j] * x[S[j]] for j in range(k + 1, len(S)))
        x[S[k]] = (system[k][-1] - rest) / system[k][k]
    return x


def rational_value(A: Tensor, scale: float, part: SeparablePart, x: list[Fraction]) -> Fraction:
    rows = [[Fraction(v) for v in row] for row in A.double().tolist()]
    image = [sum(a * v for a, v in zip(row, x, strict=True)) for row in rows]
    value = Fraction(scale) * sum(r * r for r in image) / 2
    for v, g, rho in zip(x, part.g.tolist(), part.rho.tolist(), strict=True):
        value += Fraction(g) * v + Fraction(rho) * v * v / 2
    return value


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ridge", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_backsolve_is_exact_at_any_ridge(
    ridge: float, dtype: torch.dtype, linear: bool
) -> None:
    """Woodbury on float32 data against the rational minimiser.

    The objective is flat at its minimum, so that of the weights must agree to nearly all digits.
    The weights, and the solver's own value, may lose what the condition number of H_SS allows a
    float64 solver.
    """
    n, p = 6, 16
    draw = draw_for(8)
    A = gradients(draw, n, p).A.to(dtype)
    rho = torch.full((p,), ridge, dtype=torch.float64)
    g = 0.1 * normal(draw, n).to(dtype).double() @ A.double() if linear else None
    part = SeparablePart(normal(draw, p), torch.zeros_like(rho) if g is None else g, rho)
    S = [0, 1, 3, 4, 6, 7, 8, 10, 12, 13, 15]
    mask = torch.zeros(p, dtype=torch.bool)
    mask[S] = True
    C = LowRank(A, 1.0 / n)
    solver = C.support_solver(part, mask)
    assert isinstance(solver, WoodburySupport)
    x = rational_solve(A, 1.0 / n, part, S)
    value = rational_value(A, 1.0 / n, part, x)
    own = rational_value(A, 1.0 / n, part, [Fraction(v) for v in
                         (solver.weights.double() - part.w_bar).tolist()])  # fmt: skip
    assert float((own - value) / abs(value)) <= 1e-9
    condition = np.linalg.cond((C.dense() + torch.diag(rho))[S][:, S].numpy())
    assert solver.value == pytest.approx(float(value), rel=20.0 * condition * 2.2e-16)
    exact = torch.tensor([float(v) for v in x], dtype=torch.float64) + part.w_bar
    error = float((solver.weights - exact)[S].abs().max() / exact[S].abs().max())
    assert error <= 20.0 * condition * 2.2e-16


# -- refusals -----------------------------------------------------------------------------------

SQUARE = gram(draw_for(), 8, 4)


def spoiled(value: float) -> Tensor:
    return SQUARE.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(value).double())


BAD_MATRICES: list[tuple[Tensor, str]] = [
    (spoiled(float("nan")), "nan"),
    (spoiled(float("inf")), "inf"),
    (spoiled(-float("inf")), "inf"),
    (spoiled(5.0), "not symmetric"),
    (SQUARE - 2.0 * torch.eye(4), "indefinite"),
    (-SQUARE, "indefinite"),
    (SQUARE[:3], "square"),
    (SQUARE[0], "square"),
    (torch.eye(4, dtype=torch.int64), "floating|float32 or float64"),
    (torch.tensor([[1.0, 0.0], [0.0, float("inf")]]), "inf"),
]


@pytest.mark.parametrize("H, words", BAD_MATRICES)
@pytest.mark.parametrize("form", [Dense, lambda H: SharedRows(H, 2)])
def test_refused_matrices(form: Callable[[Tensor], Curvature], H: Tensor, words: str) -> None:
    with pytest.raises(CurvatureError, match=words):
        form(H)


def test_infinities_of_both_signs_do_not_cancel() -> None:
    A = torch.zeros(3, 4)
    A[0, 0], A[1, 1] = float("inf"), -float("inf")
    with pytest.raises(CurvatureError, match="inf"):
        LowRank(A, 1.0)


@pytest.mark.parametrize(
    "A, scale, words",
    [
        (torch.full((2, 3), float("nan")), 1.0, "nan"),
        (torch.ones(3), 1.0, "shape"),
        (torch.ones(0, 3), 1.0, "shape"),
        (torch.ones(3, 0), 1.0, "shape"),
        (torch.ones(2, 3, dtype=torch.int32), 1.0, "float32 or float64"),
        (torch.ones(2, 3, dtype=torch.float16), 1.0, "float32 or float64"),
        (torch.ones(2, 3), 0.0, "scale"),
        (torch.ones(2, 3), -1.0, "scale"),
        (torch.ones(2, 3), float("nan"), "scale"),
        (torch.ones(2, 3), float("inf"), "scale"),
    ],
)
def test_refused_gradients(A: Tensor, scale: float, words: str) -> None:
    with pytest.raises(CurvatureError, match=words):
        LowRank(A, scale)


@pytest.mark.parametrize("rows", [0, -1, 1.5])
def test_refused_rows(rows: float) -> None:
    with pytest.raises(CurvatureError, match="whole number"):
        SharedRows(SQUARE, rows)  # type: ignore[arg-type]


def test_no_blocks() -> None:
    with pytest.raises(CurvatureError, match="at least one block"):
        BlockDiagonal([])


def test_rounding_is_not_indefinite() -> None:
    """A float32 Gram matrix of few samples has eigenvalues a little below zero."""
    A = normal(draw_for(), 3, 40).float()
    H = Dense(A.T @ A / 3)
    assert H.H.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_swept_tableau_is_that_of_the_dense_matrix(dtype: torch.dtype) -> None:
    """Kept and pruned indices mixed, with and without the shared triangular solve."""
    draw = draw_for(21)
    n, p = 12, 30
    C = LowRank(gradients(draw, n, p).A.to(dtype), 1.0 / n)
    rho = torch.full((p,), 0.05, dtype=torch.float64)
    part = SeparablePart(normal(draw, p), torch.zeros_like(rho), rho)
    mask = torch.zeros(p, dtype=torch.bool)
    mask[:20] = True
    solver = C.support_solver(part, mask)
    assert isinstance(solver, WoodburySupport)
    index = torch.tensor([0, 3, 4, 11, 19, 20, 22, 29])
    H = C.dense() + torch.diag(rho)
    wide = solver.swept(index)
    solver.prepare(torch.arange(0, p))
    assert torch.allclose(wide, solver.swept(index), rtol=1e-3, atol=1e-5)
    inverse = torch.linalg.inv(H[:20, :20])
    T, O = index[:5], index[5:]  # noqa: E741
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(wide[:5, :5], -inverse[T][:, T], **tolerance)
    torch.testing.assert_close(wide[:5, 5:], (inverse @ H[:20][:, O])[T], **tolerance)
    schur = H[O][:, O] - H[O][:, :20] @ inverse @ H[:20][:, O]
    torch.testing.assert_close(wide[5:, 5:], schur, **tolerance)
