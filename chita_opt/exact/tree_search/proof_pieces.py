"""Parts of a proof log that other processes write: cut off at open nodes, and put back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree_search.node import Node
from chita_opt.exact.tree_search.proof_log import ProofLog
from chita_opt.supports.base import Array


@dataclass(frozen=True, eq=False)
class Piece:
    """What a worker wrote below b nodes: entries from number b on, for steps and for witnesses.

    Its numbers 0 to b - 1 stand for the steps and witnesses that the nodes came with.
    """

    parent: list[int]
    side: list[int]
    branch: list[int]
    witness_row: list[int]
    fixings: list[tuple[int, int, int]]
    witnesses: list[Array]
    splits: list[Array]
    bounds: list[float]

    @classmethod
    def of(cls, log: ProofLog, b: int) -> Piece:
        """What ``log`` holds beyond its ``b`` stand-ins."""
        return cls(
            log.parent[b:], log.side[b:], log.branch[b:], log.witness_row[b:], log.fixings,
            log.witnesses[b:], log.splits[b:], log.bounds[b:],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inherited:
    """What b nodes bring along: rows of their best witnesses in the log, -1 for none, and those.

    ``pairs`` is (b, 2, p): points and splits; ``bounds`` is (b,).
    """

    rows: list[int]
    pairs: Array
    bounds: Array

    @classmethod
    def of(cls, log: ProofLog, nodes: list[Node]) -> Inherited:
        """Look them up."""
        rows = [log.best_above(node) for node in nodes]
        pairs, bounds = np.zeros((len(nodes), 2, log.quadratic.size)), np.full(len(nodes), -np.inf)
        for i, row in enumerate(rows):
            if row >= 0:
                pairs[i] = log.witnesses[row], log.splits[row]
                bounds[i] = log.bounds[row]
        return cls(rows, pairs, bounds)


def open_piece(quadratic: Quadratic, nodes: list[Node], brought: Inherited) -> ProofLog:
    """A log that begins with stand-ins for ``nodes``, which are renumbered."""
    log = ProofLog(quadratic)
    log.room = 0  # many pieces end in one log
    log.witnesses, log.splits = list(brought.pairs[:, 0]), list(brought.pairs[:, 1])
    log.bounds = brought.bounds.tolist()
    for i, node in enumerate(nodes):
        node.step = log.enter(-1, -1)
        node.witness_row = log.witness_row[i] = i if brought.rows[i] >= 0 else -1
    return log


def put_back(
    log: ProofLog, piece: Piece, nodes: list[Node], brought: Inherited, still: list[Node]
) -> list[Node]:
    """Append what was written below ``nodes``; the open nodes ``still``, renumbered.

    Those of ``nodes`` that were not touched stand for themselves.
    """
    b, steps, rows = len(nodes), len(log.parent), len(log.witnesses)

    def step(i: int) -> int:
        return nodes[i].step if i < b else steps + i - b

    def row(i: int) -> int:
        return rows + i - b if i >= b else brought.rows[i] if i >= 0 else -1

    log.parent += [step(i) for i in piece.parent]
    log.side += piece.side
    log.branch += piece.branch
    log.witness_row += [row(i) for i in piece.witness_row]
    log.fixings += [(step(i), j, x) for i, j, x in piece.fixings]
    log.witnesses += piece.witnesses
    log.splits += piece.splits
    log.bounds += piece.bounds
    untouched = [nodes[node.step] for node in still if node.step < b]
    new = [node for node in still if node.step >= b]
    for node in new:
        node.step, node.witness_row = step(node.step), row(node.witness_row)
    return untouched + new
