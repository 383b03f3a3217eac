"""Decoding pruned weights by storage format: bits, operations, steps, and a product timed.

    OMP_NUM_THREADS=1 python benchmarks/darb_decoding.py [--quick]

Random matrices of three sizes at densities 1/4 to 1/32, single precision; with CHITA_OPT_DATA the
first layer of the paper's MLPNet too. Every format keeps as many weights: darb has rows of widths
1/d/2, 1/d and 2/d that share the weights, the largest score of each block; csr, csr_runs and bitmap
the largest scores anywhere; blocks_4x4 the largest whole blocks. "own" is False where a format has
to hold what darb keeps instead.

operations   on indices, for a weight that is not zero (see chita_opt.nn.darb.decoding_cost)
efficiency   weights decoded by a lane in a step, 16 lanes
ratio        of the efficiency to that of csr_runs, whose indices take 4 bits, of the same matrix
seconds      of one product with a vector, the shortest of many; formats take turns, so that ratios
             of one run compare (of_csr). "dense" is numpy's product with the whole matrix

The paper reports 14.3 times the decoding efficiency of others for decoders in 40 nm CMOS. That is
hardware which we do not have: what stands beside it here are counts of steps and operations, and a
processor's time.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from measuring import best_seconds, save, show
from scipy.sparse import csr_array
from torch import Tensor

from chita_opt.nn.darb import DarbMatrix, DarbProduct, TorchDarbProduct
from chita_opt.nn.darb.decoding import CsrProduct, TileProduct
from chita_opt.nn.darb.decoding_cost import decoding_costs
from chita_opt.nn.darb.matrix import blocks_of
from chita_opt.nn.darb.storage_sizes import storage_bits

LANES = 16
COLUMNS = (
    "matrix", "density", "format", "own", "bits_a_weight", "operations", "efficiency", "ratio",
    "seconds", "of_csr",
)  # fmt: skip


def regular_part(weight: Tensor, widths: Tensor) -> Tensor:
    """The largest weight of every block of its row's width, the others zero."""
    kept = torch.zeros_like(weight)
    for width in widths.unique().tolist():
        rows = (widths == width).nonzero().flatten()
        blocks = blocks_of(weight[rows].abs(), width)
        chosen = blocks.argmax(2) + width * torch.arange(blocks.shape[1])
        kept[rows[:, None], chosen] = weight[rows[:, None], chosen]
    return kept


