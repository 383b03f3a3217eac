"""Gradual pruning in a few epochs: CHITA's steps beside magnitude, killed once and resumed.

    CHITA_OPT_DATA=... OMP_NUM_THREADS=1 python benchmarks/gradual_training.py [--quick]

LeNet-5 on MNIST, trained here first, and the trained ResNet20 on a lossy copy of CIFAR-10 (whose
accuracies do not compare with published tables). Every method has the same schedule, epochs, order
of the samples and seeds; rates are chosen for each on held-out training images, at the first seed
(part "choose"). The test images are used for the final table alone.

Every run of the table is a process of its own that gets SIGKILL once it has done a third of its
training steps and is then started again from its file. For the first seed of LeNet-5 it is repeated
without the kill: "same" says whether the networks agree bit for bit.

Everything is kept in results/gradual_training/: the same call goes on where it was stopped, and
with --seconds it stops by itself, so that pieces add up.

dense, held_out, accuracy    percent: test of the dense net, held-out and test of the pruned one
killed_at                    training step that the file held after the kill
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, report
from reference_data import images as digits
from resnet20 import images as pictures
from resnet20 import resnet20
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chita_opt.files import write_atomically
from chita_opt.nn import (
    Distillation,
    GradualOptions,
    LeNet5,
    TrainingRecipe,
    accuracy,
    load_weights,
    prune_and_train,
    train_classifier,
)
from chita_opt.nn.weight_files import load_tensors
from chita_opt.solution import Status

FOLDER = RESULTS / "gradual_training"
METHODS = ("magnitude", "blocks", "fast")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"distillation": Distillation(temperature=2.0, weight=0.5)},
    "power 2": {"power": 2.0},
    "shrinkage": {"returning": "always", "shrinkage": 0.01},
}
COLUMNS = (
    "net", "sparsity", "method", "variant", "lr", "seed", "epochs", "nnz", "dense", "held_out",
    "accuracy", "killed_at", "same", "seconds",
)  # fmt: skip

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, told apart by its name."""

    net: str
    method: str
    sparsity: float
    lr: float
    variant: str = "plain"
    seed: int = 0
    kill: bool = True

    @property
    def name(self) -> str:
        """Of its files."""
        kill = "" if self.kill else "_whole"
        variant = self.variant.replace(" ", "")
        return f"{self.net}_{self.method}_{self.sparsity}_{self.lr}_{variant}_{self.seed}{kill}"


def path(run: Run, given: argparse.Namespace, suffix: str) -> Path:
    """A file of a run; other options have other files."""
    own = {k: v for k, v in vars(given).items() if k in ("rows", "stages")}
    own |= {k: v for k, v in vars(given).items() if k.startswith(run.net[:5])}
    code = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
    return FOLDER / f"{run.name}_{code}{suffix}"


