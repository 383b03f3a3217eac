"""The small files of results that the tests of the report share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from chita_opt.certificates import save_problem
from chita_opt.cli import run
from chita_opt.nn import MLPNet, PruneOptions, prune, prune_in_stages, save_weights

HOSTILE = "<script>alert(1)</script>"
TABLE = {
    "rows": [
        {"net": net, "family": family, "ratio": r, "accuracy": 90.0 - r, "objective": 0.1 * r,
         "lower": 0.05 * r}
        for net in ("one", HOSTILE) for family in ("free", "free, magnitude", "2:4")
        for r in (2.0, 4.0, 8.0)
    ]
}  # fmt: skip


def calibration() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    return x, x[:, :4].argmax(1)


def write_results(folder: Path) -> None:
    """Weights, certificate, proof log, stages, JSON and a table, under short names."""
    net = MLPNet((12, 8, 4), seed=0)
    options = PruneOptions(rows=60, batch_size=1, ridge=0.01)
    result = prune(net, cross_entropy, calibration(), sparsity=0.6, options=options)
    measured = {"accuracy": 71.5, "dense_accuracy": 80.25, "seed": 0, "run": RUN}
    notes = {"report": json.dumps(result.report() | measured)}
    pruned = result.apply_(MLPNet((12, 8, 4), seed=0))
    save_weights(folder / "pruned.safetensors", pruned, masks=result.masks, metadata=notes)
    assert result.certificate is not None
    result.certificate.save(folder / "certificate.safetensors")
    result.certificate.save(folder / "alone.safetensors", include_problem=False)
    save_problem(result.solution.problem, folder / "problem.safetensors")
    staged = prune_in_stages(
        net, cross_entropy, calibration(), sparsity=0.5, stages=2, rows=60, batch_size=1
    )
    staged.save(folder / "staged.safetensors")
    (folder / "table.json").write_text(json.dumps(TABLE))
    rng = np.random.default_rng(4)
    np.savez(folder / "tiny.npz", A=rng.normal(size=(20, 9)), w_bar=rng.normal(size=9))


RUN = {
    "command": f"chita-opt prune --model net:make --data '{HOSTILE}'",
    "python": "3.11",
    "versions": {"torch": "2.13.0"},
    "inputs": {"net.pt": 64 * "0"},
}


def write_hostile(path: Path) -> None:
    """Weights whose layer has a name that a browser would run, and a report that repeats it."""
    net = nn.ModuleDict({HOSTILE: nn.Linear(4, 3, bias=False)})
    name = f"{HOSTILE}.weight"
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 1] = True
    row = {"name": name, "shape": [3, 4], "size": 12, "kept": 1, "gap_share": None}
    trust = {"verdict": HOSTILE, "reasons": [HOSTILE], "candidates": [], "chosen": HOSTILE}
    report: dict[str, Any] = {"method": HOSTILE, "layers": [row], "trust": trust, "nnz": 1}
    notes = {"report": json.dumps(report)}
    save_weights(path, net, masks={name: mask}, metadata=notes)


def write_page(out: Path, *files: Path) -> int:
    """The exit code of ``chita-opt report``."""
    return run(["report", *map(str, files), "--out", str(out)])
