"""What regular patterns cost: objective with proven gap, test measure, after a short fine-tune too.

    CHITA_OPT_DATA=... OMP_NUM_THREADS=1 python benchmarks/darb.py [--quick]
    chita-opt plot trade-off benchmarks/results/darb.json --net mlpnet --out curves.png

At every pruning ratio (weights over kept weights) each family of masks has the same budget:

irregular       any weights
darb published  one weight a block, a power of two as each row's width from its density (the paper)
darb exact      widths of largest total score under the budget (multiple-choice knapsack)
darb joint      widths and weights together: the lower of the rule's and the knapsack's answers,
                then widths from this family's own dual bound, then thresholding over all widths
bmwm            the same width, the ratio, in all rows
2:4             two of every four weights of a row (ratio 2 alone)
blocks 4x4      whole 4x4 blocks of a layer
neurons         whole output units

"magnitude" chooses the largest weights and leaves them as they are; the others are chosen and
adjusted by the quadratic model, whose objective and proven lower bound stand beside each; on single
layers of up to 1,000 weights branch and bound goes on from there for --tree-seconds. Widths
are then scored by each weight's part of the irregular dual bound. "rounds" prunes in rounds by the
weights that the blocks of the model, one for each output unit, give at a smaller ridge, with widths
by magnitude; its objective is that of the same model as the others', its bound and gap are of the
blocks' own model ("own_objective"). One set of gradient rows serves a network.
bmwm and 2:4 keep a few weights more where a row is no multiple of the width.

Rows are written as they are made: the same call goes on where it was stopped, and rows of other
networks, ratios and families stay.

What the paper reports (AAAI 2020): pruning ratios of 13 to 25, 2.8 to 4.3 times those of structured
pruning before it, on larger networks, with full retraining. Nothing of that is measured here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from darb_nets import NETS, Net, open_net
from measuring import earlier, save, show
from torch import Tensor
from torch.nn.functional import nll_loss

from chita_opt import Budget, Problem, Solution, dual_bound, keep_count, solve
from chita_opt.exact import TreeOptions, branch_and_bound
from chita_opt.nn import MaskKeeper, PruneOptions, train_classifier
from chita_opt.nn.darb import darb_family, dual_gains, solve_with_widths
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_problem import build_problem
from chita_opt.nn.stages import BlockRounds
from chita_opt.solution import Status
from chita_opt.supports import SupportFamily, WholeGroups
from chita_opt.supports.block_widths import BlockWidths
from chita_opt.supports.layer_families import join_layers
from chita_opt.supports.regular_blocks import block_max

WIDEST = 32
TREE_SIZE = 1000  # weights up to which the tree tightens the bracket
RATIOS = (2, 4, 8, 16)
MAGNITUDE, ROUNDS = ", magnitude", ", rounds"
ROUNDS_RIDGE = 1e-5
WAYS = {"objective": "", "magnitude": MAGNITUDE, "rounds": ROUNDS}
LISTS = ("nets", "families", "ratios", "ways")  # options that say which rows, not how
COLUMNS = (
    "net", "ratio", "family", "kept", "objective", "own_objective", "lower", "gap", "accuracy",
    "accuracy_tuned", "perplexity", "perplexity_tuned", "seconds", "bound_seconds",
)  # fmt: skip

Maker = Callable[[LayerMap, int, int, Tensor], SupportFamily]


def darb(choice: Any) -> Maker:
    """Maker of a family of density-adaptive blocks."""
    return lambda layers, k, ratio, scores: darb_family(
        layers, k, scores, choice=choice, widest=WIDEST
    )


def blocks_4x4(layers: LayerMap, k: int, ratio: int, scores: Tensor) -> SupportFamily:
    """Whole 4x4 blocks of any layer."""
    parts = [WholeGroups.blocks(item.rows_cols, (4, 4), item.size).labels for item in layers]
    return WholeGroups(_numbered(parts), k, title="blocks 4x4")


def neurons(layers: LayerMap, k: int, ratio: int, scores: Tensor) -> SupportFamily:
    """Whole output units of any layer."""
    parts = [WholeGroups.matrix_rows(item.rows_cols, item.rows_cols[0]).labels for item in layers]
    return WholeGroups(_numbered(parts), k, title="neurons")


def _numbered(parts: list[Tensor]) -> Tensor:
    """Groups of all layers, numbered on from layer to layer."""
    found, first = [], 0
    for labels in parts:
        found.append(labels + first)
        first += int(labels.max()) + 1
    return torch.cat(found)


FAMILIES: dict[str, Maker] = {
    "irregular": lambda layers, k, ratio, scores: Budget.cardinality(layers.size, k),
    "darb published": darb("published"),
    "darb exact": darb("exact"),
    "darb joint": darb("joint"),
    "bmwm": lambda layers, k, ratio, scores: join_layers(
        [block_max(item.rows_cols, ratio) for item in layers]
    ),
    "2:4": lambda layers, k, ratio, scores: join_layers(
        [block_max(item.rows_cols, 4, 2) for item in layers]
    ),
    "blocks 4x4": blocks_4x4,
    "neurons": neurons,
}


class Case:
    """One network: its quadratic model, measured once, and the options."""

    def __init__(self, net: Net, given: argparse.Namespace) -> None:
        self.net, self.given, self.layers = net, given, net.layers
        measure = PruneOptions(rows=given.rows, batch_size=net.batch, ridge=given.ridge)
        anything = Budget.cardinality(self.layers.size, 1)
        self.problem: Problem = build_problem(
            net.model, nll_loss, net.train, self.layers, anything, measure
        ).problem
        self.squares = self.problem.w_bar.square()

    def row(self, label: str, ratio: int) -> dict[str, Any]:
        """One line of the table."""
        name, _, way = label.partition(", ")
        k = keep_count(self.layers.size, 1.0 - 1.0 / ratio).k
        if name == "dense":
            return self.judged(self.problem.w_bar)
        ways = {"": self.by_objective, "magnitude": self.by_magnitude, "rounds": self.by_rounds}
        return ways[way](name, k, ratio)

    def by_magnitude(self, name: str, k: int, ratio: int) -> dict[str, Any]:
        """Largest weights of a family, unchanged."""
        began = time.perf_counter()
        family = FAMILIES[name](self.layers, k, ratio, self.squares)
        w = self.problem.w_bar * family.best_support(self.squares)
        seconds = time.perf_counter() - began
        return {"objective": self.problem.objective(w), "seconds": seconds} | self.judged(w)

    def by_rounds(self, name: str, k: int, ratio: int) -> dict[str, Any]:
        """Rounds by solved weights, output unit by output unit; the rule sees irregular ones."""
        began, scores = time.perf_counter(), self.squares
        model = replace(self.problem, rho=torch.full_like(self.problem.rho, ROUNDS_RIDGE))
        if name == "darb published":
            anywhere = replace(model, supports=Budget.cardinality(self.layers.size, k))
            scores = scores * (BlockRounds().solve(anywhere, self.layers) != 0)
        family = FAMILIES[name](self.layers, k, ratio, scores)
        w = BlockRounds().solve(replace(model, supports=family), self.layers)
        line = {"objective": self.problem.objective(w), "seconds": time.perf_counter() - began}
        return line | self.alone(replace(model, supports=family), w) | self.judged(w)

    def alone(self, model: Problem, w: Tensor) -> dict[str, Any]:
        """Objective, bound and gap of the model without coupling between output units."""
        own = BlockRounds.uncoupled(model, self.layers)
        found = Solution(own, w, "block rounds", Status.FEASIBLE)
        bound = dual_bound(
            own, start=found, time_limit=self.given.bound_seconds, tol=1e-4, splits="none"
        )
        return {
            "own_objective": found.objective,
            "lower": bound.value,
            "gap": (found.objective - bound.value) / found.objective,
            "bound_seconds": bound.seconds,
        }

    def by_objective(self, name: str, k: int, ratio: int) -> dict[str, Any]:
        """The quadratic model's answer over a family, and its bound."""
        began = time.perf_counter()
        scores = self.squares
        if name.startswith("darb"):
            scores = dual_gains(self.problem, k, time_limit=self.given.seconds)
        family = FAMILIES[name](self.layers, k, ratio, scores)
        joint = isinstance(family, BlockWidths)
        found = self.joint(family, scores) if joint else self.solved(family)
        seconds = time.perf_counter() - began
        found, lower, spent = self.bounded(found)
        line = {"objective": found.objective, "lower": lower, "seconds": seconds}
        line["gap"] = (found.objective - lower) / abs(found.objective)
        return line | {"bound_seconds": spent} | self.judged(found.w)

    def bounded(self, found: Solution) -> tuple[Solution, float, float]:
        """The weights, or better ones of the tree; what is proven; and its seconds."""
        limit = self.given.bound_seconds
        bound = dual_bound(found.problem, start=found, time_limit=limit, tol=1e-4)
        if found.problem.p > TREE_SIZE or not self.given.tree_seconds:
            return found, bound.value, bound.seconds
        limits = TreeOptions(time_limit=self.given.tree_seconds, gap=1e-4)
        tree = branch_and_bound(found.problem, start=found, options=limits)
        return tree.solution, max(bound.value, tree.lower), bound.seconds + tree.seconds

    def solved(self, family: SupportFamily, start: Solution | None = None) -> Solution:
        """Rounding a relaxation where the family has one, else heuristics one after the other."""
        problem, limit = replace(self.problem, supports=family), self.given.seconds
        if family.is_laminar:
            return solve(problem, "relax_round", start=start, time_limit=limit)
        first = solve(problem, "backsolve", start=start)
        second = solve(problem, "chita", start=first, time_limit=limit, exchanges=0)
        return solve(problem, "alternating", start=second, time_limit=limit)

    def joint(self, family: BlockWidths, scores: Tensor) -> Solution:
        """From the rule's widths and the knapsack's, by the family's own dual bound."""
        rule = self.solved(darb_family(self.layers, family.budget, scores, widest=WIDEST))
        problem = replace(self.problem, supports=family)
        found = solve_with_widths(
            problem, start=rule, rounds=self.given.rounds, time_limit=4 * self.given.seconds
        )
        return solve(problem, "chita", start=found, exchanges=0)

    def judged(self, w: Tensor) -> dict[str, Any]:
        """Kept weights, and the test measure before and after a fine-tune on the mask."""
        net = self.net
        model = net.with_weights(w)
        line = {"kept": int((w != 0).sum()), net.measure: net.judge(model)}
        if not self.given.no_tune:
            x, y = (part[: net.tune_samples] for part in net.train)
            keeper = MaskKeeper(model, self.layers.unflatten(w != 0))
            train_classifier(model, x, y, recipe=net.tune, mask_keeper=keeper)
            line[f"{net.measure}_tuned"] = net.judge(model)
        return line