class Net:
    """A trained network and its samples: to train on, held out, to test."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name, self.options = name, GradualOptions(rows=given.rows, stages=given.stages)
        if name == "lenet5":
            samples, self.test = digits("train"), digits("test")
            count, held = given.lenet_samples, 5000
            recipe = TrainingRecipe(epochs=given.lenet_epochs, batch_size=128)
        else:
            samples, self.test = pictures("train"), pictures("test")
            count, held = given.resnet_samples, 1500
            recipe = TrainingRecipe(epochs=given.resnet_epochs, batch_size=128, weight_decay=1e-4)
            self.options = replace(self.options, bn_samples=1024, exclude=("*downsample*",))
        self.test = (self.test[0][: given.test], self.test[1][: given.test])
        self.train: Pair = (samples[0][:count], samples[1][:count])
        self.held: Pair = (samples[0][-held:], samples[1][-held:])
        assert count + held <= len(samples[0])
        self.options = replace(self.options, recipe=recipe, holdout=self.held)
        self.model: nn.Module = (
            resnet20("resnet20_finetuned") if name != "lenet5" else self._lenet()
        )

    def _lenet(self) -> nn.Module:
        """Two epochs of training, kept on disk."""
        model = LeNet5(seed=0)
        recipe = TrainingRecipe(epochs=2, batch_size=64, lr=0.05)
        file = FOLDER / f"lenet5_{len(self.train[0])}.dense.safetensors"
        train_classifier(model, *self.train, recipe=recipe, checkpoint=file)
        return model.eval()


def one(run: Run, given: argparse.Namespace, seconds: float | None) -> None:
    """Go on with a run from its file; write its network when it is finished."""
    net = Net(run.net, given)
    recipe = replace(net.options.recipe, lr=run.lr)
    result = prune_and_train(
        net.model, cross_entropy, net.train, sparsity=run.sparsity, method=run.method,
        options=net.options, recipe=recipe, seed=run.seed, time_limit=seconds,
        checkpoint=path(run, given, ".run.safetensors"), checkpoint_steps=20, resume=True,
        log_file=path(run, given, ".jsonl"), **VARIANTS[run.variant],
    )  # fmt: skip
    if result.status is Status.FEASIBLE:
        result.save(path(run, given, ".safetensors"))


def finished(run: Run, given: argparse.Namespace, until: float) -> bool:
    """Start a run, kill it once, start it again; whether its network is there."""
    stored = path(run, given, ".killed.json")
    began = time.monotonic()
    while not path(run, given, ".safetensors").is_file():
        if time.monotonic() > until:
            return False
        text = json.dumps(asdict(run))
        left = "" if until == float("inf") else str(until - time.monotonic())
        command = [sys.executable, __file__, *sys.argv[1:], "--one", text, "--left", left]
        child = subprocess.Popen(command)
        if run.kill and not stored.is_file():
            step = kill_after(child, path(run, given, ".run.safetensors"))
            if step is not None:
                write_atomically(stored, json.dumps({"step": step}).encode())
                continue
        if child.wait():
            sys.exit(f"{run.name} failed")
    spent = path(run, given, ".seconds.json")
    if not spent.is_file():
        write_atomically(spent, json.dumps(time.monotonic() - began).encode())
    return True


def kill_after(child: subprocess.Popen[bytes], file: Path) -> int | None:
    """SIGKILL once a third of the steps is on disk; the step there, None where it ended first."""
    while child.poll() is None:
        time.sleep(0.2)
        step, total = progress(file)
        if total and step >= total // 3:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            return progress(file)[0]
    return None


def progress(file: Path) -> tuple[int, int]:
    """Training steps that a run's file holds, and those of an epoch times its epochs."""
    if not file.is_file():
        return 0, 0
    header, _ = load_tensors(file)
    state = json.loads(header["state"])
    rows = state["history"]
    last = rows[-1] if rows else {"epoch": 0.0, "step": 0}
    epochs = int(json.loads(header["run"])["recipe"].split("epochs=")[1].split(",")[0])
    per_epoch = last["step"] / last["epoch"] if last["epoch"] else 0.0
    return state["step"], round(per_epoch * epochs)


def row(run: Run, net: Net, given: argparse.Namespace) -> dict[str, Any]:
    """A line of the table from the network on disk."""
    found = load_weights(path(run, given, ".safetensors"))
    told = json.loads(found.metadata["report"])
    net.model.load_state_dict(found.state)
    killed = path(run, given, ".killed.json")
    return {
        **asdict(run),
        "epochs": net.options.recipe.epochs,
        "nnz": told["nnz"],
        "held_out": told["history"][-1]["held_out_accuracy"],
        "held_out_loss": told["history"][-1]["held_out_loss"],
        "accuracy": accuracy(net.model, *net.test, batch_size=500),
        "killed_at": json.loads(killed.read_text())["step"] if killed.is_file() else None,
        "seconds": json.loads(path(run, given, ".seconds.json").read_text()),
        "history": told["history"],
    }


