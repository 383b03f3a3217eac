"""Pruning whole networks: counts, proofs, and a model that nobody touches before apply_."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from chita_opt.certificates import verify_file
from chita_opt.errors import DataError, LayerError, ProblemError, SupportError
from chita_opt.nn import PruneOptions, PruningResult, load_weights, prune, select_layers
from chita_opt.nn.gradual import gradual_magnitude_
from chita_opt.nn.pruning_problem import drawn_samples
from chita_opt.solution import Status
from chita_opt.supports import Budget, keep_count


class Net(nn.Module):
    """A convolution in groups, a batch norm, two tied layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(self.drop(x))


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def samples(count: int = 80, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(count, 12, dtype=dtype), torch.randint(4, (count,))


def images(count: int = 60) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(count, 2, 4, 4), torch.randint(3, (count,))


def run(**options: Any) -> PruningResult:
    return prune(
        mlp(), functional.cross_entropy, samples(), **{"rows": 60, "ridge": 0.05, **options}
    )


def test_the_model_is_untouched_until_apply() -> None:
    model, data = Net(), images()
    model.train()
    model.head.eval()
    model(data[0]).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    result = prune(model, functional.cross_entropy, data, sparsity=0.5, rows=40, ridge=0.05)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(grads[n], p.grad) for n, p in model.named_parameters() if n in grads)
    assert model.training and model.norm.training and not model.head.training
    assert result.apply_(model) is model
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {"conv.weight", "first.weight", "second.weight", "head.weight"}
    assert model.first.weight is model.second.weight


def test_tied_weights_are_one_variable() -> None:
    model = Net()
    result = prune(model, functional.cross_entropy, images(), sparsity=0.5, rows=40, ridge=0.05)
    assert result.solution.problem.p == 4 * 9 + 16 * 16 + 3 * 16
    assert set(result.masks) == {"conv.weight", "first.weight", "second.weight", "head.weight"}
    assert set(result.masks) <= set(model.state_dict())
    assert torch.equal(result.masks["first.weight"], result.masks["second.weight"])
    tied = next(row for row in result.layers if row.name == "first.weight")
    assert tied.aliases == ("second.weight",) and "second.weight" in result.summary
    missing = model.load_state_dict(result.weights, strict=False)
    assert not missing.unexpected_keys
    assert int((model.first.weight != 0).sum()) == tied.kept


@pytest.mark.parametrize("sparsity", [0.0, 0.33, 0.5, 0.9, 1.0])
def test_counts_are_exact(sparsity: float) -> None:
    result = run(sparsity=sparsity)
    k = keep_count(128, sparsity).k
    assert result.solution.nnz == result.keep.k == k
    assert sum(int(m.sum()) for m in result.masks.values()) == k
    assert result.keep.requested == sparsity
    assert f"sparsity {1 - k / 128:.6g}" in result.summary


def test_counts_of_each_layer_are_exact() -> None:
    result = run(sparsity=0.7, scope="layer")
    assert [row.kept for row in result.layers] == [keep_count(s, 0.7).k for s in (96, 32)]


def test_the_certificate_is_about_the_weights_that_are_applied(tmp_path: Path) -> None:
    model = mlp()
    result = prune(model, functional.cross_entropy, samples(), sparsity=0.6, rows=60, ridge=0.05)
    certificate = result.certificate
    assert certificate is not None and certificate.lower <= result.objective
    applied = result.apply_(copy.deepcopy(model))
    w = result.layer_map.weights(applied)
    assert torch.equal(w, result.solution.w)
    assert result.solution.problem.objective(w) == pytest.approx(certificate.upper, rel=1e-12)
    certificate.save(tmp_path / "c.safetensors")
    assert verify_file(tmp_path / "c.safetensors").upper == certificate.upper
    assert "not about the network's accuracy" in result.summary
    shares = [row.gap_share for row in result.layers]
    assert all(s is not None and 0.0 <= s <= 1.0 for s in shares)
    assert sum(s or 0.0 for s in shares) <= 1.0 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_types_are_kept(dtype: torch.dtype) -> None:
    result = prune(mlp(dtype), functional.cross_entropy, samples(dtype=dtype), k=30, rows=60)
    assert {w.dtype for w in result.weights.values()} == {dtype}
    flat = result.layer_map.flatten({n: result.weights[n] for n in result.layer_map.names})
    assert torch.equal(flat, result.solution.w) and result.solution.nnz == 30


