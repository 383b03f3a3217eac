"""Block-regular weights: exact round trip, files that are refused, sizes counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from chita_opt.errors import DataError, LayerError
from chita_opt.nn.darb import DarbMatrix, DarbWeights, load_darb, save_darb, storage_bits
from chita_opt.nn.darb.matrix import MAX_WIDTH, RowGroup, widest_widths
from chita_opt.nn.darb.offset_bits import pack_offsets, packed_bytes, unpack_offsets
from chita_opt.nn.darb.storage_sizes import run_entries, tile_mask

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def regular(
    rows: int, columns: int, *, seed: int, most: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A random weight with at most one value a block, and its widths (0 for an empty row)."""
    random = np.random.default_rng(seed)
    weight = np.zeros((rows, columns))
    widths = 1 << random.integers(0, most.bit_length(), rows)
    widths[random.random(rows) < 0.1] = 0
    for row, width in enumerate(widths.tolist()):
        for start in range(0, columns if width else 0, width or 1):
            if random.random() < 0.8:  # else the block keeps nothing
                place = random.integers(start, min(start + width, columns))
                weight[row, place] = random.normal()
    return torch.from_numpy(weight).to(dtype), torch.from_numpy(widths)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 150),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
)
def test_the_round_trip_is_exact(rows: int, columns: int, seed: int, dtype: torch.dtype) -> None:
    weight, widths = regular(rows, columns, seed=seed, dtype=dtype)
    for given_widths in (widths, None):
        matrix = DarbMatrix.from_dense(weight, given_widths)
        again = matrix.to_dense()
        assert again.dtype == dtype and torch.equal(again, weight)
    assert torch.equal(DarbMatrix.from_dense(weight, widths).widths, widths)


@settings(max_examples=30)
@given(st.integers(0, 8), st.integers(0, 200), st.integers(0, 10**6))
def test_offsets_take_their_bits(bits: int, count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, 1 << bits, (count,), generator=random).to(torch.uint8)
    packed = pack_offsets(offsets, bits)
    assert len(packed) == packed_bytes(count, bits) == (count * bits + 7) // 8
    assert torch.equal(unpack_offsets(packed, bits, count), offsets)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES))
def test_files_hold_every_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("darb") / "net.darb.safetensors"
    weight, widths = regular(6, 40, seed=seed, dtype=dtype)
    conv = regular(4, 27, seed=seed + 1, dtype=dtype)[0].reshape(4, 3, 3, 3)
    matrices = {
        "fc.weight": DarbMatrix.from_dense(weight, widths),
        "conv.weight": DarbMatrix.from_dense(conv),
        "dead.weight": DarbMatrix.from_dense(torch.zeros(3, 5, dtype=dtype)),
    }
    bias = torch.randn(6)
    save_darb(path, DarbWeights(matrices, {"fc.bias": bias}))
    first = path.read_bytes()
    found = load_darb(path)
    expected = {"fc.weight": weight, "conv.weight": conv, "fc.bias": bias}
    expected["dead.weight"] = torch.zeros(3, 5, dtype=dtype)
    assert found.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found.state[name].dtype == tensor.dtype
        assert torch.equal(found.state[name], tensor)
    assert torch.equal(found.matrices["fc.weight"].widths, widths)
    save_darb(path, found)
    assert path.read_bytes() == first


def test_a_state_is_split_by_name() -> None:
    state = {"w": regular(4, 16, seed=1)[0], "bias": torch.ones(4)}
    split = DarbWeights.from_state(state, ["w"])
    assert list(split.matrices) == ["w"] and list(split.dense) == ["bias"]
    assert all(torch.equal(split.state[name], value) for name, value in state.items())
    with pytest.raises(LayerError, match="no v; it has w, bias"):
        DarbWeights.from_state(state, ["v"])


def test_the_widest_widths_are_found_by_trying_all() -> None:
    random = torch.Generator().manual_seed(1)
    mask = torch.rand(300, 37, generator=random) < 0.07
    found = widest_widths(mask)
    for row, width in zip(mask, found.tolist(), strict=True):
        if width == 0:
            assert not row.any()
            continue
        fits = [b for b in (1, 2, 4, 8, 16, 32, 64) if all(int(p.sum()) <= 1 for p in row.split(b))]
        assert width == max(fits)
    assert int(widest_widths(mask, limit=4).max()) == 4


