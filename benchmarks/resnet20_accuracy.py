"""ResNet20 on CIFAR-10, pruned by each method: objective, seconds and test accuracy.

    CHITA_OPT_DATA=... OMP_NUM_THREADS=1 python benchmarks/resnet20_accuracy.py [--quick]

The images are a lossy copy of CIFAR-10, so that accuracies do not compare with published tables;
the rows of the published code beside ours were measured on the same copy, with the net called
"resnet20" (78.11 % dense), on 10,000 test images of which ours are the first 5,000. Shortcut
convolutions are not pruned, as published. "accuracy" is of the pruned net as it is, "accuracy_bn"
after the statistics of batch normalisation were measured again on 4,096 training images.

quadratic  one set of --rows rows of 16 images; every method solves the same problem. The objective
           is times the number of rows, as the published code counts
one stage  `prune` with held-out samples: candidates compete, layer-wise reconstruction among them
choose     block rounds at several ridges and numbers of rounds, on 5,000 training images that no
           row was drawn from; the settings of the rows called "block rounds" were chosen so
stages     `prune_in_stages` (CHITA++), --stages of --stage-rows rows each
control    gradual magnitude pruning while training, on the same images for the same seconds

Rows are written as they are made: a call with the same settings goes on where one was stopped
(--fresh begins anew).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any

import torch
from measuring import earlier, report, save
from reference_data import data_root
from resnet20 import images, resnet20
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chita_opt import Budget, Problem, from_gradients, keep_count, solve
from chita_opt.nn import (
    GradientRows,
    RowChoice,
    accuracy,
    gradient_rows,
    prune,
    prune_in_stages,
    recalibrate_bn_,
    select_layers,
)
from chita_opt.nn.gradual import gradual_magnitude_
from chita_opt.nn.stages import BlockRounds

NETS = ("resnet20", "resnet20_finetuned")
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SAMPLES = 16
METHODS: tuple[tuple[str, str, float, dict[str, Any]], ...] = (
    ("magnitude", "magnitude", 1e-4, {}),
    ("block-wise as published", "blockwise", 1e-4, {"as_published": True}),
    ("block-wise", "blockwise", 1e-4, {}),
    ("backsolve", "backsolve", 1e-4, {}),
    ("chita", "chita", 1e-3, {}),
)
ROUNDS_RIDGE = 1e-5
HELD_OUT = 5000
RIDGES_AND_ROUNDS = ((1e-6, 6), (1e-5, 6), (1e-4, 6), (1e-3, 6), (1e-5, 3), (1e-5, 12))
OFFICIAL = {  # the published code's name for the same method and ridge
    "magnitude": ("magnitude", 0.0),
    "block-wise as published": ("Heuristic_LSBlock:500", 1e-4),
    "backsolve": ("Heuristic_LS", 1e-4),
    "chita": ("Active_IHTCDLS", 1e-3),
}
COLUMNS = (
    "net", "sparsity", "part", "method", "ridge", "objective", "official_objective", "seconds",
    "official_seconds", "accuracy", "accuracy_bn", "official_accuracy", "held_out_accuracy",
)  # fmt: skip


Row = dict[str, Any]


class Case:
    """A net, what may be pruned of it, and the images."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self.name, self.model = name, resnet20(name)
        self.layers = select_layers(self.model, exclude=("*downsample*",))
        self.train, self.test = images("train"), images("test", given.test)
        self.given = given

    def row(self, part: str, method: str, sparsity: float, **more: Any) -> dict[str, Any]:
        """One line of the table, but for accuracies."""
        line = {"net": self.name, "part": part, "method": method, "sparsity": sparsity}
        return line | more

    def accuracies(self, net: nn.Module) -> dict[str, float]:
        """Test accuracy with batch normalisation as it is, and measured again."""
        found = {"accuracy": accuracy(net, *self.test, batch_size=500)}
        recalibrated = copy.deepcopy(net)
        recalibrate_bn_(recalibrated, self.train[0], samples=4096)
        return found | {"accuracy_bn": accuracy(recalibrated, *self.test, batch_size=500)}

    @cached_property
    def rows(self) -> GradientRows:
        """Gradient rows of all training images."""
        return self.rows_of(self.train)

    @cached_property
    def rows_for_choices(self) -> GradientRows:
        """Gradient rows of images that are not held out."""
        x, y = self.train
        return self.rows_of((x[:-HELD_OUT], y[:-HELD_OUT]))

    def rows_of(self, data: tuple[Tensor, Tensor]) -> GradientRows:
        """Gradient rows of some images."""
        choice = RowChoice(rows=self.given.rows, batch_size=SAMPLES, seed=self.given.seed)
        return gradient_rows(self.model, cross_entropy, data, self.layers, choice)

    def with_weights(self, w: Tensor) -> nn.Module:
        """A copy of the net with other weights."""
        net = copy.deepcopy(self.model)
        self.layers.write_(net, w)
        return net


def dense(case: Case) -> Iterator[Row]:
    """The net as it is."""
    yield case.row("dense", "none", 0.0) | case.accuracies(case.model)


def quadratic(case: Case, sparsity: float) -> Iterator[Row]:
    """Every method on the same rows."""
    w_bar, p = case.layers.weights(case.model), case.layers.size
    family = Budget.cardinality(p, keep_count(p, sparsity).k)
    for label, method, ridge, options in METHODS:
        problem = from_gradients(case.rows.A, w_bar, ridge=ridge, supports=family)
        found = solve(problem, method, **options)
        line = case.row("quadratic", label, sparsity, ridge=ridge, seconds=found.seconds)
        line["objective"] = case.given.rows * found.objective
        official = published(case, label, sparsity)
        yield line | official | case.accuracies(case.with_weights(found.w))
    problem = from_gradients(case.rows.A, w_bar, ridge=ROUNDS_RIDGE, supports=family)
    yield rounds(case, sparsity, problem)


