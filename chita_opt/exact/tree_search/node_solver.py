"""One node of the tree: bound it, fix what the bound decides, say how to branch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from chita_opt.exact.quadratic import FREE, IN, OUT, Quadratic
from chita_opt.exact.tree_search.allowed import Allowed
from chita_opt.exact.tree_search.bounding import AscentOptions, NodeBound, ascent_for
from chita_opt.exact.tree_search.completions import best_completion, choices_of
from chita_opt.exact.tree_search.node import Node, Outcome, Witness
from chita_opt.exact.tree_search.proof_log import ProofLog
from chita_opt.supports.base import Array

_HIDDEN = 0.1  # share of the gap asked for that rounding may hide where choices are looked at
_AGAIN = 0.05  # share of the free weights that must get fixed for another round of bounding


class NodeSolver:
    """What the nodes of one problem share.

    Parameters
    ----------
    quadratic : Quadratic
        The problem's quadratic.
    allowed : Allowed
        Its family.
    log : ProofLog, optional
        Where witnesses, fixings and branchings go; bounds are then those of the full space.
    options : AscentOptions
        Stopping rules of the ascents; those for the problem's size if absent.
    gap : float
        Relative gap that the search is to close.
    """

    def __init__(
        self,
        quadratic: Quadratic,
        allowed: Allowed,
        *,
        log: ProofLog | None = None,
        options: AscentOptions | None = None,
        gap: float = 0.0,
    ) -> None:
        self.quadratic, self.allowed, self.log = quadratic, allowed, log
        self.gap = gap
        self.options = options or ascent_for(quadratic.size)

    def process(
        self, node: Node, cutoff: float, scale: float, stop: Callable[[], bool] | None = None
    ) -> Outcome:
        """Work on ``node`` (changed in place) against ``cutoff``.

        ``scale`` is the incumbent's increase over the dense minimum, the unit of tolerances;
        where ``stop`` says so an ascent ends early, its bound still valid.
        """
        outcome = Outcome(node.lower, -1, node)
        scores: Array | None = None
        bounded = 0
        if self.log is not None:
            node.step = self.log.enter(node.step, node.side)
        while True:
            if not self._propagate(node):
                outcome.lower = np.inf
                return outcome
            if self._leaf(node, outcome) or self._by_completions(node, outcome, cutoff):
                return outcome
            free = np.flatnonzero(node.state == FREE)
            if scores is not None and len(free) > (1.0 - _AGAIN) * bounded:
                break
            bound = NodeBound(
                self.quadratic, node, self.allowed.restrict(node.state, free), free, self.options
            )
            bound.stop = stop
            witness = self._bound(node, bound, cutoff, scale, outcome)
            if witness is None:
                if scores is None:
                    scores = self._blind_scores()
                break
            if node.lower >= cutoff:
                return outcome
            scores, bounded = self._scores(bound), len(free)
            if not self._fix(node, free, witness, cutoff):
                break
        free = np.flatnonzero(node.state == FREE)
        outcome.branch = int(free[np.argmax(scores[free])])
        if self.log is not None:
            self.log.branch_on(node.step, outcome.branch)
        return outcome

    # -- before the bound -------------------------------------------------------------------

    def _propagate(self, node: Node) -> bool:
        """Let the family fix what follows from the counts."""
        before = node.state.copy()
        if not self.allowed.propagate(node.state):
            return False
        if self.log is not None:
            self._log_fixings(node, np.flatnonzero(before != node.state))
        return True

    def _leaf(self, node: Node, outcome: Outcome) -> bool:
        """Exact value where nothing is left to choose."""
        if bool((node.state == FREE).any()) and not self.allowed.everything(node.state):
            return False
        support = np.flatnonzero(node.state != OUT)
        w, value = self.quadratic.solve(support)
        lower = value - self.quadratic.rounding(value)
        if self.log is not None:
            lower = self._log_leaf(node, support, w)
        outcome.supports.append(support)
        outcome.lower = max(node.lower, lower)
        return True

    def _by_completions(self, node: Node, outcome: Outcome, cutoff: float) -> bool:
        """The best of all choices where few are left; False where rounding hides who that is."""
        free, count = np.flatnonzero(node.state == FREE), self.allowed.free_count(node.state)
        q, root = self.quadratic, node.depth == 0
        if count is None:
            return False
        choices = choices_of(q.size, len(free), count, root=root)
        if choices is None or (self.log is not None and not self.log.has_room(choices, root=root)):
            return False
        kept = np.flatnonzero(node.state == IN)
        found = best_completion(q, free, kept, count, self._lowest)
        if found is None:
            return False
        outcome.supports.append(found.support)
        lower = found.value - found.error
        if lower < cutoff and found.error > _HIDDEN * self.gap * (found.value - q.least_value):
            return False
        if self.log is not None:
            self.log.look_at_all(node.step, 0 if root else choices)
        outcome.lower = max(node.lower, lower)
        return True

    @cached_property
    def _lowest(self) -> float:
        """Not above the smallest eigenvalue of H."""
        every = np.ones(self.quadratic.size, dtype=bool)
        lowest = float(np.linalg.eigvalsh(self.quadratic.H)[0])
        return lowest - self.quadratic.margin(every)

    # -- bound and what it decides ------------------------------------------------------------

    def _bound(
        self, node: Node, bound: NodeBound, cutoff: float, scale: float, outcome: Outcome
    ) -> Witness | None:
        """Ascend, prove, keep; None where H is positive definite only to rounding."""
        if bound.ascent is None:
            return None
        d, v = bound.ascend(cutoff, scale)
        outcome.steps += bound.ascent.steps
        witness = bound.prove(d, v) if self.log is None else self.log.prove(bound, d, v)
        bound.inherit(node)
        if witness is None:
            return None
        if self.log is not None:
            self.log.witness_row[node.step] = node.witness_row = witness.row
        node.lower = outcome.lower = max(node.lower, witness.lower)
        kept = np.flatnonzero(node.state == IN)
        likely = bound.restricted.best(bound.ascent.z)[0]
        for mask in (witness.mask, likely):
            outcome.supports.append(np.concatenate([kept, bound.free[mask]]))
        return witness

    def _fix(self, node: Node, free: Array, witness: Witness, cutoff: float) -> bool:
        """Fix weights whose other value has a bound at or above the cutoff."""
        decided = witness.lower + witness.costs >= cutoff
        node.state[free[decided & witness.mask]] = IN
        node.state[free[decided & ~witness.mask]] = OUT
        if self.log is not None:
            self._log_fixings(node, free[decided])
        return bool(decided.any())

    def _scores(self, bound: NodeBound) -> Array:
        r"""Branching scores (p,): estimated gains of both children, multiplied.

        Out: forcing :math:`w_i=0` in the relaxation costs about :math:`v_i^2/2[K^{-1}]_{ii}`, K
        its Hessian with the indicators eliminated. In: what :math:`1-z_i` displaces.
        """
        at = bound.centre
        assert at is not None
        scores = np.zeros(self.quadratic.size)
        scores[bound.free] = at.v**2 / at.spread * (1.0 - at.z)
        return scores

    def _blind_scores(self) -> Array:
        """Without a bound: the largest gains alone."""
        return np.asarray(self.quadratic.b**2 / np.maximum(self.quadratic.H.diagonal(), 1e-300))

    # -- proof log ------------------------------------------------------------------------------

    def _log_fixings(self, node: Node, index: Array) -> None:
        """Write fixings and continue in the step's only child."""
        if self.log is not None and len(index):
            self.log.fix(node.step, index, node.state[index])
            node.step = self.log.enter(node.step, -1)

    def _log_leaf(self, node: Node, support: Array, w: Array) -> float:
        assert self.log is not None
        row, lower = self.log.prove_leaf(support, w)
        self.log.witness_row[node.step] = row
        return lower
