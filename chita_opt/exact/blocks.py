r"""Exact solutions of problems whose curvature has no coupling between blocks.

With C block-diagonal (or one H shared by rows) the objective is a sum over blocks, joined only by
the family's total. Let :math:`\phi_B(\kappa)` be block B's optimum with at most :math:`\kappa`
weights; then the optimum is :math:`\min\sum_B\phi_B(\kappa_B)` over :math:`\sum_B\kappa_B\le k`, a
dynamic program. With lower bounds of :math:`\phi_B` in place of values it bounds the optimum. The
values that the bound's split uses are refined until both programs agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from chita_opt.curvature import BlockDiagonal, Curvature, Dense, SharedRows
from chita_opt.errors import ProblemError
from chita_opt.exact.budget_split import best_counts
from chita_opt.exact.engines import ParallelEngine
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.path import PathSolver
from chita_opt.exact.path_checkpoint import PathCheckpoint
from chita_opt.exact.result import BlockProof, TreeResult
from chita_opt.exact.value_curves import proven_floor
from chita_opt.heuristics import solve
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import Budget
from chita_opt.supports.base import Array


def split_into_blocks(problem: Problem) -> list[tuple[slice, Problem]]:
    """The problem's blocks, each with the family's groups that lie in it and no total.

    Raises
    ------
    ProblemError
        If the curvature has no blocks, or a group of the family lies in more than one.
    """
    family = problem.supports
    parts = list(block_slices(problem.curvature))
    if len(parts) < 2 or not isinstance(family, Budget):
        raise ProblemError(
            "this problem does not fall into blocks under a budget; use branch_and_bound"
        )
    if len(family.caps) == 1:  # cardinality: its one cap acts as the total
        family = replace(Budget.cardinality(problem.p, problem.p), total=family.max_count)
        groups = None
    else:
        groups = family.labels.numpy()
    found = []
    for s, block in parts:
        size = s.stop - s.start
        if groups is None:
            own = Budget.cardinality(size, size)
        else:
            names, labels = np.unique(groups[s], return_inverse=True)
            elsewhere = np.concatenate([groups[: s.start], groups[s.stop :]])
            if bool(np.isin(names, elsewhere).any()):
                raise ProblemError(
                    f"a group of {family.name} lies in more than one block of the curvature; use "
                    "branch_and_bound"
                )
            own = Budget.per_block(torch.from_numpy(labels), family.caps[torch.from_numpy(names)])
        found.append((s, Problem(block, problem.w_bar[s], problem.rho[s], own, problem.g[s])))
    return found


def block_slices(curvature: Curvature) -> Iterator[tuple[slice, Curvature]]:
    """The blocks of a curvature, of any depth, rows that share a matrix one by one."""
    if isinstance(curvature, SharedRows):
        d, row = curvature.width, Dense(curvature.H)
        for r in range(curvature.rows):
            yield slice(r * d, (r + 1) * d), row
    elif isinstance(curvature, BlockDiagonal):
        for block, s in curvature.slices():
            for inner, form in block_slices(block):
                yield slice(s.start + inner.start, s.start + inner.stop), form
    else:
        yield slice(0, curvature.size), curvature


@dataclass(eq=False)
class Coupling:
    """The blocks' paths and the dynamic program over them."""

    paths: list[PathSolver]
    total: int

    def split(self, values: list[Array]) -> tuple[float, list[int]]:
        """Smallest sum of ``values[B][kappa_B]`` with at most ``total`` weights, and the counts."""
        return best_counts([(np.arange(len(value)), value) for value in values], self.total)

    def bounds(self) -> tuple[float, float, list[int], list[int]]:
        """Lower and upper value of the whole with their splits."""
        lower, low = self.split([np.minimum(p.lower, p.upper) for p in self.paths])
        upper, high = self.split([p.upper for p in self.paths])
        return lower, upper, low, high


def solve_blocks(
    problem: Problem,
    *,
    options: TreeOptions | None = None,
    engine: ParallelEngine | None = None,
) -> TreeResult:
    """Solve a problem of blocks exactly, block by block, with exact coupling.

    The default heuristic finds first weights; every block gets a bound for every count; then the
    counts in the bound's best split are solved exactly until the bound reaches the incumbent.

    Parameters
    ----------
    problem : Problem
        Block-diagonal or shared-row curvature; a budget whose groups lie inside blocks, with or
        without a total.
    options : TreeOptions, optional
        Gap and limits of the whole, and as for :func:`k_path` proof, checkpoint and resume.
    engine : ParallelEngine, optional
        Where the blocks' first bounds are computed; here by default. The result does not depend
        on it unless a time limit ends the work.

    Raises
    ------
    ProblemError
        If the problem does not fall into blocks.
    """
    options = options or TreeOptions()
    clock = Clock(options.time_limit)
    blocks = split_into_blocks(problem)
    family = problem.supports
    assert isinstance(family, Budget)
    paths = block_paths(blocks)
    coupling = Coupling(paths, family.max_count)
    checkpoint = PathCheckpoint(options, paths)
    checkpoint.restore()
    status, root = Status.OPTIMAL, None
    try:
        _first_weights(problem, blocks, paths, clock)
        _first_bounds(paths, options, clock, checkpoint, engine or ParallelEngine())
        root = coupling.bounds()[0]
        status = _refine(coupling, options, clock, checkpoint)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    checkpoint.save(force=status is not Status.OPTIMAL)
    lower, _, _, high = coupling.bounds()
    w = np.concatenate([path.w[i] for path, i in zip(paths, high, strict=True)])
    solution = Solution(
        problem, torch.from_numpy(w), "solve_blocks", status, clock.elapsed, clock.trace
    )
    nodes = sum(path.nodes for path in paths)
    lower = min(lower, solution.objective)
    proof = BlockProof(tuple(path.proof() for path in paths)) if options.proof else None
    return TreeResult(
        solution, lower, status, nodes, clock.elapsed, lower if root is None else root, proof=proof
    )