def labels(given: argparse.Namespace, ratio: int) -> Iterator[str]:
    """What is measured at a ratio."""
    for name in given.families:
        if name == "2:4" and ratio != 2:
            continue
        for way in given.ways:
            if not way or name != "darb joint":  # for a sum of scores it is the exact widths
                yield name + way


def run(given: argparse.Namespace, name: str, options: str) -> list[dict[str, Any]]:
    """All rows of the file; those that were made with the same options are not made again."""
    table = {key(row): row for row in earlier(name)}
    for net in given.nets:
        wanted = [("dense", 1)]
        wanted += [(label, r) for r in given.ratios for label in labels(given, r)]
        left = [
            (label, ratio)
            for label, ratio in wanted
            if table.get((net, ratio, label), {}).get("options") != options
        ]
        if not left:
            continue
        case = Case(
            open_net(net, test=given.test, text_epochs=given.text_epochs, width=given.width), given
        )
        for label, ratio in left:
            row = {"net": net, "ratio": ratio, "family": label} | case.row(label, ratio)
            table[key(row)] = row | {"options": options}
            save(name, list(table.values()))
    return list(table.values())


def key(row: dict[str, Any]) -> tuple[str, int, str]:
    """What a row is about."""
    return row["net"], row["ratio"], row["family"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--ratios", nargs="+", type=int, default=list(RATIOS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rows", type=int, default=500, help="gradient rows")
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each solve")
    parser.add_argument("--bound-seconds", type=float, default=30.0)
    parser.add_argument("--tree-seconds", type=float, default=20.0, help="small layers; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="of widths by their own bound")
    parser.add_argument("--test", type=int, default=10_000, help="test images or windows")
    parser.add_argument("--no-tune", action="store_true", help="leave the fine-tune out")
    parser.add_argument("--text-epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=128, help="of the character models")
    parser.add_argument("--quick", action="store_true", help="MLPNet, two ratios, short limits")
    given = parser.parse_args()
    given.ways = [WAYS[way] for way in given.ways]
    if given.quick:
        given.nets, given.ratios, given.rows = ["mlpnet"], [2, 8], 100
        given.seconds = given.bound_seconds = 3.0
        given.test, given.rounds, given.tree_seconds = 2000, 1, 3.0
    torch.set_num_threads(1)
    options = {k: v for k, v in vars(given).items() if k not in LISTS}
    name = "darb_quick" if given.quick else "darb"
    show(name, run(given, name, json.dumps(options, sort_keys=True)), COLUMNS)


if __name__ == "__main__":
    main()
