"""A user's own module with a small network and data, for the commands that read such code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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


def write_nets(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the module into a folder, go there, and forget the module afterwards."""
    (folder / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
