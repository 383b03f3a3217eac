"""``verify``: numpy only."""

from __future__ import annotations

import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from chita_opt.certificates.checking import verify
from chita_opt.certificates.container import read_sealed
from chita_opt.certificates.tree_proof import ProofReport
from chita_opt.certificates.verification import Verification
from chita_opt.cli import OK, REFUSED
from chita_opt.cli.options import TREE_GAP
from chita_opt.cli.screen import SCOPE_SENTENCE, percent, print_json
from chita_opt.errors import CertificateError, DataError

Array = np.ndarray


def run_verify(path: Path, problem: Path | None, instance: Path | None, as_json: bool) -> int:
    """Check a certificate or a proof log; the exit code says whether its claims hold."""
    try:
        found = verify(path, problem)
        if instance is not None:
            check_instance(problem or path, instance)
    except CertificateError as error:
        return _refuse(str(error), as_json)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        return _refuse(f"{path} is malformed: {error!r}", as_json)
    if as_json:
        print_json({"verified": True, **_report(found)})
    else:
        click.echo(_lines(path, found))
    return OK


def check_instance(path: Path, instance: Path) -> None:
    """Refuse a certificate whose problem has other data than an instance file.

    Raises
    ------
    CertificateError
        If an array differs.
    DataError
        If the instance cannot be read.
    """
    arrays, claims = read_sealed(path)
    given = _instance_arrays(instance)
    w_bar = arrays["problem.w_bar"]
    stored = {"w_bar": w_bar, "g": arrays["problem.g"]}
    expected = {"g": np.zeros_like(w_bar)} | given
    if "A" in given:
        stored["A"] = arrays.get("problem.curvature.columns", w_bar).T
        if claims["problem"]["curvature"].get("scale") != 1.0 / len(given["A"]):
            raise CertificateError(f"{path} is not about {instance}: the scale of A'A differs")
    else:
        stored["H"] = arrays.get("problem.curvature.H", w_bar)
        H = given["H"].astype(np.float64)
        expected["H"] = 0.5 * (H + H.T)  # as it was made symmetric
    for name, array in stored.items():
        if not np.array_equal(array, expected[name]):
            raise CertificateError(f"{path} is not about {instance}: {name} differs")


def _instance_arrays(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            given = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file: {error}") from error
    if "w_bar" not in given or ("A" in given) == ("H" in given):
        raise DataError(f"{path} must hold w_bar and either A or H")
    return given


def _report(found: Verification | ProofReport) -> dict[str, Any]:
    kind = "certificate" if isinstance(found, Verification) else "tree"
    return asdict(found) | {
        "gap": found.relative_gap, "gap_absolute": found.gap, "bound_proof": kind
    }  # fmt: skip


def _lines(path: Path, found: Verification | ProofReport) -> str:
    if isinstance(found, Verification):
        how = f"includes {found.allowance:.1e} for rounding"
    else:
        trees = "a tree" if found.trees == 1 else f"{found.trees:,} trees"
        how = f"{trees} of {found.steps:,} steps, {found.leaves:,} leaves, replayed"
    return "\n".join(
        [
            f"{path}: verified",
            f"objective    {found.upper:.8g}",
            f"lower bound  {found.lower:.8g}  ({how})",
            f"gap          {percent(found.relative_gap)}",
            f"proves       {_claim(found)}",
            f"kept         {found.nnz:,} of {found.p:,} weights",
            SCOPE_SENTENCE,
        ]
    )


def _claim(found: Verification | ProofReport) -> str:
    """The optimum where the gap is that of a finished search, else how far it may be."""
    if found.relative_gap <= 1.01 * TREE_GAP:  # a log's bound is lowered by rounding
        return f"the optimum, to within {percent(found.relative_gap)}"
    return f"lower bound {found.lower:.8g}, gap {percent(found.relative_gap)}; not optimality"


def _refuse(reason: str, as_json: bool) -> int:
    if as_json:
        print_json({"verified": False, "reason": reason})
    else:
        click.echo(f"refused: {reason}", err=True)
    return REFUSED
