"""Stages that solve their quadratic problems by exact search, and what Ctrl-C does to them."""

from __future__ import annotations

from importlib import import_module

import pytest

from chita_opt.errors import MethodError
from chita_opt.nn.stages import Solve, StageAnswer, StageState, prune_in_stages
from chita_opt.nn.trust import TrustedStep
from chita_opt.nn.trust.competition import solved_on
from chita_opt.nn.trust.scores import STAGED, supports_by
from chita_opt.solution import Status

from .test_nn_trust_methods import LOSS, mlp, samples, setting

COMMON = {"sparsity": 0.9, "stages": 2, "rows": 40, "batch_size": 4, "ridge": 0.01}


def test_a_search_competes_with_the_supports_of_a_stage() -> None:
    """Its objective is the lowest of all candidates; the held-out loss decides all the same."""
    model, _, held = setting()
    seen: list[StageAnswer] = []

    def spied(state: StageState) -> StageAnswer:
        answer = TrustedStep(held, late_share=0.0, search=Solve("hybrid", seconds=5.0))(state)
        searched = Solve("hybrid", seconds=5.0).found(state)
        masks = supports_by(state.problem, state.layer_map, STAGED)
        others = solved_on(state.problem, masks, held)
        if state.is_last:
            assert searched.objective <= min(state.problem.objective(c.w) for c in others) + 1e-9
            assert answer.notes["candidates"] == len(others) + 1
            lowest = min(c.loss for c in others)
            assert float(str(answer.notes["held_out_loss"])) <= lowest * (1 + 1e-6)
        seen.append(answer)
        return answer

    prune_in_stages(model, LOSS, samples(), method=spied, **COMMON)
    assert seen[0].notes["candidates"] == 1  # at low sparsity none
    assert int(str(seen[-1].notes["candidates"])) > 1


def test_stages_by_the_hybrid() -> None:
    """With samples held out it competes; without, it decides alone."""
    model, data = mlp(), samples()
    trusted = prune_in_stages(model, LOSS, data, method="hybrid", holdout=100, **COMMON)
    plain = prune_in_stages(model, LOSS, data, method="hybrid", trust=False, **COMMON)
    assert trusted.nnz == plain.nnz == 16
    usual = prune_in_stages(model, LOSS, data, method="fast", holdout=100, **COMMON)
    counts = [int(str(run.stages[-1].notes["candidates"])) for run in (trusted, usual)]
    assert counts[0] == counts[1] + 1  # the same supports, and the search
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
    cut = prune_in_stages(mlp(), LOSS, samples(), method=method, trust=False, **COMMON)
    assert calls == 1 and cut.status is Status.INTERRUPTED and not cut.stages
    assert cut.nnz == 16
