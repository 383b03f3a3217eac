"""Limits, interrupts, checkpoints, workers and proofs of the tree search."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from chita_opt.errors import CurvatureError, DataError, ProblemError
from chita_opt.exact import (
    TreeOptions,
    TreeProof,
    TreeResult,
    branch_and_bound,
    enumerate_optimum,
)
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree_search import parallel
from chita_opt.exact.tree_search.allowed import allowed
from chita_opt.exact.tree_search.incumbents import Incumbents
from chita_opt.exact.tree_search.node import root_node
from chita_opt.exact.tree_search.node_solver import NodeSolver
from chita_opt.exact.tree_search.proof_log import ProofLog
from chita_opt.exact.tree_search.tree import Search
from chita_opt.exact.tree_search.workers import Answer, Slice, Worker
from chita_opt.heuristics import solve
from chita_opt.instances import correlated_instance
from chita_opt.problem import Problem
from chita_opt.solution import Status
from chita_opt.supports import Budget

from .problems import FAMILIES, awkward_problem, make_problem, random_problem


def hard(p: int = 30, *, seed: int = 1, ridge: float = 1e-2) -> Problem:
    """A problem that takes a few dozen nodes."""
    instance = correlated_instance(2 * p, p, correlation=0.7, seed=seed)
    return instance.problem(ridge=ridge, supports=Budget.cardinality(p, p // 4))


def assert_valid(result: TreeResult, optimum: float) -> None:
    assert result.solution.is_feasible
    assert result.lower <= optimum * (1 + 1e-9)
    assert result.upper >= optimum * (1 - 1e-4)


@pytest.fixture(scope="module")
def whole() -> TreeResult:
    result = branch_and_bound(hard())
    assert result.status is Status.OPTIMAL
    assert result.nodes > 5
    return result


def test_node_limit_and_history(whole: TreeResult) -> None:
    lines: list[str] = []
    options = TreeOptions(node_limit=3, log=lines.append, log_seconds=0.0)
    result = branch_and_bound(hard(), options=options)
    assert result.status is Status.ITERATION_LIMIT
    assert result.nodes == 3
    assert_valid(result, whole.upper)
    assert result.lower >= result.root - 1e-9
    assert "incumbent" in lines[0] and "gap" in lines[0]
    assert len(lines) >= 4
    seconds = [row.seconds for row in result.history]
    assert seconds == sorted(seconds)
    assert all(row.lower <= row.upper for row in result.history)


def test_time_limit(whole: TreeResult) -> None:
    result = branch_and_bound(hard(), options=TreeOptions(time_limit=1e-3))
    assert result.status is Status.TIME_LIMIT
    assert_valid(result, whole.upper)


def test_interrupt_keeps_incumbent_and_bound(
    whole: TreeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    process = NodeSolver.process

    def interrupted(self: NodeSolver, *given: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return process(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(NodeSolver, "process", interrupted)
    result = branch_and_bound(hard())
    assert result.status is Status.INTERRUPTED
    assert result.nodes == 3
    assert_valid(result, whole.upper)
    assert result.lower > 0.0


def test_memory_limit_goes_depth_first(whole: TreeResult) -> None:
    result = branch_and_bound(hard(), options=TreeOptions(memory_limit=3000.0))
    assert result.status is Status.OPTIMAL
    assert result.upper == pytest.approx(whole.upper, rel=2e-4)
    assert_valid(result, whole.upper)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers from the first node on, that hand back every few nodes."""
    start = parallel.Crew.start

    def wait(self: parallel.Crew) -> None:
        start(self)
        for worker in self.workers:
            worker._loading.exception()

    monkeypatch.setattr(parallel, "_ALONE", 0.0)
    monkeypatch.setattr(parallel, "_SLICE", 0.02)
    monkeypatch.setattr(parallel.Crew, "start", wait)


@pytest.mark.usefixtures("at_once")
def test_workers_agree(whole: TreeResult) -> None:
    result = branch_and_bound(hard(), options=TreeOptions(workers=2, proof=True))
    assert result.status is Status.OPTIMAL and result.proof is not None
    Replay(hard(), result.proof).check()
    assert result.proof.cutoff >= result.upper * (1 - 1.01e-4)
    assert result.stats["by_workers"] > 0
    assert result.upper == pytest.approx(whole.upper, rel=2e-4)
    assert result.nodes <= 1.3 * whole.nodes + 4
    assert_valid(result, whole.upper)


@pytest.mark.usefixtures("at_once")
def test_workers_keep_to_limits(whole: TreeResult, tmp_path: Path) -> None:
    path = tmp_path / "tree.npz"
    limited = TreeOptions(workers=2, node_limit=6, checkpoint=path)
    result = branch_and_bound(hard(), options=limited)
    assert result.status is Status.ITERATION_LIMIT
    assert result.nodes == 6
    assert_valid(result, whole.upper)
    again = branch_and_bound(hard(), options=TreeOptions(checkpoint=path, resume=True))
    assert again.status is Status.OPTIMAL
    assert again.upper == pytest.approx(whole.upper, rel=2e-4)


