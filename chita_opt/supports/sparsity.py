"""From a sparsity to a whole number of kept weights, by one rule."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from chita_opt.errors import SupportError


@dataclass(frozen=True)
class KeepCount:
    """A whole number of kept weights and the sparsity that it realises.

    Attributes
    ----------
    k : int
        Number of weights kept.
    size : int
        Number of weights in all.
    requested : float
        The sparsity asked for, in [0, 1].
    """

    k: int
    size: int
    requested: float

    @property
    def realised(self) -> float:
        """Sparsity of a mask with exactly ``k`` kept weights."""
        return 1.0 - self.k / self.size

    @property
    def is_exact(self) -> bool:
        """Whether the requested sparsity gave a whole number of weights."""
        return (1 - Decimal(repr(self.requested))) * self.size == self.k

    def __str__(self) -> str:
        note = "" if self.is_exact else f" (asked for {self.requested:g})"
        return f"keep {self.k} of {self.size}, sparsity {self.realised:.6g}{note}"


def keep_count(size: int, sparsity: float) -> KeepCount:
    """Round ``(1 - sparsity) * size`` to the nearest whole number, halves up.

    The product is formed in decimal arithmetic from the shortest decimal form of ``sparsity``, so
    that 90 % of 1,000 weights leaves 100 and not, as truncated binary arithmetic has it, 99.

    Parameters
    ----------
    size : int
        Number of weights, at least 1.
    sparsity : float
        Share of the weights to remove, in [0, 1].

    Returns
    -------
    KeepCount
        The count and the sparsity that it realises; ``is_exact`` tells whether rounding happened.

    Raises
    ------
    SupportError
        If ``size`` is not positive or ``sparsity`` lies outside [0, 1].
    """
    if int(size) != size or size < 1:
        raise SupportError(f"the number of weights is {size}; it must be a whole number >= 1")
    if not 0.0 <= float(sparsity) <= 1.0:  # also refuses nan
        raise SupportError(f"sparsity is {sparsity}; give the share of weights removed, in [0, 1]")
    exact = (1 - Decimal(repr(float(sparsity)))) * int(size)
    return KeepCount(int(exact.quantize(Decimal(1), ROUND_HALF_UP)), int(size), float(sparsity))
