"""The numbers at the top of the page, contradictions between files, and what no file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chita_opt.cli.report.checks import Check
from chita_opt.cli.report.layers import Layer
from chita_opt.cli.report.reading import Report
from chita_opt.cli.screen import number, percent

_SAME = 1e-6  # relative difference up to which two files say the same
_TRUST_TONES = {"trusted": "good", "doubtful": "warn", "not trusted": "bad"}


@dataclass(frozen=True)
class Tile:
    """One number: name, value, what it is, and how it is to be taken."""

    name: str
    value: str
    note: str = ""
    tone: str = ""


def tiles(
    notes: Report, checks: Sequence[Check], best: Check | None, layers: Sequence[Layer]
) -> Iterator[Tile]:
    """The summary; a recomputed number goes before a claimed one, which is called so."""
    yield _sparsity(notes, best, layers)
    proven = None if best is None else best.found
    told = "recomputed by numpy" if proven is not None else "claimed, not checked here"
    upper = proven.upper if proven is not None else claimed(notes, "upper")
    lower = proven.lower if proven is not None else claimed(notes, "lower")
    gap = proven.relative_gap if proven is not None else claimed(notes, "gap")
    if upper is not None:
        yield Tile("Objective", number(upper), f"modelled loss increase; {told}")
    if lower is not None:
        yield Tile("Proven bound", number(lower), f"no allowed mask is below it; {told}")
    if gap is not None:
        yield Tile("Gap", percent(gap), f"of the modelled loss increase; {told}")
    yield _proof(checks, best)
    if "accuracy" in notes:
        before, after = notes.get("dense_accuracy"), notes["accuracy"]
        first = "" if before is None else f"{before:.2f} % before; "
        yield Tile("Test accuracy", f"{after:.2f} %", f"{first}measured by the run, not proven")
    verdict = (notes.get("trust") or {}).get("verdict")
    if verdict:
        tone = _TRUST_TONES.get(verdict, "")
        yield Tile("Trust in the model", verdict, "by samples that no gradient was taken of", tone)
    if "status" in notes or "method" in notes:
        seconds = notes.get("seconds")
        total = seconds.get("total") if isinstance(seconds, dict) else seconds
        time = "" if total is None else f", {float(total):.1f} s"
        method = str(notes.get("method", "unknown method"))
        yield Tile("Method", method, f"{notes.get('status', '')}{time}".removeprefix(", "))


def _sparsity(notes: Report, best: Check | None, layers: Sequence[Layer]) -> Tile:
    kept, size = notes.get("nnz"), notes.get("p")
    if layers:
        kept, size = sum(row.kept for row in layers), sum(row.size for row in layers)
    elif best is not None and best.found is not None:
        kept, size = best.found.nnz, best.found.p
    if kept is None or not size:
        return Tile("Sparsity", "unknown", "no file says what is kept")
    asked = notes.get("requested_sparsity")
    wish = "" if asked is None else f"; {percent(asked)} asked for"
    return Tile("Sparsity", percent(1.0 - kept / size), f"{kept:,} of {size:,} kept{wish}")


def _proof(checks: Sequence[Check], best: Check | None) -> Tile:
    refused = [check for check in checks if check.found is None]
    if refused:
        return Tile("Proof", "refused", "; ".join(c.source.name for c in refused), "bad")
    if best is not None:
        note = f"{best.source.name} checked again for this page, {best.method}"
        if best.weights == "unknown":
            return Tile("Proof", "verified", f"{note}; perhaps not of these weights", "warn")
        return Tile("Proof", "verified", note, "good")
    if checks:
        return Tile("Proof", "of other weights", "verified, but not about these weights", "bad")
    return Tile("Proof", "not given", "what the run says is repeated, not checked", "warn")


def warnings(
    notes: Report, checks: Sequence[Check], best: Check | None, layers: Sequence[Layer]
) -> Iterator[str]:
    """What the files say against each other."""
    for check in checks:
        if check.weights == "other":
            yield f"{check.source.name} is about other weights than those in the network's file."
    counted = sum(row.kept for row in layers)
    said = sum(own.get("kept", 0) for own in notes.get("layers") or ())
    if said and counted != said:
        yield f"A report says that {said:,} weights are kept; the masks keep {counted:,}."
    if best is None or best.found is None:
        return
    for name, sign, words in (("lower", 1.0, "bound"), ("upper", -1.0, "objective")):
        value, found = claimed(notes, name), getattr(best.found, name)
        if value is not None and sign * (value - found) > _SAME * max(abs(value), abs(found)):
            yield (
                f"A report claims the better {words} {value:.8g}; {best.source.name} proves "
                f"{found:.8g}."
            )


def missing(
    notes: Report, checks: Sequence[Check], sections: Sequence[tuple[str, Any]]
) -> Iterator[str]:
    """What no file held, and which command writes it."""
    cures = {
        "proof": "No certificate: `--save-certificate` and `--proof` write one.",
        "layers": "No layers: `prune --out` writes weights with masks.",
        "over time": "No values over time: `solve --json`, `prune --out`, certificates hold them.",
        "trade-offs": "No trade-offs: name a benchmark's table with `--trade-off`.",
        "trust": "No verdict on the model: `prune --trust` measures it.",
        "run": "No command or versions: files written by the command line hold them.",
    }
    empty = [name for name, content in sections if not content]
    if not checks:
        empty.insert(0, "proof")
    if not (notes.get("trust") or (notes.get("notes") or {}).get("trust")):
        empty.append("trust")
    if not notes.get("run"):
        empty.append("run")
    yield from (cures[name] for name in empty if name in cures)


def claimed(notes: Report, name: str) -> float | None:
    """What a report says of "upper", "lower" or "gap"; None where it says nothing."""
    own = notes.get("certificate") or {}
    places = {
        "upper": (notes.get("upper"), own.get("upper"), notes.get("objective")),
        "lower": (notes.get("lower"), own.get("lower")),
        "gap": (notes.get("gap"), own.get("relative_gap")),
    }
    return next((float(value) for value in places[name] if value is not None), None)


__all__ = ["Tile", "claimed", "missing", "tiles", "warnings"]
