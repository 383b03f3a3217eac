"""Stages that solve their quadratic problems by exact search, and what Ctrl-C does to them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from chita_opt.errors import MethodError
from chita_opt.nn import select_layers
from chita_opt.nn.stages import Solve, StageAnswer, StageState, prune_in_stages
from chita_opt.nn.trust import HeldOut, TrustedStep, held_out_of
from chita_opt.nn.trust.competition import solved_on
from chita_opt.nn.trust.scores import STAGED, supports_by
from chita_opt.solution import Status

LOSS = functional.cross_entropy


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4))


def samples(count: int = 400) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(count, 12)
    return x, x[:, :4].argmax(1)


def setting() -> tuple[nn.Module, HeldOut]:
    model, (x, y) = mlp(), samples(500)
    return model, held_out_of(model, LOSS, (x[400:], y[400:]), select_layers(model))


def test_a_search_competes_with_the_supports_of_a_stage() -> None:
    """Its objective is the lowest of all candidates; the held-out loss decides all the same."""
    model, held = setting()
    common = {"sparsity": 0.9, "stages": 2, "rows": 40, "batch_size": 4, "ridge": 0.01}
    seen: list[StageAnswer] = []

    def spied(state: StageState) -> StageAnswer:
        answer = TrustedStep(held, late_share=0.0, search=Solve("hybrid", seconds=5.0))(state)
        searched = Solve("hybrid", seconds=5.0).found(state)
        masks = supports_by(state.problem, state.layer_map, STAGED)
        others = solved_on(state.problem, masks, held)
        if state.is_last:
            assert searched.objective <= min(state.problem.objective(c.w) for c in others) + 1e-9
            losses = [*(c.loss for c in others), held.loss(searched.w)]
            assert answer.notes["candidates"] == len(losses)
            assert float(str(answer.notes["held_out_loss"])) <= min(losses[:-1]) * (1 + 1e-6)
        seen.append(answer)
        return answer

    prune_in_stages(model, LOSS, samples(), method=spied, **common)
    assert seen[0].notes["candidates"] == 1  # at low sparsity none
    assert int(str(seen[-1].notes["candidates"])) > 1


def test_stages_by_the_hybrid() -> None:
    """With samples held out it competes; without, it decides alone."""
    model, data = mlp(), samples()
    common = {"sparsity": 0.9, "stages": 2, "rows": 40, "batch_size": 4, "ridge": 0.01}
    trusted = prune_in_stages(model, LOSS, data, method="hybrid", holdout=100, **common)
    plain = prune_in_stages(model, LOSS, data, method="hybrid", trust=False, **common)
    assert trusted.nnz == plain.nnz == 16
    assert "held_out_loss" in trusted.stages[-1].notes
    assert plain.stages[-1].notes.keys() == {"objective", "method"}
    with pytest.raises(MethodError, match="seconds is 0"):
        Solve("hybrid", seconds=0.0)


@pytest.mark.parametrize("method", ["hybrid", "relax_round"])
def test_an_interrupted_method_ends_the_stages(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods end quietly on Ctrl-C; the stages must not go on as if nothing had been."""
    calls = 0

    def interrupted(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    monkeypatch.setattr(
        import_module("chita_opt.heuristics.relax_round"), "maximise_dual", interrupted
    )
    cut = prune_in_stages(
        mlp(), LOSS, samples(), method=method, trust=False, sparsity=0.9, stages=4, rows=40,
        batch_size=4, ridge=0.01,
    )  # fmt: skip
    assert calls == 1 and cut.status is Status.INTERRUPTED and not cut.stages
    assert cut.nnz == 16
