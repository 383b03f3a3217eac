"""The small runs of pruning while training that several tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from chita_opt.nn import GradualOptions, GradualResult, TrainingRecipe, prune_and_train

RECIPE = TrainingRecipe(epochs=4, batch_size=16, lr=0.1)
OPTIONS = GradualOptions(stages=3, rows=4, recipe=RECIPE, trust=False)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 4)
    )


def data(count: int = 100) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(count, 8, generator=random)
    return x, x[:, :4].argmax(1)


def trained(options: GradualOptions = OPTIONS, **more: Any) -> GradualResult:
    more = {"sparsity": 0.75, "method": "magnitude", "data": data()} | more
    return prune_and_train(net(), cross_entropy, more.pop("data"), options=options, **more)


def same(one: GradualResult, other: GradualResult) -> bool:
    a, b = one.network.state_dict(), other.network.state_dict()
    return one.history == other.history and all(torch.equal(a[name], b[name]) for name in a)
