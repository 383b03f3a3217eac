"""Reference nets, samples and published-code figures, found through CHITA_OPT_DATA."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chita_opt.nn.models import MLPNet

LAYERS = ("fc1.weight", "fc2.weight", "fc3.weight")
OFFICIAL_PASS = 0.0525  # seconds; the middle of the 0.045-0.06 measured beside the official runs


def data_root() -> Path:
    """The folder of reference data, or a clear stop."""
    root = os.environ.get("CHITA_OPT_DATA")
    if not root or not Path(root).is_dir():
        sys.exit("set CHITA_OPT_DATA to the folder that holds data/, instances/ and reference/")
    return Path(root)


@cache
def mnist() -> dict[str, np.ndarray]:
    """MNIST in Keras's layout."""
    with np.load(data_root() / "data" / "mnist.npz") as file:
        return {k: file[k] for k in file.files}


def images(split: str) -> tuple[Tensor, Tensor]:
    """Normalised images (N, 784) and labels."""
    x = torch.from_numpy(mnist()[f"x_{split}"]).reshape(-1, 784).float()
    return (x / 255.0 - 0.1307) / 0.3081, torch.from_numpy(mnist()[f"y_{split}"]).long()


def mlpnet() -> MLPNet:
    """The paper's trained MLPNet 784-40-20-10."""
    model = MLPNet()
    with np.load(data_root() / "data" / "mlpnet.npz") as file:
        model.load_state_dict({k: torch.from_numpy(file[k]) for k in LAYERS})
    return model.eval()


@dataclass(frozen=True, eq=False)
class Gradients:
    """Rows of A and the dense weights of one sampling."""

    A: Tensor
    w_bar: Tensor
    m: int


@cache
def mlp_gradients(m: int) -> Gradients:
    """Exactly the 1,000 rows of the reference figures, m samples a row."""
    with np.load(data_root() / "instances" / "mlp_samples.npz") as file:
        index = torch.from_numpy(file[f"m{m}"].astype(np.int64))
    model = mlpnet()
    x, y = images("train")
    At = torch.empty(sum(p.numel() for p in model.parameters()), len(index))
    for i, rows in enumerate(index.split(100)):
        flat = rows.reshape(-1)
        out, taps = _forward(model, x[flat])
        delta = out.exp()
        delta[torch.arange(len(flat)), y[flat]] -= 1.0
        At[:, 100 * i : 100 * i + len(rows)] = _rows(model, taps, delta / m, len(rows), m).T
    w_bar = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()
    return Gradients(At.T, w_bar, m)


def _forward(model: MLPNet, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    taps = [x]
    with torch.no_grad():
        for name in ("fc1", "fc2"):
            taps.append(torch.relu(getattr(model, name)(taps[-1])))
        return torch.log_softmax(model.fc3(taps[-1]), 1), taps


def _rows(model: MLPNet, taps: list[Tensor], delta: Tensor, rows: int, m: int) -> Tensor:
    """Gradients of mean losses by the chain rule, written out for three layers."""
    parts = []
    for level, name in ((2, "fc3"), (1, "fc2"), (0, "fc1")):
        h = taps[level]
        d, z = delta.reshape(rows, m, -1), h.reshape(rows, m, -1)
        parts.append(torch.bmm(d.transpose(1, 2), z).reshape(rows, -1))
        if level:
            delta = (delta @ getattr(model, name).weight.detach()) * (h > 0)
    return torch.cat(parts[::-1], 1)


@cache
def official_rows() -> list[dict[str, object]]:
    """Rows of the official code's figures."""
    return list(json.loads((data_root() / "reference" / "official_chita.json").read_text())["rows"])


def mlp_accuracy(w: Tensor) -> float:
    """Accuracy in percent on the 10,000 test images of MLPNet with flat weights w."""
    model = mlpnet()
    x, y = images("test")
    start = 0
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(w[start : start + p.numel()].reshape(p.shape))
            start += p.numel()
        return 100.0 * float((model(x).argmax(1) == y).float().mean())
