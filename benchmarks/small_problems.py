"""Small random problems against enumeration: bound <= optimum <= heuristic, screening never wrong.

Every family and every curvature form, with and without the linear term; each certificate is
written, read back and re-checked by numpy.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import report

import chita_opt as co
from chita_opt.certificates import certify, verify_file
from chita_opt.curvature import Curvature
from chita_opt.exact import enumerate_optimum

P = 12
COLUMNS = (
    "family", "curvature", "problems", "wrong", "optimal", "mean_gap_%", "mean_excess_%", "fixed_%",
)  # fmt: skip


def families() -> dict[str, co.Budget]:
    """One of each kind over twelve weights."""
    blocks = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, 3, 3, 3, 0])
    return {
        "cardinality": co.Budget.cardinality(P, 4),
        "per layer": co.Budget.per_layer([4, 8], [2, 3]),
        "per row": co.Budget.per_row(3, 4, [1, 2, 0]),
        "2:4": co.Budget.n_of_m(P, 2, 4),
        "blocks": co.Budget.per_block(blocks, [1, 2, 2, 1]),
        "nested": co.Budget.nested(co.Budget.n_of_m(P, 2, 4), 4),
    }


def curvatures(generator: torch.Generator) -> dict[str, Curvature]:
    """Every form, fresh data."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    long = normal(30, P).double()
    H, shared = long.T @ long / 30, normal(10, 4).double()
    return {
        "gradients, n < p": co.LowRank(normal(5, P), 1 / 5),
        "gradients, n > p": co.LowRank(normal(30, P), 1 / 30),
        "dense": co.Dense(H),
        "shared rows": co.SharedRows(shared.T @ shared / 10, 3),
        "block-diagonal": co.BlockDiagonal([co.LowRank(normal(3, 5), 1 / 3), co.Dense(H[:7, :7])]),
    }


def problems(rounds: int) -> Iterator[tuple[str, str, co.Problem]]:
    """All combinations, ``rounds`` times."""
    generator = torch.Generator().manual_seed(0)
    for i in range(rounds):
        for form, curvature in curvatures(generator).items():
            for name, supports in families().items():
                w_bar = torch.randn(P, generator=generator)
                g = 0.1 * torch.randn(P, generator=generator) if i % 2 else None
                rho = 0.01 + 0.3 * torch.rand(P, generator=generator)
                yield name, form, co.Problem(curvature, w_bar, rho, supports, g)


def check(problem: co.Problem, folder: Path) -> dict[str, Any]:
    """Compare one problem with its enumerated optimum."""
    optimum = enumerate_optimum(problem)
    certificate = certify(co.solve(problem))
    path = folder / "certificate.safetensors"
    certificate.save(path)
    checked = verify_file(path)
    best, size = optimum.objective, optimum.objective - problem.dense_minimum
    slack = 1e-9 * max(abs(best), 1e-9)
    screening = certificate.screening
    fixed_wrong = (screening.kept & ~optimum.mask) | (screening.pruned & optimum.mask)
    wrong = (
        certificate.lower > best + slack
        or certificate.upper < best - slack
        or bool(fixed_wrong.any())
        or checked.lower != certificate.lower
    )
    return {
        "wrong": wrong,
        "optimal": certificate.upper <= best + 1e-7 * size,
        "gap": 100 * certificate.relative_gap,
        "excess": 100 * (certificate.upper - best) / size,
        "fixed": 100 * float((screening.kept | screening.pruned).double().mean()),
    }


def main() -> None:
    """Ten rounds of thirty problems, summed by family and form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, form, problem in problems(parser.parse_args().rounds):
            found.setdefault((name, form), []).append(check(problem, Path(folder)))
    table = [summary(name, form, rows) for (name, form), rows in found.items()]
    total = sum(len(rows) for rows in found.values())
    wrong = sum(r["wrong"] for r in table)
    note = f"{total} problems against enumeration; wrong bounds, fixings or checks: {wrong}"
    report("small_problems", table, COLUMNS, note)


def summary(name: str, form: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""

    def mean(key: str) -> float:
        return sum(r[key] for r in rows) / len(rows)

    return {
        "family": name,
        "curvature": form,
        "problems": len(rows),
        "wrong": sum(r["wrong"] for r in rows),
        "optimal": sum(r["optimal"] for r in rows),
        "mean_gap_%": mean("gap"),
        "mean_excess_%": mean("excess"),
        "fixed_%": mean("fixed"),
    }


if __name__ == "__main__":
    main()