def mixed_widths(rows: int, density: float) -> Tensor:
    """Rows of half, once and twice the width 1/density, which hold a third of the weights each."""
    width = round(1.0 / density)
    shares = torch.tensor([1.0, 2.0, 4.0])  # rows of equally many weights
    counts = (rows * shares / shares.sum()).round().long()
    counts[1] += rows - counts.sum()
    chosen = torch.tensor([max(1, width // 2), width, 2 * width]).repeat_interleave(counts)
    return chosen[torch.randperm(rows, generator=torch.Generator().manual_seed(1))]


def largest(weight: Tensor, count: int) -> Tensor:
    """The so many largest weights."""
    kept = torch.zeros_like(weight).flatten()
    index = weight.flatten().abs().topk(count).indices
    kept[index] = weight.flatten()[index]
    return kept.reshape(weight.shape)


def largest_tiles(weight: Tensor, count: int) -> Tensor:
    """The 4x4 blocks of largest square sum that keep about so many weights."""
    rows, columns = weight.shape
    squares = weight.square().reshape(rows // 4, 4, columns // 4, 4).sum((1, 3))
    mask = torch.zeros(squares.numel(), dtype=torch.bool)
    mask[squares.flatten().topk(max(1, round(count / 16))).indices] = True
    spread = mask.reshape(squares.shape).repeat_interleave(4, 0).repeat_interleave(4, 1)
    return weight * spread


def rows_of(name: str, weight: Tensor, widths: Tensor, repeats: int) -> Iterator[dict[str, Any]]:
    """Every format of one matrix."""
    ours = regular_part(weight, widths)
    matrix, kept = DarbMatrix.from_dense(ours, widths), int((ours != 0).sum())
    irregular, tiles = largest(weight, kept), largest_tiles(weight, kept)
    x = np.random.default_rng(0).normal(size=weight.shape[1]).astype(np.float32)
    timed = times(weight, ours, matrix, irregular, tiles, x, repeats)
    masks = {"darb": ours, "csr": irregular, "csr_runs": irregular, "bitmap": irregular}
    masks["blocks_4x4"] = tiles
    base = decoding_costs(irregular, lanes=LANES)["csr_runs"].efficiency
    common = {"matrix": name, "density": kept / weight.numel()}
    for format_name, held in masks.items():
        yield common | counted(format_name, held, matrix, True, base) | {
            "seconds": timed.get(format_name),
            "of_csr": timed[format_name] / timed["csr"] if format_name in timed else None,
        }  # fmt: skip
        if format_name != "darb":
            yield common | counted(format_name, ours, None, False, base)
    for label in ("darb packed", "darb torch", "csr scipy", "csr torch", "dense"):
        seconds = timed[label]
        yield common | {"format": label, "seconds": seconds, "of_csr": seconds / timed["csr"]}


def counted(
    format_name: str, held: Tensor, matrix: DarbMatrix | None, own: bool, base: float
) -> dict[str, Any]:
    """Bits and counts of one format on one mask."""
    regular = matrix if format_name == "darb" else None
    cost = decoding_costs(held, regular, lanes=LANES)[format_name]
    return {
        "format": format_name,
        "own": own,
        "kept": cost.kept,
        "bits_a_weight": storage_bits(held, regular)[format_name] / cost.kept,
        "operations": cost.operations_per_weight,
        "efficiency": cost.efficiency,
        "ratio": cost.efficiency / base,
    }


def times(
    weight: Tensor, ours: Tensor, matrix: DarbMatrix, irregular: Tensor, tiles: Tensor,
    x: np.ndarray, repeats: int,
) -> dict[str, float]:  # fmt: skip
    """Seconds of one product by format, each checked against the dense one first."""
    sparse, whole = csr_array(irregular.numpy()), weight.numpy()
    with warnings.catch_warnings():  # torch calls its own sparse form a beta
        warnings.simplefilter("ignore", UserWarning)
        torch_sparse = irregular.to_sparse_csr()
    module, input_ = TorchDarbProduct(matrix), torch.from_numpy(x)
    products: dict[str, tuple[Tensor, Callable[[], Any]]] = {
        "darb": (ours, bound(DarbProduct(matrix), x)),
        "darb packed": (ours, bound(DarbProduct(matrix, packed=True), x)),
        "darb torch": (ours, bound(module, input_)),
        "csr": (irregular, bound(CsrProduct(irregular), x)),
        "csr_runs": (irregular, bound(CsrProduct(irregular, runs=True), x)),
        "csr scipy": (irregular, lambda: sparse @ x),
        "csr torch": (irregular, lambda: torch_sparse @ input_),
        "blocks_4x4": (tiles, bound(TileProduct(tiles), x)),
        "dense": (weight, lambda: whole @ x),
    }
    for name, (held, call) in products.items():
        np.testing.assert_allclose(
            np.asarray(call()), held.numpy() @ x, rtol=1e-3, atol=1e-3, err_msg=name
        )
    found = dict.fromkeys(products, float("inf"))
    with torch.no_grad():
        for _ in range(repeats):
            for name, (_, call) in products.items():
                found[name] = min(found[name], best_seconds(call, 5))
    return found


def bound(product: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    """A call without arguments."""
    return lambda: product(x)


def cases(quick: bool) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, weight and row widths of every matrix."""
    random = torch.Generator().manual_seed(0)
    sizes = [(512, 512)] if quick else [(512, 512), (2048, 2048), (4096, 1536)]
    for rows, columns in sizes:
        weight = torch.randn(rows, columns, generator=random)
        for inverse in (8,) if quick else (4, 8, 16, 32):
            yield f"{rows}x{columns}", weight, mixed_widths(rows, 1.0 / inverse)
    if os.environ.get("CHITA_OPT_DATA"):
        from reference_data import mlpnet

        weight = mlpnet().fc1.weight.detach()
        for inverse in (8,) if quick else (4, 8, 16):
            yield "MLPNet fc1", weight, mixed_widths(len(weight), 1.0 / inverse)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size, one density")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    result = "darb_decoding_quick" if given.quick else "darb_decoding"
    note = f"{LANES} lanes, single precision, one thread"
    for name, weight, widths in cases(given.quick):
        table += rows_of(name, weight, widths, 3 if given.quick else 10)
        save(result, table, note)
    show(result, table, COLUMNS, note)


if __name__ == "__main__":
    main()
