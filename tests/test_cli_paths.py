"""``chita-opt path`` and ``bound`` against enumeration, and what they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chita_opt.cli import BAD_INPUT, OK
from chita_opt.cli.options import STRENGTHS
from chita_opt.cli.paths import parse_counts
from chita_opt.errors import ProblemError
from chita_opt.exact import strengths

from .test_cli import RIDGE, call, instance, optimum, solved

__all__ = ["instance"]  # the fixture


def test_a_path_agrees_with_enumeration(
    capsys: pytest.CaptureFixture[str], instance: Path, tmp_path: Path
) -> None:
    table, proof = tmp_path / "path.json", tmp_path / "path.safetensors"
    arguments = ("path", instance, "--ridge", RIDGE, "--gap", 1e-9)
    report = solved(capsys, *arguments, "--out", table, "--proof", proof)
    assert report["status"] == "optimal" and [row["kept"] for row in report["rows"]] == [*range(9)]
    for row in report["rows"]:
        truth = optimum(instance, row["kept"])
        assert row["lower"] <= truth + 1e-9 and row["objective"] == pytest.approx(truth, abs=1e-9)
    assert json.loads(table.read_text())["rows"] == report["rows"]
    assert solved(capsys, "verify", proof)["verified"] is True
    assert call(capsys, "plot", "trade-off", table, "--out", tmp_path / "c.png")[0] == OK


def test_a_path_of_some_counts(capsys: pytest.CaptureFixture[str], instance: Path) -> None:
    code, out, _ = call(capsys, "path", instance, "--k", 5, "--ks", "1,3-4", "--ridge", RIDGE)
    assert code == OK and "not about the network" in out.replace("\n", " ")
    code, _, err = call(capsys, "path", instance, "--k", 5, "--ks", "7")
    assert code == BAD_INPUT and "[0, 5]" in err


def test_counts_in_words() -> None:
    assert parse_counts(None) == [] and parse_counts("1, 2,5-7") == [1, 2, 5, 6, 7]
    for text in ("", "a", "1-2-3", "1,,2", "-1"):
        with pytest.raises(ProblemError, match="write counts"):
            parse_counts(text)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_bounds(capsys: pytest.CaptureFixture[str], instance: Path, strength: str) -> None:
    proof = instance.with_name("bound.safetensors")
    arguments = ("bound", instance, "--k", 3, "--ridge", RIDGE, "--strength", strength)
    if strength == "lagrangian":  # no blocks here
        assert call(capsys, *arguments)[0] == BAD_INPUT
        return
    report = solved(capsys, *arguments, "--proof", proof)
    assert report["proof_lower"] <= optimum(instance, 3) + 1e-9
    assert report["lower"] <= optimum(instance, 3) + 1e-9
    assert solved(capsys, "verify", proof)["lower"] == pytest.approx(report["proof_lower"])
    assert call(capsys, *arguments)[0] == OK


def test_the_strengths_are_those_of_the_library() -> None:
    assert strengths.STRENGTHS == STRENGTHS
