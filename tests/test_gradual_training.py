"""Pruning while training: budgets, masks, rates, options, and the network that comes back."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import DataLoader, TensorDataset

from chita_opt.errors import DataError, LayerError, MissingDependencyError, ProblemError
from chita_opt.nn import (
    Distillation,
    GradualOptions,
    LeNet5,
    load_weights,
    prune_and_train,
    recalibrate_bn_,
    select_layers,
)
from chita_opt.nn.gradual_training.objective import distilled
from chita_opt.nn.gradual_training.plan import Plan
from chita_opt.nn.gradual_training.samples import Samples
from chita_opt.nn.gradual_training.trainee import Trainee, signed_power
from chita_opt.nn.stages import StageAnswer, StageState
from chita_opt.solution import Status

from .gradual_runs import OPTIONS, RECIPE, data, net, same, trained


@pytest.mark.parametrize("returning", ["never", "at_steps", "always"])
@pytest.mark.parametrize("method", ["magnitude", "blocks", "fast", "iht"])
def test_the_budget_is_met_and_the_mask_held(method: str, returning: Any) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    result = prune_and_train(
        model, cross_entropy, data(), sparsity=0.75, method=method,
        options=replace(OPTIONS, returning=returning),
    )  # fmt: skip
    p = 8 * 12 + 12 * 4
    assert result.status is Status.FEASIBLE and 0 < result.nnz <= p // 4 == result.keep.k
    assert not result.w[~result.mask].any()
    rows = [row for row in result.history if row.event == "pruning"]
    assert [row.step for row in rows] == [0, 7, 14] and len(result.history) == 3 + 4 + 1
    assert [row.sparsity for row in rows] == pytest.approx([0.5, 0.72, 0.75], abs=0.03)
    if returning == "never":
        assert all(row.notes["returned"] == 0 for row in rows)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not result.network.training and model.training
    assert torch.equal(result.network(data()[0]), result.apply_(model).eval()(data()[0]))


def test_training_helps_and_repeats_itself() -> None:
    longer = replace(OPTIONS, recipe=replace(RECIPE, epochs=12))
    first = trained(longer, holdout=20, trust=True, data=data(400))
    torch.manual_seed(7)  # whatever ran before
    assert same(first, trained(longer, holdout=20, trust=True, data=data(400)))
    last = first.history[-1]
    assert last.held_out_loss is not None and last.held_out_loss < first.notes["dense_loss"]
    assert f"{last.held_out_accuracy:.2f} %" in first.summary


@pytest.mark.parametrize("support", ["2:4", "bmwm:4"])
def test_patterns_hold_from_the_first_step(support: str) -> None:
    result = trained(support=support, sparsity=None)
    limit = 2 if support == "2:4" else 1
    for mask in result.masks.values():
        assert int(mask.reshape(-1, 4).sum(1).max()) <= limit


def test_a_step_of_ones_own_may_bring_weights_back_unless_told_not_to() -> None:
    def lowest_first(state: StageState) -> StageAnswer:
        """Keep the first k at even stages, the last k at odd ones."""
        w, k = torch.zeros_like(state.weights), state.k
        part = slice(None, k) if state.stage % 2 == 0 else slice(-k, None)
        w[part] = 1.0
        return StageAnswer(w, {"stage": state.stage}, {"last": state.stage})

    returned = trained(method=lowest_first)
    rows = [row for row in returned.history if row.event == "pruning"]
    assert all(row.notes["returned"] > 0 for row in rows[1:])
    kept = trained(replace(OPTIONS, returning="never"), method=lowest_first)
    assert [row.notes["returned"] for row in kept.history if row.event == "pruning"] == [0, 0, 0]
    assert kept.nnz <= kept.keep.k


def test_layers_have_budgets_of_their_own() -> None:
    result = trained(replace(OPTIONS, scope="layer", exclude="0.*"), sparsity=0.5)
    assert list(result.masks) == ["4.weight"] and result.nnz <= 24
    both = trained(replace(OPTIONS, scope="layer"), sparsity=0.5)
    assert [int(m.sum()) for m in both.masks.values()] == [48, 24]


def test_rates_restart_at_every_pruning_step() -> None:
    options = GradualOptions(stages=3, interval=2.0, lr_min=0.01, recipe=replace(RECIPE, epochs=10))
    plan = Plan.of(options, samples=33)  # 3 steps an epoch
    assert plan.prunings == (0, 6, 12) and plan.total == 30 and plan.last_pruning == 12
    assert [plan.rate(t) for t in (0, 6, 12)] == [0.1] * 3
    assert plan.rate(3) == pytest.approx(0.055) and plan.rate(21) == pytest.approx(0.055)
    way = (1 + math.cos(math.pi * 5 / 6)) / 2
    assert plan.rate(5) == pytest.approx(0.01 + 0.09 * way)
    whole = Plan.of(replace(options, restarts=False), samples=33)
    assert whole.rate(15) == pytest.approx(0.055)
    warm = Plan.of(replace(options, warmup=1.0), samples=33)
    assert warm.rate(0) == pytest.approx(0.1 / 3) and warm.rate(6) == 0.1
    flat = Plan.of(replace(options, recipe=replace(RECIPE, epochs=10, cosine=False)), samples=33)
    assert {flat.rate(t) for t in range(30)} == {0.1}
    even = Plan.of(replace(options, interval=None, recipe=replace(RECIPE, epochs=8)), samples=32)
    assert even.prunings == (0, 4, 8)  # the last cycle has twice the length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 2.0}, "do not fit into 4 epochs"),
        ({"interval": 1e-3}, "do not fit"),
        ({"recipe": replace(RECIPE, epochs=0)}, "more epochs"),
        ({"returning": "sometimes"}, "returning is"),
        ({"shrinkage": 0.1}, "returning='always'"),
        ({"shrinkage": 1.0, "returning": "always"}, "shrinkage is 1.0"),
        ({"power": 0.5}, "power is 0.5"),
        ({"interval": -1.0}, "interval is -1"),
        ({"lr_min": 0.2}, "lr_min is 0.2"),
        ({"patience": 2}, "held-out"),
        ({"patience": 0, "trust": True}, "patience is 0"),
        ({"resume": True}, "checkpoint"),
    ],
)
def test_wrong_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        trained(**change)
    with pytest.raises(ProblemError, match="temperature"):
        Distillation(temperature=0.0)
    with pytest.raises(TypeError, match="did you mean 'returning'"):
        trained(returnin="never")


def test_a_loss_that_is_no_longer_finite_is_refused() -> None:
    with pytest.raises(DataError, match="lower lr"):
        trained(recipe=replace(RECIPE, lr=1e30))


# --- the weights that training moves


def test_powers_fold_back_bit_for_bit() -> None:
    model = net()
    trainee = Trainee(model, select_layers(model), power=2.5)
    x = data()[0]
    trainee.model.eval()
    assert torch.equal(trainee(x), trainee.folded().eval()(x))
    torch.testing.assert_close(trainee.weights(), select_layers(model).weights(model))
    w = trainee.weights()
    w[::3] = 0.0
    trainee.write_(w)
    assert torch.equal(trainee.weights() == 0, w == 0)


def test_the_power_has_its_gradient_also_at_zero() -> None:
    theta = torch.tensor([-1.5, -0.2, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    signed_power(theta, 1.5).sum().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, 1.5 * theta.detach().abs() ** 0.5)
    assert torch.autograd.gradcheck(
        lambda t: signed_power(t, 3.0), theta[[0, 1, 3]].detach().requires_grad_()
    )


def test_powerpropagation_trains_plain_networks() -> None:
    options = replace(OPTIONS, power=2.0)
    result = trained(options, method="blocks")
    plain = trained(method="blocks")
    assert result.nnz <= result.keep.k and not torch.equal(result.w, plain.w)
    assert set(result.network.state_dict()) == set(net().state_dict())
    assert not next(iter(result.network.parameters())).isnan().any()


def test_tied_weights_are_one_weight_under_a_power() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x)))

    model = Tied()
    trainee = Trainee(model, select_layers(model), power=2.0)
    assert torch.equal(trainee(data()[0]), trainee.folded()(data()[0]))
    result = prune_and_train(
        model, cross_entropy, data(), sparsity=0.75, method="magnitude",
        options=replace(OPTIONS, power=2.0),
    )  # fmt: skip
    assert result.network.two.weight is result.network.one.weight  # type: ignore[union-attr]
    assert result.nnz == 16 and set(result.masks) == {"one.weight", "two.weight"}


def test_recurrent_layers_refuse_a_power() -> None:
    model = nn.LSTM(4, 3)
    with pytest.raises(LayerError, match="recurrent"):
        Trainee(model, select_layers(model), power=2.0)


def test_soft_shrinkage_removes_nothing_before_the_last_step() -> None:
    options = replace(OPTIONS, returning="always", shrinkage=0.2)
    result = trained(options)
    rows = [row for row in result.history if row.event == "pruning"]
    assert [row.sparsity for row in rows] == [0.0, 0.0, 0.75]
    free = trained(replace(OPTIONS, returning="always"))
    assert [r.sparsity for r in free.history if r.event == "pruning"] == pytest.approx(
        [0.5, 0.72, 0.75], abs=0.03
    )
    assert min(r.sparsity for r in free.history[:5]) == 0.0  # training brought weights back


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_soft_shrinkage_takes_its_share_at_every_step(power: float) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == 5:
            raise KeyboardInterrupt

    still = replace(RECIPE, lr=1e-30)
    options = replace(OPTIONS, returning="always", shrinkage=0.1, power=power, recipe=still)
    result = trained(options, progress=stop)
    w = result.layer_map.weights(net())
    small = w.square().argsort()[: result.layer_map.size // 2]
    share = result.w / w
    torch.testing.assert_close(
        share[small], torch.full_like(share[small], 0.9**5), rtol=1e-5, atol=0
    )
    share[small] = 1.0
    torch.testing.assert_close(share, torch.ones_like(share), rtol=1e-5, atol=0)


def test_distillation_is_the_divergence_from_the_dense_network() -> None:
    random = torch.Generator().manual_seed(3)
    z, dense = torch.randn(2, 5, 4, generator=random)
    expected = 4.0 * kl_div((z / 2).log_softmax(1), (dense / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(distilled(z, dense, 2.0), expected)
    assert float(distilled(dense.log_softmax(1), dense, 3.0)) == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(DataError, match="scores"):
        distilled(z[:, 0], dense[:, 0], 1.0)
    taught = replace(OPTIONS, distillation=Distillation(weight=1.0))
    x, y = data()
    assert torch.equal(trained(taught).w, trained(taught, data=(x, y.flip(0))).w)  # no target used
    assert not torch.equal(trained(taught).w, trained().w)


def test_statistics_are_measured_again() -> None:
    result = trained(bn_samples=64)
    again = copy.deepcopy(result.network)
    samples = Samples(data(), 0)
    recalibrate_bn_(again, samples.batch(0, 0, 64)[0])
    assert torch.equal(
        again.get_buffer("1.running_var"), result.network.get_buffer("1.running_var")
    )
    assert not same(result, trained())


def test_early_stopping_returns_the_best_epoch() -> None:
    options = replace(
        OPTIONS, trust=True, holdout=40, patience=2, recipe=replace(RECIPE, epochs=60, lr=0.5)
    )
    result = trained(replace(options, interval=1.0), data=data(140))
    assert result.notes["stopped_early"] and result.history[-1].step < 60 * 7
    epochs = [r.held_out_loss for r in result.history if r.event == "epoch" and r.epoch > 2]
    assert result.history[-1].held_out_loss == pytest.approx(min(epochs))  # type: ignore[type-var]
    assert epochs.index(min(epochs)) == len(epochs) - 3  # type: ignore[type-var]


# --- data, logs, files


def test_every_form_of_data_gives_the_same_network() -> None:
    x, y = data()
    whole = trained(method="blocks")
    dataset = TensorDataset(x, y)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=7)
    for form in (dataset, loader, [(x[:60], y[:60]), (x[60:], y[60:])]):
        assert same(trained(method="blocks", data=form), whole)
    with pytest.raises(DataError, match="by number"):
        trained(data=iter([(x, y)]))
    holding = replace(OPTIONS, trust=True, holdout=(x[:30], y[:30]))
    assert trained(holding).history[-1].held_out_accuracy is not None


def test_samples_come_in_an_order_of_seed_and_epoch() -> None:
    x = torch.arange(10.0)[:, None]
    samples = Samples((x, x), 5)
    epochs = [torch.cat([samples.batch(e, s, 4)[0] for s in (0, 4, 8)]).flatten() for e in (0, 1)]
    assert all(torch.equal(e.sort().values, x.flatten()) for e in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(Samples((x, x), 5).batch(1, 4, 4)[0].flatten(), epochs[1][4:8])
    assert samples.fingerprint() != Samples((x + 1, x), 5).fingerprint()


def test_the_history_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.jsonl"
    seen: list[int] = []
    result = trained(log_file=log, progress=lambda what, done, total: seen.append(done))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["event"] for row in rows] == [row.event for row in result.history]
    assert rows[-1]["sparsity"] == result.sparsity and 28 in seen
    assert trained(progress_bar=True).nnz == result.nnz
    json.dumps(result.report())
    result.save(tmp_path / "net.safetensors")
    found = load_weights(tmp_path / "net.safetensors")
    assert all(torch.equal(found.state[k], v) for k, v in result.network.state_dict().items())
    assert torch.equal(found.masks["0.weight"], result.masks["0.weight"])


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"chita-opt\[tensorboard\]"):
        trained(tensorboard=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trained(tensorboard=tmp_path)
    assert any(tmp_path.iterdir())


def test_lenet_is_the_published_network() -> None:
    model = LeNet5(seed=0)
    assert sum(p.numel() for p in model.parameters()) == 61_706
    x = torch.randn(3, 784)
    assert torch.equal(model(x), model(x.reshape(3, 1, 28, 28)))
    assert torch.allclose(model(x).exp().sum(1), torch.ones(3))
    assert torch.equal(LeNet5(seed=0).fc3.bias, model.fc3.bias)
