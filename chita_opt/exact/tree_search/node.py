"""Open nodes of the tree, and what bounding one finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from chita_opt.supports.base import Array


@dataclass(eq=False)
class Node:
    """An open node: what is fixed, and a point of its parent's ascent well inside.

    Attributes
    ----------
    state : ndarray
        (p,) int8: FREE, OUT or IN.
    lower : float
        Proven bound inherited from the parent.
    d, z : ndarray
        (p,) split and indicators of the parent; only entries of free weights count.
    nu : ndarray
        Row multipliers by the family's row number.
    mu : float
        Barrier weight at that point; 0 at the root.
    depth : int
        Branchings above.
    step, side, witness_row : int
        Place in the proof log: the parent's step, the branch, the parent's witness; -1 without.
    """

    state: Array
    lower: float
    d: Array
    z: Array
    nu: Array
    mu: float = 0.0
    depth: int = 0
    step: int = -1
    side: int = -1
    witness_row: int = -1

    def copy(self) -> Node:
        """The same node; arrays that bounding replaces are shared, the state is not."""
        return Node(
            self.state.copy(), self.lower, self.d, self.z, self.nu, self.mu, self.depth,
            self.step, self.side, self.witness_row,
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """Memory of the node's arrays."""
        return self.state.nbytes + self.d.nbytes + self.z.nbytes + self.nu.nbytes


@dataclass(eq=False)
class Witness:
    """A proven dual point over a node's free weights.

    Attributes
    ----------
    lower : float
        Its bound.
    mask, costs : ndarray
        (n,) the oracle's support there, and what forcing a weight against it adds to the bound.
    row : int
        Row in the proof log, -1 without.
    """

    lower: float
    mask: Array
    costs: Array
    row: int = -1


@dataclass(eq=False)
class Outcome:
    """What became of a node: closed, or to be split on a weight.

    Attributes
    ----------
    lower : float
        Bound on everything below the node.
    branch : int
        Weight to branch on, -1 where the node is closed.
    node : Node
        The node after fixing.
    supports : list of ndarray
        Supports (index arrays) worth solving exactly.
    steps : int
        Newton steps taken.
    """

    lower: float
    branch: int
    node: Node
    supports: list[Array] = field(default_factory=list)
    steps: int = 0

    def children(self) -> tuple[Node, Node]:
        """The node with its branching weight out, and in."""
        made = []
        for side in (0, 1):
            child = self.node.copy()
            child.state[self.branch] = side
            child.depth += 1
            child.side = side
            made.append(child)
        return made[0], made[1]


def root_node(size: int, rows: int) -> Node:
    """Nothing fixed, no split known."""
    zero = np.zeros(size)
    return Node(np.full(size, -1, dtype=np.int8), -np.inf, zero, zero.copy(), np.zeros(rows))