def test_without_a_certificate() -> None:
    result = run(sparsity=0.5, certify=False)
    assert result.certificate is None and result.layers[0].gap_share is None
    assert "not certified" in result.summary and "accuracy" in result.summary


def test_saving_and_reading(tmp_path: Path) -> None:
    model = Net()
    result = prune(model, functional.cross_entropy, images(), sparsity=0.5, rows=40, ridge=0.05)
    path = tmp_path / "r.safetensors"
    result.save(path)
    saved = load_weights(path)
    assert set(saved.state) == set(result.weights)
    assert all(torch.equal(saved.masks[n], result.masks[n]) for n in saved.masks)
    assert saved.state["first.weight"] is saved.state["second.weight"]
    assert '"gap_share"' in saved.metadata["report"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]
    model.load_state_dict(saved.state, strict=False)
    assert torch.equal(result.layer_map.weights(model), result.solution.w)


def test_patterns() -> None:
    result = run(support="2:4")
    assert result.keep.k == 64 and result.keep.requested == 0.5
    for mask in result.masks.values():
        assert int(mask.reshape(-1, 4).sum(1).max()) <= 2
    both = run(support="2:4", sparsity=0.7)
    assert both.solution.nnz == keep_count(128, 0.7).k
    assert all(int(m.reshape(-1, 4).sum(1).max()) <= 2 for m in both.masks.values())
    blocks = run(support="blocks:16:3")
    assert all(int(m.reshape(-1, 16).sum(1).max()) <= 3 for m in blocks.masks.values())


def test_a_pattern_that_does_not_fit_names_the_layer_and_the_cure() -> None:
    with pytest.raises(SupportError, match=r"'0\.weight'.*12 weights in a row.*exclude="):
        run(support="3:8")
    result = run(support="3:8", exclude="0.weight")
    assert list(result.masks) == ["2.weight"]
    with pytest.raises(SupportError, match=r"'conv\.weight'.*18 weights|9 weights"):
        prune(Net(), functional.cross_entropy, images(), support="2:4", rows=40)


def test_a_family_of_ones_own() -> None:
    family = Budget.per_layer([96, 32], [10, 20])
    result = run(support=family)
    assert [row.kept for row in result.layers] == [10, 20]
    with pytest.raises(SupportError, match="holds its own counts"):
        run(support=family, sparsity=0.5)
    with pytest.raises(SupportError, match="over 10 weights"):
        run(support=Budget.cardinality(10, 2))


def test_layer_inputs_give_the_reconstruction_error() -> None:
    model, (x, y) = mlp(torch.float64), samples(dtype=torch.float64)
    options = PruneOptions(curvature="inputs", rows=80, ridge=0.1)
    result = prune(model, None, (x, y), sparsity=0.5, options=options)
    pruned = result.apply_(copy.deepcopy(model))
    change, inputs = 0.0, x
    with torch.no_grad():
        for dense, sparse in zip(model, pruned, strict=True):  # each layer sees the dense inputs
            if isinstance(dense, nn.Linear):
                change += 0.5 * float((dense(inputs) - sparse(inputs)).square().sum(1).mean())
            inputs = dense(inputs)
    x_change = result.solution.w - result.solution.problem.w_bar
    expected = change + 0.05 * float(x_change @ x_change)
    assert result.objective == pytest.approx(expected, rel=1e-9)
    assert not result.layer_certificates  # one budget over all layers ties them together


