"""Gradient rows: seconds, and how many times faster than loops of plain autograd.

Random inputs and untrained nets, as the time does not depend on the values. The loop over rows
differentiates the mean loss of each row's m samples; the loop over samples differentiates every
sample and averages. Both are timed on the first rows and scaled up. "apart" is the largest
difference from the loop over rows, relative to the largest entry of its layer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import best_seconds, report
from mobilenet import MobileNetV1
from resnet20 import ResNet20
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chita_opt.nn import LayerMap, MLPNet, RowChoice, gradient_rows, select_layers

COLUMNS = (
    "net", "p", "rows", "m", "path", "seconds", "reused_s", "forward_s", "fill_s",
    "over_row_loop", "over_sample_loop", "apart",
)  # fmt: skip
CASES: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...], int, int], ...] = (
    ("MLPNet", MLPNet, (784,), 1000, 1),
    ("MLPNet", MLPNet, (784,), 1000, 16),
    ("ResNet20", ResNet20, (3, 32, 32), 500, 1),
    ("ResNet20", ResNet20, (3, 32, 32), 200, 16),
    ("MobileNetV1", MobileNetV1, (3, 32, 32), 64, 1),
)


def loop(model: nn.Module, layers: LayerMap, x: Tensor, y: Tensor) -> Tensor:
    """One call of autograd for each x[i], y[i]."""
    weights = [layers.parameter(model, item) for item in layers]
    rows = torch.empty(len(x), layers.size, device=x.device)
    for row, xs, ys in zip(rows, x, y, strict=True):
        grads = torch.autograd.grad(cross_entropy(model(xs), ys), weights)
        torch.cat([grad.reshape(-1) for grad in grads], out=row)
    return rows


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Shortest seconds, with the device's work done."""

    def whole() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    whole()
    return best_seconds(whole, repeats)


def measure(
    name: str, model: nn.Module, shape: tuple[int, ...], rows: int, m: int, looped: int
) -> dict[str, Any]:
    """One row of the table."""
    layers = select_layers(model)
    device = next(model.parameters()).device
    x = torch.randn(rows * m, *shape, device=device)
    y = torch.randint(10, (rows * m,), device=device)
    choice = RowChoice(rows=rows, batch_size=m)
    found = gradient_rows(model, cross_entropy, (x, y), layers, choice)
    row: dict[str, Any] = {"net": name, "p": layers.size, "rows": rows, "m": m, "path": found.path}

    def again(out: Tensor | None = None) -> None:
        gradient_rows(model, cross_entropy, (x, y), layers, choice, out=out)

    first = slice(0, looped)
    xs, ys = x.unflatten(0, (rows, m))[first], y.unflatten(0, (rows, m))[first]
    plain = loop(model, layers, xs, ys)
    row["apart"] = max(
        float((found.A[first, s.start : s.stop] - plain[:, s.start : s.stop]).abs().max())
        / max(float(plain[:, s.start : s.stop].abs().max()), 1e-30)
        for s in layers
    )
    del plain
    row["seconds"] = timed(again, device, 3)
    row["reused_s"] = timed(lambda: again(found.At), device, 3)
    with torch.no_grad():
        row["forward_s"] = timed(lambda: [model(part) for part in x.split(1000)], device, 3)
    row["fill_s"] = timed(lambda: found.At.fill_(1.0), device, 3)
    by_row = timed(lambda: loop(model, layers, xs, ys), device, 1) * rows / looped
    row["over_row_loop"] = by_row / row["reused_s"]
    xs, ys = xs.flatten(0, 1)[:, None], ys.flatten()[:, None]
    part = slice(0, looped)
    begin = time.perf_counter()
    loop(model, layers, xs[part], ys[part])
    by_sample = (time.perf_counter() - begin) * rows * m / len(xs[part])
    row["over_sample_loop"] = by_sample / row["reused_s"]
    return row


def main() -> None:
    """Every case, or small ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    table = []
    for name, make, shape, rows, m in CASES:
        torch.manual_seed(0)
        model = make().eval().to(options.device)
        rows = max(8, rows // 10) if options.quick else rows
        table.append(measure(name, model, shape, rows, m, min(rows, 50)))
    note = f"{options.device}; {torch.get_num_threads()} threads; ratios are to reused_s"
    report("gradients", table, COLUMNS, note)


if __name__ == "__main__":
    main()
