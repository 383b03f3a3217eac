"""``compare`` over several instances, which are independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import click

from chita_opt.cli import INTERRUPTED, OK
from chita_opt.cli.comparing import (
    Row,
    check_methods,
    compare_methods,
    comparison_report,
    print_rows,
    target_problem,
)
from chita_opt.cli.engine_options import EngineChoice
from chita_opt.cli.options import EffortChoice, InstanceBudget
from chita_opt.cli.screen import SCOPE_SENTENCE, Stages, print_json, stages
from chita_opt.cli.solving import effort_of


class Compared(NamedTuple):
    """What comes back about one instance."""

    target: str
    title: str
    rows: list[Row]
    report: dict[str, Any]
    interrupted: bool


def run_compare_several(
    targets: Sequence[str],
    budget: InstanceBudget,
    ridge: float,
    methods: Sequence[str],
    choice: EffortChoice,
    where: EngineChoice,
    as_json: bool,
) -> int:
    """Compare methods on every instance, on the engine asked for."""
    names = check_methods(methods)
    for target in targets:
        target_problem(target, budget, ridge, choice.seed)  # refuses early what is wrong
    found: dict[int, Compared] = {}
    cut_short = False
    with stages(len(targets)) as shown:

        def keep(number: int, result: Compared) -> None:
            found[number] = result
            shown.begin(result.target)
            shown.done()

        try:
            compare = partial(_compared, budget, ridge, names, choice)
            where.engine.map(compare, targets, on_result=keep)
        except KeyboardInterrupt:  # what is done is shown
            if not found:
                raise
            cut_short = True
    results = [found[number] for number in sorted(found)]
    if as_json:
        print_json({"instances": {result.target: result.report for result in results}})
    else:
        for result in results:
            print_rows(result.title, result.rows)
        click.echo(SCOPE_SENTENCE)
    return INTERRUPTED if cut_short or any(r.interrupted for r in results) else OK


def _compared(
    budget: InstanceBudget, ridge: float, names: list[str], choice: EffortChoice, target: str
) -> Compared:
    problem, evaluate = target_problem(target, budget, ridge, choice.seed)
    found = compare_methods(problem, names, effort_of(choice), Stages())
    rows = found.rows(problem.supports.name, evaluate)
    title = f"{target}: {problem.supports.name} of {problem.p:,} weights"
    report = comparison_report(rows, found, choice.seed)
    return Compared(target, title, rows, report, found.interrupted)


__all__ = ["run_compare_several"]
