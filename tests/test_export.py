"""Exported networks come back to the bit; damaged files are refused; cards repeat the numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from chita_opt.cli import run
from chita_opt.cli.options import EXPORT_NAMES
from chita_opt.errors import DataError, LayerError
from chita_opt.nn import (
    CharacterModel,
    MLPNet,
    SavedWeights,
    TransformerClassifier,
    from_torch_prune,
    prune,
)
from chita_opt.nn.export import (
    BitmapMatrix,
    CsrMatrix,
    TwoFourMatrix,
    export,
    layer_sizes,
    load_export,
    model_card,
    read_compact,
    restore_,
    save_onnx,
    to_semi_structured_,
    to_torch_prune,
)
from chita_opt.nn.export.exporting import FORMATS as FORMATS_OF_EXPORT
from chita_opt.nn.provenance import fingerprint

SUFFIX = {"safetensors": ".safetensors", "torch": ".pt", "darb": ".darb"}
FORMATS = ("safetensors", "torch", "bitmap", "csr", "darb")
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Tied(nn.Module):
    """Two layers share a weight; a norm has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.head(torch.relu(self.second(self.norm(self.first(x))))), 1)


@pytest.fixture
def tied() -> tuple[Tied, Any]:
    net, x = Tied().eval(), torch.randn(40, 6)
    options = {"rows": 20, "trust": False, "certify": True}
    return net, prune(net, nll_loss, (x, x[:, :3].argmax(1)), sparsity=0.5, **options)


