"""The page of a result: what it shows, what it checks again, and that it runs nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from chita_opt.cli import BAD_INPUT, OK, REFUSED, run
from chita_opt.cli.report.charts import Labels, Series, draw
from chita_opt.cli.report.mask_pictures import Picture, picture_mask
from chita_opt.nn import load_weights, save_weights
from chita_opt.nn.models import MLPNet

from .report_files import HOSTILE, write_hostile, write_page, write_results

SCOPE = "about the quadratic model of the loss, not about the network"
VOID = {"meta", "link", "img", "path", "rect", "br"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


def page(tmp_path: Path, *given: Path, code: int = OK) -> str:
    out = tmp_path / "page.html"
    assert write_page(out, *given) == code
    return out.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Tags as a parser sees them; an unclosed one is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_everything_that_was_given_is_shown(files: Path, tmp_path: Path) -> None:
    names = ("pruned", "certificate")
    text = page(tmp_path, *(files / f"{n}.safetensors" for n in names), files / "table.json")
    for heading in ("Summary", "Proof", "Layers", "Incumbent and bound", "Masks", "Trade-offs",
                    "Trust in the quadratic model", "How to repeat it"):  # fmt: skip
        assert f">{heading}</h2>" in text
    assert '<span class="badge good">verified</span>' in text
    assert "about these very weights" in text and "71.50 %" in text
    assert text.count(SCOPE) >= 5  # beside every gap
    assert "chita-opt prune --model net:make" in text and "2.13.0" in text
    assert "fc1.weight" in text and text.count("data:image/png;base64,") == 2
    assert "What the given files do not hold" not in text


def test_the_page_is_well_formed_and_whole(files: Path, tmp_path: Path) -> None:
    outline = Outline(page(tmp_path, files / "pruned.safetensors", files / "table.json"))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in outline.tags:
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
        assert tag != "img" or attributes.get("alt")
        assert not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in outline.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_same_files_give_the_same_page(files: Path, tmp_path: Path) -> None:
    given = files / "pruned.safetensors", files / "certificate.safetensors", files / "table.json"
    first = page(tmp_path, *given)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copies = [Path(shutil.copy(path, elsewhere)) for path in given]
    assert page(elsewhere, *copies) == first


def test_names_are_text(tmp_path: Path) -> None:
    write_hostile(tmp_path / "w.safetensors")
    text = page(tmp_path, tmp_path / "w.safetensors")
    assert HOSTILE not in text and "&lt;script&gt;alert(1)" in text
    assert [tag for tag, _ in Outline(text).tags].count("script") == 1


def test_a_table_of_hostile_names_is_text(files: Path, tmp_path: Path) -> None:
    text = page(tmp_path, files / "pruned.safetensors", files / "table.json")
    assert HOSTILE not in text and text.count("<script>") == 1


@pytest.mark.parametrize("place", [200, -9])
def test_a_changed_proof_is_refused(files: Path, tmp_path: Path, place: int) -> None:
    content = bytearray((files / "certificate.safetensors").read_bytes())
    content[-9 if place < 0 else content.index(b'"lower') + 12] ^= 1
    path = tmp_path / "certificate.safetensors"
    path.write_bytes(content)
    text = page(tmp_path, files / "pruned.safetensors", path, code=REFUSED)
    assert '<span class="badge bad">refused</span>' in text and "was changed after" in text
    assert '<span class="badge good">verified</span>' not in text
    assert "claimed, not checked here" in text and "recomputed by numpy" not in text


def test_a_proof_of_other_weights_is_called_so(files: Path, tmp_path: Path) -> None:
    saved = load_weights(files / "pruned.safetensors")
    name = next(iter(saved.masks))
    net = MLPNet((12, 8, 4), seed=0)
    net.load_state_dict(saved.state)
    with torch.no_grad():
        dict(net.named_parameters())[name][saved.masks[name]] *= 1.5
    other = tmp_path / "other.safetensors"
    save_weights(other, net, masks=saved.masks, metadata=saved.metadata)
    text = page(tmp_path, other, files / "certificate.safetensors")
    assert "is about other weights than those in" in text and "of other weights" in text
    assert "recomputed by numpy" not in text


def test_a_proof_that_cannot_be_compared_says_so(files: Path, tmp_path: Path) -> None:
    saved = load_weights(files / "pruned.safetensors")
    net = MLPNet((12, 8, 4), seed=0)
    net.load_state_dict(saved.state)
    save_weights(tmp_path / "bare.safetensors", net, masks=saved.masks)  # no report, no order
    text = page(tmp_path, tmp_path / "bare.safetensors", files / "certificate.safetensors")
    assert "cannot be told" in text and "perhaps not of these weights" in text


def test_half_precision_is_compared_by_value_or_mask(files: Path, tmp_path: Path) -> None:
    saved = load_weights(files / "pruned.safetensors")
    net = MLPNet((12, 8, 4), seed=0).bfloat16()
    path = tmp_path / "half.safetensors"
    save_weights(path, net, masks=saved.masks, metadata=saved.metadata)
    text = page(tmp_path, path, files / "certificate.safetensors")
    by_mask = "the values could not be compared" in text  # numpy may know the type, or not
    assert by_mask or "is about other weights than those in" in text


def test_a_claim_better_than_the_proof_is_named(files: Path, tmp_path: Path) -> None:
    report = json.dumps({"upper": 1e-9, "lower": 1e-9, "gap": 0.0, "method": "mine"})
    (tmp_path / "claims.json").write_text(report)
    text = page(tmp_path, files / "certificate.safetensors", tmp_path / "claims.json")
    assert "claims the better objective" in text


def test_a_proof_without_its_problem(files: Path, tmp_path: Path) -> None:
    alone = files / "alone.safetensors"
    assert "saved without its problem" in page(tmp_path, alone, code=REFUSED)
    text = page(tmp_path, alone, files / "problem.safetensors")
    assert '<span class="badge good">verified</span>' in text and "problem data" in text


def test_a_search_and_its_log(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    proof = tmp_path / "proof.safetensors"
    solved = ["solve", str(files / "tiny.npz"), "--k", "3", "--method", "bnb", "--json"]
    assert run([*solved, "--proof", str(proof)]) == OK
    log = tmp_path / "solve.json"
    log.write_text(capsys.readouterr().out)
    text = page(tmp_path, proof, log)
    assert "search log of" in text and "Gap of solve.json" in text
    assert f"solve {files / 'tiny.npz'} --k 3" in text and "read by the run" in text


def test_stages_have_their_history(files: Path, tmp_path: Path) -> None:
    text = page(tmp_path, files / "staged.safetensors")
    assert "Loss by stage" in text and "Kept weights by stage" in text
    assert "No certificate:" in text and "--save-certificate" in text  # what is missing is said


def test_training_has_its_history(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0.5 * i, "event": "epoch", "loss": 1.0 / (1 + i), "sparsity": 0.3 * i,
         "held_out_loss": None, "held_out_accuracy": 80.0 + i, "lr": 0.1, "step": i}
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "gradual.json"
    path.write_text(json.dumps({"method": "gradual training", "nnz": 3, "p": 9, "history": rows}))
    text = page(tmp_path, path)
    assert "Loss by epoch" in text and "Accuracy and sparsity by epoch" in text
    assert "held-out samples</li>" not in text  # no such losses


def test_the_gap_over_time_ends_at_the_gap(tmp_path: Path) -> None:
    history = {"incumbent": [[0.0, 4.0], [1.0, 2.0], [2.0, 8.0]], "bound": [[1.5, 1.0]]}
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"history": history}))
    text = page(tmp_path, path)
    assert ">87.5</td>" in text and "rises where a candidate" in text


def test_a_path_is_drawn_by_count(files: Path, tmp_path: Path) -> None:
    from chita_opt import Budget, TreeOptions, k_path, save_proof
    from chita_opt.instances import load_instance

    problem = load_instance(files / "tiny.npz").problem(
        ridge=0.05, supports=Budget.cardinality(9, 3)
    )
    save_proof(k_path(problem, ks=[1, 2, 3], options=TreeOptions(proof=True)), tmp_path / "path.st")
    text = page(tmp_path, tmp_path / "path.st")
    assert "Objective and bound by count" in text and "logs for 3 counts" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "no JSON object"),
        ("nonsense", "neither weights with masks"),
        ('{"rows": []}', "no rows"),
        ('{"layers": 3}', "malformed"),
        ('{"layers": [{"name": "a", "size": "b", "kept": 1}]}', "malformed"),
        ('{"trust": "yes"}', "malformed"),
        ('{"trust": {}, "stages": [1]}', "malformed"),
        ('{"history": {"incumbent": [[0]]}}', "malformed"),
    ],
)
def test_wrong_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    assert write_page(tmp_path / "page.html", path) == BAD_INPUT
    assert words in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_two_networks_are_one_too_many(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = files / "pruned.safetensors", files / "staged.safetensors"
    assert write_page(tmp_path / "page.html", *two) == BAD_INPUT
    assert "one network" in capsys.readouterr().err


def pixels(picture: Picture) -> np.ndarray:
    """Palette numbers of a PNG, decoded by the letter of its specification."""
    content = base64.b64decode(picture.uri.partition(",")[2])
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    data, place = b"", 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (check,) = struct.unpack(">I", content[place + 8 + length : place + 12 + length])
        assert zlib.crc32(kind + body) == check
        data += body if kind == b"IDAT" else b""
        place += 12 + length
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(picture.height, -1)
    assert not lines[:, 0].any() and lines.shape[1] == picture.width + 1
    return lines[:, 1:]


def test_a_small_mask_is_drawn_weight_by_weight(rng: np.random.Generator) -> None:
    mask = rng.random((7, 11)) < 0.4
    drawn = picture_mask("layer", mask)
    assert np.array_equal(pixels(drawn.whole) == 255, mask) and drawn.part is None
    assert drawn.empty_rows == 7 - mask.any(axis=1).sum()


@pytest.mark.parametrize("shape", [(500, 1000), (241, 361), (3, 4001), (1000, 2)])
def test_a_large_mask_is_drawn_as_shares(shape: tuple[int, int], rng: np.random.Generator) -> None:
    mask = rng.random(shape) < 0.1
    mask[-1, -1] = True
    drawn = picture_mask("layer", mask)
    levels = pixels(drawn.whole)
    assert levels.shape <= (240, 360) and "downsampled" in drawn.whole.note
    down, across = -(-shape[0] // 240), -(-shape[1] // 360)
    first = mask[:down, :across].mean()
    most = max(
        mask[i : i + down, j : j + across].mean()
        for i in range(0, shape[0], down) for j in range(0, shape[1], across)
    )  # fmt: skip
    assert levels[0, 0] == round(255 * first / most)
    assert drawn.part is not None and pixels(drawn.part).any()


def test_a_convolution_is_drawn_by_channel(rng: np.random.Generator) -> None:
    mask = rng.random((4, 3, 2, 2)) < 0.5
    assert np.array_equal(pixels(picture_mask("conv", mask).whole) == 255, mask.reshape(4, 12))


def test_an_empty_mask_is_drawn() -> None:
    assert not pixels(picture_mask("layer", np.zeros((3, 5), dtype=bool)).whole).any()


@pytest.mark.parametrize("values", [(1.0, 2.0, 3.0), (1e-9, 1.0, 5.0), (-4.0, 0.0, 0.0), (7.0,)])
def test_charts_keep_values_inside(values: tuple[float, ...]) -> None:
    points = tuple((float(i), v) for i, v in enumerate(values))
    chart = draw([Series("curve", (*points, (9.0, float("nan"))))], Labels("t", "d", "x", "y"))
    assert chart is not None and len(chart.rows) == len(values)
    for x, y in chart.lines[0].dots:
        assert 66.0 <= float(x) <= 466.0 and 12.0 <= float(y) <= 236.0
    assert chart.y.ticks and all(12.0 <= float(at) <= 236.0 for at, _ in chart.y.ticks)


def test_no_points_no_chart() -> None:
    assert draw([Series("curve", ())], Labels("t", "d", "x", "y")) is None


def test_the_page_is_made_without_torch(files: Path, tmp_path: Path) -> None:
    given = str(files / "pruned.safetensors"), str(files / "certificate.safetensors")
    code = (
        "import sys; from chita_opt.cli import run; "
        f"run(['report', *{given!r}, '--out', {str(tmp_path / 'p.html')!r}]); "
        "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split()[-2:] == ["False", "False"], ran.stderr
