"""Pruning in stages: the loop, its limits, and continuing from disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt import from_gradients
from chita_opt.errors import DataError, MethodError, ProblemError, SupportError
from chita_opt.heuristics import backsolve
from chita_opt.nn import load_weights, prune, select_layers
from chita_opt.nn.stages import (
    BlockRounds,
    Refit,
    Solve,
    StageAnswer,
    StagedResult,
    StageOptions,
    StageState,
    prune_in_stages,
)
from chita_opt.nn.stages.options import stage_families
from chita_opt.nn.stages.steps import layer_scaled
from chita_opt.solution import Status
from chita_opt.supports import Budget


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def samples(count: int = 400) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(count, 12)
    return x, x[:, :4].argmax(1)


SMALL: dict[str, Any] = {"stages": 4, "rows": 20, "batch_size": 4, "ridge": 0.05}


def run(**options: Any) -> StagedResult:
    return prune_in_stages(
        net(), functional.cross_entropy, samples(), **{"sparsity": 0.75, **SMALL, **options}
    )


@dataclass(frozen=True)
class Spy:
    """A step that notes what it saw and answers as another."""

    step: Callable[[StageState], StageAnswer] = field(default_factory=Refit)
    seen: list[StageState] = field(default_factory=list, repr=False)

    def __call__(self, state: StageState) -> StageAnswer:
        self.seen.append(state)
        return self.step(state)


def test_every_stage_starts_at_the_weights_before_and_the_last_keeps_k() -> None:
    model, spy = net(), Spy()
    before = copy.deepcopy(model.state_dict())
    result = prune_in_stages(
        model, functional.cross_entropy, samples(), sparsity=0.75, method=spy, **SMALL
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert result.status is Status.FEASIBLE and len(result.stages) == 4
    assert [s.k for s in spy.seen] == [row.kept for row in result.stages]
    assert result.nnz == 32 and result.sparsity == 0.75
    assert [s.stage for s in spy.seen] == [0, 1, 2, 3] and spy.seen[-1].is_last
    assert torch.equal(spy.seen[0].weights, select_layers(model).weights(model))
    for state, row in zip(spy.seen[1:], result.stages, strict=False):
        assert int(state.mask.sum()) == row.kept
    result.apply_(model)
    assert torch.equal(select_layers(model).weights(model), result.w)


def test_one_stage_is_the_single_quadratic_problem() -> None:
    options = {"rows": 20, "batch_size": 4, "ridge": 0.05, "first_order": "1/m"}
    one = run(stages=1, method="backsolve")
    whole = prune(
        net(), functional.cross_entropy, samples(), sparsity=0.75, method="backsolve",
        certify=False, **options,
    )  # fmt: skip
    assert one.w.allclose(whole.solution.w, atol=1e-6)


def test_the_answer_does_not_depend_on_what_ran_before() -> None:
    first = run(seed=3)
    torch.randn(7)
    assert torch.equal(run(seed=3).w, first.w)
    assert not torch.equal(run(seed=4).w, first.w)


def test_a_run_that_is_continued_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = run()
    for stop in (1, 2, 3):
        path = tmp_path / f"{stop}.safetensors"
        cut = run(checkpoint=path, method=_stopping(stop))
        assert cut.status is Status.INTERRUPTED and len(cut.stages) == stop
        rest = run(checkpoint=path, resume=True)
        assert rest.status is Status.FEASIBLE and len(rest.stages) == 4
        assert torch.equal(rest.w, whole.w)
        again = run(checkpoint=path, resume=True)  # nothing is left to do
        assert torch.equal(again.w, whole.w)
        assert [r.kept for r in again.stages] == [r.kept for r in whole.stages]


def _stopping(stop: int) -> Callable[[StageState], StageAnswer]:
    """Refit until a stage, where Ctrl-C is pressed; told apart from Refit by nothing."""

    @dataclass(frozen=True)
    class Stopping(Refit):
        def __repr__(self) -> str:
            return repr(Refit())

        def __call__(self, state: StageState) -> StageAnswer:
            if state.stage == stop:
                raise KeyboardInterrupt
            return super().__call__(state)

    return Stopping()


def test_what_a_step_hands_on_survives_the_disk(tmp_path: Path) -> None:
    def counting(state: StageState) -> StageAnswer:
        count = int(state.carry.get("count") or 0) + 1
        if state.stage == stop:
            raise KeyboardInterrupt
        return StageAnswer(Refit()(state).weights, {"count": count}, {"count": count})

    stop, path = 2, tmp_path / "run.safetensors"
    run(checkpoint=path, method=counting)
    stop = -1
    rest = run(checkpoint=path, resume=True, method=counting)
    assert [row.notes["count"] for row in rest.stages] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(checkpoint=path, method=_stopping(2))
    for change in ({"sparsity": 0.5}, {"ridge": 0.1}, {"method": "iht"}, {"schedule": "poly"}):
        with pytest.raises(DataError, match="another run"):
            run(checkpoint=path, resume=True, **change)
    other = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(DataError, match="another run"):
        prune_in_stages(
            other, functional.cross_entropy, samples(), sparsity=0.75, checkpoint=path,
            resume=True, **SMALL,
        )  # fmt: skip
    assert run(checkpoint=path).stages[0].stage == 0  # without resume it is written anew


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(checkpoint=path)
    content = path.read_bytes()
    for broken in (b"", content[: len(content) // 2], b"\x00" * 40):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="not a readable checkpoint"):
            run(checkpoint=path, resume=True)


def test_weights_return() -> None:
    """A weight that was pruned by mistake and matters comes back."""
    back = run(stages=8, schedule="const", method=Refit("step"))
    assert sum(row.returned for row in back.stages[1:]) > 0
    assert back.nnz == 32
    method = run(method="chita")
    assert method.nnz == 32 and method.stages[0].notes["method"] == "chita"


@pytest.mark.parametrize("limit", [1e-4, 0.02])
def test_a_time_limit_jumps_to_the_final_sparsity(limit: float, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    cut = run(time_limit=limit, stages=2000, checkpoint=path)
    assert cut.status is Status.TIME_LIMIT and cut.nnz == 32
    assert len(cut.stages) < 2000 and "final sparsity" in cut.notes["cut_short"]
    assert cut.stages[-1].k == 32


def test_a_time_limit_that_suffices_changes_nothing() -> None:
    assert torch.equal(run(time_limit=600.0).w, run().w)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_ctrl_c_keeps_an_answer_that_fits(stop: int) -> None:
    cut = run(method=_stopping(stop))
    assert cut.status is Status.INTERRUPTED and cut.nnz == 32
    assert "solved again" in cut.notes["cut_short"]


def test_ctrl_c_while_gradients_are_measured() -> None:
    begun = 0

    def press(what: str, done: int, total: int) -> None:
        nonlocal begun
        begun += what == "gradients" and done == 0
        if begun == 3:
            raise KeyboardInterrupt

    cut = run(progress=press)
    assert cut.status is Status.INTERRUPTED and cut.nnz == 32 and len(cut.stages) == 2
    assert cut.notes["cut_short"].endswith("by magnitude")


@pytest.mark.parametrize(
    "support, change, kept",
    [
        ("cardinality", {"scope": "layer", "sparsity": 0.75}, 32),
        ("2:4", {"sparsity": None}, 64),
        ("2:4", {"sparsity": 0.75}, 32),
        ("rows:4:3", {"sparsity": None, "k": 40}, 40),
        (Budget.per_layer((96, 32), (10, 20)), {"sparsity": None}, 30),
    ],
    ids=str,
)
def test_families_hold_in_every_stage(support: Any, change: dict[str, Any], kept: int) -> None:
    spy = Spy()
    result = run(support=support, method=spy, **change)
    assert result.nnz == kept
    counts = [state.k for state in spy.seen]
    assert counts == sorted(counts, reverse=True)
    for state in spy.seen[1:]:
        pattern = Budget.n_of_m(128, 2, 4) if support == "2:4" else state.problem.supports
        assert pattern.contains(state.mask) or support != "2:4"


def test_the_last_family_is_the_one_that_prune_builds() -> None:
    layers, options = select_layers(net()), StageOptions(stages=5)
    families = stage_families(layers, "cardinality", 0.333, options)
    assert [f.max_count for f in families][-1] == 85 and len(families) == 5


def test_a_step_outside_of_its_family_is_refused() -> None:
    with pytest.raises(MethodError, match="outside cardinality"):
        run(method=lambda state: StageAnswer(state.weights))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"certify": True}, ProblemError, "certificate"),
        ({"curvature": "inputs", "first_order": 0.0}, ProblemError, "gradients"),
        ({"resume": True}, ProblemError, "checkpoint"),
        ({"stages": 0}, SupportError, "stages is 0"),
        ({"schedule": "cubic"}, SupportError, "cubic"),
        ({"method": "magic"}, MethodError, "magic"),
        ({"stage": 3}, TypeError, "stages"),
        ({"k": 3}, SupportError, "give one"),
    ],
)
def test_wrong_options_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(**change)


@pytest.mark.parametrize("change", [{"score": "size"}, {"layer_power": 2.0}])
def test_wrong_scores_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=str(next(iter(change.values())))):
        Refit(**change)


@pytest.mark.parametrize("support", ["cardinality", "2:4", "layer"])
def test_rounds_of_blocks_keep_to_the_family(support: str) -> None:
    change: dict[str, Any] = {"scope": "layer"} if support == "layer" else {}
    family = "cardinality" if support == "layer" else support
    result = run(stages=1, first_order=0.0, method="blocks", support=family, **change)
    assert result.nnz == 32


def test_one_round_of_one_block_is_the_exact_minimiser() -> None:
    torch.manual_seed(0)
    layers = select_layers(nn.Linear(12, 1))
    rows, w = torch.randn(6, 12), torch.randn(12, dtype=torch.float64)
    problem = from_gradients(rows, w, ridge=0.1, supports=Budget.cardinality(12, 5))
    found = BlockRounds(rounds=1, layer_power=0.0).solve(problem, layers)
    assert found.allclose(backsolve(problem).w, atol=1e-9)


def test_more_rounds_lower_the_objective_of_coupled_weights() -> None:
    torch.manual_seed(0)
    layers = select_layers(nn.Linear(60, 1))
    factor = torch.randn(60, 60) / 8.0 + torch.eye(60)
    w = torch.randn(60, dtype=torch.float64)
    supports = Budget.cardinality(60, 12)
    problem = from_gradients(torch.randn(200, 60) @ factor, w, ridge=0.01, supports=supports)
    values = [
        problem.objective(BlockRounds(rounds=rounds).solve(problem, layers)) for rounds in (1, 8)
    ]
    assert values[1] < values[0]


def test_blocks_refuse_a_linear_term() -> None:
    with pytest.raises(MethodError, match="first_order=0"):
        run(method="blocks")


@pytest.mark.parametrize(
    "change",
    [{}, {"sparsity": 0.95}, {"scope": "layer"}, {"support": "2:4"}, {"support": "blocks:4x4"},
     {"first_order": 0.0}, {"sparsity": 0.5, "support": "2:4"}, {"ridge_unit": "mean_diagonal"}],
)  # fmt: skip
def test_what_is_pruned_for_good_changes_nothing(change: dict[str, Any]) -> None:
    """Problems over the live weights alone and over all have the same answers."""
    if change.get("support") == "2:4" and "sparsity" not in change:
        change = change | {"sparsity": None}
    alone, every = (
        run(method=Refit(exact=True), **change),
        run(method=Spy(Refit(exact=True)), **change),
    )
    assert torch.equal(alone.w != 0, every.w != 0)
    assert torch.allclose(alone.w, every.w, rtol=1e-4, atol=1e-6)
    assert [r.kept for r in alone.stages] == [r.kept for r in every.stages]


def test_ctrl_c_over_live_weights_keeps_an_answer_that_fits() -> None:
    @dataclass(frozen=True)
    class Stopped(Refit):
        def __call__(self, state: StageState) -> StageAnswer:
            if state.stage == 2:
                assert state.live is not None and state.problem.p == len(state.live) < 128
                raise KeyboardInterrupt
            return super().__call__(state)

    found = run(method=Stopped())
    assert found.status is Status.INTERRUPTED and int((found.w != 0).sum()) == 32
    assert "solved again" in found.notes["cut_short"]


def test_layer_scaling_is_by_the_live_weights() -> None:
    layers = select_layers(net())
    w = torch.zeros(128, dtype=torch.float64)
    w[:4], w[96:98] = 2.0, 8.0
    scaled = layer_scaled(w, w, layers, 0.5)
    assert scaled[:4].tolist() == pytest.approx([2.0**0.5] * 4)
    assert scaled[96:98].tolist() == pytest.approx([8.0**0.5] * 2)
    assert torch.equal(layer_scaled(w, w, layers, 0.0), w)


def test_the_layer_power_applies_above_its_sparsity() -> None:
    spy = Spy()
    run(method=spy)
    for state in spy.seen:
        plain = Refit(layer_power=0.0).scores(state)
        applies = state.sparsity > 0.5
        assert torch.equal(Refit(above=0.5).scores(state), plain) is not applies


def test_equal_magnitudes_are_told_apart_by_the_gradient() -> None:
    spy = Spy(Solve("magnitude"))
    run(stages=2, schedule="const", method=spy)
    state = spy.seen[1]
    scores = Refit().scores(state)
    assert float(scores[~state.mask].max()) < float(scores[state.mask].min())
    assert len(scores[~state.mask].unique()) > 1
    assert backsolve(state.problem).is_feasible


def test_the_result_is_saved_and_told(tmp_path: Path) -> None:
    result = run()
    result.save(tmp_path / "w.safetensors")
    stored = load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(stored.state[n], w) for n, w in result.weights.items())
    assert "stages" in stored.metadata["report"]
    assert "4 of 4 stages" in str(result) and str(result).count("\n") == 5
