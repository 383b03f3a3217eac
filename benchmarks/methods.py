"""MLPNet: every method beside the proven bound and beside its twin in the official CHITA code.

One problem for every instance (whole network or one layer, 1 or 16 samples a gradient row), ridge,
sparsity and linear term of the official figures. Objectives are in the official code's units (n
times ours, plus the constant a'w_bar); costs are in passes over the same A in the same run. The
bound is a certificate's. Rows that are in the results file already are kept: a run can be stopped
and continued; --fresh begins anew; --again runs some methods once more on the problems that are in
the file, beside the bounds there, and with --bounds computes these again and keeps the higher ones.
--twins runs the default and the methods that have a twin alone, on all problems in under an hour,
and writes methods_twins.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mean
from typing import Any

from measuring import RESULTS, save, show
from reference_data import mlp_gradients, official_rows
from rich.console import Console

import chita_opt as co
from chita_opt.heuristics import METHODS, choose_method
from chita_opt.solution import Solution

LAYERS = {"global": (0, 32360), "fc1": (0, 31360), "fc2": (31360, 32160), "fc3": (32160, 32360)}
TENSORS = (31360, 800, 200)
TWINS = {  # ours by the same support rule -> names in the official figures
    "magnitude": ("magnitude",),
    "backsolve": ("Heuristic_LS", "Heuristic_LS@float64"),
    "coordinate_descent": ("Heuristic_CD",),
    "chita": ("Active_IHTCDLS",),
}
SMALL = 1000  # weights of layers whose bound is a tree's, as high as it gets in --tree-seconds
TOLERANCE = 1e-6  # of the objectives' size: A is computed anew, in float32, and summed differently
DEFAULT = "default"
COLUMNS = (
    "instance", "first_order", "ridge", "sparsity", "method", "objective", "bound", "gap_%",
    "twin", "twin_objective", "below", "seconds", "passes",
)  # fmt: skip
SUMMARY = (
    "method", "problems", "mean_gap_%", "worst_gap_%", "mean_passes", "twins", "above_twin",
    "worst_above_%",
)  # fmt: skip

AGAINST_BEST = (
    "instance", "first_order", "ridge", "sparsity", "objective", "official_best",
    "official_best_by", "bound", "proof", "closed_%", "passes",
)  # fmt: skip

Key = tuple[str, bool, float, float]
Problems = dict[Key, list[dict[str, Any]]]
Table = list[dict[str, Any]]


def problem_of(key: Key, k: int, device: str = "cpu") -> co.Problem:
    """One problem of the official figures."""
    instance, first_order, ridge, _ = key
    _, layer, sampling = instance.split("_")
    m = int(sampling[1:])
    rows, (start, stop) = mlp_gradients(m), LAYERS[layer]
    A = rows.A[:, start:stop]
    problem = co.from_gradients(
        A, rows.w_bar[start:stop], ridge=ridge, supports=co.Budget.cardinality(stop - start, k),
        first_order=1.0 / m if first_order else 0.0,
    )  # fmt: skip
    return problem.to(device)


def calls(instance: str, time_limit: float) -> Iterator[tuple[str, Callable[..., Solution]]]:
    """Every method by name; the block-wise one with each block size of the official figures."""
    yield DEFAULT, lambda problem: co.solve(problem)
    for name in METHODS:
        if name == "best":
            yield name, lambda problem: co.solve(problem, "best", time_limit=time_limit)
        elif name != "blockwise":
            yield name, lambda problem, name=name: co.solve(problem, name)
    for size in (100,) if instance.split("_")[1] in ("fc2", "fc3") else (500, 2000):
        yield (
            f"blockwise:{size}",
            lambda problem, size=size: co.solve(problem, "blockwise", block=blocks(instance, size)),
        )
    yield "magnitude+swaps", lambda problem: co.solve(problem, "magnitude", polish=True)


def blocks(instance: str, size: int) -> list[int]:
    """Block sizes that do not cross tensors."""
    start, stop = LAYERS[instance.split("_")[1]]
    tensors = TENSORS if stop - start == sum(TENSORS) else (stop - start,)
    return [min(size, d - i) for d in tensors for i in range(0, d, size)]


def twins(method: str, rows: Sequence[dict[str, Any]]) -> list[tuple[str, float]]:
    """Official rows with the same support rule."""
    name = method.replace("blockwise", "Heuristic_LSBlock")
    names = TWINS.get(method, (name,))
    return [(str(r["algo"]), float(r["objective"])) for r in rows if r["algo"] in names]


def proven(
    problem: co.Problem, found: Iterable[Solution], seconds: float
) -> tuple[float, str]:  # fmt: skip
    """A lower bound in the official units, and what proves it: for small layers a tree may."""
    best = min(found, key=lambda s: s.objective)
    one = co.certify(best)
    lower, proof = one.lower, one.proof
    if problem.p <= SMALL:
        tree = co.lower_bound(problem, strength="tree", start=best, time_limit=seconds)
        lower, proof = (tree.value, "tree") if tree.value > lower else (lower, proof)
    return official(problem, lower), proof


def solved(
    key: Key, rows: Sequence[dict[str, Any]], problem: co.Problem, options: argparse.Namespace
) -> dict[str, Solution]:
    """What the methods that the options leave find on one problem."""
    wanted = {
        name: call for name, call in calls(key[0], options.time_limit)
        if (not options.twins or name == DEFAULT or twins(name, rows))
        and (not options.again or name in options.again)
        and (name.split(":")[0] not in METHODS or METHODS[name.split(":")[0]].serves(problem))
    }  # fmt: skip
    return {name: call(problem) for name, call in wanted.items()}


def compare(
    key: Key, rows: Sequence[dict[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All methods on one problem, and one bound for them."""
    problem = problem_of(key, int(rows[0]["k"]), options.device)
    found = solved(key, rows, problem, options)
    bound, proof = proven(problem, found.values(), options.tree_seconds)
    return [line(key, rows, name, solution, bound, proof) for name, solution in found.items()]


