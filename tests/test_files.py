from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chita_opt.files import remove_leftovers, write_atomically


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new" / "file"
    write_atomically(file, b"old", make_folder=True)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and names(file.parent) == ["file"]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_ctrl_c_leaves_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomically(str(file), b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_missing_folder_is_an_error_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "typo" / "file", b"")
    assert names(tmp_path) == []


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_leftovers_of_killed_writes_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "a[1].txt"
    write_atomically(file, b"new")
    for name in (".a[1].txt.xyz.part", ".a[1].txt.b.part", ".other.txt.xyz.part"):
        (tmp_path / name).touch()
    remove_leftovers(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.txt.xyz.part", "a[1].txt"]