def rounds(case: Case, sparsity: float, problem: Problem) -> dict[str, Any]:
    """Rounds of output units on the same rows: our single stage for this net."""
    began = time.perf_counter()
    w = BlockRounds().solve(problem, case.layers)
    seconds = time.perf_counter() - began
    line = case.row("quadratic", "block rounds", sparsity, ridge=ROUNDS_RIDGE, seconds=seconds)
    line["objective"] = case.given.rows * problem.objective(w)
    return line | case.accuracies(case.with_weights(w))


def choose(case: Case, sparsity: float) -> Iterator[Row]:
    """Settings of the block rounds by the accuracy on training images that are held out."""
    x, y = case.train
    w_bar, p = case.layers.weights(case.model), case.layers.size
    family = Budget.cardinality(p, keep_count(p, sparsity).k)
    for ridge, count in RIDGES_AND_ROUNDS:
        problem = from_gradients(case.rows_for_choices.A, w_bar, ridge=ridge, supports=family)
        net = case.with_weights(BlockRounds(rounds=count).solve(problem, case.layers))
        line = case.row("choose", f"{count} rounds", sparsity, ridge=ridge)
        found = accuracy(net, x[-HELD_OUT:], y[-HELD_OUT:], batch_size=500)
        yield line | {"held_out_accuracy": found}


def one_stage(case: Case, sparsity: float) -> Iterator[Row]:
    """The default call with candidates that compete on held-out samples."""
    began = time.perf_counter()
    found = prune(
        case.model, cross_entropy, case.train, sparsity=sparsity, method="backsolve",
        exclude=("*downsample*",), rows=case.given.rows, batch_size=SAMPLES, ridge=1e-4,
        certify=False, compete="always", seed=case.given.seed,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    chosen = found.trust.chosen if found.trust is not None else None
    line = case.row("one stage", "prune", sparsity, seconds=seconds, chosen=chosen)
    yield line | case.accuracies(case.with_weights(found.w))


def stages(case: Case, sparsity: float) -> Iterator[Row]:
    """CHITA++, and plain masked training for the same seconds."""
    given = case.given
    found = prune_in_stages(
        case.model, cross_entropy, case.train, sparsity=sparsity, stages=given.stages,
        exclude=("*downsample*",), rows=given.stage_rows, batch_size=SAMPLES, seed=given.seed,
    )  # fmt: skip
    samples = len(found.stages) * given.stage_rows * SAMPLES
    line = case.row("stages", "fast", sparsity, seconds=found.seconds, samples=samples)
    yield line | case.accuracies(case.with_weights(found.w))
    yield control(case, sparsity, found.seconds)


def control(case: Case, sparsity: float, seconds: float) -> dict[str, Any]:
    trained = nn.Sequential(copy.deepcopy(case.model), nn.LogSoftmax(dim=1))
    layers = select_layers(trained, exclude=("*downsample*",))
    log = gradual_magnitude_(
        trained, *case.train, sparsity=sparsity, time_limit=seconds, seed=case.given.seed,
        layer_map=layers,
    )  # fmt: skip
    line = case.row("control", "gradual magnitude", sparsity, seconds=log.seconds)
    return line | {"samples": log.steps * 64} | case.accuracies(trained)


def published(case: Case, label: str, sparsity: float) -> dict[str, Any]:
    """The row of the published code, where there is one."""
    if case.name != "resnet20" or label not in OFFICIAL:
        return {}
    row = published_rows().get((*OFFICIAL[label], sparsity))
    if row is None:
        return {}
    return {
        "official_objective": row["objective"],
        "official_seconds": row["cpu_s"],
        "official_accuracy": row["acc"],
    }


@cache
def published_rows() -> dict[tuple[str, float, float], dict[str, Any]]:
    """Rows of the published code on all test images, by method, ridge and sparsity."""
    path = data_root() / "reference" / "official_chita_runs.json"
    rows = json.loads(path.read_text())["resnet20"]
    return {(r["algo"], r["l2"], r["sparsity"]): r for r in rows if r["ntest"] >= 5000}


PARTS = {"choose": choose, "quadratic": quadratic, "one stage": one_stage, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--stages", type=int, default=16)
    parser.add_argument("--stage-rows", type=int, default=200)
    parser.add_argument("--test", type=int, default=5000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one net, two sparsities, few rows")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    given = parser.parse_args()
    if given.quick:
        given.nets, given.sparsities, given.test = given.nets[:1], [0.7, 0.9], 1000
        given.rows, given.stages, given.stage_rows = 100, 4, 50
    name = "resnet20_accuracy_quick" if given.quick else "resnet20_accuracy"
    note = (
        f"{given.rows} rows; {given.stages} stages of {given.stage_rows} rows; {given.test} test "
        f"images; seed {given.seed}; {torch.get_num_threads()} threads"
    )
    table = [] if given.fresh else earlier(name, note)
    done = {(row["net"], row["part"], row["sparsity"]) for row in table}
    for case in (Case(net, given) for net in given.nets):
        for part, sparsity in jobs(given):
            if (case.name, part, sparsity) in done:
                continue
            found = dense(case) if part == "dense" else PARTS[part](case, sparsity)
            table += list(found)  # a part at one sparsity is whole in the file, or not there
            save(name, table, note)
    report(name, table, COLUMNS, note)


def jobs(given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Parts and sparsities, as the table calls them."""
    yield "dense", 0.0
    for part in given.parts:
        for sparsity in given.sparsities:
            yield part, sparsity


if __name__ == "__main__":
    main()
