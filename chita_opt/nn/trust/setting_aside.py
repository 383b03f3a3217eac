"""Cut held-out samples off data that are drawn from again and again, as stages do."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from chita_opt.errors import DataError
from chita_opt.nn.sampling import Batch, RowChoice, open_rows, row_order
from chita_opt.nn.trust.calibration import FEWEST, MOST, numbered_samples

_SHARE = 5  # at most one sample in so many, unless a number is asked for
_BATCH = 1000


def set_aside(
    data: Any, *, used: int, count: int | None = None, seed: int = 0
) -> tuple[Any, list[Batch]]:
    """Split data into those that gradients may use and those that are held out.

    Parameters
    ----------
    data : (inputs, targets), Dataset, DataLoader or list of batches
        Samples that can be fetched by number.
    used : int
        Samples that must be left for one measurement of gradients.
    count : int, optional
        Samples to hold out; without it a fifth of the data, 5,000 or what is left beside ``used``,
        whichever is least, if that is at least 100.
    seed : int
        Of the split.

    Returns
    -------
    rest : (inputs, targets), Subset or DataLoader
        Data of the same kind, without the held-out samples.
    batches : list of (inputs, targets)
        The held-out samples.

    Raises
    ------
    DataError
        If the data cannot be read by number, or too few samples are left.
    """
    size = numbered_samples(data)
    wanted = min(MOST, size // _SHARE, size - used) if count is None else count
    if wanted < (FEWEST if count is None else 1) or wanted > size - used:
        raise DataError(
            f"{size} samples leave {max(wanted, 0) if count is None else max(size - used, 0)} to "
            f"hold out (one in {_SHARE}, beside the {used} of one measurement), "
            f"{FEWEST if count is None else count} are needed; lower rows or batch_size, give more "
            "data, or say holdout=COUNT"
        )
    order = row_order(size, seed)
    kept = order[wanted:].sort().values
    source = open_rows(data, RowChoice(index=order[:wanted, None]))
    return _only(data, kept), list(source.chunks(_BATCH))


def _only(data: Any, kept: Tensor) -> Any:
    if isinstance(data, DataLoader):
        chosen = Subset(data.dataset, kept.tolist())
        return DataLoader(chosen, batch_size=data.batch_size, collate_fn=data.collate_fn)
    if isinstance(data, tuple | list):
        pairs = open_rows(data, RowChoice(index=kept[:, None])).chunks(len(kept))
        return next(iter(pairs))
    return Subset(data, kept.tolist())


__all__ = ["set_aside"]