def test_two_weights_in_a_block_are_named() -> None:
    weight = torch.zeros(3, 8)
    weight[1, 4] = weight[1, 6] = 1.0
    with pytest.raises(LayerError, match="row 1 keeps 2 weights in block 1 of 4"):
        DarbMatrix.from_dense(weight, torch.tensor([4, 4, 4]))
    with pytest.raises(LayerError, match="row 1 has width 0"):
        DarbMatrix.from_dense(weight, torch.tensor([4, 0, 4]))


@pytest.mark.parametrize("width", [3, -2, 512])
def test_a_width_that_is_no_power_of_two_is_refused(width: int) -> None:
    with pytest.raises(LayerError, match=str(width)):
        DarbMatrix.from_dense(torch.zeros(1, 8), torch.tensor([width]))


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(LayerError, match="no rows"):
        DarbMatrix.from_dense(torch.zeros(8))
    with pytest.raises(LayerError, match=r"shape \(2,\)"):
        DarbMatrix.from_dense(torch.zeros(1, 8), torch.tensor([1, 1]))
    with pytest.raises(LayerError, match="int64"):
        DarbMatrix.from_dense(torch.zeros(2, 8, dtype=torch.int64))


def _group(width: int = 4, rows: tuple[int, ...] = (0, 1), blocks: int = 2) -> RowGroup:
    shape = (blocks, len(rows))
    return RowGroup(
        width, torch.tensor(rows), torch.ones(shape), torch.zeros(shape, dtype=torch.uint8)
    )


