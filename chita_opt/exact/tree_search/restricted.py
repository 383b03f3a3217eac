"""What the search asks a family, in a state and on a state's free weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

from chita_opt.supports.base import Array


class Restricted(ABC):
    """A family on a node's free weights.

    Attributes
    ----------
    G, h : ndarray
        (m, n) and (m,): rows ``G z <= h`` that can bind on the free weights.
    names : ndarray
        (m,) number of each row in the whole family.
    """

    G: Array
    h: Array
    names: Array

    @abstractmethod
    def best(self, s: Array) -> tuple[Array, float]:
        """Best mask for scores s >= 0, and the sum of its scores."""

    @abstractmethod
    def exchange(self, s: Array, mask: Array) -> Array:
        """Loss of the best value when a weight is forced against the best ``mask``."""


class Allowed(ABC):
    """Questions that the search asks a family about a state in {FREE, OUT, IN}^p."""

    row_count: int

    @abstractmethod
    def propagate(self, state: Array) -> bool:
        """Fix out what no mask with the kept weights can hold; False if there is no such mask."""

    def holds(self, state: Array) -> bool:
        """Whether the family allows the mask of the kept weights of a state without free ones."""
        return self.propagate(state.copy())

    @abstractmethod
    def everything(self, state: Array) -> bool:
        """Whether all free weights may be kept together."""

    def free_count(self, state: Array) -> int | None:
        """How many free weights may be kept, where any that many may; None where it matters."""
        return None

    @abstractmethod
    def restrict(self, state: Array, free: Array) -> Restricted:
        """The family on the free weights (index array)."""
