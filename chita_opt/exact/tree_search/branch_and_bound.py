"""``branch_and_bound``: the optimum, or the best weights found and a proven gap."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from chita_opt.errors import ProblemError
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.quadratic import OUT, Quadratic
from chita_opt.exact.result import TreeProof, TreeResult
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.bounding import AscentOptions
from chita_opt.exact.tree_search.checkpoint import Checkpoint
from chita_opt.exact.tree_search.dominance import ordered
from chita_opt.exact.tree_search.incumbents import Incumbents
from chita_opt.exact.tree_search.node import root_node
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.exact.tree_search.parallel import Crew
from chita_opt.exact.tree_search.progress import Progress
from chita_opt.exact.tree_search.proof_log import ProofLog
from chita_opt.exact.tree_search.tree import Search
from chita_opt.problem import Problem
from chita_opt.solution import Clock, Solution, Status

MAX_SIZE = 4000  # weights up to which a dense matrix and its factorisations are sensible
_LONG = 60  # weights from which workers, that take seconds to start, are started before the search
_EASY = 30  # nodes after which the search is worth a longer look for incumbents


def branch_and_bound(
    problem: Problem,
    *,
    options: TreeOptions | None = None,
    start: Solution | None = None,
) -> TreeResult:
    r"""Minimise over the supports of ``problem`` with proof.

    Every node's bound is the semidefinite relaxation with the best diagonal split
    (:mod:`chita_opt.exact.diagonal_split.ascent`), on the weights still free: those fixed in are
    eliminated by a Schur complement, those fixed out dropped. Weights whose other value has a bound
    at or above the cutoff are fixed. A bound is believed once its split is proven by a Cholesky
    factorisation with room for rounding. Where so few weights are left to choose that looking at
    every choice takes no longer than a bound, that is done: at the root for four of two hundred.

    Parameters
    ----------
    problem : Problem
        Any family with an oracle; budgets have a fast path. H = C + diag(rho) must be positive
        definite, and is formed as a dense matrix.
    options : TreeOptions, optional
        Gap, limits, workers, log, checkpoint, proof.
    start : Solution, optional
        First incumbent; otherwise the default heuristic and the swap search find one.

    Returns
    -------
    TreeResult
        On Ctrl-C too: the incumbent and a valid bound.

    Raises
    ------
    ProblemError
        If there are more than 4,000 weights, or a proof is asked for and the family's rows need
        binary auxiliary variables.
    CurvatureError
        If H is singular on weights that would be kept.

    References
    ----------
    Dong, Chen, Linderoth (2015), "Regularization vs. relaxation: a conic optimization perspective
    of statistical variable selection"; Zheng, Sun, Li (2014), "Improving the performance of MIQP
    solvers for quadratic programs with cardinality and minimum threshold constraints".
    """
    options = options or TreeOptions()
    if options.proof and problem.supports.binary_auxiliary:
        raise ProblemError(
            f"the rows of {problem.supports.name} tell its masks apart only with binary auxiliary "
            "variables, which a replay does not branch on; search without a proof"
        )
    if problem.p > MAX_SIZE:
        raise ProblemError(
            f"the problem has {problem.p} weights; the tree search forms dense matrices and stops "
            f"at {MAX_SIZE}. Split the layer into blocks, or use dual_bound"
        )
    # thousands of small factorisations: threads cost more than they bring
    with threadpool_limits(limits=1, user_api="blas"):
        return Tree(problem, options, start).run()


class Tree:
    """One call: the search, its incumbents, its log and what ends it.

    Parameters
    ----------
    problem, options, start : Problem, TreeOptions, Solution or None
        As for :func:`branch_and_bound`.
    quadratic : Quadratic, optional
        That of the problem, where it is at hand.
    workers_first : bool
        Whether workers are started before the root is bounded where the search may be long.
    ascent : AscentOptions, optional
        Accuracy of the bounds.
    target : float
        A bound that is enough.
    """

    def __init__(
        self,
        problem: Problem,
        options: TreeOptions,
        start: Solution | None = None,
        *,
        quadratic: Quadratic | None = None,
        workers_first: bool = True,
        ascent: AscentOptions | None = None,
        target: float = np.inf,
    ) -> None:
        self.problem, self.options = problem, options
        self.clock = Clock(options.time_limit)
        self.quadratic = quadratic or Quadratic.of(problem)
        self.best = Incumbents(problem, self.quadratic, self.clock, start)
        self.log = ProofLog(self.quadratic) if options.proof else None
        idle = self.quadratic.H.diagonal() <= 0.0  # nothing depends on them
        family = allowed(problem.supports, proof=self.log is not None, idle=idle)
        if self.log is None:  # a verifier knows no orders
            family = ordered(problem, family)
        solver = NodeSolver(
            self.quadratic, family, log=self.log, options=ascent, gap=options.gap
        )  # fmt: skip
        self.search = Search(
            solver, self.best.offer, self.best.value, options.gap, problem.dense_minimum,
            options.memory_limit, target,
        )  # fmt: skip
        self.progress = Progress(self.clock, options.log, options.log_seconds)
        self.crew = Crew(self.search, options, self.clock, self._look, self._between_nodes)
        self.checkpoint = Checkpoint(options, self.quadratic, problem.supports)
        root = root_node(problem.p, family.row_count)
        if self.log is None:
            root.state[idle] = OUT
        if self.log is None and not bool(problem.g.any()):
            root.lower = 0.0
        self.workers_first, self.kicked = workers_first, False
        self.search.push(root)

    def run(self) -> TreeResult:
        """Search; Ctrl-C ends it like a limit."""
        status = Status.ITERATION_LIMIT
        try:
            if self._search():
                status = Status.OPTIMAL
            elif self.clock.expired:
                status = Status.TIME_LIMIT
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
            self.search.undo()
        return self._finish(status)

    def _search(self) -> bool:
        with self.crew as crew:
            if self.problem.p >= _LONG and self.workers_first:
                crew.start()
            self.kicked = self.checkpoint.restore(self.search, self.best)
            if not self.kicked:
                self.best.find()
            self.search.upper = self.best.value
            return crew.run()

    def _look(self) -> None:
        self.progress.update(self.search)

    def _between_nodes(self) -> None:
        if not self.kicked and self.search.nodes >= _EASY:
            self.kicked = True
            self.best.kick()
            self.search.upper = min(self.search.upper, self.best.value)
        self.checkpoint.save(self.search, self.best)

    def _finish(self, status: Status) -> TreeResult:
        search = self.search
        search.upper = min(search.upper, self.best.value)
        self.progress.update(search, force=True)
        self.checkpoint.save(search, self.best, force=status is not Status.OPTIMAL)
        solution = Solution(
            self.problem, torch.from_numpy(np.array(self.best.w)), "branch_and_bound", status,
            self.clock.elapsed, self.clock.trace, {"nodes": search.nodes},
        )  # fmt: skip
        proof = self._proof()  # after the checkpoint: it closes the log
        lower = search.lower if proof is None else max(search.lower, proof.cutoff)
        return TreeResult(
            solution, min(lower, solution.objective), status, search.nodes, self.clock.elapsed,
            search.root, tuple(self.progress.history), proof,
            {
                "newton_steps": float(search.newton), "open_nodes": float(search.open_nodes),
                **self.crew.stats,
            },
        )  # fmt: skip

    def _proof(self) -> TreeProof | None:
        """The log; its claim is what every leaf, open ones included, reaches, less rounding."""
        if self.log is None:
            return None
        search = self.search
        claim = min(search.closed, search.cutoff, self.log.leave_open(search.still_open()))
        if not claim > -np.inf:  # not even the dense minimum can be proven: H is singular
            return None
        return self.log.finish(claim - 1e-9 * search.scale)


__all__ = ["branch_and_bound"]
