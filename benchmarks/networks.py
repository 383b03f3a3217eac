"""Five networks from end to end: train or load, prune, certify, verify, export, reload.

MLPNet (shipped) and LeNet-5 on 5,000 MNIST images, ResNet20 on CIFAR-10 and an LSTM on Tiny
Shakespeare (both from CHITA_OPT_DATA, left out with a word where it is not set), a transformer
encoder block on scikit-learn's digits, their rows as tokens. Each is pruned once, without
retraining, under the modelled loss (gradients) and, where every layer has input vectors, under
layer-wise reconstruction (inputs). ``same`` says that the exported file, reloaded into a fresh
copy, gives the same outputs to the bit; ``verified`` that the certificate's file was checked again
by numpy alone.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, save, show
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from chita_opt.certificates import verify
from chita_opt.errors import LayerError
from chita_opt.nn import (
    CharacterModel,
    LeNet5,
    TrainingRecipe,
    TransformerClassifier,
    accuracy,
    digits,
    load_pretrained,
    mnist_subset,
    perplexity,
    prune,
    text_data,
    train_classifier,
)
from chita_opt.nn.export import export, restore_

FORMATS = ("safetensors", "bitmap", "csr", "darb")
OPTIONS: dict[str, dict[str, Any]] = {
    "gradients": {"ridge": 1e-3},
    "inputs": {"ridge": 1e-2, "ridge_unit": "mean_diagonal", "scope": "layer"},
}
ADAM = {"optimizer": "adam", "batch_size": 64}


@dataclass(frozen=True, eq=False)
class Net:
    """A dense network and what it takes to prune and judge it."""

    name: str
    data: str
    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    measure: Callable[[nn.Module, Tensor, Tensor], float]
    sparsity: float
    rows: int
    batch: int = 1
    exclude: tuple[str, ...] = ()


def mlpnet() -> Net:
    data = mnist_subset()
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    model = load_pretrained("mlpnet_mnist5k")
    return Net("MLPNet", "mnist-5k", model, train, test, accuracy, 0.9, 1000)


def lenet5() -> Net:
    data = mnist_subset()
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    model = trained("lenet5", LeNet5(seed=0), train, TrainingRecipe(epochs=8, lr=2e-3, **ADAM))
    return Net("LeNet-5", "mnist-5k", model, train, test, accuracy, 0.9, 500)


def transformer() -> Net:
    data = digits()
    train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
    model = TransformerClassifier(8, 8, 10, width=32, heads=4, hidden=64, seed=0)
    model = trained("transformer", model, train, TrainingRecipe(epochs=60, lr=3e-3, **ADAM))
    return Net("transformer", "digits", model, train, test, accuracy, 0.6, 500)


def resnet20() -> Net:
    from resnet20 import images
    from resnet20 import resnet20 as stored

    model = nn.Sequential(stored("resnet20_finetuned"), nn.LogSoftmax(1))
    train, test = images("train", 5000), images("test", 2000)
    return Net("ResNet20", "CIFAR-10", model, train, test, accuracy, 0.6, 200, batch=16)


def lstm() -> Net:
    from reference_data import data_root

    from chita_opt.nn.characters import read_text

    text = text_data(read_text(data_root() / "data" / "tinyshakespeare.txt")[:200_000])
    model = CharacterModel(len(text.vocabulary), width=64, layers=1, seed=0)
    train, test = (text.x_train, text.y_train), (text.x_test, text.y_test)
    model = trained("lstm", model, train, TrainingRecipe(epochs=8, lr=5e-3, **ADAM))
    return Net(
        "LSTM", "Tiny Shakespeare", model, train, test, perplexity, 0.6, 300, 4, ("embedding",)
    )


NETS: dict[str, Callable[[], Net]] = {
    "mlpnet": mlpnet,
    "lenet5": lenet5,
    "resnet20": resnet20,
    "transformer": transformer,
    "lstm": lstm,
}


def trained(
    name: str, model: nn.Module, data: tuple[Tensor, Tensor], recipe: TrainingRecipe
) -> nn.Module:
    """Train once; later runs read the checkpoint."""
    train_classifier(model, *data, recipe=recipe, checkpoint=RESULTS / f"net_{name}.safetensors")
    return model.eval()


def rows_of(net: Net, limit: float) -> Iterator[dict[str, Any]]:
    for curvature in OPTIONS:
        row = {"net": net.name, "data": net.data, "curvature": curvature}
        try:
            yield row | worked(net, curvature, limit)
        except LayerError as error:  # a layer without input vectors: said, not skipped
            yield row | {"left_out": str(error)}


def worked(net: Net, curvature: str, limit: float) -> dict[str, Any]:
    began = time.perf_counter()
    result = prune(
        net.model,
        nll_loss,
        net.train,
        sparsity=net.sparsity,
        curvature=curvature,
        rows=net.rows,
        batch_size=net.batch,
        exclude=net.exclude,
        time_limit=limit,
        trust=False,
        **OPTIONS[curvature],
    )
    seconds = time.perf_counter() - began
    assert result.certificate is not None
    pruned = result.apply_(copy.deepcopy(net.model))
    values = result.certificate.values
    row: dict[str, Any] = {
        "p": result.solution.problem.p,
        "sparsity": result.solution.sparsity,
        "objective": values.upper,
        "lower": values.lower,
        "gap": values.relative_gap,
        "method": result.solution.method,
        "engine": result.notes.get("gradient_path"),
        "measure": net.measure.__name__,
        "before": net.measure(net.model, *net.test),
        "after": net.measure(pruned, *net.test),
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory() as folder:
        claim = Path(folder) / "claim.safetensors"
        result.certificate.save(claim)
        row["verified"] = verify(claim).lower == values.lower
        return row | reloaded(net, result, pruned, Path(folder))


def reloaded(net: Net, result: Any, pruned: nn.Module, folder: Path) -> dict[str, Any]:
    """Bytes of each format, and whether a reloaded network gives the same outputs."""
    x, same, sizes = net.test[0][:100], True, {}
    with torch.no_grad():
        expected = pruned(x)
        for name in FORMATS:
            written = export(result, folder / f"net.{name}", format=name, model=net.model)
            other = copy.deepcopy(net.model)
            for parameter in other.parameters():
                parameter.zero_()
            restore_(other, written.path)
            same &= torch.equal(other(x), expected)
            sizes[f"{name}_bytes"] = written.size
    return {"same": same, **sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds of each pruning")
    given = parser.parse_args()
    note = "one stage, no retraining; objective and gap are about the quadratic model"
    rows: list[dict[str, Any]] = []
    for name in given.nets:
        if name in ("resnet20", "lstm") and not os.environ.get("CHITA_OPT_DATA"):
            rows.append({"net": name, "left_out": "CHITA_OPT_DATA is not set"})
            continue
        for row in rows_of(NETS[name](), given.time_limit):
            rows.append(row)
            save("networks", rows, note)
    columns = ["net", "curvature", "p", "sparsity", "objective", "gap", "measure", "before"]
    columns += ["after", "seconds", "verified", "same", "safetensors_bytes", "csr_bytes"]
    show("networks", rows, [*columns, "left_out"], note)


if __name__ == "__main__":
    main()