@pytest.mark.usefixtures("at_once")
def test_an_interrupt_ends_the_workers(whole: TreeResult, monkeypatch: pytest.MonkeyPatch) -> None:
    take_back, pools = Search.take_back, []

    def interrupted(self: parallel.Crew, given: Slice, answer: Answer) -> None:
        pools.extend(worker._pool for worker in self.workers)
        monkeypatch.setattr(Search, "take_back", Interrupting(take_back, 1, after=False))
        merge(self, given, answer)

    merge = parallel.Crew._merge
    monkeypatch.setattr(parallel.Crew, "_merge", interrupted)
    result = branch_and_bound(hard(), options=TreeOptions(workers=2, proof=True))
    assert result.status is Status.INTERRUPTED
    assert_valid(result, whole.upper)
    assert result.lower > 0.0
    assert result.proof is not None
    Replay(hard(), result.proof).check()
    with pytest.raises(RuntimeError):
        pools[0].submit(int)


@pytest.mark.usefixtures("at_once")
def test_a_dead_worker_loses_nothing(whole: TreeResult, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = Worker.submit

    def dying(self: Worker, given: Slice) -> None:
        submit(self, given)
        for process in self._pool._processes:
            os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(Worker, "submit", dying)
    result = branch_and_bound(hard(), options=TreeOptions(workers=2, proof=True))
    assert result.status is Status.OPTIMAL and result.proof is not None
    Replay(hard(), result.proof).check()
    assert result.stats["workers_lost"] == 2
    assert_valid(result, whole.upper)


@pytest.mark.usefixtures("at_once")
def test_the_problem_fails_in_a_worker_as_it_does_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Worker, given: Slice) -> None:
        self.given, self._answer = given, self._pool.submit(math.log, 0)

    monkeypatch.setattr(Worker, "submit", failing)
    with pytest.raises(ValueError, match=r"math domain|positive"):
        branch_and_bound(hard(), options=TreeOptions(workers=2))


def test_a_bound_holds_whatever_the_gap() -> None:
    """Fixing cuts off what reaches the cutoff, which may lie below every node that was closed."""
    problem = random_problem(278)
    optimum = enumerate_optimum(problem).objective
    floor = problem.dense_minimum
    upper, quadratic = floor + 1.2 * (optimum - floor), Quadratic.of(problem)
    solver = NodeSolver(quadratic, allowed(problem.supports))
    search = Search(solver, lambda support: upper, upper, 1.0 - 0.7 / 1.2, floor)
    search.push(root_node(problem.p, solver.allowed.row_count))
    assert search.run(lambda: False)
    assert search.cutoff - 1e-12 <= search.lower <= optimum


def test_start_is_never_made_worse() -> None:
    problem = hard()
    start = solve(problem, "relax_round")
    result = branch_and_bound(problem, start=start, options=TreeOptions(node_limit=1))
    assert result.upper <= start.objective


def test_resume_continues(tmp_path: Path, whole: TreeResult) -> None:
    path = tmp_path / "tree.npz"
    first = branch_and_bound(hard(), options=TreeOptions(node_limit=4, checkpoint=path))
    assert path.exists() and not list(tmp_path.glob("*.part"))
    again = TreeOptions(checkpoint=path, resume=True)
    result = branch_and_bound(hard(), options=again)
    assert result.status is Status.OPTIMAL
    assert result.nodes > first.nodes
    assert result.upper == pytest.approx(whole.upper, rel=2e-4)
    with pytest.raises(DataError, match="another problem"):
        branch_and_bound(hard(seed=2), options=again)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable checkpoint"):
        branch_and_bound(hard(), options=again)


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="resume needs"):
        TreeOptions(resume=True)


@pytest.mark.parametrize("seed", range(0, 90, 3))
def test_awkward_data(seed: int) -> None:
    problem = awkward_problem(seed)
    try:
        optimum = enumerate_optimum(problem).objective
    except CurvatureError:
        pytest.skip("the enumeration's own factorisation fails on these data")
    result = branch_and_bound(problem)
    slack = 1e-11 * (problem.prune_all + abs(problem.dense_minimum))
    assert result.solution.is_feasible
    assert result.lower <= optimum + slack
    assert result.upper >= optimum - slack
    if result.status is Status.OPTIMAL:
        allowed = 1.001e-4 * (optimum - problem.dense_minimum) + slack
        assert result.upper - optimum <= allowed


# -- proofs ------------------------------------------------------------------------------------