def bits_of(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, type and every bit, signs of zeros included."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits_of(a), bits_of(b))


@st.composite
def masked(draw: Any, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """A weight of any type and shape, special values among the kept ones, and its mask."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    shape[-1] *= multiple
    seed, share = draw(st.integers(0, 1 << 30)), draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    random = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from(TYPES))
    weight = torch.randn(*shape, generator=random).to(dtype)
    special = torch.tensor([0.0, -0.0, 6e-8, -3e4]).to(dtype)
    chosen = torch.rand(*shape, generator=random) < 0.2
    weight[chosen] = special[torch.randint(4, (int(chosen.sum()),), generator=random)]
    mask = torch.rand(*shape, generator=random) < share
    return weight.masked_fill(~mask, 0.0), mask


@pytest.mark.parametrize("kind", [BitmapMatrix, CsrMatrix])
@given(masked())
def test_compact_matrices_give_weight_and_mask_back(kind: Any, pair: tuple[Tensor, Tensor]) -> None:
    weight, mask = pair
    matrix = kind.from_dense(weight, mask)
    again = kind.from_parts(matrix.shape, matrix.values, matrix.places())
    assert same(again.to_dense(), weight) and torch.equal(again.dense_mask(), mask)
    assert len(matrix.values) == int(mask.sum())


@given(masked(multiple=4))
def test_two_of_four_gives_the_weight_back(pair: tuple[Tensor, Tensor]) -> None:
    weight, mask = pair
    fours = mask.reshape(-1, 4)
    fours &= fours.cumsum(1) <= 2
    weight = weight.masked_fill(~mask, 0.0)
    matrix = TwoFourMatrix.from_dense(weight, mask)
    again = TwoFourMatrix.from_parts(matrix.shape, matrix.values, matrix.places())
    assert same(again.to_dense(), weight)
    assert torch.equal(again.dense_mask(), weight != 0)
    assert matrix.values.numel() == weight.numel() // 2
    assert matrix.codes.numel() == -(-weight.numel() // 8)


def test_what_is_no_two_of_four_is_named() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0, 0.0], [1.0, 2.0, 3.0, 0.0]])
    with pytest.raises(LayerError, match="row 1 keeps 3 of the weights 0 to 3"):
        TwoFourMatrix.from_dense(weight, weight != 0)
    with pytest.raises(LayerError, match="rows of 3 weights"):
        TwoFourMatrix.from_dense(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_rows_multiply_as_a_sparse_tensor_of_torch() -> None:
    weight = torch.randn(5, 7) * (torch.rand(5, 7) < 0.4)
    x = torch.randn(7, 2)
    product = CsrMatrix.from_dense(weight, weight != 0).to_torch() @ x
    assert torch.allclose(product, weight @ x, atol=1e-6)


@pytest.mark.parametrize("columns, dtype", [(256, "uint8"), (257, "uint16"), (65_537, "int32")])
def test_columns_take_the_fewest_bytes(columns: int, dtype: str) -> None:
    weight = torch.zeros(2, columns)
    weight[1, -1] = 1.0
    matrix = CsrMatrix.from_dense(weight, weight != 0)
    assert str(matrix.columns.dtype) == f"torch.{dtype}" and same(matrix.to_dense(), weight)


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_comes_back_with_ties_masks_and_outputs(
    tied: tuple[Tied, Any], format: str, tmp_path: Path
) -> None:
    net, result = tied
    path = tmp_path / f"net{SUFFIX.get(format, '.bin')}"
    report = export(result, path, format=format, model=net)
    assert report.size == path.stat().st_size and set(report.totals) >= {"dense", "csr", "darb"}
    expected, other = result.apply_(copy.deepcopy(net)), Tied().eval()
    masks = restore_(other, path)
    for name, tensor in expected.state_dict().items():
        assert same(other.state_dict()[name], tensor)
    assert {name: m.tolist() for name, m in masks.items()} == {
        name: m.tolist() for name, m in result.masks.items()
    }
    x = torch.randn(5, 6)
    assert torch.equal(other(x), expected(x)) and other.first.weight is other.second.weight
    again = tmp_path / f"again{SUFFIX.get(format, '.bin')}"
    export(path, again, format=format)
    if format in ("bitmap", "csr", "darb"):  # safetensors orders several notes as it likes
        assert again.read_bytes() == path.read_bytes()
    assert json.loads(load_export(again).metadata["report"])["nnz"] == result.solution.nnz


def test_two_of_four_from_pruning_to_file(tmp_path: Path) -> None:
    net, x = MLPNet((16, 8, 4), seed=0), torch.randn(40, 16)
    data = x, x[:, :4].argmax(1)
    result = prune(net, nll_loss, data, support="2:4", rows=20, trust=False, certify=False)
    report = export(result, tmp_path / "net.bin", format="2:4")
    assert report.totals["2:4"] == 160 * 17  # half of the values of 32 bits, and two bits each
    assert "2:4" in str(report)
    restore_(net, tmp_path / "net.bin")
    assert torch.equal(result.layer_map.weights(net), result.w)
    stored = read_compact(tmp_path / "net.bin").matrices["fc1.weight"]
    assert stored.nbytes == 64 * 4 + 16
    many = SavedWeights({"w": torch.ones(1, 4)}, {"w": torch.ones(1, 4) > 0}, {})
    with pytest.raises(LayerError, match=r"'w': row 0 keeps 4.*2:4 allows 2"):
        export(many, tmp_path / "no.bin", format="2:4")


def test_a_result_without_its_model_is_partial(tied: tuple[Tied, Any], tmp_path: Path) -> None:
    net, result = tied
    export(result, tmp_path / "part.safetensors")
    with pytest.raises(LayerError, match=r"nothing is given for .*head\.bias.*partial=True"):
        restore_(Tied(), tmp_path / "part.safetensors")
    other = copy.deepcopy(net)
    restore_(other, tmp_path / "part.safetensors", partial=True)
    assert torch.equal(result.layer_map.weights(other), result.w)


def test_what_does_not_fit_a_model_is_refused(tied: tuple[Tied, Any], tmp_path: Path) -> None:
    net, result = tied
    path = tmp_path / "net.safetensors"
    export(result, path, model=net)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(LayerError, match=r"no 'first\."):
        restore_(MLPNet((6, 3)), path)
    with pytest.raises(LayerError, match=r"float64"):
        restore_(copy.deepcopy(net).double(), path)
    state = load_export(path).state
    state["second.weight"] = state["second.weight"] + 1
    with pytest.raises(LayerError, match="tied in the model"):
        restore_(net, SavedWeights(state, {}, {}))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_masks_that_contradict_weights_are_refused(tmp_path: Path) -> None:
    ones, mask = torch.ones(2, 2), torch.eye(2) > 0
    for weights, message in (
        (SavedWeights({"w": ones}, {"w": mask}, {}), "2 weights of 'w' are not zero"),
        (SavedWeights({"w": ones}, {"v": mask}, {}), "mask of 'v', but no such"),
        (SavedWeights({"w": ones}, {"w": mask[0]}, {}), "has shape"),
    ):
        with pytest.raises(DataError, match=message):
            export(weights, tmp_path / "net.csr", format="csr")
    with pytest.raises(DataError, match="slash"):
        export(SavedWeights({"a/b": ones}, {}, {}), tmp_path / "net.csr", format="csr")
    with pytest.raises(DataError, match="is none of safetensors"):
        export(SavedWeights({"w": ones}, {}, {}), tmp_path / "net.xyz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fault", ["cut", "empty", "missing"])
def test_damaged_files_are_refused(format: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{SUFFIX.get(format, '.bin')}"
    if fault != "missing":
        net = MLPNet((6, 4, 3), seed=0)
        net.fc1.weight.data[:, ::2] = 0.0
        export(net, path, format=format)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if fault == "cut" else b"")
    with pytest.raises(DataError, match=path.name):
        load_export(path)


@pytest.mark.parametrize(
    "part, change",
    [
        ("w/pointers", lambda t: t.flip(0)),
        ("w/pointers", lambda t: t + 1),
        ("w/columns", lambda t: t + 7),
        ("w/columns", lambda t: t[:-1]),
        ("w/columns", lambda t: t.flip(0)),
        ("w/values", lambda t: t[1:]),
        ("w/values", lambda t: t.int()),
        ("w/pointers", None),
    ],
)
def test_forged_rows_are_refused(part: str, change: Any, tmp_path: Path) -> None:
    forge(tmp_path / "net.bin", "csr", part, change)


@pytest.mark.parametrize(
    "format, part, change",
    [
        ("bitmap", "w/bits", lambda t: t | 255),
        ("bitmap", "w/bits", lambda t: t[:-1]),
        ("2:4", "w/codes", lambda t: t * 0),
        ("2:4", "w/values", lambda t: t[:, :-1]),
    ],
)
def test_forged_bits_are_refused(format: str, part: str, change: Any, tmp_path: Path) -> None:
    forge(tmp_path / "net.bin", format, part, change)


def forge(path: Path, format: str, part: str, change: Any) -> None:
    weight = torch.tensor([[1.0, 0, 2.0, 0, 0, 0, 3.0, 4.0]]).repeat(3, 1)
    export(SavedWeights({"w": weight}, {"w": weight != 0}, {}), path, format=format)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as archive:
        header = archive.metadata()
    tensors = load_file(path)
    tensors.pop(part) if change is None else tensors.update(
        {part: change(tensors[part].to(torch.int32) if part == "w/columns" else tensors[part])}
    )
    if change is not None and part == "w/columns":
        tensors[part] = tensors[part].to(torch.uint8)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata=header)
    with pytest.raises(DataError, match=r"net\.bin, weight 'w'"):
        load_export(path)


def test_headers_of_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    good = {"format": "chita-opt compact 1", "layers": {}, "aliases": {}, "notes": {}}
    for change in (
        {"layers": {"w": {"encoding": "zip", "shape": [1]}}},
        {"layers": {"w": {"encoding": "csr", "shape": [0]}}},
        {"layers": []},
        {"aliases": {"a": "nothing"}},
        {"notes": {"a": 1}},
    ):
        save_file({"x": torch.ones(1)}, path, metadata={"chita_opt": json.dumps(good | change)})
        with pytest.raises(DataError, match=r"net\.bin"):
            load_export(path)
    torch.save({"state": 1}, tmp_path / "net.pt")
    with pytest.raises(DataError, match="no state that was exported"):
        load_export(tmp_path / "net.pt")


def test_torch_masks_there_and_back(tied: tuple[Tied, Any], tmp_path: Path) -> None:
    net, result = tied
    masked = to_torch_prune(copy.deepcopy(net), result)
    assert "first.weight_orig" in dict(masked.named_parameters())
    assert {name: int(m.sum()) for name, m in from_torch_prune(masked).items()} == {
        item.name: int(result.masks[item.name].sum()) for item in result.layer_map
    }
    x = torch.randn(4, 6)
    export(masked, tmp_path / "net.safetensors")
    other = Tied().eval()
    masks = restore_(other, tmp_path / "net.safetensors")
    assert torch.equal(other(x), masked(x)) and set(masks) == set(result.masks)
    assert torch.equal(result.layer_map.weights(other), result.w)


def test_semi_structured_weights_need_a_device() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU()).half()
    net[0].weight.data.reshape(-1, 4)[:, :2] = 0.0
    before = net[0].weight
    with pytest.raises(LayerError, match=r"CUDA device.*format='2:4'"):
        to_semi_structured_(net)
    with pytest.raises(LayerError, match="bfloat16"):
        to_semi_structured_(nn.Sequential(nn.Linear(4, 4)), names=["0.weight"])
    with pytest.raises(LayerError, match="more than two of four"):
        to_semi_structured_(nn.Sequential(nn.Linear(4, 4)).half(), names=["0.weight"])
    with pytest.raises(LayerError, match="not the weight of a linear"):
        to_semi_structured_(net, names=["1.weight"])
    assert net[0].weight is before


@pytest.mark.gpu
def test_semi_structured_weights_multiply_alike() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a CUDA device of compute capability 8.0 or more")
    net = nn.Sequential(nn.Linear(128, 128)).half().cuda()
    net[0].weight.data.reshape(-1, 4)[:, :2] = 0.0
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    expected = net(x)
    assert to_semi_structured_(net) == ["0.weight"]
    assert torch.allclose(net(x), expected, atol=1e-2)


NETS: dict[str, Any] = {
    "transformer": (
        lambda: TransformerClassifier(4, 3, 5, width=8, heads=2, hidden=6, seed=0),
        torch.randn(4, 12),
    ),
    "LSTM": (lambda: CharacterModel(5, width=4, layers=1, seed=0), torch.randint(5, (4, 3))),
    "norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)
        ),
        torch.randn(4, 1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_onnx_files_compute_the_same_with_their_zeros(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="torch's ONNX exporter needs onnxscript")
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    make, example = NETS[name]
    net = make().eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < 0.6] = 0.0
    path = tmp_path / "net.onnx"
    report = export(net, path, example=example[:1])
    model = onnx.load(path)
    arrays = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
    zeros = {(a.size, a.size - np.count_nonzero(a)) for a in arrays}
    for row in report.layers:
        size = torch.Size(row.shape).numel()
        assert (size, size - row.kept) in zeros
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the exported files")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    for count in (4, 1):
        found = session.run(None, {feed: example[:count].numpy()})[0]
        assert np.allclose(found, net(example[:count]).detach().numpy(), atol=1e-5)


def test_onnx_says_what_it_needs(tied: tuple[Tied, Any], tmp_path: Path) -> None:
    net, result = tied
    with pytest.raises(DataError, match=r"model=.*example="):
        export(result, tmp_path / "net.onnx", model=net)
    pytest.importorskip("onnxscript", reason="torch's ONNX exporter needs onnxscript")
    dense = {"head.weight": torch.zeros(3, 6, dtype=torch.bool)}
    with pytest.raises(DataError, match=r"18 zeros of 'head\.weight'"):
        save_onnx(tmp_path / "net.onnx", net, torch.randn(2, 6), masks=dense)
    assert not list(tmp_path.iterdir())


def test_the_card_holds_what_it_takes_to_repeat_the_run(
    tied: tuple[Tied, Any], tmp_path: Path
) -> None:
    net, result = tied
    x = torch.randn(4, 6)
    card = model_card(result, model=net, data=(x, x), measured={"accuracy": 91.5})
    content = json.loads(card.to_json())
    assert content["run"]["options"]["rows"] == 20 and content["run"]["options"]["seed"] == 0
    assert content["run"]["method"] == "auto" and content["run"]["sparsity"] == 0.5
    assert content["run"]["versions"]["torch"] == torch.__version__
    assert content["data"]["sha256"] == fingerprint((x, x))["sha256"]
    assert content["certificate"]["lower"] == result.certificate.lower
    assert [row["kept"] for row in content["layers"]] == [row.kept for row in result.layers]
    assert len(content["left_alone"]) == len(result.layer_map.left_alone)
    assert content["measured"] == {"accuracy": 91.5}
    text = card.to_markdown()
    for words in ("not about the network's accuracy", "91.5", "head.weight", "relative_gap"):
        assert words in text
    export(result, tmp_path / "card.md")
    assert {path.name for path in tmp_path.iterdir()} == {"card.md", "card.json"}
    bare = model_card(MLPNet((4, 3), seed=0)).to_markdown()
    assert "not measured" in bare and "not certified" in bare


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a model and data, found from the current folder."""
    (tmp_path / "exported_net.py").write_text(
        "import torch\n"
        "from chita_opt.nn import MLPNet\n"
        "def make(): return MLPNet((16, 8, 4), seed=0)\n"
        "def data():\n"
        "    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))\n"
        "    return x, x[:, :4].argmax(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_command_line_exports(user_code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--model", "exported_net:make", "--data", "exported_net:data"]
    options = [
        "--loss",
        "nll",
        "--support",
        "2:4",
        "--rows",
        "20",
        "--no-trust",
        "--method",
        "chita",
    ]
    assert run(["prune", *names, *options, "--out", "net.safetensors", "--json"]) == 0
    pruned = load_export("net.safetensors")
    for name in ("bitmap", "csr", "2:4", "darb", "safetensors", "torch"):
        out = "again.pt" if name == "torch" else f"{name.replace(':', '')}.bin"
        assert run(["export", "net.safetensors", "--to", name, "--out", out]) == 0
        state = load_export(out).state
        assert all(same(state[n], tensor) for n, tensor in pruned.state.items())
    assert "2:4 KiB" in capsys.readouterr().out
    card = ["--to", "card", "--out", "card.md", "--test", "exported_net:data"]
    assert run(["export", "net.safetensors", *card, *names, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert {Path(item["path"]).name for item in written["written"]} == {"card.md", "card.json"}
    content = json.loads((user_code / "card.json").read_text())
    assert 0 <= content["measured"]["accuracy"] <= 100
    assert content["data"]["shapes"] == {"inputs": [60, 16], "targets": [60]}
    assert content["run"]["command"].startswith("chita-opt prune")
    assert content["run"]["options"]["rows"] == 20
    for wrong in (["--to", "onnx", "--out", "x.onnx"], [*card], ["--to", "csr", "--out", "no/x"]):
        assert run(["export", "net.safetensors", *wrong]) == 2
    assert tuple(sorted(EXPORT_NAMES)) == tuple(sorted(FORMATS_OF_EXPORT))


def test_fingerprints_tell_data_apart() -> None:
    x, y = torch.randn(5, 3), torch.arange(5)
    one = fingerprint((x, y))
    assert one == fingerprint((x.clone(), y)) and one["shapes"] == {
        "inputs": [5, 3],
        "targets": [5],
    }
    others = [(x + 1e-6, y), (x.double(), y), (x.reshape(3, 5), y), (x, y + 1), x]
    assert len({fingerprint(data)["sha256"] for data in (*others, (x, y))}) == 6
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    assert fingerprint(loader)["sha256"] == one["sha256"]
    assert fingerprint(iter([1]))["sha256"] is None


def test_sizes_count_a_tied_weight_once(tied: tuple[Tied, Any]) -> None:
    _, result = tied
    rows = layer_sizes(SavedWeights(dict(result.weights), dict(result.masks), {}))
    assert [row.name for row in rows] == ["first.weight", "head.weight"]
    assert rows[0].bits["dense"] == 36 * 32 and rows[0].bits["bitmap"] == 36 + 32 * rows[0].kept