def block_paths(blocks: list[tuple[slice, Problem]]) -> list[PathSolver]:
    """A path a block; pruning everything and the dense minimum are known for every count."""
    paths = [PathSolver(block) for _, block in blocks]
    for path in paths:
        path.upper[:] = path.problem.prune_all
        path.lower[:] = proven_floor(path.problem)
    return paths


def _first_weights(
    problem: Problem, blocks: list[tuple[slice, Problem]], paths: list[PathSolver], clock: Clock
) -> None:
    """Heuristic weights of the whole, each block's part under its own count."""
    left = clock.remaining
    found = solve(problem, time_limit=None if left is None else 0.25 * left)
    for (s, block), path in zip(blocks, paths, strict=True):
        part = Solution(block, found.w[s], found.method, Status.FEASIBLE)
        path.learn(part.nnz, -np.inf, part)
    if found.status is Status.INTERRUPTED:
        raise KeyboardInterrupt


def _first_bounds(
    paths: list[PathSolver],
    options: TreeOptions,
    clock: Clock,
    checkpoint: PathCheckpoint,
    engine: ParallelEngine,
) -> None:
    """A root bound and heuristic weights for every count of every block, within half of the time.

    Each block has an even share of it, so that none is left without a bound.
    """

    def keep(block: int, path: PathSolver) -> None:
        paths[block] = path
        checkpoint.save()

    seconds = clock.remaining
    if seconds is not None:
        seconds *= 0.5 / -(-len(paths) // engine.workers)
    quick = replace(
        options, node_limit=1, workers=1, time_limit=seconds, checkpoint=None, resume=False,
        log=None,
    )  # fmt: skip
    engine.map(partial(_bounded, quick), paths, on_result=keep)


def _bounded(options: TreeOptions, path: PathSolver) -> PathSolver:
    """The path with a bound for every count that has none, the largest first."""
    clock = Clock(options.time_limit)
    for i in range(len(path.ks) - 1, -1, -1):
        if clock.expired:
            break
        if i not in path.tried:
            if path.solve(i, replace(options, time_limit=clock.remaining)) is Status.INTERRUPTED:
                raise KeyboardInterrupt
    return path


def _refine(
    coupling: Coupling, options: TreeOptions, clock: Clock, checkpoint: PathCheckpoint
) -> Status:
    """Solve what the bound's split uses until the gap is closed."""
    floor = sum(path.problem.dense_minimum for path in coupling.paths)
    begin = sum(path.nodes for path in coupling.paths)
    while True:
        lower, upper, low, _ = coupling.bounds()
        clock.record(upper)
        if upper - lower <= options.gap * max(upper - floor, 0.0):
            return Status.OPTIMAL
        gaps = [path.upper[i] - path.lower[i] for path, i in zip(coupling.paths, low, strict=True)]
        block = int(np.argmax(gaps))
        gap, path, i = gaps[block], coupling.paths[block], low[block]
        if clock.expired:
            return Status.TIME_LIMIT
        spent = sum(p.nodes for p in coupling.paths) - begin
        if options.node_limit is not None and spent >= options.node_limit:
            return Status.ITERATION_LIMIT
        if not gap > 0.0:
            return Status.OPTIMAL  # the split's values are exact: bound and incumbent agree
        aim = 0.5 * options.gap * max(upper - floor, 0.0) / len(coupling.paths)
        own = max(path.upper[i] - path.problem.dense_minimum, 1e-300)
        left = None if options.node_limit is None else options.node_limit - spent
        exact = replace(
            options, gap=float(min(aim / own, 0.5)), time_limit=clock.remaining, node_limit=left,
            log=None,
        )  # fmt: skip
        exact = checkpoint.of_tree(exact, block, i)
        found = path.solve(i, exact)
        if found is Status.INTERRUPTED:
            raise KeyboardInterrupt
        checkpoint.solved(exact, found)


__all__ = ["solve_blocks", "split_into_blocks"]