@pytest.mark.parametrize("asked", [{"support": "2:4"}, {"sparsity": 0.5, "scope": "layer"}])
def test_independent_layers_get_their_own_certificates(asked: dict[str, Any]) -> None:
    result = run(curvature="inputs", ridge=0.1, ridge_unit="mean_diagonal", **asked)
    own, whole = result.layer_certificates, result.certificate
    assert whole is not None and set(own) == set(result.layer_map.names)
    assert sum(c.upper for c in own.values()) == pytest.approx(whole.upper, rel=1e-9)
    assert sum(c.lower for c in own.values()) == pytest.approx(whole.lower, rel=1e-9)
    rho = result.solution.problem.rho
    diagonal = result.solution.problem.curvature.diagonal()
    assert float(rho[0]) == pytest.approx(0.1 * float(diagonal[:96].mean()))
    assert float(rho[-1]) == pytest.approx(0.1 * float(diagonal[96:].mean()))


def test_grouped_convolutions_and_tied_layers_by_their_inputs() -> None:
    result = prune(
        Net(), None, images(), sparsity=0.5, rows=60, curvature="inputs", scope="layer", ridge=0.1
    )
    assert [row.kept for row in result.layers] == [18, 128, 24]
    assert set(result.layer_certificates) == {"conv.weight", "first.weight", "head.weight"}


def test_the_linear_term() -> None:
    plain, tilted = run(sparsity=0.5), run(sparsity=0.5, first_order=1.0)
    assert not bool(plain.solution.problem.g.any())
    A, g = tilted.solution.problem.curvature, tilted.solution.problem.g
    assert torch.allclose(g, A.A.double().mean(0), rtol=1e-6, atol=1e-9)
    third = run(sparsity=0.5, first_order="1/m", rows=20, batch_size=3)
    A, g = third.solution.problem.curvature, third.solution.problem.g
    assert torch.allclose(g, A.A.double().mean(0) / 3, rtol=1e-6, atol=1e-9)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*samples(), strict=True)


def test_data_in_every_form() -> None:
    x, y = samples()
    dataset = TensorDataset(x, y)
    forms: list[Any] = [(x, y), [x, y], dataset, DataLoader(dataset, 7), [(x[:50], y[:50]), (x, y)]]
    objectives = [
        prune(mlp(), functional.cross_entropy, form, k=40, rows=60, certify=False).objective
        for form in forms
    ]
    assert objectives[:4] == pytest.approx([objectives[0]] * 4, rel=1e-4)
    for form in (iter(DataLoader(dataset, 7)), DataLoader(Stream(), 9)):
        prune(mlp(), functional.cross_entropy, form, k=40, rows=60, certify=False)
    for form in (*forms, x, DataLoader(Stream(), 9)):
        prune(mlp(), None, form, k=40, rows=60, certify=False, curvature="inputs", method="chita")


def test_samples_are_drawn_not_taken_from_the_front() -> None:
    x, y = torch.arange(100.0).reshape(100, 1), torch.zeros(100)
    tensor = drawn_samples((x, y), 10, seed=0)
    loader = drawn_samples(TensorDataset(x, y), 10, seed=0)
    assert torch.equal(tensor, torch.cat([batch[0] for batch in loader]))
    assert len(tensor.unique()) == 10 and float(tensor.max()) > 20
    with pytest.raises(DataError, match=r"101 samples are needed.*hold 100"):
        drawn_samples(x, 101, seed=0)


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match=r"no option 'ridg'.*'ridge'"):
        run(sparsity=0.5, ridg=1.0)
    with pytest.raises(ProblemError, match="ridge is 0"):
        run(sparsity=0.5, ridge=0.0)
    with pytest.raises(ProblemError, match="needs gradients"):
        run(sparsity=0.5, curvature="inputs", first_order=1.0)
    with pytest.raises(ProblemError, match="'hessian'"):
        run(sparsity=0.5, curvature="hessian")
    with pytest.raises(ProblemError, match="first_order is '1/n'"):
        run(sparsity=0.5, first_order="1/n")
    with pytest.raises(SupportError, match="both sparsity"):
        run(sparsity=0.5, k=3)
    with pytest.raises(SupportError, match="needs k or a sparsity"):
        run()
    with pytest.raises(SupportError, match="is not known"):
        run(support="squares")
    with pytest.raises(SupportError, match="scope='layer' needs a sparsity"):
        run(k=3, scope="layer")
    with pytest.raises(SupportError, match="scope='global'"):
        run(support="2:4", sparsity=0.6, scope="layer")
    with pytest.raises(DataError, match="loss_fn is needed"):
        prune(mlp(), None, samples(), sparsity=0.5)
    with pytest.raises(DataError, match="Lower rows"):
        run(sparsity=0.5, rows=1000)
    with pytest.raises(LayerError, match="matches no layer"):
        run(sparsity=0.5, include="fc1")
    result = run(sparsity=0.5)
    other = nn.Linear(3, 3)
    with pytest.raises(LayerError):
        result.apply_(other)


