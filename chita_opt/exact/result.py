"""What the tree search returns: the incumbent, a bound that always holds, and how it got there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from chita_opt.bounds import Bound
from chita_opt.solution import Solution, Status
from chita_opt.supports.base import Array

EVERY_CHOICE = -2
"""In place of a branching weight: a leaf all of whose choices are looked at."""
_EPS = 2.0**-52


class HistoryRow(NamedTuple):
    """One row for plots: seconds since the start, bound, incumbent, open nodes."""

    seconds: float
    lower: float
    upper: float
    open_nodes: int


@dataclass(frozen=True, eq=False)
class TreeProof:
    """The tree as flat arrays over S steps, for a verifier that does not trust the search.

    A step is a node's state on entry; the steps' fixings and branchings turn a parent's state into
    its children's. All arrays are over the full space of p weights.

    Attributes
    ----------
    cutoff : float
        Every leaf's bound reaches it; min(cutoff, incumbent) bounds the whole problem.
    parent : ndarray
        (S,) int32, -1 for the root; a parent comes before its children.
    side : ndarray
        (S,) int8: the value (0 or 1) of the parent's branching weight; -1 for the only child of a
        step that only fixes, and for the root.
    branch : ndarray
        (S,) int32: weight that the step branches on; -1 for none; ``EVERY_CHOICE`` for a leaf in
        which so few weights are left to choose that a verifier looks at all choices.
    witness_row : ndarray
        (S,) int32: row of ``witnesses`` and ``splits`` that proves the step's bound or fixings, -1
        for none.
    fix_step, fix_index, fix_value : ndarray
        (F,) int32, int32, int8, sorted by step: fixings proven by the step's witness against the
        state on entry.
    witnesses, splits : ndarray
        (W, p) float64: points v, and diagonals e with H - diag(e) positive semidefinite on the
        weights that are not fixed out. On weights fixed in, e is tiny: the Schur complement is
        then implicit.
    """

    cutoff: float
    parent: Array
    side: Array
    branch: Array
    witness_row: Array
    fix_step: Array
    fix_index: Array
    fix_value: Array
    witnesses: Array
    splits: Array

    @property
    def steps(self) -> int:
        """Number of steps S."""
        return len(self.parent)


@dataclass(frozen=True, eq=False)
class PathProof:
    """Logs for several counts of one problem; each bounds all solutions with at most its count.

    Attributes
    ----------
    counts : tuple of int
        Increasing; the last is the number of weights where no count binds.
    trees : tuple of TreeProof
        One a count.
    """

    counts: tuple[int, ...]
    trees: tuple[TreeProof, ...]


@dataclass(frozen=True, eq=False)
class BlockProof:
    r"""Logs for the blocks of a problem, and how their bounds are joined.

    With :math:`\phi_B(\kappa)` what a block's logs prove for at most :math:`\kappa` weights, the
    whole is bounded by the knapsack :math:`\min\sum_B\phi_B(\kappa_B)` over
    :math:`\sum_B\kappa_B\le k`, and for any price :math:`y\ge0` by
    :math:`\sum_B\min_\kappa(\phi_B(\kappa)+y\kappa)-yk`.

    Attributes
    ----------
    paths : tuple of PathProof
        One a block, in the order of the weights.
    price : float or None
        y; None where the knapsack is meant.
    bound : Bound or None
        A witness over the whole problem, which a certificate holds beside the logs.
    """

    paths: tuple[PathProof, ...]
    price: float | None = None
    bound: Bound | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        return "blocks"


@dataclass(frozen=True, eq=False)
class ReductionProof:
    """A bound in two levels: fates proven by one witness, and a tree over the undecided weights.

    Masks against a fate cost at least the cutoff, by the witness's reduced costs; those with all
    fates cost at least what the tree proves. The smaller of both bounds the whole problem.

    Attributes
    ----------
    bound : Bound
        The witness over all weights.
    cutoff : float
        Value that the fates are proven against.
    fates : ndarray
        (p,) int8: 1 kept, 0 pruned, -1 undecided.
    tree : TreeProof
        Over the undecided weights in their order, of the quadratic with the kept ones eliminated;
        its cutoff is in units of the whole problem's objective.
    """

    bound: Bound
    cutoff: float
    fates: Array
    tree: TreeProof

    @property
    def name(self) -> str:
        """What reports call it."""
        return "reduction"

    @property
    def lower(self) -> float:
        """What both levels claim together."""
        return min(self.cutoff, self.tree.cutoff)


@dataclass(frozen=True, eq=False)
class TreeResult:
    """The best weights found and a proven bound on every allowed solution.

    Attributes
    ----------
    solution : Solution
        Incumbent; its objective is recomputed from the data.
    lower : float
        No allowed solution has an objective below it.
    status : Status
        OPTIMAL where the gap asked for is closed; otherwise which limit came first.
    nodes : int
        Nodes whose bound was computed.
    seconds : float
        Wall time.
    root : float
        Bound before branching.
    history : tuple of HistoryRow
        Bound and incumbent over time.
    proof : TreeProof, BlockProof, ReductionProof or None
        On request; of a search that was stopped it proves the bound reached by then.
    """

    solution: Solution
    lower: float
    status: Status
    nodes: int
    seconds: float
    root: float
    history: tuple[HistoryRow, ...] = ()
    proof: TreeProof | BlockProof | ReductionProof | None = None
    stats: dict[str, float] = field(default_factory=dict)

    @property
    def upper(self) -> float:
        """Objective of the incumbent."""
        return self.solution.objective

    @property
    def gap(self) -> float:
        """(upper - lower) relative to the incumbent's increase over the dense minimum.

        Zero where both agree to the rounding of the terms that they are sums of.
        """
        problem = self.solution.problem
        terms = abs(problem.prune_all) + abs(problem.dense_minimum) + abs(self.upper)
        if self.upper - self.lower <= 256.0 * _EPS * problem.p * terms:
            return 0.0
        return relative_gap(self.lower, self.upper, self.upper - problem.dense_minimum)

    def __str__(self) -> str:
        return (
            f"branch and bound: {self.status}, objective {self.upper:.6g}, bound {self.lower:.6g}, "
            f"gap {100 * self.gap:.3g} %, {self.nodes} nodes, {self.seconds:.2f} s"
        )


def relative_gap(lower: float, upper: float, scale: float) -> float:
    """(upper - lower) / scale, 0 where the bound reaches the incumbent."""
    if lower >= upper:
        return 0.0
    return (upper - lower) / scale if scale > 0.0 else float("inf")
