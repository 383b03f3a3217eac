r"""Replay the log of a branch and bound with numpy alone: no solver, no trust in who wrote it.

A log is a tree of steps. Each step has a state, the weights fixed in and out on the way to it. A
step may fix weights (its witness proves that every solution with the other value costs at least the
cutoff), and then branches on a weight, has one child, or is a leaf: a state that holds no mask of
the family, whose witness proves that all its solutions cost at least the cutoff, or that leaves so
few weights to choose that all choices are looked at. If the replay ends without a gap, no allowed
weights cost less than the cutoff.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.arithmetic import objective
from chita_opt.certificates.choices import bound_of_choices
from chita_opt.certificates.container import array_hash, read_sealed
from chita_opt.certificates.node_bound import FREE, IN, OUT, Gains, NodeBounds
from chita_opt.certificates.problem_data import (
    allowed_weights,
    integers,
    matrix,
    read_problem,
)
from chita_opt.certificates.verification import dense_minimum, increase, ratio
from chita_opt.errors import CertificateError

Array = np.ndarray
KIND = "tree_proof"
EVERY_CHOICE = -2  # in place of a branching weight: a leaf all of whose choices are looked at
TREE_ARRAYS = {  # names in a file, and what each has one entry of
    "parent": "steps", "side": "steps", "branch": "steps", "witness_row": "steps",
    "fix_step": "fixings", "fix_index": "fixings", "fix_value": "fixings",
    "witnesses": "rows", "splits": "rows",
}  # fmt: skip


@dataclass(frozen=True)
class ProofReport:
    """What the replay established.

    Attributes
    ----------
    upper : float
        Objective of the incumbent, recomputed, not below its exact value.
    lower : float
        No allowed weights have an objective below it.
    increase : float
        Modelled loss increase of the incumbent (over the dense minimum where a linear term is
        present), which relative gaps divide by.
    steps, leaves, fixings : int
        Size of the tree, or of all trees.
    nnz, p : int
        Weights kept by the incumbent, and in all.
    weakest : float
        Lowest bound of a leaf or a fixing, rounding included; the cutoff may not exceed it.
    at_zero : float
        Objective of pruning everything.
    trees : int
        Number of trees.
    """

    upper: float
    lower: float
    increase: float
    steps: int
    leaves: int
    fixings: int
    nnz: int
    p: int
    weakest: float
    at_zero: float
    trees: int = 1

    @property
    def gap(self) -> float:
        """Upper - lower."""
        return max(self.upper - self.lower, 0.0)

    @property
    def relative_gap(self) -> float:
        """Gap over the modelled loss increase."""
        return ratio(self.gap, self.increase)


@dataclass(frozen=True, eq=False)
class Tree:
    """The arrays of a log, checked for shapes and ranges; names as in the file."""

    parent: Array
    side: Array
    branch: Array
    witness_row: Array
    fix_step: Array
    fix_index: Array
    fix_value: Array
    witnesses: Array
    splits: Array


def verify_proof(path: str | Path, problem_path: str | Path | None = None) -> ProofReport:
    """Recompute everything that the log of a branch and bound claims.

    Parameters
    ----------
    path : str or Path
        A file written by ``save_proof``.
    problem_path : str or Path, optional
        The problem's own file; the proof must be about exactly these data.

    Raises
    ------
    CertificateError
        If a byte was changed, data are malformed, the tree is not whole, a bound or a fixing does
        not follow from its witness, or the incumbent is not allowed.
    """
    arrays, claims = read_log(path, problem_path, KIND)
    cutoff = number(claims, "cutoff")
    with guarded(path):
        found = replay(arrays, claims["problem"], cutoff)
    check_claims(claims, found)
    return found


def read_log(
    path: str | Path, problem_path: str | Path | None, kind: str
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and claims of a file of one kind, its problem the one that it names."""
    arrays, claims = read_sealed(path)
    if claims.get("kind") != kind:
        raise CertificateError(
            f"{path} is of kind {claims.get('kind')!r}, not {kind!r}; verify checks any kind"
        )
    if problem_path is not None:
        more, _ = read_sealed(problem_path)
        arrays |= {k: a for k, a in more.items() if k.startswith("problem.")}
    problem = {k: a for k, a in arrays.items() if k.startswith("problem.")}
    described = claims.get("problem")
    if not isinstance(described, dict) or not isinstance(claims.get("problem_hash"), str):
        raise CertificateError(f"{path} does not describe its problem")
    if array_hash(problem, described) != claims["problem_hash"]:
        raise CertificateError(f"{path} was made for another problem: the data's hash differs")
    return arrays, claims


@contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Arithmetic on what a file holds: whatever fails is the file's fault."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # NaN proves nothing
            yield
    except (ValueError, IndexError, ArithmeticError) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"{path} is malformed: {error!r}") from error


def check_claims(claims: Mapping[str, Any], found: ProofReport) -> None:
    """Refuse a bound above the proven one, or an objective below the recomputed one."""
    lower, upper = number(claims, "lower"), number(claims, "upper")
    if not lower <= found.lower:
        raise CertificateError(f"the claimed bound {lower!r} exceeds the proven {found.lower!r}")
    if not upper >= found.upper - 1e-12 * (abs(found.upper) + abs(found.at_zero)):
        raise CertificateError(f"the claimed objective {upper!r} is below {found.upper!r}")


def replay(
    arrays: Mapping[str, Array], specification: Mapping[str, Any], cutoff: float
) -> ProofReport:
    """Check a log's arrays against a cutoff; the arithmetic behind :func:`verify_proof`."""
    problem = read_problem(arrays, specification)
    w = allowed_weights(arrays, problem)
    upper = objective(problem.data, w)
    tree = read_tree(arrays, problem.p)
    bounds = NodeBounds(problem)
    leaves, weakest = walk(tree, bounds, cutoff)
    lower = min(cutoff, upper.above)
    return ProofReport(
        upper.above, lower, increase(upper, dense_minimum(arrays, problem)), len(tree.parent),
        leaves, len(tree.fix_step), int(np.count_nonzero(w)), problem.p, weakest,
        bounds.at_zero.value,
    )  # fmt: skip


def read_tree(arrays: Mapping[str, Array], p: int) -> Tree:
    """The tree's arrays by name; shapes, types and ranges checked."""
    witnesses = matrix(arrays, "tree.witnesses", (None, p))
    splits = matrix(arrays, "tree.splits", (len(witnesses), p))
    parent = integers(arrays, "tree.parent", -1, 2**31)
    steps = len(parent)
    fix_step = integers(arrays, "tree.fix_step", 0, steps)
    tree = Tree(
        parent,
        integers(arrays, "tree.side", -1, 2),
        integers(arrays, "tree.branch", EVERY_CHOICE, p),
        integers(arrays, "tree.witness_row", -1, len(witnesses)),
        fix_step,
        integers(arrays, "tree.fix_index", 0, p),
        integers(arrays, "tree.fix_value", 0, 2),
        witnesses.astype(np.float64),
        splits.astype(np.float64),
    )
    for name in ("side", "branch", "witness_row"):
        _same_length(f"tree.{name}", getattr(tree, name), steps)
    for name in ("fix_index", "fix_value"):
        _same_length(f"tree.{name}", getattr(tree, name), len(fix_step))
    if bool((np.diff(fix_step) < 0).any()):
        raise CertificateError("tree.fix_step is not sorted")
    _check_shape(tree)
    return tree


def _check_shape(tree: Tree) -> None:
    """One root, parents before children, both sides of every branching and nothing else."""
    steps = np.arange(len(tree.parent))
    if not len(steps) or tree.parent[0] != -1 or tree.side[0] != -1:
        raise CertificateError("the first step of a tree must be its root")
    stray = np.flatnonzero((tree.parent >= steps) | ((tree.parent < 0) & (steps > 0)))
    if len(stray):
        raise CertificateError(f"step {stray[0]} does not come after its parent: no tree")
    children = tree.parent[1:]
    for side in (-1, 0, 1):
        count = np.bincount(children[tree.side[1:] == side], minlength=len(steps))
        branching = tree.branch >= 0
        wrong = count > 1 if side < 0 else branching & (count != 1)
        wrong |= (branching if side < 0 else ~branching) & (count > 0)
        if bool(wrong.any()):
            step = int(np.argmax(wrong))
            what = "an only child" if side < 0 else f"the child with value {side}"
            raise CertificateError(
                f"step {step} of the tree has {count[step]} of {what}: a branching needs one child "
                "a side, another step at most one"
            )


