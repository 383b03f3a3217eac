"""``chita-opt prune-in-stages`` from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from chita_opt.cli import BAD_INPUT, OK, run
from chita_opt.nn import load_weights

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

def data():
    torch.manual_seed(2)
    x = torch.randn(300, 8)
    return x, x[:, :4].argmax(1)
"""
CALL = (
    *("prune-in-stages", "--model", "staged_nets:make", "--data", "staged_nets:data"),
    *("--stages", "3", "--rows", "16", "--batch-size", "4", "--sparsity", "0.75"),
)


@pytest.fixture(autouse=True)
def _user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "staged_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "staged_nets", raising=False)


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