def dense_accuracy(net: Net, given: argparse.Namespace) -> float:
    """Test accuracy before pruning, measured once."""
    size = given.lenet_samples if net.name == "lenet5" else "trained"
    file = FOLDER / f"{net.name}_{size}_{len(net.test[0])}.dense.json"
    if not file.is_file():
        found = accuracy(net.model, *net.test, batch_size=500)
        write_atomically(file, json.dumps(found).encode(), make_folder=True)
    return float(json.loads(file.read_text()))


def same(run: Run, given: argparse.Namespace) -> bool:
    """Whether the killed run and the whole one hold the same bits."""
    one, other = (
        load_weights(path(r, given, ".safetensors")) for r in (run, replace(run, kill=False))
    )
    return all(torch.equal(other.state[name], value) for name, value in one.state.items())


def chosen_rate(case: dict[str, Any], given: argparse.Namespace, until: float) -> float | None:
    """The rate of lowest held-out loss at the first seed; None where time ended."""
    losses = {}
    for lr in given.rates:
        run = Run(lr=lr, **case)
        if not finished(run, given, until):
            return None
        told = json.loads(load_weights(path(run, given, ".safetensors")).metadata["report"])
        losses[lr] = told["history"][-1]["held_out_loss"]
    return min(losses, key=lambda lr: losses[lr])


def rows(given: argparse.Namespace, until: float) -> Iterator[dict[str, Any]]:
    """The table, as far as time allows."""
    variants = [("plain", method) for method in given.methods]
    variants += [(variant, "blocks") for variant in given.variants]
    for name in given.nets:
        net = Net(name, given)
        dense = dense_accuracy(net, given)
        for sparsity, (variant, method) in itertools.product(given.sparsities, variants):
            case = {"net": name, "method": method, "sparsity": sparsity, "variant": variant}
            lr = chosen_rate(case, given, until)
            for seed in given.seeds if lr is not None else ():
                run = Run(lr=lr, seed=seed, **case)  # type: ignore[arg-type]
                if not finished(run, given, until):
                    continue
                line = {"dense": dense} | row(run, net, given)
                if (name, seed, variant) == ("lenet5", given.seeds[0], "plain"):
                    if finished(replace(run, kill=False), given, until):
                        line["same"] = same(run, given)
                yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", default=["lenet5", "resnet20"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--variants", nargs="*", default=[], choices=list(VARIANTS)[1:])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.02, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=500, help="gradient rows of 16 samples")
    parser.add_argument("--stages", type=int, default=4, help="pruning steps")
    parser.add_argument("--lenet-epochs", type=int, default=4)
    parser.add_argument("--lenet-samples", type=int, default=55_000)
    parser.add_argument("--resnet-epochs", type=int, default=6)
    parser.add_argument("--resnet-samples", type=int, default=13_500)
    parser.add_argument("--test", type=int, default=10_000, help="test images at most")
    parser.add_argument("--seconds", type=float, help="stop after so many; start again to go on")
    parser.add_argument("--quick", action="store_true", help="LeNet-5, few images, one rate")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--left", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.nets, given.rates, given.rows = ["lenet5"], [0.05], 100
        given.lenet_samples, given.lenet_epochs, given.stages = 6000, 2, 3
    torch.set_num_threads(1)
    if given.one:
        one(Run(**json.loads(given.one)), given, float(given.left) if given.left else None)
        return
    until = float("inf") if given.seconds is None else time.monotonic() + given.seconds
    note = (
        f"{given.stages} pruning steps of {given.rows} gradient rows, rates {given.rates} chosen "
        f"on held-out images; LeNet-5: {given.lenet_samples} training images, ResNet20: "
        f"{given.resnet_samples}; one thread"
    )
    name = "gradual_training_quick" if given.quick else "gradual_training"
    report(name, list(rows(given, until)), COLUMNS, note)


if __name__ == "__main__":
    main()
