"""ResNet20 under a budget of weights, of multiplications, and of both: accuracy over FLOPs.

    CHITA_OPT_DATA=... OMP_NUM_THREADS=1 python benchmarks/falcon_resnet20.py [--quick]

The pairs (share of multiplications removed, share of weights removed) are those that FALCON (Meng,
Chen, Benbaki & Mazumder, AISTATS 2024) publishes for ResNet50; its ResNet20 has the totals of ours,
which are checked: 40,551,040 multiplications by 268,336 weights. The images are a lossy copy of
CIFAR-10, so that accuracies do not compare with published tables.

nnz, flops, both  which budgets hold; "macs" and "weights" are what the answer has of either
one stage         one set of --rows rows of 16 images for all: magnitude, its support solved exactly
                  (backsolve), CHITA, and rounds of output units (block rounds)
stages            `prune_in_stages`: both budgets tighten over --stages of --stage-rows rows each
projection        the oracle: seconds, and what FALCON's rounding of the linear program loses to the
                  integer program, on the dense weights' squares

Every row is written when it is measured; a second call goes on where the first one stopped
(--fresh starts anew). "accuracy_bn" is after batch normalisation was measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from measuring import earlier, report, save
from resnet20 import images, resnet20
from torch import Tensor
from torch.nn.functional import cross_entropy

from chita_opt import from_gradients, solve
from chita_opt.nn import (
    RowChoice,
    accuracy,
    count_macs,
    gradient_rows,
    prune_in_stages,
    recalibrate_bn_,
    select_layers,
)
from chita_opt.nn.stages import BlockRounds
from chita_opt.supports import TwoBudgets

PAIRS = ((0.4, 0.32), (0.5, 0.42), (0.6, 0.52), (0.7, 0.62), (0.8, 0.75), (0.9, 0.85))
BUDGETS = ("nnz", "flops", "both")
PUBLISHED = (40_551_040, 268_336)
SAMPLES = 16
METHODS = (("magnitude", 1e-4), ("backsolve", 1e-4), ("chita", 1e-3), ("block rounds", 1e-5))
COLUMNS = (
    "mac_cut", "sparsity", "budgets", "part", "method", "macs", "weights", "objective", "seconds",
    "accuracy", "accuracy_bn", "loss_of_rounding",
)  # fmt: skip
Row = dict[str, Any]


class Case:
    """The net, its multiplications, the images and the gradient rows."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.model = resnet20(given.net)
        self.layers = select_layers(self.model, exclude=("*downsample*",))
        self.train, self.test = images("train"), images("test", given.test)
        self.macs = count_macs(self.model, self.layers, self.test[0][:1])
        found = (self.macs.total, self.layers.size)
        if found != PUBLISHED:
            sys.exit(f"the net has {found} multiplications and weights; published are {PUBLISHED}")

    def family(self, cut: float, sparsity: float, budgets: str) -> TwoBudgets:
        """The budgets of one pair, or only one of them."""
        return self.macs.budget(
            sparsity=0.0 if budgets == "flops" else sparsity,
            mac_cut=0.0 if budgets == "nnz" else cut,
        )  # type: ignore[return-value]

    @cached_property
    def rows(self) -> Tensor:
        """Gradient rows at the dense weights."""
        choice = RowChoice(rows=self.given.rows, batch_size=SAMPLES, seed=self.given.seed)
        return gradient_rows(self.model, cross_entropy, self.train, self.layers, choice).A

    def judged(self, w: Tensor) -> Row:
        """Multiplications, weights and accuracies of weights (p,)."""
        net = copy.deepcopy(self.model)
        self.layers.write_(net, w)
        found: Row = {"macs": self.macs.kept(w), "weights": int((w != 0).sum())}
        found["accuracy"] = accuracy(net, *self.test, batch_size=500)
        recalibrate_bn_(net, self.train[0], samples=4096)
        return found | {"accuracy_bn": accuracy(net, *self.test, batch_size=500)}

    # -- parts ----------------------------------------------------------------------------

    def projection(self, family: TwoBudgets, _method: str) -> Row:
        """The integer program beside FALCON's rounding."""
        scores = self.layers.weights(self.model).square()
        family.best_support(scores)  # compiled, and the weights grouped by cost
        began = time.perf_counter()
        answer = family.answer(scores)
        seconds = time.perf_counter() - began
        rounded = float(scores[family.rounded_support(scores)].sum())
        mask = torch.from_numpy(answer.mask)
        return {
            "seconds": seconds,
            "loss_of_rounding": (answer.value - rounded) / answer.value,
            "proof": answer.proof,
            "macs": self.macs.kept(mask),
            "weights": int(mask.sum()),
        }

    def one_stage(self, family: TwoBudgets, method: str) -> Row:
        """One method on the shared rows."""
        w_bar, ridge = self.layers.weights(self.model), dict(METHODS)[method]
        problem = from_gradients(self.rows, w_bar, ridge=ridge, supports=family)
        began = time.perf_counter()
        if method == "block rounds":
            w = BlockRounds().solve(problem, self.layers)
        else:
            w = solve(problem, method).w
        seconds = time.perf_counter() - began
        told = {"seconds": seconds, "objective": self.given.rows * problem.objective(w)}
        return told | self.judged(w)

    def stages(self, family: TwoBudgets, method: str) -> Row:
        """FALCON++: gradients measured anew while both budgets tighten."""
        found = prune_in_stages(
            self.model, cross_entropy, self.train, support=family, method=method,
            exclude=("*downsample*",), stages=self.given.stages, rows=self.given.stage_rows,
            batch_size=SAMPLES, seed=self.given.seed, schedule="poly", trust=False,
        )  # fmt: skip
        return {"seconds": found.seconds} | self.judged(found.w)