@pytest.mark.parametrize(
    "groups, words",
    [
        ((_group(), _group(2, blocks=4)), "ascending"),
        ((_group(2, (0,), 4), _group(4, (0, 1))), "two groups"),
        ((_group(rows=(1, 0)),), "ascend"),
        ((_group(rows=(0, 5)),), "ascend"),
        ((_group(blocks=3),), "must be"),
        ((_group(rows=()),), "at least one row"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups: tuple[RowGroup, ...], words: str) -> None:
    with pytest.raises(LayerError, match=words):
        DarbMatrix((2, 8), torch.float32, groups)


def test_an_offset_outside_of_the_last_block_is_refused() -> None:
    group = _group()
    group.offsets[-1, 0] = 2
    DarbMatrix((2, 8), torch.float32, (group,))
    with pytest.raises(LayerError, match="outside"):
        DarbMatrix((2, 6), torch.float32, (group,))


def _damaged(path: Path, change: str) -> None:
    """Write a file that differs from a good one in one way."""
    tensors = load_file(path)
    layer: dict[str, object] = {"shape": [3, 8], "type": "float32"}
    layer |= _LAYERS.get(change, {})
    header: dict[str, object] = {"format": "chita-opt darb 1", "layers": {"w": layer}}
    header |= _HEADERS.get(change, {})
    text = "{" if change == "json" else json.dumps(header)
    if change == "missing":
        del tensors["w/4/values"]
    elif change == "code":
        tensors["w/widths"][0] = 9
    elif change == "moved code":
        tensors["w/widths"][0] = 1
    elif change == "code type":
        tensors["w/widths"] = tensors["w/widths"].to(torch.int16)
    elif change == "packed":
        tensors["w/4/offsets"] = tensors["w/4/offsets"].repeat(2)
    elif change == "tail":
        tensors["w/4/offsets"][-1] |= 128
    elif change == "extra":
        tensors["v/4/values"] = torch.zeros(2, 2)
    save_file(tensors, path, metadata={"chita_opt": text})


_HEADERS: dict[str, dict[str, object]] = {
    "format": {"format": "chita-opt darb 2"},
    "list": {"layers": [1]},
}
_LAYERS: dict[str, dict[str, object]] = {
    "shape": {"shape": [3]},
    "more rows": {"shape": [4, 8]},
    "columns": {"shape": [3, 24]},
    "type": {"type": "int8"},
    "other type": {"type": "float64"},
}


@pytest.mark.parametrize(
    "change, words",
    [
        ("format", "darb 2"),
        ("json", "format"),
        ("list", "damaged"),
        ("shape", "'w'.*shape"),
        ("more rows", "'w'.*width codes"),
        ("columns", "'w'.*must be"),
        ("type", "'w'.*int8"),
        ("other type", "'w'.*float64"),
        ("missing", "'w'.*w/4/values"),
        ("code", "'w'.*512"),
        ("moved code", "'w'.*w/2/values"),
        ("code type", "'w'.*int16"),
        ("packed", "'w'.*bytes"),
        ("tail", "'w'.*bits after"),
        ("extra", "v/4/values"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, change: str, words: str) -> None:
    path = tmp_path / "net.safetensors"
    weight = torch.zeros(3, 8)
    weight[0, 3] = weight[0, 5] = weight[1, 0] = weight[2, 1] = 1.0
    matrix = DarbMatrix.from_dense(weight, torch.tensor([4, 4, 4]))
    save_darb(path, DarbWeights({"w": matrix}))
    _damaged(path, change)
    with pytest.raises(DataError, match=rf"net\.safetensors.*{words}"):
        load_darb(path)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_darb(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(DataError, match="readable"):
        load_darb(tmp_path / "short")


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_that_the_format_needs_are_refused(tmp_path: Path, name: str) -> None:
    matrix = DarbMatrix.from_dense(torch.eye(2))
    with pytest.raises(DataError):
        save_darb(tmp_path / "f", DarbWeights({name: matrix}))
    with pytest.raises(DataError):
        save_darb(tmp_path / "f", DarbWeights({"a": matrix}, {"a": torch.ones(1)}))
    assert not (tmp_path / "f").exists()


def test_bits_are_those_counted_by_hand() -> None:
    weight = torch.zeros(4, 40)
    weight[0, 0], weight[0, 39], weight[3, 20] = 1.0, 2.0, 3.0
    matrix = DarbMatrix.from_dense(weight, torch.tensor([32, 0, 0, 64]))
    found = storage_bits(weight, matrix)
    assert found["dense"] == 4 * 40 * 32
    assert found["bitmap"] == 160 + 3 * 32
    assert found["csr"] == 3 * (32 + 6) + 5 * 2
    # row 0: column 0, then 38 zeros: two fillings of 16; row 3: 20 zeros, one filling
    assert run_entries(weight != 0).tolist() == [4, 0, 0, 2]
    assert found["csr_runs"] == 6 * (32 + 4) + 5 * 3
    assert found["blocks_4x4"] == 3 * (16 * 32 + 4) + 2 * 2
    assert found["darb"] == 2 * (32 + 5) + 1 * (32 + 6) + 4 * 8
    assert "darb" not in storage_bits(weight)


def test_edges_of_tiles_may_be_smaller() -> None:
    mask = torch.zeros(5, 9, dtype=torch.bool)
    mask[4, 8] = mask[0, 3] = True
    assert tile_mask(mask).tolist() == [[True, False, False], [False, False, True]]


def test_runs_agree_with_a_loop() -> None:
    mask = torch.rand(20, 200, generator=torch.Generator().manual_seed(0)) < 0.03
    for row, count in zip(mask.tolist(), run_entries(mask).tolist(), strict=True):
        entries = zeros = 0
        last = max((i for i, kept in enumerate(row) if kept), default=-1)
        for kept in row[: last + 1]:
            if kept or zeros == 15:  # a filling entry stands for the 16th zero itself
                entries, zeros = entries + 1, 0
            else:
                zeros += 1
        assert count == entries


def test_the_file_takes_the_bits_that_were_counted(tmp_path: Path) -> None:
    weight, widths = regular(64, 256, seed=5, most=MAX_WIDTH)
    matrix = DarbMatrix.from_dense(weight, widths)
    save_darb(tmp_path / "f", DarbWeights({"w": matrix}))
    payload = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "f").values())
    bits = storage_bits(weight, matrix)["darb"]
    assert bits <= 8 * payload < bits + 8 * len(matrix.groups)
