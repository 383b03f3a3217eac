"""The training loop of DARB on four networks: every stage, then storage and decoding of the result.

    CHITA_OPT_DATA=... OMP_NUM_THREADS=1 python benchmarks/darb_training.py [--quick]

For each network, pruning ratio and way to choose (magnitude, as in the paper, with widths by its
rule; the quadratic model with the widths of the best total; and rounds of pruning by the weights
that the model's blocks of one output unit each give, with widths by the rule): dense, irregular
pruning retrained on its mask, the dense weights pruned by blocks, and those retrained on their
mask, as long as the irregular ones. The trained blocks are written as a DARB file and read back.
Every stage and every epoch is kept in results/darb_training/: the same call goes on where it was
stopped.

bits         of the pruned layers for a kept weight, in single precision: darb, and csr and csr_runs
             for the irregular mask of the same ratio
efficiency   weights decoded by a lane in a step, darb over csr_runs of the irregular mask, 16 lanes

What the paper reports (AAAI 2020) is of larger networks, trained for longer, and of decoders in
hardware: pruning ratios of 13 to 25 without loss, 2.8 to 4.3 times those of structured pruning
before it, and 14.3 times the decoding efficiency. The last row repeats it; it is not measured here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from darb_nets import NETS, Net, open_net
from measuring import RESULTS, report
from torch import Tensor

from chita_opt.nn import PruneOptions, TrainingRecipe
from chita_opt.nn.darb import (
    DarbMatrix,
    DarbRecipe,
    DarbStage,
    DarbWeights,
    decoding_costs,
    load_darb,
    save_darb,
    storage_bits,
    train_darb_,
)
from chita_opt.nn.darb.training import STAGES

FOLDER = RESULTS / "darb_training"
WAYS: dict[str, dict[str, Any]] = {
    "magnitude, published widths": {"method": "magnitude", "choice": "published"},
    "quadratic model, exact widths": {"method": "relax_round", "choice": "exact"},
    "block rounds, published widths": {"method": "blocks", "choice": "published"},
}
RIDGE = {"blocks": 1e-5}  # of small blocks; the others have the default
CLAIM = {
    "net": "paper's claim", "ratio": "13 to 25", "efficiency": 14.3,
    "way": "AAAI 2020, other networks and hardware",
}  # fmt: skip
COLUMNS = (
    "net", "way", "ratio", "kept_ratio", "measure", *STAGES,
    "darb_bits", "csr_bits", "csr_runs_bits", "efficiency", "file_bytes", "seconds",
)  # fmt: skip


def recipe_for(
    net: Net, ratio: float, way: Mapping[str, Any], given: argparse.Namespace
) -> DarbRecipe:
    """Retraining as long on the irregular mask as on the blocks."""
    train = replace(net.tune, epochs=given.epochs)
    measure = PruneOptions(
        rows=given.rows, batch_size=net.batch, include=net.include or None, exclude=net.exclude,
        ridge=RIDGE.get(way["method"], PruneOptions().ridge),
    )  # fmt: skip
    return DarbRecipe(
        sparsity=1.0 - 1.0 / ratio, widest=32, measure=measure, irregular=train, retrain=train,
        dense=TrainingRecipe(epochs=0), **way,
    )  # fmt: skip


def rows(net: Net, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One line for every ratio and way."""
    x, y = (part[: given.samples or None] for part in net.train)
    dense = {key: value.clone() for key, value in net.model.state_dict().items()}
    for ratio in given.ratios:
        for way, options in WAYS.items():
            net.model.load_state_dict(dense)
            folder = FOLDER / f"{net.name}_{ratio:g}_{options['method']}_{options_code(given)}"
            began = time.perf_counter()
            recipe = recipe_for(net, ratio, options, given)
            stages = train_darb_(net.model, x, y, recipe=recipe, folder=folder)
            line = {"net": net.name, "way": way, "ratio": ratio, "measure": net.measure}
            line["seconds"] = time.perf_counter() - began
            line["kept_ratio"] = net.layers.size / stages["blocks_retrained"].kept
            for name, stage in stages.items():
                net.model.load_state_dict(stage.state)
                line[name] = net.judge(net.model)
            yield line | stored(net, stages, folder)


def options_code(given: argparse.Namespace) -> str:
    """A short name of the options, so that another choice of them begins anew."""
    chosen = {k: v for k, v in vars(given).items() if k not in ("nets", "ratios")}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def stored(net: Net, stages: Mapping[str, DarbStage], folder: Any) -> dict[str, Any]:
    """Write and read the trained blocks; bits and steps of them and of the irregular mask."""
    ours, rival = stages["blocks_retrained"], stages["irregular_retrained"]
    regular = DarbWeights.from_state(ours.state, ours.masks)
    path, matrices = folder / "net.darb.safetensors", regular.matrices
    save_darb(path, regular)
    again = load_darb(path).state
    assert all(torch.equal(again[name], value) for name, value in ours.state.items())
    weights = {name: rival.state[name] * rival.masks[name] for name in matrices}
    sizes = [storage_bits(weight) for weight in weights.values()]
    bits = {f"{f}_bits": sum(s[f] for s in sizes) / rival.kept for f in ("csr", "csr_runs")}
    darb = sum(storage_bits(ours.state[name], m)["darb"] for name, m in matrices.items())
    lanes = steps(weights, {}, "csr_runs") / rival.kept
    return bits | {
        "darb_bits": darb / ours.kept,
        "efficiency": lanes / (steps(ours.state, matrices, "darb") / ours.kept),
        "file_bytes": path.stat().st_size,
    }


def steps(weights: Mapping[str, Tensor], matrices: Mapping[str, DarbMatrix], name: str) -> int:
    """Steps of 16 lanes over all layers that hold a weight."""
    found = 0
    for key in matrices or weights:
        if (weights[key] != 0).any():
            found += decoding_costs(weights[key], matrices.get(key))[name].steps
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--ratios", nargs="+", type=float, default=[4.0, 8.0, 16.0])
    parser.add_argument("--rows", type=int, default=500, help="gradient rows")
    parser.add_argument("--epochs", type=int, default=5, help="of each retraining")
    parser.add_argument("--samples", type=int, default=0, help="to train on; 0: all")
    parser.add_argument("--test", type=int, default=10_000, help="test images or windows")
    parser.add_argument("--text-epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=128, help="of the character models")
    parser.add_argument("--quick", action="store_true", help="MLPNet, one ratio, one epoch")
    given = parser.parse_args()
    if given.quick:
        given.nets, given.ratios, given.epochs = ["mlpnet"], [8.0], 1
        given.rows, given.samples, given.test = 100, 20_000, 2000
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for name in given.nets:
        net = open_net(name, test=given.test, text_epochs=given.text_epochs, width=given.width)
        table += rows(net, given)
    note = f"{given.epochs} epochs of retraining, {given.rows} gradient rows, one thread"
    name = "darb_training_quick" if given.quick else "darb_training"
    report(name, [*table, CLAIM], COLUMNS, note)


if __name__ == "__main__":
    main()
