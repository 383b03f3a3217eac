"""``chita-opt prune-in-stages`` from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chita_opt.cli import BAD_INPUT, OK, run
from chita_opt.nn import load_weights

from .user_nets import write_nets

CALL = (
    *("prune-in-stages", "--model", "staged_nets:make", "--data", "staged_nets:data"),
    *("--stages", "3", "--rows", "16", "--batch-size", "4", "--sparsity", "0.75"),
)


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nets(tmp_path, "staged_nets", monkeypatch)


def test_prune_in_stages(capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--out", "pruned.safetensors", "--progress-file", "run.safetensors")
    assert run([*CALL, *files, "--test", "staged_nets:data", "--json"]) == OK
    report = json.loads(capsys.readouterr().out)
    assert report["nnz"] == 18 and len(report["stages"]) == 3
    assert 0.0 <= report["accuracy"] <= 100.0
    found = load_weights("pruned.safetensors")
    assert sum(int(mask.sum()) for mask in found.masks.values()) == 18

    again = ("--progress-file", "run.safetensors", "--resume", "--out", "again.safetensors")
    assert run([*CALL, *again]) == OK
    assert "3 of 3 stages" in capsys.readouterr().out
    for name, weight in load_weights("again.safetensors").state.items():
        assert torch.equal(weight, found.state[name])


def test_options_reach_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--schedule", "poly", "--base", "0.3", "--method", "iht", "--no-trust")
    assert run([*CALL, *more, "--json"]) == OK
    report = json.loads(capsys.readouterr().out)
    assert [row["k"] for row in report["stages"]] == [50, 22, 18]
    assert report["stages"][0]["notes"]["method"] == "iht"


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*CALL, "--resume"]) == BAD_INPUT
    assert "checkpoint" in capsys.readouterr().err
    assert run([*CALL, "--progress-file", "nowhere/run.safetensors"]) == BAD_INPUT
    assert "no folder" in capsys.readouterr().err
