"""Training samples by number, in an order that depends on nothing but seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from chita_opt.nn.sampling import Batch, RowChoice, open_rows
from chita_opt.nn.training_checkpoint import tensor_digest
from chita_opt.nn.trust.calibration import numbered_samples

_LOOKED_AT = 64  # samples of a Dataset that its fingerprint reads


class Samples:
    """Data whose samples can be fetched by number.

    The order of an epoch and the random numbers of a step follow from the seed and their own
    numbers, so that a run can be continued at any step without what happened before.

    Parameters
    ----------
    data : (inputs, targets), Dataset, DataLoader or list of batches
        Of a DataLoader, the dataset and the way to collate are used.
    seed : int
        Of the order and of the steps.

    Raises
    ------
    DataError
        If samples cannot be fetched by number, or there are none.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.size = numbered_samples(data, "; training in a fixed order needs that")
        self.seed = seed
        self._source = open_rows(data, RowChoice(index=torch.zeros(1, 1, dtype=torch.int64)))
        self._at_hand = isinstance(data, Sequence)
        self.order = lru_cache(maxsize=1)(self._order)

    def batch(self, epoch: int, start: int, size: int) -> Batch:
        """The samples at some places of an epoch's order."""
        return self._source.take(self.order(epoch)[start : start + size])

    def seed_step(self, step: int) -> None:
        """Set torch's random numbers (dropout, augmentation) as they are for a step."""
        torch.manual_seed(mixed_seed(self.seed, "step", step))

    def fingerprint(self) -> str:
        """A short name of the samples, all of them or, of a Dataset, some."""
        count = self.size if self._at_hand else min(self.size, _LOOKED_AT)
        with torch.random.fork_rng(devices=[]):
            self.seed_step(-1)
            x, y = self._source.take(torch.arange(count) * self.size // count)
        return f"{self.size} samples {tensor_digest({'x': x, 'y': y})}"

    def _order(self, epoch: int) -> Tensor:
        random = torch.Generator().manual_seed(mixed_seed(self.seed, "order", epoch))
        return torch.randperm(self.size, generator=random)


def mixed_seed(seed: int, what: str, number: int) -> int:
    """A seed of its own for every purpose and number."""
    text = f"{seed} {what} {number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


__all__ = ["Samples", "mixed_seed"]