def official(problem: co.Problem, value: float) -> float:
    """An objective in the official code's units."""
    rows = len(problem.curvature.A)  # type: ignore[attr-defined]
    return rows * (value + float(problem.g @ problem.w_bar))


def line(
    key: Key, rows: Sequence[dict[str, Any]], name: str, solution: Solution, bound: float,
    proof: str,
) -> dict[str, Any]:  # fmt: skip
    """One method on one problem, beside the bound and its twin."""
    problem = solution.problem
    ours = official(problem, solution.objective)
    size = ours - official(problem, problem.dense_minimum)
    theirs = min(rows, key=lambda r: r["objective"])
    row = dict(zip(COLUMNS, (*key, name, ours, bound), strict=False)) | {
        "gap_%": 100.0 * (ours - bound) / size if size > 0.0 else 0.0,
        "seconds": solution.seconds, "passes": solution.passes(), "size": size,
        "official_best": theirs["objective"], "official_best_by": theirs["algo"],
        "default": choose_method(problem) if name == DEFAULT else None, "proof": proof,
    }  # fmt: skip
    for twin, value in sorted(twins(name, rows), key=lambda pair: pair[1])[:1]:
        below = ours <= value + TOLERANCE * max(abs(value), size)
        row |= {"twin": twin, "twin_objective": value, "below": below}
    return row


def measured_again(
    key: Key, rows: Sequence[dict[str, Any]], known: Table, options: argparse.Namespace
) -> Table:
    """The known rows of a problem, those of some methods measured anew.

    Raises
    ------
    ValueError
        If an objective lies below the bound: one of the two is wrong.
    """
    problem = problem_of(key, int(rows[0]["k"]), options.device)
    bound, proof = known[0]["bound"], known[0]["proof"]
    found = solved(key, rows, problem, options)
    if found and options.bounds:
        higher, how = proven(problem, found.values(), options.tree_seconds)
        bound, proof = (higher, how) if higher > bound else (bound, proof)
    new = {name: line(key, rows, name, s, bound, proof) for name, s in found.items()}
    kept = [rebounded(r, bound, proof) for r in known if r["method"] not in new]
    for row in (*new.values(), *kept):
        if row["objective"] < bound - TOLERANCE * max(abs(bound), row["size"]):
            raise ValueError(
                f"{row['method']} at {row['objective']} is below the bound {bound}: {key}"
            )
    return [*new.values(), *kept]


def rebounded(row: dict[str, Any], bound: float, proof: str) -> dict[str, Any]:
    """A row beside another bound."""
    gap = 100.0 * (row["objective"] - bound) / row["size"] if row["size"] > 0.0 else 0.0
    return row | {"bound": bound, "proof": proof, "gap_%": gap}


