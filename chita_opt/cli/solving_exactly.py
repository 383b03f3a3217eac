"""``solve`` with proof by search: branch and bound, outer approximation, and what auto chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from chita_opt import __version__
from chita_opt.certificates import Certificate, certify
from chita_opt.certificates.pipeline import Effort, check_provable, less, solve_certified
from chita_opt.certificates.verification import SCOPE
from chita_opt.cli.options import TREE_GAP, EffortChoice, OutputChoice, TreeChoice
from chita_opt.cli.screen import SCOPE_SENTENCE, check_folders, percent, stages
from chita_opt.cli.solving import (
    Request,
    certificate_report,
    effort_of,
    headline,
    run_solve,
)
from chita_opt.errors import MethodError, ProblemError
from chita_opt.exact import TreeOptions, branch_and_bound
from chita_opt.exact.outer_approximation.result import TraceRow
from chita_opt.exact.result import HistoryRow, TreeResult
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status, Trace

AUTO_TREE = 1000  # weights up to which auto searches a tree where one witness leaves a gap
AUTO_SECONDS = 20.0  # that auto searches for where no time limit is given


@dataclass(frozen=True, eq=False)
class Proven:
    """What a search returned: weights, bound, and whose word the bound is."""

    solution: Solution
    lower: float
    status: Status
    proof: str
    more: dict[str, Any]
    tree: TreeResult | None = None
    certificate: Certificate | None = None


def run_exact(request: Request, method: str, tree: TreeChoice) -> int:
    """Solve an instance by ``bnb``, ``highs`` or ``auto``, and print what is proven."""
    output = request.output
    check_folders(output.save_weights, output.save_certificate, tree.proof)
    problem = request.problem()
    if method == "auto" and not (problem.p <= AUTO_TREE or tree.proof):
        return run_solve(request, method)
    check_provable(problem)
    searches: dict[str, Callable[..., Proven]] = {"bnb": _tree, "highs": _outer, "auto": _auto}
    with stages() as shown:
        shown.begin(method)
        found = searches[method](problem, request.choice, tree, request.left)
    request.save_weights(found.solution)
    report = _report(found) | _write(found, output, tree) | request.context(problem)
    return request.show(report, _lines)


def _auto(problem: Problem, choice: EffortChoice, tree: TreeChoice, left: float | None) -> Proven:
    """One witness first; the tree where that leaves a gap and the problem is in its reach."""
    begin = time.perf_counter()
    effort = effort_of(replace(choice, time_limit=None if left is None else 0.3 * left))
    certificate = _certificate(problem, effort)
    enough = certificate is not None and certificate.relative_gap <= choice.search_gap
    stopped = certificate is not None and certificate.solution.status is Status.INTERRUPTED
    if certificate is not None and (stopped or (enough and tree.proof is None)):
        return _of_certificate(certificate)
    spent = time.perf_counter() - begin
    left = AUTO_SECONDS if left is None else less(left - spent, 0.0)
    start = None if certificate is None else certificate.solution
    found = _tree(problem, choice, tree, left, start)
    found = replace(found, certificate=certificate)
    if certificate is not None and certificate.lower > found.lower:
        return replace(found, lower=certificate.lower, proof=certificate.proof)
    return found


def _certificate(problem: Problem, effort: Effort) -> Certificate | None:
    """The certificate by one witness; None where the ridge is zero and no split helps."""
    try:
        return solve_certified(problem, effort)
    except ProblemError:
        if float(problem.rho.min()) > 0.0:
            raise
        return None


def _of_certificate(certificate: Certificate) -> Proven:
    solution = certificate.solution
    closed = certificate.relative_gap <= TREE_GAP
    status = Status.OPTIMAL if closed else solution.status
    return Proven(
        solution, certificate.lower, status, certificate.proof, {}, certificate=certificate
    )


def _tree(
    problem: Problem,
    choice: EffortChoice,
    tree: TreeChoice,
    left: float | None,
    start: Solution | None = None,
) -> Proven:
    options = TreeOptions(
        gap=choice.search_gap,
        time_limit=left,
        node_limit=tree.node_limit,
        workers=tree.workers,
        proof=tree.proof is not None,
        log=(lambda line: click.echo(line, err=True)) if tree.log else None,
    )
    result = branch_and_bound(problem, options=options, start=start)
    more = {
        "nodes": result.nodes, "root_lower": result.root, "history": _history(result.history)
    }  # fmt: skip
    return Proven(result.solution, result.lower, result.status, "tree", more, result)


def _outer(problem: Problem, choice: EffortChoice, tree: TreeChoice, left: float | None) -> Proven:
    from chita_opt.exact.outer_approximation import outer_approximation  # Pyomo starts slowly

    result = outer_approximation(problem, gap=choice.search_gap, time_limit=left)
    if result.solution is None:
        raise MethodError("no allowed mask was found in time; raise --time-limit")
    more = {
        "nodes": result.nodes, "rounds": result.rounds, "cuts": result.cuts,
        "proven_lower": result.proven, "history": _history(result.trace),
    }  # fmt: skip
    proof = "solver's word (HiGHS)" if result.lower > result.proven else "dual"
    return Proven(result.solution, result.lower, result.status, proof, more)


def _history(rows: Sequence[HistoryRow | TraceRow]) -> dict[str, list[list[float]]]:
    """Incumbent and bound over time, for JSON."""
    return {
        "incumbent": Trace(tuple((row.seconds, row.upper) for row in rows)).spread(),
        "bound": Trace(tuple((row.seconds, row.lower) for row in rows)).spread(),
    }


def _report(found: Proven) -> dict[str, Any]:
    """What is proven, for JSON; the same keys as for one witness."""
    solution, problem = found.solution, found.solution.problem
    upper = solution.objective
    everything = problem.objective(0.0 * solution.w)
    gap, increase = max(upper - found.lower, 0.0), upper - problem.dense_minimum
    witness = {} if found.certificate is None else certificate_report(found.certificate)
    return (
        witness
        | {
            "upper": upper,
            "lower": found.lower,
            "gap": 0.0 if gap == 0.0 else gap / increase if increase > 0.0 else float("inf"),
            "gap_absolute": gap,
            "share_of_pruning_everything": gap / abs(everything) if everything else 0.0,
            "status": str(found.status),
            "nnz": solution.nnz,
            "p": problem.p,
            "realised_sparsity": solution.sparsity,
            "method": solution.method,
            "bound_proof": found.proof,
            "version": __version__,
            "scope": SCOPE,
        }
        | found.more
    )


def _write(found: Proven, output: OutputChoice, tree: TreeChoice) -> dict[str, Any]:
    """Certificate and proof log, where asked for; what the files say."""
    said: dict[str, Any] = {}
    if output.save_certificate is not None:
        certificate = _one_witness(found)
        certificate.save(output.save_certificate)
        said["certificate_lower"] = certificate.lower
    if tree.proof is not None:
        said |= _save_proof(found, tree.proof)
    return said


def _one_witness(found: Proven) -> Certificate:
    """A certificate for the weights found, by the bound at hand or a new one."""
    at_hand = found.certificate
    if at_hand is not None and at_hand.solution is found.solution:
        return at_hand
    return certify(found.solution, bound=None if at_hand is None else at_hand.bound)


def _save_proof(found: Proven, path: Path) -> dict[str, Any]:
    from chita_opt.certificates import save_proof

    if found.tree is None or found.tree.proof is None:
        return {"proof_steps": 0, "proof_note": f"{found.status}: no tree, or H is singular"}
    report = save_proof(found.tree, path)
    return {
        "proof_steps": report.steps,
        "proof_lower": report.lower,
        "proof_gap": report.relative_gap,
    }


def _lines(report: dict[str, Any]) -> str:
    """What is proven, for people."""
    nodes = f", {report['nodes']:,} nodes" if "nodes" in report else ""
    lines = headline(report, nodes)
    if "certificate_lower" in report:
        lines.append(f"certificate  {report['certificate_lower']:.8g} by its one witness")
    if "proof_steps" in report:
        lines.append(f"proof        {report.get('proof_note') or _proof_line(report)}")
    return "\n".join([*lines, SCOPE_SENTENCE])


def _proof_line(report: dict[str, Any]) -> str:
    """What the log that was written proves."""
    bound = f"lower bound {report['proof_lower']:.8g}, gap {percent(report['proof_gap'])}"
    return f"{report['proof_steps']:,} steps, {bound}"
