"""Sampled rows: their second moment is the Gauss-Newton matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import DataError
from chita_opt.nn import RowChoice, prune, select_layers
from chita_opt.nn.sampled_rows import sampled_rows


def net(log: bool = False) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(4, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)]
    return nn.Sequential(*layers, *([nn.LogSoftmax(1)] if log else []))


def samples(count: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(count, 4), torch.randint(3, (count,))


def gauss_newton(model: nn.Module, x: Tensor, kind: str) -> Tensor:
    """Mean of ``J'SJ`` over samples, by one Jacobian each."""
    names = [n for n, _ in model.named_parameters()]
    w = {n: p.detach().double() for n, p in model.named_parameters()}
    total = torch.zeros(21, 21, dtype=torch.float64)
    for sample in x.double():

        def output(w: dict[str, Tensor], sample: Tensor = sample) -> Tensor:
            return torch.func.functional_call(model, w, (sample[None],))[0]

        J = torch.func.jacrev(output)(w)
        flat = torch.cat([J[n].reshape(3, -1) for n in names], 1)
        p = output(w).softmax(0)
        S = torch.diag(p) - torch.outer(p, p) if kind == "softmax" else 2 / 3 * torch.eye(3)
        total += flat.T @ S.double() @ flat / len(x)
    return total


@pytest.mark.parametrize("kind", ["softmax", "square"])
def test_second_moment_is_gauss_newton(kind: str) -> None:
    model, (x, y) = net(), samples()
    loss = functional.cross_entropy if kind == "softmax" else functional.mse_loss
    target = y if kind == "softmax" else torch.randn(6, 3)
    index = torch.arange(6).repeat(4000)[:, None]
    found = sampled_rows(
        model, loss, (x, target), select_layers(model), RowChoice(index=index), seed=3
    )
    A = found.rows.A.double()
    expected = gauss_newton(model, x, kind)
    error = A.T @ A / len(A) - expected
    assert float(error.abs().max()) < 0.05 * float(expected.abs().max())
    value = loss(model(x), target)
    grads = torch.autograd.grad(value, list(model.parameters()))
    flat = torch.cat([g.reshape(-1) for g in grads]).double()
    assert torch.allclose(found.gradient, flat, atol=1e-5)
    assert found.rows.loss_mean == pytest.approx(value.item(), rel=1e-5)


def test_log_probabilities_and_mini_batches() -> None:
    choice = RowChoice(rows=3, batch_size=2, seed=0)
    scores, logs = net(), net(log=True)
    layers = select_layers(scores)
    one = sampled_rows(scores, functional.cross_entropy, samples(), layers, choice)
    two = sampled_rows(logs, functional.nll_loss, samples(), select_layers(logs), choice)
    assert torch.allclose(one.rows.A, two.rows.A, atol=1e-6)
    assert torch.allclose(one.gradient, two.gradient, atol=1e-6)
    single = RowChoice(rows=6, batch_size=1, seed=0)
    own = sampled_rows(scores, functional.cross_entropy, samples(), layers, single)
    pairs = own.rows.A.reshape(3, 2, -1).mean(1)
    assert torch.allclose(one.rows.A, pairs, atol=1e-6)


def test_prune_with_sampled_rows() -> None:
    x, y = samples(300)
    found = prune(
        net(), functional.cross_entropy, (x, y), k=9, rows=50, batch_size=2, curvature="sampled",
        first_order="1/m", compete="never",
    )  # fmt: skip
    assert "sampled Gauss-Newton rows" in found.notes["curvature"] and found.solution.nnz <= 9
    trust, problem = found.trust, found.solution.problem
    assert trust is not None and trust.predicted is not None
    d = found.solution.w - problem.w_bar
    slope, bend = 2 * float(problem.g @ d), 2 * problem.curvature.quadratic(d)
    assert trust.predicted == pytest.approx(slope + bend, rel=1e-6)
    with pytest.raises(DataError, match="knows the curvature of"):
        prune(
            net(), lambda out, y: out.mean(), (x, y), k=9, rows=50, curvature="sampled",
        )  # fmt: skip
