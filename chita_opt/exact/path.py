r"""Values and bounds for every number of kept weights, in one run.

:math:`\phi(k)=\min\{f(w):\mathrm{supp}(w)\in\mathcal S,\ \|w\|_0\le k\}` falls with k, so a bound
for k also bounds every smaller count, and a solution for k serves every larger one. The penalised
problem follows: :math:`\min_w f(w)+\lambda_0\|w\|_0=\min_k\phi(k)+\lambda_0k`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from chita_opt.errors import ProblemError
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.path_checkpoint import PathCheckpoint
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.result import PathProof, TreeProof, relative_gap
from chita_opt.exact.tree_search.bounding import AscentOptions
from chita_opt.exact.tree_search.branch_and_bound import Tree
from chita_opt.exact.tree_search.node import root_node
from chita_opt.exact.tree_search.proof_log import ProofLog
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status
from chita_opt.supports import Budget
from chita_opt.supports.base import Array

_CLOSED = 1.001  # a log's bound is lowered by rounding: closed up to this factor


@dataclass(frozen=True, eq=False)
class KPath:
    """The path: for each count the best weights found and a proven bound.

    Attributes
    ----------
    problem : Problem
        Its family is the largest of the path.
    ks : ndarray
        (K,) increasing counts.
    upper, lower : ndarray
        (K,) objective of the best weights, and bound; both fall with k.
    w : ndarray
        (K, p) weights.
    status : Status
        OPTIMAL where every gap asked for is closed.
    nodes : int
        Nodes over all counts.
    seconds : float
        Wall time.
    proof : PathProof or None
        On request, the logs that prove ``lower``.
    """

    problem: Problem
    ks: Array
    upper: Array
    lower: Array
    w: Array
    status: Status
    nodes: int
    seconds: float
    proof: PathProof | None = None

    def penalised(self, weight: float) -> tuple[float, float, int]:
        r"""Upper and lower value of min f(w) + weight * nnz(w) over the path, and the count.

        Exact over the counts of the path: give every count where the penalised problem itself is
        meant.

        Raises
        ------
        ProblemError
            If the weight is negative.
        """
        if not weight >= 0.0:
            raise ProblemError(f"the penalty of a weight is {weight}; it must be >= 0")
        best = int(np.argmin(self.upper + weight * self.ks))
        lower = float(np.min(self.lower + weight * self.ks))
        return float(self.upper[best] + weight * self.ks[best]), lower, int(self.ks[best])


class PathSolver:
    """Solves one quadratic under one count after another; keeps what each run teaches.

    Parameters
    ----------
    problem : Problem
        Its family must be a budget.
    ks : sequence of int
        Counts of the path.
    """

    def __init__(self, problem: Problem, ks: Sequence[int] | None = None) -> None:
        family = problem.supports
        if not isinstance(family, Budget):
            raise ProblemError(
                f"a path over counts needs a budget family; {family.name} is none. Solve the "
                "counts one by one"
            )
        top = family.max_count
        self.ks = np.array(sorted(set(range(top + 1) if ks is None else ks)), dtype=np.int64)
        if not len(self.ks) or self.ks[0] < 0 or self.ks[-1] > top:
            raise ProblemError(f"the counts of a path must lie in [0, {top}], and be some")
        self.problem, self.base = problem, replace(family, total=None, _cache={})
        self.quadratic = Quadratic.of(problem)
        n = len(self.ks)
        self.upper, self.lower = np.full(n, np.inf), np.full(n, -np.inf)
        self.w = np.zeros((n, problem.p))
        self.nodes = 0
        self.proofs: dict[int, TreeProof] = {}
        self.tried: set[int] = set()

    def at(self, i: int) -> Problem:
        """The problem of count ``ks[i]``."""
        return self.problem.with_supports(Budget.nested(self.base, int(self.ks[i])))

    def solve(self, i: int, options: TreeOptions, *, ascent: AscentOptions | None = None) -> Status:
        """Run the tree for count ``ks[i]`` from the nearest weights.

        The last count's root is no good start: its point lies at the boundary of the split's cone,
        where ascents end early; weak roots then cost a thousand nodes where a cold one costs one.
        """
        problem = self.at(i)
        start = self._start(i, problem)
        with threadpool_limits(limits=1, user_api="blas"):
            tree = Tree(
                problem, options, start, quadratic=self.quadratic, ascent=ascent,
                workers_first=not self.tried,
            )  # fmt: skip
            if tree.log is not None:
                tree.log.room //= len(self.ks)  # a verifier reads all logs
            found = tree.run()
        self.nodes += found.nodes
        self.tried.add(i)
        self.learn(i, found.lower, found.solution)
        if isinstance(found.proof, TreeProof):
            known = self.proofs.get(i)
            if known is None or found.proof.cutoff > known.cutoff:
                self.proofs[i] = found.proof
        return found.status

    def proof(self) -> PathProof:
        """The logs that no log of a larger count makes needless; the dense minimum without any."""
        top = len(self.ks) - 1
        if top not in self.proofs:
            log = ProofLog(self.quadratic)
            lower = log.leave_open([root_node(self.problem.p, 1)])
            if lower > -np.inf:
                self.proofs[top] = log.finish(lower)
        best, kept = -np.inf, []
        for i in sorted(self.proofs, reverse=True):
            if self.proofs[i].cutoff > best:
                best = self.proofs[i].cutoff
                kept.append(i)
        free = int(self.ks[-1]) == self.problem.supports.max_count  # that count does not bind
        counts = [self.problem.p if free and i == top else int(self.ks[i]) for i in reversed(kept)]
        return PathProof(tuple(counts), tuple(self.proofs[i] for i in reversed(kept)))

    def _start(self, i: int, problem: Problem) -> Solution | None:
        """The weights at hand, or those of the next count less the cheapest to remove."""
        w, value = self.w[i].copy(), self.upper[i]
        if i + 1 < len(self.ks) and np.isfinite(self.upper[i + 1]):
            trimmed = trim(self.quadratic, self.w[i + 1], int(self.ks[i]))
            other = problem.objective(torch.from_numpy(trimmed))
            if other < value:
                w, value = trimmed, other
        if not np.isfinite(value):
            every = np.ones(problem.p, dtype=bool)
            if not problem.supports.contains(torch.from_numpy(every)):
                return None
            w = self.quadratic.solve(np.flatnonzero(every))[0]
        return Solution(problem, torch.from_numpy(w), "path", Status.FEASIBLE)

    def learn(self, i: int, lower: float, solution: Solution) -> None:
        """A bound holds for smaller counts, weights serve larger ones."""
        self.lower[: i + 1] = np.maximum(self.lower[: i + 1], lower)
        w = solution.w.cpu().numpy()
        better = np.flatnonzero(self.upper[i:] > solution.objective) + i
        self.upper[better], self.w[better] = solution.objective, w

    def gap(self, i: int) -> float:
        """Relative gap of count ``ks[i]``, on the increase over the dense minimum."""
        if not np.isfinite(self.upper[i]):
            return float("inf")
        lower, upper = float(self.lower[i]), float(self.upper[i])
        return relative_gap(lower, upper, upper - self.problem.dense_minimum)


def trim(quadratic: Quadratic, w: Array, k: int) -> Array:
    """Remove the weight of least exact cost until k are left (optimal brain surgeon)."""
    support = np.flatnonzero(w)
    best = w[support]
    while len(support) > k:
        inverse = np.linalg.inv(quadratic.H[np.ix_(support, support)])
        best = inverse @ quadratic.b[support]
        worst = int(np.argmin(best**2 / inverse.diagonal()))
        support = np.delete(support, worst)
        best = quadratic.solve(support)[0]
    trimmed = np.zeros_like(w)
    trimmed[support] = best
    return trimmed


def k_path(
    problem: Problem, *, ks: Sequence[int] | None = None, options: TreeOptions | None = None
) -> KPath:
    """Solve the problem for every number of kept weights.

    Parameters
    ----------
    problem : Problem
        With a budget family; counts up to its largest.
    ks : sequence of int, optional
        Counts; all from 0 by default.
    options : TreeOptions, optional
        Gap for every count; time and node limits for the whole path, shared evenly among the
        counts that are left. With ``proof`` the result can be saved and verified. The checkpoint
        holds what is known of every count; the tree of the count at work stands in a file beside
        it, named for the count. A resumed run leaves out the counts whose gap is closed.

    Returns
    -------
    KPath
        On Ctrl-C or a limit too, with valid bounds for every count.

    Raises
    ------
    ProblemError
        If the family is no budget or a count is out of range.
    """
    options = options or TreeOptions()
    clock = Clock(options.time_limit)
    solver = PathSolver(problem, ks)
    checkpoint = PathCheckpoint(options, [solver])
    done = checkpoint.restore()
    status, spent = Status.OPTIMAL, solver.nodes
    for i in range(len(solver.ks) - 1, -1, -1):
        if done and solver.gap(i) <= _CLOSED * options.gap:
            continue
        own = checkpoint.of_tree(_share(options, clock, solver.nodes - spent, i + 1), 0, i)
        found = solver.solve(i, own)
        if found is not Status.OPTIMAL:
            status = found
        if found is Status.INTERRUPTED:
            break
        checkpoint.solved(own, found)
    checkpoint.save(force=status is not Status.OPTIMAL)
    if not bool(problem.g.any()):
        solver.lower = np.maximum(solver.lower, 0.0)
    if not np.isfinite(solver.upper).all():  # interrupted: pruning everything is always allowed
        _fill(solver, problem)
    return KPath(
        problem, solver.ks, solver.upper, np.minimum(solver.lower, solver.upper), solver.w,
        status, solver.nodes, clock.elapsed, solver.proof() if options.proof else None,
    )  # fmt: skip


def _share(options: TreeOptions, clock: Clock, nodes: int, left: int) -> TreeOptions:
    """What one of ``left`` counts may use."""
    seconds = None if clock.remaining is None else max(clock.remaining / left, 1e-3)
    count = None
    if options.node_limit is not None:
        count = max((options.node_limit - nodes) // left, 1)
    return replace(options, time_limit=seconds, node_limit=count)


def _fill(solver: PathSolver, problem: Problem) -> None:
    missing = ~np.isfinite(solver.upper)
    solver.upper[missing], solver.w[missing] = problem.prune_all, 0.0


__all__ = ["KPath", "PathSolver", "k_path"]
