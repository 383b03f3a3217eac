"""``chita-opt prune-and-train`` from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chita_opt.cli import BAD_INPUT, OK, run
from chita_opt.nn import load_weights

from .user_nets import write_nets

CALL = (
    *("prune-and-train", "--model", "gradual_nets:make", "--data", "gradual_nets:data"),
    *("--pruning-steps", "2", "--epochs", "3", "--rows", "8", "--batch-size", "4"),
    *("--sparsity", "0.75"),
)


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nets(tmp_path, "gradual_nets", monkeypatch)


def test_prune_and_train(capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--out", "pruned.safetensors", "--progress-file", "run.safetensors")
    assert run([*CALL, *files, "--test", "gradual_nets:data", "--json"]) == OK
    report = json.loads(capsys.readouterr().out)
    assert 0 < report["nnz"] <= 18 and 0.0 <= report["accuracy"] <= 100.0
    assert [row["event"] for row in report["history"]].count("pruning") == 2
    found = load_weights("pruned.safetensors")
    assert set(found.masks) == {"0.weight", "2.weight"}

    again = ("--progress-file", "run.safetensors", "--resume", "--out", "again.safetensors")
    assert run([*CALL, *again]) == OK
    assert "2 of 2 pruning steps" in capsys.readouterr().out
    for name, weight in load_weights("again.safetensors").state.items():
        assert torch.equal(weight, found.state[name])


def test_options_reach_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--method", "magnitude", "--optimizer", "adamw", "--lr", "0.01", "--power", "2")
    more += ("--distill", "0.5", "--temperature", "3", "--patience", "1", "--interval", "0.5")
    more += ("--schedule", "linear", "--base", "0.25", "--log-file", "log.jsonl", "--holdout", "50")
    assert run([*CALL, *more, "--returning", "always", "--shrinkage", "0.1", "--json"]) == OK
    report = json.loads(capsys.readouterr().out)
    prunings = [row for row in report["history"] if row["event"] == "pruning"]
    assert [row["epoch"] for row in prunings] == [0.0, 0.5] and prunings[1]["sparsity"] == 0.75
    assert prunings[0]["sparsity"] == 0.0 and "stopped_early" in report["notes"]
    assert len(Path("log.jsonl").read_text().splitlines()) == len(report["history"])


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CALL, "--resume"]) == BAD_INPUT
    assert "checkpoint" in capsys.readouterr().err
    assert run([*CALL, "--progress-file", "nowhere/run.safetensors"]) == BAD_INPUT
    assert "no folder" in capsys.readouterr().err
    assert run([*CALL, "--pruning-steps", "40"]) == BAD_INPUT
    assert "fewer" in capsys.readouterr().err