def jobs(case: Case) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What is to be measured, cheapest first: a row's key and the call that measures it."""
    parts: dict[str, tuple[tuple[str, ...], Callable[[TwoBudgets, str], Row]]] = {
        "projection": (("exact",), case.projection),
        "one stage": (tuple(name for name, _ in METHODS), case.one_stage),
        "stages": (("fast",), case.stages),
    }
    yield {"part": "dense", "method": "none"}, lambda: case.judged(case.layers.weights(case.model))
    for part in case.given.parts:
        methods, measure = parts[part]
        for cut, sparsity in case.given.pairs:
            for budgets in BUDGETS:
                for method in methods:
                    key = {"mac_cut": cut, "sparsity": sparsity, "budgets": budgets, "part": part,
                           "method": method}  # fmt: skip
                    family = case.family(cut, sparsity, budgets)
                    yield key, lambda f=family, m=method, g=measure: g(f, m)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default="resnet20", choices=("resnet20", "resnet20_finetuned"))
    parser.add_argument("--parts", nargs="+", default=["projection", "one stage", "stages"])
    parser.add_argument("--cuts", nargs="+", type=float, help="MAC cuts of the pairs; all")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--stages", type=int, default=20)
    parser.add_argument("--stage-rows", type=int, default=200)
    parser.add_argument("--test", type=int, default=5000, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two pairs, few rows and images")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    given = parser.parse_args()
    given.pairs = [pair for pair in PAIRS if not given.cuts or pair[0] in given.cuts]
    if given.quick:
        given.pairs, given.test = (PAIRS[3], PAIRS[4]), 1000
        given.rows, given.stages, given.stage_rows = 100, 4, 50
    name = "falcon_resnet20_quick" if given.quick else "falcon_resnet20"
    if given.parts == ["stages"]:  # with settings of its own
        name += "_stages"
    case = Case(given)
    settings = {
        k: getattr(given, k) for k in ("net", "rows", "stages", "stage_rows", "test", "seed")
    }
    note = json.dumps(settings | {"threads": torch.get_num_threads()})
    table = [] if given.fresh else earlier(name, note)
    known = {identity(row) for row in table}
    for key, measure in jobs(case):
        if identity(key) not in known:
            table.append(key | measure())
            save(name, table, note)
    report(name, table, COLUMNS, note)


def identity(row: Row) -> tuple[Any, ...]:
    """What tells rows apart."""
    return tuple(row.get(k) for k in COLUMNS[:5])


if __name__ == "__main__":
    main()
