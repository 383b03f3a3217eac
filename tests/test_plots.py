"""Pictures of masks and trade-offs from files, and the files that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from chita_opt.cli.app import app
from chita_opt.cli.plotting import read_curves, read_patterns
from chita_opt.errors import DataError
from chita_opt.nn import MLPNet, save_weights
from chita_opt.nn.darb import DarbMatrix, DarbWeights, save_darb

PNG = b"\x89PNG"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plot", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def pruned_weights(path: Path) -> None:
    net = MLPNet((12, 8, 4), seed=0)
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in net.named_parameters()}
    save_weights(path, net, masks=masks)


def regular_weights(path: Path) -> None:
    weight = torch.zeros(6, 64)
    weight[:3, ::8] = 1.0
    weight[3:, 1::16] = 1.0
    conv = weight[:, ::4].reshape(6, 4, 2, 2)
    matrices = {name: DarbMatrix.from_dense(w) for name, w in (("fc", weight), ("conv", conv))}
    save_darb(path, DarbWeights(matrices))


@pytest.mark.parametrize("write", [pruned_weights, regular_weights])
def test_masks_are_drawn(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "w.safetensors")
    out = tmp_path / "masks.png"
    text = run("masks", tmp_path / "w.safetensors", "--out", out, "--rows", 4, "--columns", 10)
    assert "2 layers" in text and out.read_bytes().startswith(PNG)


def test_patterns_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    regular_weights(path)
    first, second = read_patterns(path)
    if first.name == "conv":
        first, second = second, first
    assert first.mask.shape == (6, 64) and first.mask.sum() == 3 * 8 + 3 * 4
    assert first.widths is not None and first.widths.tolist() == [8, 8, 8, 16, 16, 16]
    assert second.mask.shape == (6, 16)


def test_weights_without_masks_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", MLPNet((3, 2), seed=0))
    with pytest.raises(DataError, match="no masks"):
        read_patterns(tmp_path / "w.safetensors")


def table(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps({"name": "darb", "rows": rows}))
    return path


def row(family: str, ratio: float, net: str = "MLPNet", **more: Any) -> dict[str, Any]:
    return {"net": net, "family": family, "ratio": ratio} | more


ROWS = [
    row("irregular", 4.0, accuracy=95.0, objective=0.2, lower=0.19),
    row("irregular", 2.0, accuracy=96.0, objective=0.1, lower=0.1),
    row("2:4", 2.0, accuracy=94.0, objective=0.3, lower=None),
    row("2:4", 2.0, net="LSTM", perplexity=5.0),
]


def test_a_trade_off_is_drawn(tmp_path: Path) -> None:
    source, out = table(tmp_path / "darb.json", ROWS), tmp_path / "curves.png"
    assert "2 curves" in run("trade-off", source, "--out", out, "--net", "MLPNet")
    assert out.read_bytes().startswith(PNG)
    run("trade-off", source, "--out", out, "--net", "LSTM", "--measure", "perplexity")


def test_curves_are_those_of_the_table(tmp_path: Path) -> None:
    curves, name = read_curves(table(tmp_path / "t.json", ROWS), "MLPNet", "accuracy")
    assert name == "MLPNet" and list(curves) == ["irregular", "2:4"]
    assert [point.ratio for point in curves["irregular"]] == [4.0, 2.0]
    assert curves["2:4"][0].lower is None and curves["2:4"][0].objective == 0.3


@pytest.mark.parametrize(
    "rows, net, words",
    [
        (ROWS, None, "MLPNet, LSTM; choose"),
        (ROWS, "GRU", "MLPNet, LSTM; choose"),
        (ROWS[3:], None, "neither 'accuracy'"),
        ([row("a", "x")], None, "ratio is 'x'"),  # type: ignore[arg-type]
        ([row("a", 2.0, objective=True)], None, "objective is True"),
        ([{"p": 3}], None, "no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, rows: list[Any], net: str | None, words: str
) -> None:
    with pytest.raises(DataError, match=rf"t\.json.*{words}"):
        read_curves(table(tmp_path / "t.json", rows), net, "accuracy")


@pytest.mark.parametrize("content", ["{", "[]", '{"row": []}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=r"t\.json is no table"):
        read_curves(tmp_path / "t.json", None, "accuracy")
