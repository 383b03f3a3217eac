"""The proofs among the given files, checked again: no claim is repeated without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chita_opt.certificates.checking import verify
from chita_opt.certificates.container import read_sealed
from chita_opt.certificates.path_proof import PathReport
from chita_opt.certificates.tree_proof import ProofReport
from chita_opt.certificates.verification import Verification
from chita_opt.cli.report.reading import Inputs, Network, Report, Source, stored_weights
from chita_opt.errors import CertificateError

Array = np.ndarray
_WITNESSES = {
    "dual": "one dual witness",
    "trivial": "the zero witness",
    "pair_bound": "one witness with pairs of weights",
    "reduction": "proven fates and a search log of what they leave open",
}
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True, eq=False)
class Check:
    """One proof and what came of checking it.

    Attributes
    ----------
    source : Source
        The file.
    claims : Mapping
        What it says of itself; empty if even that cannot be read.
    found : Verification, ProofReport or None
        What numpy recomputed; None if the proof was refused.
    reason : str
        Why it was refused.
    weights : {"", "equal", "mask", "other", "unknown"}
        Whether the weights that it is about are those of the given network, only their mask is
        (their values could not be compared), they are others, or it cannot be told; "" where no
        network was given.
    """

    source: Source
    claims: Report
    found: Verification | ProofReport | None
    reason: str = ""
    weights: str = ""

    @property
    def method(self) -> str:
        """How the bound is proven."""
        if isinstance(self.found, PathReport):
            return f"logs for {len(self.found.ks)} counts, {_size(self.found)}"
        if isinstance(self.found, ProofReport):
            return f"a search log of {_size(self.found)}"
        name = str(self.claims.get("bound_proof", self.claims.get("kind", "dual")))
        return _WITNESSES.get(name, f"a witness of the kind {name}")

    def row(self, name: str) -> tuple[Any, Any]:
        """Claimed and recomputed value of a quantity of ``Verification``."""
        return self.claims.get(name), getattr(self.found, name, None)


def check_proofs(inputs: Inputs) -> list[Check]:
    """Verify every proof, with a problem's own file where a proof was saved without its data."""
    problems = [source.path for source in inputs.problems]
    return [_check(source, problems, inputs.network) for source in inputs.proofs]


def best_check(checks: Sequence[Check]) -> Check | None:
    """The verified proof of smallest gap that is not about other weights."""
    sound = [c for c in checks if c.found is not None and c.weights != "other"]
    return min(sound, key=lambda c: c.found.relative_gap if c.found else np.inf, default=None)


def _check(source: Source, problems: Sequence[Path], network: Network | None) -> Check:
    claims: Report = {}
    try:
        arrays, claims = read_sealed(source.path)
        alone = any(name.startswith("problem.") for name in arrays)
        found = verify(source.path) if alone else _with_problem(source.path, problems)
    except (CertificateError, *MALFORMED) as error:
        told = isinstance(error, CertificateError)
        reason = str(error) if told else f"the file is malformed: {error!r}"
        return Check(source, claims, None, reason.replace(str(source.path), source.name))
    same = "" if network is None else _compare(network, arrays.get("solution.w"))
    return Check(source, claims, found, weights=same)


def _with_problem(path: Path, problems: Sequence[Path]) -> Verification | ProofReport:
    """The check with the first problem that fits."""
    refusal = CertificateError(f"{path} was saved without its problem; give the problem's file too")
    for problem in problems:
        try:
            return verify(path, problem)
        except CertificateError as error:
            refusal = error
    raise refusal


def _compare(network: Network, w: Array | None) -> str:
    """Whether ``w`` is the network's weights, in the order that its report gives."""
    rows = network.notes.get("layers") or []
    names = [row["name"] for row in rows if row["name"] in network.masks]
    if w is None or len(names) != len(rows) or not names:
        return "unknown"
    mask = np.concatenate([network.masks[name].ravel() for name in names])
    if not np.array_equal(mask, w != 0.0):
        return "other"
    stored = stored_weights(network, names)
    if stored is None:
        return "mask"
    return "equal" if np.array_equal(stored, w) else "other"


def _size(found: ProofReport) -> str:
    return f"{found.steps:,} steps, {found.leaves:,} leaves"


__all__ = ["MALFORMED", "Check", "best_check", "check_proofs"]