def test_progress_and_seconds() -> None:
    seen: list[str] = []
    result = run(sparsity=0.5, progress=lambda stage, done, total: seen.append(stage))
    assert list(dict.fromkeys(seen)) == ["gradients", "solve", "bound"]
    parts = [result.seconds[k] for k in ("curvature", "solve", "certify")]
    assert sum(parts) == pytest.approx(result.seconds["total"], rel=1e-2)


def test_a_time_limit_is_reported_and_kept() -> None:
    result = run(sparsity=0.5, time_limit=0.5)
    assert result.seconds["total"] < 3.0
    assert result.certificate is not None and result.certificate.lower <= result.objective


def test_gradual_pruning_keeps_exactly_so_many() -> None:
    model, (x, y) = mlp(), samples()
    with torch.no_grad():
        log_softmax = nn.Sequential(*model, nn.LogSoftmax(1))
    log = gradual_magnitude_(log_softmax, x, y, sparsity=0.9, time_limit=0.2)
    kept = keep_count(select_layers(log_softmax).size, 0.9).k
    assert sum(int(m.sum()) for m in log.masks.values()) == kept
    for name, mask in log.masks.items():
        assert not bool(log_softmax.get_parameter(name)[~mask].any())
    with pytest.raises(DataError, match="seconds > 0"):
        gradual_magnitude_(log_softmax, x, y, sparsity=0.9, time_limit=0.0)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"sparsity": 0.5}, "relax_round.maximise_dual"),
        ({"support": "2:4", "curvature": "inputs"}, "layerwise.LayerRows"),
    ],
)
def test_interrupts_leave_a_certified_answer(
    asked: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    module, name = place.split(".")
    monkeypatch.setattr(import_module(f"chita_opt.heuristics.{module}"), name, stop)
    result = run(**asked)
    assert result.solution.status is Status.INTERRUPTED and result.solution.is_feasible
    assert result.certificate is not None and result.certificate.lower <= result.objective


@pytest.mark.parametrize(
    ("support", "sparsity"),
    [("2:4", None), ("bmwm:4", None), ("darb", 0.7), ("blocks:4x4", 0.5), ("neurons", 0.5),
     ("columns", 0.5)],
)  # fmt: skip
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_structures_over_a_whole_network(
    support: str, sparsity: float | None, scope: str, tmp_path: Path
) -> None:
    result = run(support=support, sparsity=sparsity, scope=scope)
    assert result.certificate is not None
    problem = result.certificate.solution.problem
    assert problem.supports.contains(result.certificate.solution.mask)
    assert 0.0 <= result.certificate.relative_gap < 1.0
    result.certificate.save(tmp_path / "certificate")
    assert verify_file(tmp_path / "certificate").nnz == result.certificate.solution.nnz


def test_structures_of_layers_are_solved_layer_by_layer() -> None:
    result = run(support="neurons", sparsity=0.5, scope="layer", curvature="inputs")
    weights = [result.masks[name] for name in result.masks]
    assert [int(mask.flatten(1).any(1).sum()) for mask in weights] == [4, 2]
