"""Gradients without coupling between rows: the joint problem with those entries set to zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chita_opt.certificates import certify, verify_file
from chita_opt.curvature import BlockDiagonal, Dense, LowRank
from chita_opt.errors import ProblemError
from chita_opt.exact import enumerate_optimum, solve_blocks
from chita_opt.heuristics import solve
from chita_opt.nn import PruneOptions, prune, select_layers
from chita_opt.nn.pruning_problem import NetworkProblem, build_family, build_problem
from chita_opt.nn.row_blocks import row_blocks
from chita_opt.nn.stages import StageOptions
from chita_opt.problem import Problem
from chita_opt.supports import Budget


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(60, 2, 3, 3), torch.randint(3, (60,))


def posed(model: nn.Module, data: Any, sparsity: float, **changes: Any) -> NetworkProblem:
    layers = select_layers(model, biases=changes.get("biases", False))
    options = PruneOptions(rows=20, batch_size=2, ridge=0.01).changed(changes)
    family = build_family(layers, "cardinality", sparsity, options)
    return build_problem(model, cross_entropy, data, layers, family, options)


def row_of_weight(model: nn.Module, **selection: bool) -> Tensor:
    """The number of every weight's row, over all layers."""
    found, first = [], 0
    for item in select_layers(model, **selection):
        rows, width = item.rows_cols
        found.append(first + torch.arange(rows).repeat_interleave(width))
        first += rows
    return torch.cat(found)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("first_order", [0.0, "1/m"])
def test_it_is_the_joint_problem_without_entries_between_rows(
    biases: bool, first_order: float | str
) -> None:
    model, data = convolutional(), images()
    same = {"first_order": first_order, "biases": biases}
    joint = posed(model, data, 0.5, curvature="gradients", **same).problem
    rows = posed(model, data, 0.5, curvature="row_gradients", **same).problem
    label = row_of_weight(model, biases=biases)
    expected = joint.curvature.dense() * (label[:, None] == label[None, :])
    torch.testing.assert_close(rows.curvature.dense(), expected, rtol=1e-12, atol=0.0)
    assert torch.equal(rows.g, joint.g)
    assert torch.equal(rows.rho, joint.rho)
    masked = Problem(Dense(expected), joint.w_bar, joint.rho, joint.supports, joint.g)
    w = joint.w_bar * joint.supports.best_support(joint.w_bar.square())
    assert rows.objective(w) == pytest.approx(masked.objective(w), rel=1e-12)


def test_rows_are_matrices_only_where_they_are_narrow() -> None:
    model = nn.Linear(30, 2)
    layers, A = select_layers(model), torch.randn(20, 60)
    assert all(isinstance(b, LowRank) for b in row_blocks(A, layers)["weight"])  # 30 > 20
    A = torch.randn(80, 60)
    assert all(isinstance(b, Dense) for b in row_blocks(A, layers)["weight"])
    limit = 4 * A.nelement() + 8 * 30**2  # room for one matrix
    first, second = row_blocks(A, layers, memory_limit=limit)["weight"]
    assert isinstance(first, Dense) and isinstance(second, LowRank)
    assert second.A.data_ptr() != 0
    torch.testing.assert_close(second.dense(), row_blocks(A, layers)["weight"][1].dense())


def test_a_view_copies_nothing() -> None:
    A = torch.randn(60, 20).T  # contiguous columns, as gradient_rows gives them
    (block, _) = row_blocks(A, select_layers(nn.Linear(30, 2)))["weight"]
    assert isinstance(block, LowRank)
    assert block.A.untyped_storage().data_ptr() == A.untyped_storage().data_ptr()


def test_small_networks_are_solved_to_the_enumerated_optimum() -> None:
    torch.manual_seed(2)
    model, data = nn.Linear(4, 3), (torch.randn(60, 4), torch.randint(3, (60,)))
    problem = posed(model, data, 0.5, curvature="row_gradients").problem
    assert isinstance(problem.curvature, BlockDiagonal)
    exact = enumerate_optimum(problem).objective
    found = solve_blocks(problem)
    assert found.upper == pytest.approx(exact, rel=1e-4)
    result = prune(
        model, cross_entropy, data, sparsity=0.5, curvature="row_gradients", rows=20, batch_size=2,
        ridge=0.01, trust=False,
    )  # fmt: skip
    assert result.certificate is not None
    assert result.certificate.lower <= exact * (1 + 1e-9)
    assert result.objective >= exact * (1 - 1e-9)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_certificates_of_rows(scope: str, tmp_path: Path) -> None:
    model, data = convolutional(), images()
    result = prune(
        model, cross_entropy, data, sparsity=0.5, curvature="row_gradients", scope=scope, rows=20,
        first_order=1.0, ridge_unit="mean_diagonal", holdout=10,
    )  # fmt: skip
    assert result.certificate is not None and result.trust is not None
    assert result.trust.predicted is not None
    assert (len(result.layer_certificates) == 2) == (scope == "layer")
    assert 0.0 <= result.certificate.gap
    result.certificate.save(tmp_path / "c.safetensors")
    verify_file(tmp_path / "c.safetensors")


def test_stages_refuse_it() -> None:
    with pytest.raises(ProblemError, match="row_gradients"):
        StageOptions(curvature="row_gradients")
    with pytest.raises(ProblemError, match="row_gradients"):
        PruneOptions(curvature="row_gradients", gradient_file="rows")


def test_a_row_without_any_gradient_is_bounded_too(tmp_path: Path) -> None:
    torch.manual_seed(3)
    H = torch.randn(3, 3, dtype=torch.float64)
    curvature = BlockDiagonal([Dense(torch.zeros(4, 4)), Dense(H @ H.T)])
    w_bar = torch.randn(7, dtype=torch.float64)
    problem = Problem(curvature, w_bar, 0.1, Budget.cardinality(7, 3))
    certificate = certify(solve(problem))
    assert certificate.lower <= enumerate_optimum(problem).objective * (1 + 1e-9)
    assert certificate.lower > 0.0
    certificate.save(tmp_path / "c.safetensors")
    verify_file(tmp_path / "c.safetensors")