def share_closed(row: dict[str, Any]) -> float | None:
    """Share of the official best's distance to the bound that the default closes."""
    distance = row["official_best"] - row["bound"]
    return (row["official_best"] - row["objective"]) / distance if distance > 0.0 else None


def summary(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a method."""
    rows = []
    for name in dict.fromkeys(r["method"] for r in table):
        own = [r for r in table if r["method"] == name]
        paired = [r for r in own if r.get("twin")]
        above = [
            100.0 * (r["objective"] - r["twin_objective"]) / abs(r["twin_objective"])
            for r in paired if not r["below"]
        ]  # fmt: skip
        rows.append({
            "method": name, "problems": len(own), "mean_gap_%": mean(r["gap_%"] for r in own),
            "worst_gap_%": max(r["gap_%"] for r in own),
            "mean_passes": mean(r["passes"] for r in own),
            "twins": len(paired) or None, "above_twin": len(above) if paired else None,
            "worst_above_%": max(above, default=None),
        })  # fmt: skip
    return rows


def lines(table: Sequence[dict[str, Any]]) -> str:
    """The two claims, as measured."""
    paired = [r for r in table if r.get("twin")]
    misses = [r for r in paired if not r["below"]]
    shares = [s for r in table if r["method"] == DEFAULT and (s := share_closed(r)) is not None]
    worst = f", worst {100 * min(shares):.1f} %" if shares else ""
    share = mean(shares or [0.0])
    closed = f"the default closes {100 * share:.1f} % of the official best's proven gap on average"
    return (
        f"{len(paired) - len(misses)} of {len(paired)} rows at or below the official twin "
        f"({'NOT MET' if misses else 'met'}); {closed}{worst} "
        f"({'met' if share >= 0.95 else 'NOT MET'}: 95 %)"
    )


def chosen(options: argparse.Namespace, known: set[tuple[Any, ...]]) -> Problems:
    """The problems of the official figures that the options leave and that are not known yet."""
    problems: Problems = {}
    for r in official_rows():
        row: dict[str, Any] = dict(r)
        key = (row["instance"], row["first_order"], row["l2"], row["sparsity"])
        if key[2] <= 1e-2 and key not in known:
            problems.setdefault(key, []).append(row)
    filters = (options.instance, options.first_order, options.ridge, options.sparsity)
    return {
        key: rows for key, rows in problems.items()
        if all(not f or value in f for f, value in zip(filters, key, strict=True))
    }  # fmt: skip


def key_of(row: dict[str, Any]) -> Key:
    """The problem of a row."""
    return row["instance"], row["first_order"], row["ridge"], row["sparsity"]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instance", nargs="*")
    parser.add_argument("--ridge", type=float, nargs="*")
    parser.add_argument("--sparsity", type=float, nargs="*")
    parser.add_argument("--first-order", type=int, nargs="*")
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for best")
    parser.add_argument("--tree-seconds", type=float, default=10.0, help="for small layers' bounds")
    parser.add_argument("--twins", action="store_true", help="the default and twins alone")
    parser.add_argument("--again", nargs="+", help="methods to run again beside known bounds")
    parser.add_argument("--bounds", action="store_true", help="with --again: bounds, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    return parser.parse_args()


def main() -> None:
    """Every problem, or those that the options leave."""
    options = parsed()
    name = "methods_twins" if options.twins else "methods"
    file = RESULTS / f"{name}.json"
    earlier = json.loads(file.read_text())["rows"] if file.exists() and not options.fresh else []
    table = list(earlier)
    problems = chosen(options, set() if options.again else {key_of(r) for r in table})
    screen = Console(stderr=True)
    try:
        for i, (key, rows) in enumerate(problems.items()):
            screen.print(f"{i + 1} of {len(problems)}: {key}")
            known = [r for r in table if key_of(r) == key]
            if not options.again:
                table += compare(key, rows, options)
            elif known:
                others = [r for r in table if key_of(r) != key]
                table = others + measured_again(key, rows, known, options)
            save(name, table)
    except KeyboardInterrupt:
        screen.print("stopped; the problems that are done are kept")
    save(name, table, lines(table))
    if options.rows:
        show("all methods", table, COLUMNS)
    own = [
        r | {"closed_%": 100 * (share_closed(r) or 1.0)} for r in table if r["method"] == DEFAULT
    ]
    show("the default beside the official best", own, AGAINST_BEST)
    show("methods", summary(table), SUMMARY, lines(table))


if __name__ == "__main__":
    main()
