"""The proof log: every step of the tree with its witness in the space of all weights."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import lapack

from chita_opt.errors import CurvatureError
from chita_opt.exact.diagonal_split.proving import lower_split, same_pulls
from chita_opt.exact.quadratic import IN, OUT, Quadratic
from chita_opt.exact.result import EVERY_CHOICE, TreeProof
from chita_opt.exact.tree_search.completions import LOGGED
from chita_opt.exact.tree_search.node import Node, Witness
from chita_opt.supports.base import Array

if TYPE_CHECKING:
    from chita_opt.exact.tree_search.bounding import NodeBound

Mark = tuple[int, int, int]
_TINY = 1e-10  # split on weights fixed in, relative to the diagonal of H
_INWARD = 1.0 - 1e-7  # factor on splits, so that a verifier's proof has room


class ProofLog:
    """Collects steps as they happen.

    Parameters
    ----------
    quadratic : Quadratic
        The whole problem.
    """

    def __init__(self, quadratic: Quadratic) -> None:
        self.quadratic = quadratic
        self.parent: list[int] = []
        self.side: list[int] = []
        self.branch: list[int] = []
        self.witness_row: list[int] = []
        self.fixings: list[tuple[int, int, int]] = []
        self.witnesses: list[Array] = []
        self.splits: list[Array] = []
        self.bounds: list[float] = []
        self.room = LOGGED  # choices that leaves may still leave to a verifier

    def mark(self) -> Mark:
        """How long the log is now."""
        return len(self.parent), len(self.fixings), len(self.witnesses)

    def rewind(self, mark: Mark) -> None:
        """Forget what was written since ``mark``: a node that an interrupt left half done."""
        steps, fixings, rows = mark
        for column in (self.parent, self.side, self.branch, self.witness_row):
            del column[steps:]
        del self.fixings[fixings:]
        for rest in (self.witnesses, self.splits, self.bounds):
            del rest[rows:]

    def enter(self, parent: int, side: int) -> int:
        """A new step below ``parent``; its number."""
        self.parent.append(parent)
        self.side.append(side)
        self.branch.append(-1)
        self.witness_row.append(-1)
        return len(self.parent) - 1

    def branch_on(self, step: int, index: int) -> None:
        """The step splits on a weight."""
        self.branch[step] = index

    def has_room(self, choices: int, *, root: bool) -> bool:
        """Whether a verifier may be asked to look at so many choices in one more leaf."""
        known = self.quadratic.entry_error is not None
        return known and (root or choices <= self.room)

    def look_at_all(self, step: int, choices: int) -> None:
        """The step is a leaf whose every choice was looked at."""
        self.branch[step] = EVERY_CHOICE
        self.room -= choices

    def fix(self, step: int, index: Array, values: Array) -> None:
        """The step's fixings, against its state on entry."""
        self.fixings += [(step, int(j), int(x)) for j, x in zip(index, values, strict=True)]

    def close(self, node: Node) -> None:
        """A leaf that was not bounded itself: the best witness above it is its own.

        Rows that were fixed out since then are dropped: with
        :math:`v' = v_R + Q_{RR}^{-1}Q_{RO}v_O` the pulls r stay, and the bound does not fall.
        """
        step = self.enter(node.step, node.side)
        row = self.witness_row[step] = self.best_above(node)
        if row < 0:
            return
        v, d, q = self.witnesses[row], self.splits[row], self.quadratic
        rest = np.flatnonzero(node.state != OUT)
        gone = np.flatnonzero((node.state == OUT) & (v != 0.0))
        if len(gone):
            Q = np.asfortranarray(q.H[np.ix_(rest, rest)]) - np.diag(d[rest])
            right = q.H[np.ix_(rest, gone)] @ v[gone]
            point, split = np.zeros(q.size), np.zeros(q.size)
            point[rest] = v[rest] + lapack.dposv(Q, right, lower=1)[1]
            split[rest] = d[rest]
            self.witness_row[step] = self._append(point, split, self.bounds[row])

    def best_above(self, node: Node) -> int:
        """Row of the highest bound on the way to a node; at an open root the dense minimum."""
        if node.step < 0:
            every = np.arange(self.quadratic.size)
            try:
                return self.prove_leaf(every, self.quadratic.solve(every)[0])[0]
            except CurvatureError:
                return -1
        best, step = node.witness_row, node.step
        while step >= 0:
            row = self.witness_row[step]
            if row >= 0 and (best < 0 or self.bounds[row] > self.bounds[best]):
                best = row
            step = self.parent[step]
        return best

    def leave_open(self, nodes: list[Node]) -> float:
        """Write the open nodes of a search that was stopped as leaves; the least bound of all."""
        least = float("inf")
        for node in nodes:
            self.close(node)
            row = self.witness_row[-1]
            least = min(least, self.bounds[row] if row >= 0 else -np.inf)
        return least

    def _append(self, v: Array, d: Array, lower: float) -> int:
        self.witnesses.append(v)
        self.splits.append(d)
        self.bounds.append(lower)
        return len(self.witnesses) - 1

    def prove(self, bound: NodeBound, d: Array, v: Array) -> Witness | None:
        """The bound of (d, v) extended to all weights, its split proven there.

        Weights fixed in get the best values given v, so that their residual vanishes, and a tiny
        split; those fixed out are zero.
        """
        state, free, q = bound.node.state, bound.free, self.quadratic
        kept, rest = np.flatnonzero(state == IN), np.flatnonzero(state != OUT)
        point, split = np.zeros(q.size), np.zeros(q.size)
        point[free], split[free] = v, d
        if len(kept):
            A = np.asfortranarray(q.H[np.ix_(kept, kept)])
            right = q.b[kept] - q.H[np.ix_(kept, free)] @ v
            point[kept] = lapack.dposv(A, right, lower=1)[1]
            split[kept] = _TINY * q.H.diagonal()[kept]
        H = np.asfortranarray(q.H[np.ix_(rest, rest)])
        proven = lower_split(H, _INWARD * split[rest], q.margin(state != OUT))
        if proven is None:
            return None
        point[rest] = same_pulls(H, split[rest], point[rest], proven)
        split[rest] = proven
        s, base = self._gains(H, rest, point[rest], proven)
        inside = state[rest] == IN
        mask, value = bound.restricted.best(s[~inside])
        lower = base - float(s[inside].sum()) - value
        lower -= q.rounding(value)
        costs = bound.restricted.exchange(s[~inside], mask)
        return Witness(lower, mask, costs, self._append(point, split, lower))

    def prove_leaf(self, support: Array, w: Array) -> tuple[int, float]:
        """The exact weights of a support as a witness; its row and bound."""
        q = self.quadratic
        point, split = np.zeros(q.size), np.zeros(q.size)
        if not len(support):
            lower = q.const - q.rounding(q.const)
            return self._append(point, split, lower), lower
        point[support] = w
        H = np.asfortranarray(q.H[np.ix_(support, support)])
        mask = np.zeros(q.size, dtype=bool)
        mask[support] = True
        d = lower_split(H, _TINY * H.diagonal(), q.margin(mask))
        if d is None:
            return -1, -np.inf
        split[support] = d
        s, base = self._gains(H, support, w, d)
        lower = base - float(s.sum())
        lower -= q.rounding(lower)
        return self._append(point, split, lower), lower

    def _gains(self, H: Array, rest: Array, v: Array, d: Array) -> tuple[Array, float]:
        """Gains r^2 / 2d over the weights not fixed out, and the rest of the bound."""
        image = H @ v - d * v
        r = self.quadratic.b[rest] - image
        return 0.5 * r * r / d, self.quadratic.const - 0.5 * float(v @ image)

    def stored(self, mark: Mark | None) -> dict[str, Array]:
        """What was written up to ``mark``, for a checkpoint; all if it is None."""
        short = ProofLog(self.quadratic)
        for name in ("parent", "side", "branch", "witness_row", "fixings", "bounds"):
            setattr(short, name, list(getattr(self, name)))
        short.witnesses, short.splits = list(self.witnesses), list(self.splits)
        if mark is not None:
            short.rewind(mark)
        proof = short.finish(0.0)
        names = [f.name for f in fields(proof) if f.name != "cutoff"]
        return {n: getattr(proof, n) for n in names} | {"bounds": np.array(short.bounds)}

    def restore(self, a: dict[str, Array]) -> None:
        """What ``stored`` gave."""
        self.room = 0  # what was left of it is not stored
        for name in ("parent", "side", "branch", "witness_row", "bounds"):
            setattr(self, name, a[name].tolist())
        columns = (a[name].tolist() for name in ("fix_step", "fix_index", "fix_value"))
        self.fixings = list(zip(*columns, strict=True))
        self.witnesses, self.splits = list(a["witnesses"]), list(a["splits"])

    def finish(self, cutoff: float) -> TreeProof:
        """The arrays, for a claim of ``cutoff``."""
        p = self.quadratic.size
        fixings = np.array(sorted(self.fixings), dtype=np.int32).reshape(-1, 3)
        return TreeProof(
            cutoff,
            np.array(self.parent, dtype=np.int32),
            np.array(self.side, dtype=np.int8),
            np.array(self.branch, dtype=np.int32),
            np.array(self.witness_row, dtype=np.int32),
            fixings[:, 0].copy(),
            fixings[:, 1].copy(),
            fixings[:, 2].astype(np.int8),
            np.array(self.witnesses).reshape(-1, p),
            np.array(self.splits).reshape(-1, p),
        )
