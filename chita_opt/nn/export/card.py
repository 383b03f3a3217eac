"""A model card: every number that it takes to repeat a pruning run, as JSON and as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from chita_opt.certificates.verification import SCOPE
from chita_opt.errors import DataError
from chita_opt.files import write_atomically
from chita_opt.nn.export.sizes import layer_sizes, totals
from chita_opt.nn.export.sources import Source, network_of
from chita_opt.nn.provenance import fingerprint, versions

CARD_FORMAT = "chita-opt card 1"
SCOPE_SENTENCE = (
    f"Objective, bound and gap are {SCOPE}; a lower objective can come with a worse network."
)
_CLAIMS = ("upper", "lower", "gap", "relative_gap", "share_of_all", "bound_proof", "nnz", "p")


@dataclass(frozen=True)
class ModelCard:
    """A card.

    Attributes
    ----------
    content : Mapping
        JSON-able values: ``pruning`` (what was done), ``run`` (options, seed, versions), ``data``
        and ``weights`` (fingerprints), ``layers``, ``left_alone``, ``bits`` (by format),
        ``measured``, ``certificate`` (its claims), ``scope``.
    """

    content: Mapping[str, Any]

    def to_json(self) -> str:
        """The card as JSON."""
        return json.dumps(self.content, indent=2, sort_keys=True) + "\n"

    def to_markdown(self) -> str:
        """The card for people."""
        card = self.content
        parts = ["# Pruned network", _table("What was done", card["pruning"])]
        parts.append(_table("Measured", card["measured"] or {"accuracy": "not measured"}))
        parts.append(_table("Certificate", card["certificate"] or {"bound": "not certified"}))
        parts += [card["scope"], "## Layers", _rows(card["layers"])]
        if card["left_alone"]:
            parts += ["Left alone:", _rows(card["left_alone"])]
        sizes = {name: f"{bits / 8192:.4g} KiB" for name, bits in card["bits"].items()}
        parts.append(_table("Size of the pruned weights", sizes))
        for title in ("run", "data", "weights"):
            parts.append(_table(title.capitalize(), card[title]))
        return "\n\n".join(parts) + "\n"

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write both forms beside each other, as ``path`` with the suffixes .json and .md."""
        as_json, as_text = Path(path).with_suffix(".json"), Path(path).with_suffix(".md")
        write_atomically(as_json, self.to_json().encode(), make_folder=True)
        write_atomically(as_text, self.to_markdown().encode())
        return as_json, as_text


def model_card(
    source: Source,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    measured: Mapping[str, float] | None = None,
) -> ModelCard:
    """Gather what is known about a pruned network.

    Parameters
    ----------
    source : PrunedWeights, SavedWeights, torch.nn.Module or path
        As for :func:`chita_opt.nn.export.export`. The report of the run comes from a result, or
        from the notes of a file; without one the card says so.
    model : torch.nn.Module, optional
        The model that was pruned, for the fingerprint of the whole network.
    data : optional
        The data of the run, for their fingerprint; see :func:`chita_opt.nn.provenance.fingerprint`.
    measured : mapping of str to float, optional
        What was measured on the pruned network, such as ``{"accuracy": 94.1}`` in percent.

    Raises
    ------
    DataError
        If the report in a file is damaged.
    LayerError
        If the weights do not fit the model.
    """
    weights = network_of(source, model)
    report = _report(weights.metadata)
    rows = layer_sizes(weights)
    notes = dict(report.get("notes", {}))
    run = {**report.get("run", {}), **notes.pop("run", {})}
    run = run or {"recorded": "nothing: the source holds no report of a run"}
    shares = {row["name"]: row.get("gap_share") for row in report.get("layers", [])}
    known = data if data is not None else report.get("data")
    content = {
        "format": CARD_FORMAT,
        "pruning": {**_of_run(report), **notes},
        "run": {**run, "card_written_with": versions()},
        "data": _data(known),
        "weights": fingerprint(weights.state),
        "layers": [
            {
                "name": row.name,
                "shape": list(row.shape),
                "kept": row.kept,
                "sparsity": 1.0 - row.kept / max(1, weights.masks[row.name].numel()),
                "share_of_gap": shares.get(row.name),
                "bits": dict(row.bits),
            }
            for row in rows
        ],
        "left_alone": report.get("left_alone", []),
        "bits": totals(rows),
        "measured": dict(measured or _measured(report)),
        "certificate": _claims(report.get("certificate")),
        "scope": SCOPE_SENTENCE,
    }
    return ModelCard(content)


def _report(notes: Mapping[str, str]) -> dict[str, Any]:
    try:
        report = json.loads(notes.get("report", "{}"))
    except json.JSONDecodeError as error:
        raise DataError(f"the report in the file is damaged: {error}") from error
    if not isinstance(report, dict):
        raise DataError("the report in the file is damaged: it is no mapping")
    return report


def _of_run(report: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "method", "status", "support", "objective", "requested_sparsity", "realised_sparsity", "p",
        "nnz", "planned_stages", "seconds",
    )  # fmt: skip
    return {name: report[name] for name in names if name in report}


def _data(known: Any) -> dict[str, Any]:
    if known is None:
        return {"sha256": None, "note": "the data of the run were not given"}
    return dict(known) if isinstance(known, dict) and "sha256" in known else fingerprint(known)


def _measured(report: Mapping[str, Any]) -> dict[str, float]:
    return {name: report[name] for name in ("dense_accuracy", "accuracy") if name in report}


def _claims(certificate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {name: certificate[name] for name in _CLAIMS if name in certificate}


def _table(title: str, values: Mapping[str, Any]) -> str:
    return (
        f"## {title}\n\n{_rows([{'what': key, 'value': value} for key, value in values.items()])}"
    )


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "none"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(map(_cell, row.values())) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


__all__ = ["CARD_FORMAT", "ModelCard", "model_card"]
