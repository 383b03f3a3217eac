"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from glob import escape
from pathlib import Path


def write_atomically(
    path: str | os.PathLike[str], content: bytes | bytearray, *, make_folder: bool = False
) -> None:
    """Write beside the target and rename: a reader sees the old file or the whole new one.

    Parameters
    ----------
    path : str or path
        File to write or replace.
    content : bytes
        All of it.
    make_folder : bool
        Whether to make folders that are missing on the way.

    Raises
    ------
    OSError
        If it cannot be written; an old file is then as it was.
    """
    target = Path(path)
    if make_folder:
        target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 would surprise whoever shares the file
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what writes of a file left beside it when they were killed; no write may be going on.

    Parameters
    ----------
    path : str or path
        The file that was written; it stays.
    """
    target = Path(path)
    for left in target.parent.glob(f".{escape(target.name)}.*.part"):
        left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


__all__ = ["remove_leftovers", "write_atomically"]
