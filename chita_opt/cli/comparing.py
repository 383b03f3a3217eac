"""Several methods on one problem, held against one bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from chita_opt import __version__
from chita_opt.bounds import Bound
from chita_opt.certificates import Certificate
from chita_opt.certificates.pipeline import (
    Effort,
    certify_within,
    check_provable,
    run_method,
)
from chita_opt.certificates.verification import SCOPE
from chita_opt.cli import INTERRUPTED, OK
from chita_opt.cli.options import EffortChoice, InstanceBudget
from chita_opt.cli.screen import (
    SCOPE_SENTENCE,
    Stages,
    check_folders,
    number,
    percent,
    print_json,
    print_table,
    stages,
)
from chita_opt.cli.solving import effort_of, instance_problem
from chita_opt.errors import DataError
from chita_opt.heuristics import METHODS
from chita_opt.problem import Problem
from chita_opt.solution import Solution, Status
from chita_opt.supports import family_from_text

DEMO_NET = "demo-net"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one problem.

    Attributes
    ----------
    budget : str
        Sparsity, or the family.
    method : str
        Name.
    objective, lower, gap : float or None
        Modelled loss increase, proven bound, and their distance over the objective (over the
        dense minimum where there is a linear term); None for what is not a solution of the model.
    seconds : float
        Of the method.
    nnz : int
        Weights kept.
    accuracy : float or None
        Test accuracy in percent.
    passes : float or None
        Of the method: its seconds over those of one pass over the data (A x and A'y).
    """

    budget: str
    method: str
    objective: float | None
    lower: float | None
    gap: float | None
    seconds: float
    nnz: int
    accuracy: float | None = None
    passes: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Solutions of several methods and one bound for all.

    Attributes
    ----------
    solutions : tuple of Solution
        In the order of the methods.
    certificate : Certificate
        Of the best solution.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    solutions: tuple[Solution, ...]
    certificate: Certificate
    interrupted: bool = False

    @property
    def bound(self) -> Bound:
        """The bound for all of them."""
        return self.certificate.bound

    def rows(self, budget: str, evaluate: Callable[[Solution], float] | None = None) -> list[Row]:
        """One row a solution; ``evaluate`` gives the accuracy of its weights."""
        lower, problem = self.certificate.lower, self.certificate.solution.problem
        rows = []
        for s in self.solutions:
            size = s.objective - problem.dense_minimum
            gap = max(s.objective - lower, 0.0) / size if size > 0.0 else 0.0
            accuracy = None if evaluate is None else evaluate(s)
            rows.append(
                Row(
                    budget=budget,
                    method=s.method,
                    objective=s.objective,
                    lower=lower,
                    gap=gap,
                    seconds=s.seconds,
                    nnz=s.nnz,
                    accuracy=accuracy,
                    passes=s.passes(),
                )
            )
        return rows


def compare_methods(
    problem: Problem, methods: Sequence[str], effort: Effort, shown: Stages, label: str = ""
) -> Comparison:
    """Run every method, then prove one bound from the best answer."""
    check_provable(problem)
    solutions: list[Solution] = []
    interrupted = False
    try:
        for name in methods:
            shown.begin(f"{label}{name}")
            trial = Effort(method=name, seed=effort.seed, memory_limit=effort.memory_limit)
            solutions.append(run_method(problem, trial, effort.time_limit))
            shown.done()
            if solutions[-1].status is Status.INTERRUPTED:
                break
    except KeyboardInterrupt:  # between two methods, or before one had an answer
        if not solutions:
            raise
        interrupted = True
    shown.begin(f"{label}bound")
    best = min(solutions, key=lambda s: s.objective)
    certificate = certify_within(best, effort, effort.time_limit)
    shown.done()
    interrupted |= Status.INTERRUPTED in (solutions[-1].status, certificate.solution.status)
    return Comparison(tuple(solutions), certificate, interrupted)


