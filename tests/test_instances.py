"""Instance files and generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chita_opt.curvature import Dense, LowRank
from chita_opt.errors import ChitaError, CurvatureError, DataError
from chita_opt.instances import (
    correlated_instance,
    load_instance,
    planted_instance,
    random_instance,
)
from chita_opt.supports import Budget, SupportFamily

A = np.random.default_rng(1).normal(size=(5, 4))
W = np.array([1.0, -2.0, 3.0, 0.5])


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_gradient_rows_are_read(tmp_path: Path, dtype: str) -> None:
    instance = load_instance(write(tmp_path / "i.npz", A=A.astype(dtype), w_bar=W))
    assert isinstance(instance.curvature, LowRank)
    read = A.astype(dtype).astype(np.float64)
    expected = torch.from_numpy(read.T @ read / 5)
    assert torch.allclose(instance.curvature.dense(), expected, rtol=1e-6, atol=1e-12)
    assert instance.w_bar.dtype == torch.float64 and instance.g is None and instance.p == 4


def test_a_matrix_and_a_linear_term_are_read(tmp_path: Path) -> None:
    H = A.T @ A
    instance = load_instance(write(tmp_path / "i.npz", H=H, w_bar=W, g=W[::-1]))
    problem = instance.problem(ridge=0.5, supports=Budget.cardinality(4, 2))
    assert isinstance(instance.curvature, Dense)
    assert instance.g is not None and instance.g.tolist() == W[::-1].tolist()
    expected = 0.5 * W @ H @ W - W[::-1] @ W + 0.25 * W @ W
    assert problem.prune_all == pytest.approx(expected)


def test_the_generators_saved_by_numpy_come_back(tmp_path: Path) -> None:
    made = random_instance(6, 5, seed=3, linear=0.1)
    assert isinstance(made.curvature, LowRank) and made.g is not None
    path = write(
        tmp_path / "i.npz", A=made.curvature.A.numpy(), w_bar=made.w_bar.numpy(), g=made.g.numpy()
    )
    read = load_instance(path)
    assert isinstance(read.curvature, LowRank)
    assert torch.equal(read.curvature.A, made.curvature.A)
    assert read.g is not None and torch.equal(read.g, made.g)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"A": A, "H": A.T @ A, "w_bar": W}, "both A and H"),
    "neither": ({"w_bar": W}, "neither A nor H"),
    "empty": ({}, "A or H is needed"),
    "other names": ({"X": A}, "X"),
    "no weights": ({"A": A}, "no array w_bar"),
    "short weights": ({"A": A, "w_bar": W[:3]}, "w_bar has 3 entries, A has 4"),
    "short g": ({"A": A, "w_bar": W, "g": W[:1]}, "g has 1 entries"),
    "vector A": ({"A": W, "w_bar": W}, r"A has shape \(4,\)"),
    "matrix w_bar": ({"A": A, "w_bar": A}, "w_bar has shape"),
    "no rows": ({"A": A[:0], "w_bar": W}, "A has shape"),
    "wide H": ({"H": A, "w_bar": W}, "must be square"),
    "integers": ({"A": A.astype(np.int64), "w_bar": W}, "A has type int64"),
    "complex": ({"A": A, "w_bar": W + 1j}, "w_bar has type complex128"),
    "nan": ({"A": np.where(A == A[2, 1], np.nan, A), "w_bar": W}, r"A\[2, 1\] is nan"),
    "inf": ({"A": A, "w_bar": np.array([0, 1, np.inf, 0])}, r"w_bar\[2\] is inf"),
    "objects": ({"A": np.array([[1, None]], dtype=object), "w_bar": W}, "plain arrays"),
}


@pytest.mark.parametrize("arrays, message", BAD.values(), ids=BAD)
def test_bad_files_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_instance(write(tmp_path / "i.npz", **arrays))


def test_an_indefinite_matrix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurvatureError, match="indefinite"):
        load_instance(write(tmp_path / "i.npz", H=np.diag([1.0, -1.0, 1.0, 1.0]), w_bar=W))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 broken", b"\x93NUMPY\x01"])
def test_files_that_are_no_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "i.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"i\.npz"):
        load_instance(path)


def test_a_missing_file_and_a_single_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_instance(tmp_path / "none.npz")
    np.save(tmp_path / "i.npy", A)
    with pytest.raises(DataError, match="without a name"):
        load_instance(tmp_path / "i.npy")


def families() -> list[SupportFamily]:
    return [
        Budget.cardinality(8, 3),
        Budget.n_of_m(8, 2, 4),
        Budget.per_layer([5, 3], [3, 1]),
        Budget.nested(Budget.n_of_m(8, 2, 4), 3),
    ]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("family", families(), ids=lambda f: f.name)
@pytest.mark.parametrize("n", [5, 30])
def test_planted_optima_are_optimal(n: int, family: SupportFamily, linear: bool) -> None:
    planted = planted_instance(n, 8, supports=family, linear=linear, seed=n)
    problem = planted.problem
    every = torch.cartesian_prod(*[torch.tensor([False, True])] * 8)
    best, argbest = float("inf"), None
    for mask in every:
        if not family.contains(mask):
            continue
        solver = problem.curvature.support_solver(problem.separable, mask)
        if solver.value < best:
            best, argbest = solver.value, solver.weights
    assert argbest is not None
    assert best == pytest.approx(planted.value, rel=1e-9, abs=1e-12)
    assert torch.allclose(argbest, planted.w, rtol=1e-6, atol=1e-8)
    assert (planted.instance.g is not None) == linear


def test_generators_follow_their_seed_and_correlation() -> None:
    one, same, other = (correlated_instance(2000, 3, seed=s) for s in (0, 0, 1))
    assert isinstance(one.curvature, LowRank) and isinstance(same.curvature, LowRank)
    assert torch.equal(one.curvature.A, same.curvature.A)
    assert not torch.equal(one.w_bar, other.w_bar)
    C = one.curvature.dense()
    assert C[0, 1] == pytest.approx(0.9, abs=0.1) and C[0, 2] == pytest.approx(0.81, abs=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_instance(0, 4),
        lambda: correlated_instance(4, 4, correlation=1.0),
        lambda: planted_instance(4, 4, ridge=0.0),
        lambda: planted_instance(4, 4, margin=1.0),
        lambda: planted_instance(4, 4, supports=Budget.cardinality(4, 0)),
    ],
)
def test_generators_refuse_what_makes_no_sense(make: Any) -> None:
    with pytest.raises(ChitaError):
        make()
