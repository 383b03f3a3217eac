"""``bound``: a proven lower bound of an instance, as strong as asked, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chita_opt import __version__
from chita_opt.certificates.verification import SCOPE
from chita_opt.cli.screen import SCOPE_SENTENCE, check_folders, percent, stages
from chita_opt.cli.solving import Request
from chita_opt.exact import ProvenBound, lower_bound


def run_bound(request: Request, strength: str, node_limit: int | None, proof: Path | None) -> int:
    """Bound an instance from below, print the bound, write its witness."""
    check_folders(proof)
    problem = request.problem()
    with stages() as shown:
        shown.begin(strength)
        found = lower_bound(
            problem, strength=strength, time_limit=request.left, node_limit=node_limit
        )
    report = _report(found) | request.context(problem)
    if proof is not None:
        from chita_opt.certificates import save_proof

        report["proof_lower"] = save_proof(found, proof).lower
    return request.show(report, _lines)


def _report(found: ProvenBound) -> dict[str, Any]:
    problem, start = found.problem, found.solution
    whole = problem.prune_all - problem.dense_minimum
    seen = found.value - problem.dense_minimum
    report: dict[str, Any] = {
        "strength": found.strength,
        "lower": found.value,
        "share_of_pruning_everything": seen / whole if whole > 0.0 else 0.0,
        "status": "bound",
        "version": __version__,
        "scope": SCOPE,
    }
    if start is not None:
        gap, increase = start.objective - found.value, start.objective - problem.dense_minimum
        report |= {"upper": start.objective, "gap": max(gap, 0.0) / increase if increase else 0.0}
    return report


def _lines(report: dict[str, Any]) -> str:
    lines = [
        f"lower bound  {report['lower']:.8g}  ({report['strength']}), {report['seconds']:.2f} s",
        f"             {percent(report['share_of_pruning_everything'])} of the cost of pruning "
        "everything",
        f"family       {report['family']}",
    ]
    if "gap" in report:
        lines.append(f"best known   {report['upper']:.8g}, gap {percent(report['gap'])}")
    if "proof_lower" in report:
        lines.append(f"proof        {report['proof_lower']:.8g}, re-checked as it was written")
    return "\n".join([*lines, SCOPE_SENTENCE])


__all__ = ["run_bound"]
