"""Pruning while training, stopped at any moment and in any way: the end is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from chita_opt.errors import DataError
from chita_opt.nn import Distillation, TrainingRecipe, prune_and_train
from chita_opt.nn.weight_files import load_tensors
from chita_opt.solution import Status

from .gradual_runs import OPTIONS, RECIPE, data, net, same, trained

KINDS: dict[str, dict[str, Any]] = {
    "momentum": {},
    "adamw": {"recipe": replace(RECIPE, optimizer="adamw", lr=0.01), "reset_optimizer": False},
    "power": {"power": 2.0, "bn_samples": 50},
    "shrinkage": {"returning": "always", "shrinkage": 0.1},
    "free": {"returning": "always"},
    "taught": {"distillation": Distillation(), "warmup": 1.0},
    "held out": {"trust": True, "holdout": 20, "patience": 2, "interval": 0.5},
}


class Stop:
    """Ctrl-C inside the loss of a training step."""

    __qualname__ = "cross_entropy"

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        self.left -= output.requires_grad  # not where the held-out loss is measured
        if self.left < 0:
            self.left = 10**9
            raise KeyboardInterrupt
        return cross_entropy(output, y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [3, 12, 18])
def test_a_stopped_run_ends_at_the_same_bits(tmp_path: Path, kind: str, step: int) -> None:
    more = {**KINDS[kind], "method": "magnitude"}
    whole = trained(**more)
    file = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_steps": 2}
    begun = prune_and_train(
        net(), Stop(step), data(), sparsity=0.75, options=OPTIONS, **more, **file
    )
    assert begun.status is Status.INTERRUPTED
    assert not begun.w[~begun.mask].any()
    torch.manual_seed(99)  # whatever happened in between
    found = trained(**more, **file, resume=True)
    assert found.notes["resumed_at_step"] in (step - step % 2, step) and same(found, whole)
    again = trained(**more, **file, resume=True)  # a finished run is read
    assert same(again, whole) and again.notes["resumed_at_step"] == whole.history[-1].step


def test_a_time_limit_cuts_a_run_in_pieces(tmp_path: Path) -> None:
    file = {"checkpoint": tmp_path / "run.safetensors", "resume": True, "time_limit": 0.4}
    pieces = []
    while not pieces or pieces[-1].status is Status.TIME_LIMIT:
        pieces.append(trained(**file, progress=lambda *_: time.sleep(0.03)))
    assert 1 < len(pieces) and same(pieces[-1], trained())
    assert pieces[-1].status is Status.FEASIBLE


def test_ctrl_c_ends_the_step_and_writes_the_file(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "training" and done == 9:
            os.kill(os.getpid(), signal.SIGINT)

    file = {"checkpoint": tmp_path / "run.safetensors"}
    begun = trained(**file, progress=interrupt)
    assert begun.status is Status.INTERRUPTED and begun.sparsity < 0.74
    found = trained(**file, resume=True)
    assert found.notes["resumed_at_step"] == 9 and same(found, trained())


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trained(checkpoint=path, time_limit=1e-9)
    file = {"checkpoint": path, "resume": True}
    x, y = data()
    others: dict[str, dict[str, Any]] = {
        "method": {"method": "blocks"},
        "budget": {"sparsity": 0.8},
        "recipe": {"recipe": TrainingRecipe(epochs=5)},
        "data": {"data": (x, y.flip(0))},
        "seed": {"seed": 1},
        "held out": {"trust": True, "holdout": (x[:10], y[:10])},
    }
    for what, change in others.items():
        with pytest.raises(DataError, match=rf"another run \(.*{what}"):
            trained(**change, **file)
    model = net()
    torch.nn.init.zeros_(model[4].bias)  # type: ignore[index,arg-type]
    with pytest.raises(DataError, match="model: "):
        prune_and_train(
            model, cross_entropy, data(), sparsity=0.75, method="magnitude", options=OPTIONS, **file
        )
    assert trained(checkpoint=path).notes.get("resumed_at_step") is None  # not asked to resume


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trained(checkpoint=path, time_limit=1e-9)
    header, tensors = load_tensors(path)
    whole = path.read_bytes()
    for wrong in (whole[: len(whole) // 2], b"nothing"):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match="readable"):
            trained(checkpoint=path, resume=True)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="no file of a training run"):
        trained(checkpoint=path, resume=True)
    del tensors["mask"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(DataError, match="does not fit"):
        trained(checkpoint=path, resume=True)


KILLED = """
import json, os, random, signal, sys, time
import torch
from gradual_runs import OPTIONS, same, trained
from chita_opt import files
from chita_opt.nn.stages import BlockRounds

folder, random = sys.argv[1], random.Random(4)

class Slow(BlockRounds):
    def __call__(self, state):
        time.sleep(0.03)
        if kill_in == "pruning":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(state)

def replaced(*paths, move=os.replace):
    global writes
    writes -= 1
    if kill_in == "write" and writes < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    move(*paths)

def run(resume=True):
    path = folder + "/run.safetensors"
    more = dict(checkpoint=path, checkpoint_steps=3, resume=True) if resume else {}
    slowly = lambda *what: time.sleep(0.002)
    return trained(OPTIONS, method=Slow(), progress=slowly, log_file=folder + "/log", **more)

kill_in, writes = "", 0
whole = run(resume=False)  # before the first fork, so that no child imports anything
os.replace = replaced
kill_in, kills, done = "", [], False
while not done and len(kills) < 40:
    kill_in = ("time", "write", "pruning", "time", "time")[len(kills) % 5]
    writes = random.randrange(1, 6)
    child = os.fork()
    if not child:
        run()
        os._exit(0)
    if kill_in == "time":
        time.sleep(random.uniform(0.02, 0.15))
        os.kill(child, signal.SIGKILL)
    _, code = os.waitpid(child, 0)
    done = code == 0
    kills += [] if done else [kill_in]
kill_in = ""
found = run()
print(json.dumps({"same": same(found, whole), "done": done, "kills": kills}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_run_ends_at_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL in the middle of pruning, of a write, and at random moments, again and again."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=tests, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["same"], report
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "run.safetensors"]
    assert {"write", "time"} <= set(report["kills"]), report