def walk(tree: Tree, bounds: NodeBounds, cutoff: float) -> tuple[int, float]:
    """Replay a tree; its number of leaves, and the weakest bound that closed something."""
    return _Replay(tree, bounds, cutoff).run()


class _Replay:
    """Walk through the steps in their order, parents first."""

    def __init__(self, tree: Tree, bounds: NodeBounds, cutoff: float) -> None:
        self.tree, self.bounds, self.cutoff = tree, bounds, cutoff
        self.children = np.bincount(tree.parent[1:], minlength=len(tree.parent))
        self.waiting = self.children.copy()
        self.states: dict[int, Array] = {-1: np.full(bounds.p, FREE, dtype=np.int8)}
        self.weakest, self.leaves = float("inf"), 0

    def run(self) -> tuple[int, float]:
        """Number of leaves and the weakest bound that closed something."""
        tree = self.tree
        ends = np.searchsorted(tree.fix_step, np.arange(len(tree.parent) + 1))
        for step in range(len(tree.parent)):
            state = self._enter(step)
            if tree.branch[step] == EVERY_CHOICE:
                self._look_at_all(step, state, ends[step] < ends[step + 1])
                continue
            row = int(tree.witness_row[step])
            gains = None
            if row >= 0:
                gains = self.bounds.gains(tree.witnesses[row], tree.splits[row], state, row)
            after = self._fix(step, slice(ends[step], ends[step + 1]), state, gains)
            if self.children[step]:
                self.states[step] = after
            else:
                self._close(gains, after, f"leaf {step}")
                self.leaves += 1
        return self.leaves, self.weakest

    def _enter(self, step: int) -> Array:
        """State of a step: its parent's, with the branching weight set."""
        parent = int(self.tree.parent[step])
        state = self.states[parent].copy()
        if parent >= 0:
            side, branch = int(self.tree.side[step]), int(self.tree.branch[parent])
            self.waiting[parent] -= 1
            if not self.waiting[parent]:
                del self.states[parent]
            if side >= 0:
                if state[branch] != FREE:
                    raise CertificateError(f"step {parent} branches on weight {branch}, again")
                state[branch] = IN if side else OUT
        return state

    def _fix(self, step: int, own: slice, state: Array, gains: Gains | None) -> Array:
        """Prove every fixing against the state on entry; the state after all of them."""
        after = state
        for j, value in zip(self.tree.fix_index[own], self.tree.fix_value[own], strict=True):
            if after[j] != FREE:
                raise CertificateError(f"step {step} fixes weight {j}, which is fixed already")
            against = state.copy()
            against[j] = OUT if value else IN
            self._close(gains, against, f"the fixing of weight {j} at step {step}")
            after = after.copy() if after is state else after
            after[j] = IN if value else OUT
        return after

    def _look_at_all(self, step: int, state: Array, fixes: bool) -> None:
        """Refuse unless every choice that a state leaves reaches the cutoff."""
        if fixes or self.children[step]:
            raise CertificateError(f"step {step} looks at all choices and has more to follow")
        self._reached(bound_of_choices(self.bounds, state), f"leaf {step}")
        self.leaves += 1

    def _close(self, gains: Gains | None, state: Array, what: str) -> None:
        """Refuse unless a state is empty or its bound reaches the cutoff."""
        if gains is None:
            if self.bounds.family.is_empty(state):
                return
            raise CertificateError(f"{what} has no witness, and its state is not empty")
        bound = self.bounds.bound(gains, state)
        if bound < self.weakest and self.bounds.family.is_empty(state):
            return
        self._reached(bound, what)

    def _reached(self, bound: float, what: str) -> None:
        self.weakest = min(self.weakest, bound)
        if not bound >= self.cutoff:
            raise CertificateError(
                f"{what} is not proven: its bound {bound:.12g} is below the cutoff "
                f"{self.cutoff:.12g}"
            )


def _same_length(name: str, array: Array, length: int) -> None:
    if len(array) != length:
        raise CertificateError(f"{name} has {len(array)} entries; {length} are needed")


def number(claims: Mapping[str, Any], name: str) -> float:
    """A claimed finite number."""
    value = claims.get(name)
    if type(value) is not float or not np.isfinite(value):
        raise CertificateError(f"the claim {name!r} is missing or no finite number")
    return value
