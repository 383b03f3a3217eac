"""What the given files are, told from their content; nothing here is believed yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from chita_opt.certificates.container import FORMAT
from chita_opt.cli.how_run import file_digest
from chita_opt.errors import DataError

Array = np.ndarray
Report = Mapping[str, Any]
_MASK = "mask/"
_DARB = "chita-opt darb"


@dataclass(frozen=True)
class Source:
    """A file that was given.

    Attributes
    ----------
    path : Path
        Where it is.
    kind : str
        What it holds, in words.
    digest : str
        SHA-256 of its bytes.
    """

    path: Path
    kind: str
    digest: str

    @property
    def name(self) -> str:
        """Its name without the folders, so that a page does not depend on where it was made."""
        return self.path.name


@dataclass(frozen=True, eq=False)
class Network:
    """A file of pruned weights.

    Attributes
    ----------
    source : Source
        The file.
    masks : dict of str to ndarray
        Bool arrays of the parameters' shapes; true where a weight is kept.
    notes : Mapping
        The report in its header; empty where there is none.
    """

    source: Source
    masks: dict[str, Array]
    notes: Report


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that was given, by kind.

    Attributes
    ----------
    network : Network or None
        The pruned weights.
    proofs, problems : tuple of Source
        Certificates and proof logs; and problems saved without one.
    reports : tuple of (Source, Mapping)
        What ``--json`` printed.
    tables : tuple of Source
        Tables of benchmarks.
    """

    network: Network | None
    proofs: tuple[Source, ...]
    problems: tuple[Source, ...]
    reports: tuple[tuple[Source, Report], ...]
    tables: tuple[Source, ...]

    @property
    def sources(self) -> list[Source]:
        """All files."""
        own = [] if self.network is None else [self.network.source]
        read = [source for source, _ in self.reports]
        return [*own, *self.proofs, *self.problems, *read, *self.tables]


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Tell the files apart and read what is small.

    Raises
    ------
    DataError
        If a file is of no known kind, or there are several files of weights.
    """
    networks: list[Network] = []
    proofs: list[Source] = []
    problems: list[Source] = []
    reports: list[tuple[Source, Report]] = []
    tables: list[Source] = []
    for path in dict.fromkeys(paths):
        header = _header(path)
        if header is not None and str(header.get("format", "")).startswith(FORMAT[:-1]):
            is_problem = "problem_hash" not in header.get("claims", "problem_hash")
            kind = "problem data" if is_problem else "certificate or proof log"
            (problems if is_problem else proofs).append(_source(path, kind))
        elif header is not None and _DARB in header.get("chita_opt", ""):
            networks.append(_darb_network(path))
        elif header is not None:
            networks.append(_network(path, header))
        else:
            content = _json(path)
            if isinstance(content.get("rows"), list):
                tables.append(_source(path, "table of a benchmark"))
            else:
                reports.append((_source(path, "report in JSON"), content))
    if len(networks) > 1:
        names = ", ".join(network.source.name for network in networks)
        raise DataError(f"a page is about one network, got {len(networks)}: {names}; name one")
    network = networks[0] if networks else None
    return Inputs(network, tuple(proofs), tuple(problems), tuple(reports), tuple(tables))


def stored_weights(network: Network, names: Sequence[str]) -> Array | None:
    """The weights of these parameters as one vector; None where numpy has not their type."""
    try:
        with safe_open(network.source.path, framework="numpy") as archive:
            return np.concatenate([archive.get_tensor(name).ravel() for name in names])
    except (SafetensorError, TypeError, AttributeError, ValueError):
        return None


def _source(path: Path, kind: str) -> Source:
    return Source(path, kind, file_digest(path))


def _header(path: Path) -> Mapping[str, str] | None:
    """Metadata of a safetensors file; None if it is none."""
    try:
        with safe_open(path, framework="numpy") as archive:
            return archive.metadata() or {}
    except SafetensorError:
        return None


def _network(path: Path, header: Mapping[str, str]) -> Network:
    with safe_open(path, framework="numpy") as archive:
        names = sorted(name for name in archive.keys() if name.startswith(_MASK))
        masks = {name.removeprefix(_MASK): archive.get_tensor(name) for name in names}
    if not masks:
        raise DataError(f"{path} holds no masks; prune --out and save_weights write them")
    try:
        notes = json.loads(header.get("report", "{}"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: the report in its header is damaged: {error}") from error
    if not isinstance(notes, dict):
        raise DataError(f"{path}: the report in its header is no JSON object")
    source = _source(path, "pruned weights and masks")
    return Network(source, {name: mask.astype(bool) for name, mask in masks.items()}, notes)


def _darb_network(path: Path) -> Network:
    from chita_opt.cli.plotting import read_patterns

    masks = {pattern.name: pattern.mask for pattern in read_patterns(path)}
    return Network(_source(path, "block-regular weights"), masks, {})


def _json(path: Path) -> Report:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{path} is neither weights with masks, a certificate, a proof log nor JSON: {error}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; give what --json printed, or a table")
    return content


__all__ = ["Inputs", "Network", "Report", "Source", "read_inputs", "stored_weights"]
