"""Independent layers of a network, solved and bounded on an engine, each with one thread.

Each layer has its part of the seconds: a layer that needs less leaves the rest unused, so that the
limit holds in whatever order and however many at a time the layers are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from chita_opt.bounds import Bound
from chita_opt.certificates.pipeline import Effort, prove, run_method
from chita_opt.errors import ProblemError
from chita_opt.exact import ParallelEngine
from chita_opt.nn.layer_map import LayerMap
from chita_opt.nn.pruning_options import BLOCKWISE, PruneOptions
from chita_opt.nn.pruning_problem import layer_families
from chita_opt.problem import Problem
from chita_opt.solution import Solution
from chita_opt.supports import SupportFamily


def check_engine(
    options: PruneOptions, method: str, layer_map: LayerMap, supports: SupportFamily
) -> None:
    """Refuse workers where there is one problem over all layers, which they cannot share.

    Raises
    ------
    ProblemError
        With what would make the layers independent.
    """
    if options.engine is None:
        return
    if method == "hybrid":
        raise ProblemError("method='hybrid' looks at all layers together; leave out workers")
    apart = options.curvature in BLOCKWISE and any(layer_families(layer_map, supports))
    if not apart:
        raise ProblemError(
            "workers and scheduler share out layers that are independent; curvature="
            f"{options.curvature!r} with {supports.name} is one problem. Leave them out, or take "
            "curvature='inputs' or 'row_gradients' and scope='layer' or a split"
        )


def solve_apart(
    parts: Mapping[str, Problem],
    effort: Effort,
    time_limit: float | None,
    engine: ParallelEngine,
    keep: Callable[[str, Solution], object],
) -> None:
    """Solve every layer and hand each answer to ``keep`` with the layer's name, as they come."""
    names = list(parts)
    limits = _limits([parts[name].p for name in names], time_limit)
    tasks = [(parts[name], effort, limit) for name, limit in zip(names, limits, strict=True)]

    def back(number: int, found: Solution) -> None:
        weights = found.w.to(parts[names[number]].device)
        keep(names[number], Solution(
            parts[names[number]], weights, found.method, found.status, found.seconds, found.trace,
            found.stats, found.warm,
        ))  # fmt: skip

    engine.map(_solved, tasks, on_result=back)


def bound_apart(
    layers: Mapping[str, Solution],
    effort: Effort,
    time_limit: float | None,
    engine: ParallelEngine,
) -> dict[str, Bound]:
    """A bound for every layer, by its name."""
    limits = _limits([found.problem.p for found in layers.values()], time_limit)
    tasks = [(found, effort, own) for found, own in zip(layers.values(), limits, strict=True)]
    return dict(zip(layers, engine.map(_bounded, tasks), strict=True))


def part_of_time(size: int, sizes: Sequence[int]) -> float:
    """The part of the seconds for layers of ``sizes`` that one of them gets.

    Half goes by weights and half in equal parts: small layers can hold most of the gap.
    """
    return 0.5 * size / sum(sizes) + 0.5 / len(sizes)


def _limits(sizes: list[int], time_limit: float | None) -> list[float | None]:
    return [None if time_limit is None else time_limit * part_of_time(s, sizes) for s in sizes]


def _solved(task: tuple[Problem, Effort, float | None]) -> Solution:
    return run_method(*task)


def _bounded(task: tuple[Solution, Effort, float | None]) -> Bound:
    return prove(*task)


__all__ = ["bound_apart", "part_of_time", "solve_apart"]