def run_compare(
    target: str,
    budget: InstanceBudget,
    ridge: float,
    methods: Sequence[str],
    choice: EffortChoice,
    as_json: bool,
    plot: Path | None,
) -> int:
    """Compare methods on an instance file, or on the shipped network."""
    check_folders(plot)
    names = check_methods(methods)
    problem, evaluate = target_problem(target, budget, ridge, choice.seed)
    with stages(len(names) + 1) as shown:
        found = compare_methods(problem, names, effort_of(choice), shown)
    rows = found.rows(problem.supports.name, evaluate)
    if plot is not None:
        from chita_opt.cli.plots import plot_over_time

        plot_over_time(plot, found.solutions, found.certificate, problem.supports.name)
    if as_json:
        print_json(comparison_report(rows, found, choice.seed))
    else:
        print_rows(f"{target}: {problem.supports.name} of {problem.p:,} weights", rows)
        click.echo(f"bound: {found.bound.proof}, {found.bound.seconds:.2f} s. {SCOPE_SENTENCE}")
        if plot is not None:
            click.echo(f"wrote {plot}")
    return INTERRUPTED if found.interrupted else OK


def check_methods(methods: Sequence[str]) -> list[str]:
    """Names without spaces, each known.

    Raises
    ------
    DataError
        If a name is not in the table of methods, or there is none.
    """
    names = [name.strip() for name in methods if name.strip()]
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        what = f"{unknown[0]!r} is no method" if unknown else "no method is given"
        raise DataError(f"{what}; choose from {', '.join(METHODS)}")
    return names


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """The table of a comparison; a line between budgets."""
    measured = any(row.accuracy is not None for row in rows)
    columns = ["method", "objective", "lower bound", "gap", "seconds", "passes", "kept"]
    if measured:
        columns.insert(1, "accuracy")
    several = len({row.budget for row in rows}) > 1
    if several:
        columns.insert(1, "sparsity")
    cells: list[list[str]] = []
    for i, row in enumerate(rows):
        if several and i and rows[i - 1].budget != row.budget:
            cells.append([])
        line = [
            row.method,
            number(row.objective),
            number(row.lower),
            percent(row.gap),
            f"{row.seconds:.2f}",
            "-" if row.passes is None else f"{row.passes:.3g}",
            f"{row.nnz:,}",
        ]
        if measured:
            line.insert(1, "-" if row.accuracy is None else f"{row.accuracy:.2f}")
        if several:
            line.insert(1, row.budget)
        cells.append(line)
    print_table(title, columns, cells)


def target_problem(
    target: str, budget: InstanceBudget, ridge: float, seed: int
) -> tuple[Problem, Callable[[Solution], float] | None]:
    """The problem, and how to measure accuracy where there is a network."""
    if target != DEMO_NET:
        if not Path(target).is_file():
            raise DataError(f"there is no file {target}; give an instance (.npz) or {DEMO_NET}")
        return instance_problem(Path(target), ridge, budget), None
    from chita_opt.cli.demo_network import DemoNetwork

    network = DemoNetwork.load(seed)
    shapes = budget.shapes or [item.shape for item in network.layer_map]
    family = family_from_text(
        budget.family, network.p, k=budget.k, sparsity=budget.sparsity, shapes=shapes
    )
    return network.problem(family, ridge), network.accuracy_of


def comparison_report(rows: Sequence[Row], found: Comparison, seed: int) -> dict[str, Any]:
    """JSON-able rows, and what the best solution and the bound are."""
    return {
        "rows": [asdict(row) for row in rows],
        "best": found.certificate.solution.method,
        "upper": found.certificate.upper,
        "lower": found.certificate.lower,
        "gap": found.certificate.relative_gap,
        "bound_proof": found.certificate.proof,
        "bound_seconds": found.bound.seconds,
        "seed": seed,
        "version": __version__,
        "scope": SCOPE,
    }


__all__ = [
    "Comparison",
    "Row",
    "check_methods",
    "compare_methods",
    "comparison_report",
    "print_rows",
    "run_compare",
    "target_problem",
]
