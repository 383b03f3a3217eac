"""Ctrl-C at any moment: an answer that is at hand is never lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from chita_opt.certificates import verify_file
from chita_opt.certificates.pipeline import Effort, certify_within, solve_certified
from chita_opt.cli import INTERRUPTED, OK, run
from chita_opt.heuristics import solve
from chita_opt.nn import PruningResult, prune
from chita_opt.solution import Solution, Status

from .problems import make_problem

# Modules in which a Ctrl-C is tried. Their own entry points belong to the caller's try block.
WHERE = ("chita_opt/bounds", "chita_opt/certificates", "chita_opt/supports", "chita_opt/curvature")
MOMENTS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584)


class CtrlC:
    """Raises KeyboardInterrupt at the n-th call into the package after it was armed."""

    def __init__(self, moment: int) -> None:
        self.left, self.came = moment, False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not any(w in frame.f_code.co_filename for w in WHERE):
            return
        self.left -= 1
        if self.left < 0:
            sys.setprofile(None)
            self.came = True
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=["low_rank", "shared_rows"])
def solution(request: pytest.FixtureRequest) -> Solution:
    return solve(make_problem(request.param, "nested_blocks", p=12))


@pytest.mark.parametrize("moment", MOMENTS)
def test_proving_survives_ctrl_c(moment: int, solution: Solution) -> None:
    def arm(stage: str) -> None:  # as soon as the work has begun, and the caller's own frame left
        if stage == "bound":
            sys.setprofile(key)

    key = CtrlC(moment)
    try:
        certificate = certify_within(solution, Effort(), on_stage=arm)
    finally:
        sys.setprofile(None)
    assert certificate.lower <= certificate.upper == pytest.approx(solution.objective)
    status = Status.INTERRUPTED if key.came else solution.status
    assert certificate.solution.status in (status, Status.INTERRUPTED)


@pytest.mark.parametrize("stage", ["bound", "certificate"])
def test_ctrl_c_while_progress_is_shown(stage: str) -> None:
    def show(what: str) -> None:
        if what == stage:
            raise KeyboardInterrupt

    problem = make_problem("low_rank", "cardinality", p=12)
    certificate = solve_certified(problem, on_stage=show)
    assert certificate.solution.status is Status.INTERRUPTED
    assert certificate.lower <= certificate.upper


def test_a_second_ctrl_c_ends_it(monkeypatch: pytest.MonkeyPatch, solution: Solution) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("chita_opt.certificates.pipeline.certify", stop)
    with pytest.raises(KeyboardInterrupt):
        certify_within(solution, Effort())


def run_prune(**asked: Any) -> PruningResult:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    data = (
        torch.randn(40, 8, generator=generator),
        torch.randint(3, (40,), generator=generator),
    )
    return prune(net, functional.cross_entropy, data, rows=40, **asked)


@pytest.mark.parametrize("moment", MOMENTS[::2])
@pytest.mark.parametrize(
    "asked", [{"sparsity": 0.5}, {"support": "2:4", "curvature": "inputs", "scope": "layer"}]
)
def test_prune_survives_ctrl_c_while_proving(asked: dict[str, Any], moment: int) -> None:
    """With one certificate over all layers, and with one a layer."""

    def arm(stage: str, done: int, total: int) -> None:
        if stage == "bound" and not key.came:
            sys.setprofile(key)

    key = CtrlC(moment)
    try:
        result = run_prune(progress=arm, **asked)
    finally:
        sys.setprofile(None)
    assert result.certificate is not None
    assert result.certificate.lower <= result.certificate.upper
    assert result.solution.is_feasible
    if key.came:
        assert result.solution.status is Status.INTERRUPTED


@pytest.mark.parametrize("call", [1, 2])
def test_prune_finishes_the_layers_that_ctrl_c_left(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"sparsity": 0.5, "curvature": "inputs", "scope": "layer"}
    monkeypatch.setattr("chita_opt.nn.pruning._Run._rounded", fails_at(call))
    if call == 1:
        with pytest.raises(KeyboardInterrupt):  # no layer has an answer yet
            run_prune(**asked)
        return
    result = run_prune(**asked)
    assert result.solution.status is Status.INTERRUPTED and result.solution.is_feasible
    assert result.certificate is not None
    assert result.certificate.lower <= result.certificate.upper


def fails_at(call: int) -> Callable[..., Solution]:
    original, calls = import_module("chita_opt.nn.pruning")._Run._rounded, [0]

    def wrapped(*arguments: Any) -> Solution:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(*arguments)

    return wrapped


def instance(folder: Path) -> Path:
    source = np.random.default_rng(0)
    np.savez(folder / "x.npz", A=source.normal(size=(6, 12)), w_bar=source.normal(size=12))
    return folder / "x.npz"


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


COMMANDS: dict[str, list[str]] = {
    "solve": ["solve", "x.npz", "--k", "4"],
    "certify": ["certify", "x.npz", "--weights", "w.npy"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["dual_bound", "prove"])
def test_commands_print_and_write_the_answer_at_hand(
    command: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    w = np.zeros(12)
    w[:4] = 1.0
    np.save(tmp_path / "w.npy", w)
    instance(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"chita_opt.certificates.pipeline.{what}", interrupt)
    code = run([*COMMANDS[command], "--ridge", "0.1", "--json", "--save-certificate", "c"])
    report = json.loads(capsys.readouterr().out)
    assert code == INTERRUPTED and report["status"] == "interrupted"
    assert report["lower"] <= report["upper"]
    assert verify_file(tmp_path / "c").lower == report["lower"]


@pytest.mark.parametrize("moment", ["second method", "bound"])
def test_compare_keeps_the_methods_that_ended(
    moment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = instance(tmp_path)
    comparing = import_module("chita_opt.cli.comparing")
    if moment == "bound":
        monkeypatch.setattr("chita_opt.certificates.pipeline.dual_bound", interrupt)
    else:
        monkeypatch.setattr(comparing, "run_method", second_fails(comparing.run_method))
    code = run(["compare", str(path), "--k", "4", "--ridge", "0.1", "--json"])
    assert code == INTERRUPTED
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows and all(row["lower"] <= row["objective"] for row in rows)


def second_fails(method: Callable[..., Solution]) -> Callable[..., Solution]:
    calls = [0]

    def wrapped(*arguments: Any, **options: Any) -> Solution:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return method(*arguments, **options)

    return wrapped


def test_nothing_at_hand_leaves_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = instance(tmp_path)
    monkeypatch.setattr("chita_opt.cli.comparing.run_method", interrupt)
    assert run(["compare", str(path), "--k", "4", "--ridge", "0.1"]) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert run(["solve", str(path), "--k", "4", "--ridge", "0.1"]) == OK