class Replay:
    """A plain check of a log: its tree, and each bound from its witness."""

    def __init__(self, problem: Problem, proof: TreeProof) -> None:
        self.q, self.proof, self.family = Quadratic.of(problem), proof, problem.supports
        self.cutoff = proof.cutoff - 1e-12 * abs(self.q.const)

    def bound(self, row: int, state: np.ndarray) -> float:
        v, d = self.proof.witnesses[row], self.proof.splits[row]
        here = np.flatnonzero(d > 0.0)
        assert (d[state != 0] > 0.0).all()
        Q = self.q.H[np.ix_(here, here)] - np.diag(d[here])
        np.linalg.cholesky(Q)
        image = Q @ v[here]
        s = np.zeros(len(d))
        s[here] = (self.q.b[here] - image) ** 2 / (2.0 * d[here])
        scores = np.where(state == 1, 2.0 * s.sum() + 1.0, np.where(state == 0, 0.0, s))
        mask = self.family.best_support(torch.from_numpy(scores)).numpy() & (state != 0)
        if not mask[state == 1].all():
            return np.inf
        return self.q.const - 0.5 * float(v[here] @ image) - float(s[mask].sum())

    def holds(self, state: np.ndarray) -> bool:
        return self.family.contains(torch.from_numpy(state == 1))

    def check(self) -> int:
        proof, states, leaves = self.proof, [], 0
        children: list[list[int]] = [[] for _ in range(proof.steps)]
        for step in range(proof.steps):
            state = np.full(self.q.size, -1)
            if step:
                parent = proof.parent[step]
                assert 0 <= parent < step
                children[parent].append(int(proof.side[step]))
                state = states[parent].copy()
                if proof.side[step] >= 0:
                    assert state[proof.branch[parent]] == -1
                    state[proof.branch[parent]] = proof.side[step]
            row, after = int(proof.witness_row[step]), state.copy()
            for k in np.flatnonzero(proof.fix_step == step):
                j, value = proof.fix_index[k], proof.fix_value[k]
                against = state.copy()
                against[j] = 1 - value
                empty = not self.holds(against)
                assert empty or self.bound(row, against) >= self.cutoff
                after[j] = value
            states.append(after)
        for step, sides in enumerate(children):
            if proof.branch[step] >= 0:
                assert sorted(sides) == [0, 1]
            elif sides:
                assert sides == [-1]
            else:
                leaves += 1
                row = int(proof.witness_row[step])
                empty = not self.holds(states[step])
                assert empty or self.bound(row, states[step]) >= self.cutoff
        return leaves


LOGGED = [  # families whose rows a replay can follow
    f for f in FAMILIES
    if f != "nothing" and not make_problem("dense", f).supports.binary_auxiliary
]  # fmt: skip


@pytest.mark.parametrize("family", LOGGED)
def test_proofs_replay(family: str) -> None:
    problem = make_problem("low_rank", family, p=12, seed=3, ridge=1e-2)
    result = branch_and_bound(problem, options=TreeOptions(proof=True))
    assert result.proof is not None
    Replay(problem, result.proof).check()
    assert result.proof.cutoff >= result.upper * (1 - 1.01e-4) - 1e-9


def test_a_larger_proof_replays() -> None:
    problem = hard()
    result = branch_and_bound(problem, options=TreeOptions(proof=True))
    assert result.proof is not None
    assert Replay(problem, result.proof).check() > 5
    assert result.proof.cutoff >= result.upper * (1 - 1.01e-4)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_an_unfinished_search_proves_its_bound(limit: int, whole: TreeResult) -> None:
    result = branch_and_bound(hard(), options=TreeOptions(proof=True, node_limit=limit))
    assert result.status is Status.ITERATION_LIMIT and result.proof is not None
    Replay(hard(), result.proof).check()
    assert result.proof.cutoff == pytest.approx(result.lower, rel=1e-6)
    assert 0.0 < result.proof.cutoff < whole.lower


class Interrupting:
    """Raises KeyboardInterrupt at the n-th call of a method, before or after the call."""

    def __init__(self, method: Callable[..., object], n: int, after: bool) -> None:
        self.method, self.left, self.after = method, n, after

    def __get__(self, owner: object, kind: type | None = None) -> Callable[..., object]:
        return partial(self, owner)

    def __call__(self, *given: object, **named: object) -> object:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise KeyboardInterrupt
        found = self.method(*given, **named)
        if self.left == 0:
            raise KeyboardInterrupt
        return found


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (NodeSolver, "process"), (NodeSolver, "_fix"), (NodeSolver, "_propagate"),
        (Search, "_take"), (Search, "push"), (Search, "_close"), (ProofLog, "close"),
        (Incumbents, "offer"), (Incumbents, "find"),
    ],
)  # fmt: skip
def test_an_interrupt_anywhere_leaves_a_whole_proof(
    owner: type, name: str, n: int, after: bool, whole: TreeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = Interrupting(getattr(owner, name), n + (name == "push"), after)
    monkeypatch.setattr(owner, name, trap)
    result = branch_and_bound(hard(), options=TreeOptions(proof=True))
    monkeypatch.undo()
    assert result.status in (Status.INTERRUPTED, Status.OPTIMAL) and result.proof is not None
    Replay(hard(), result.proof).check()
    assert result.proof.cutoff <= whole.upper
    assert_valid(result, whole.upper)
