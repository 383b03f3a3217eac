"""Open nodes on disk, written whole or not at all, and read back without trust."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from chita_opt.errors import DataError
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree_search.incumbents import Incumbents
from chita_opt.exact.tree_search.node import Node
from chita_opt.exact.tree_search.tree import Search
from chita_opt.solution import Solution, Status
from chita_opt.supports import SupportFamily
from chita_opt.supports.base import Array

_NODE = ("state", "lower", "d", "z", "nu", "mu", "depth", "step", "side", "witness_row")
_NAMES = (*_NODE, "w", "scalars", "fingerprint")
_LOG = "log."


class Checkpoint:
    """Saves a search at intervals, and restores it for the same problem.

    Parameters
    ----------
    options : TreeOptions
        File and interval.
    quadratic, supports : Quadratic, SupportFamily
        What the fingerprint is taken of.
    """

    def __init__(self, options: TreeOptions, quadratic: Quadratic, supports: SupportFamily) -> None:
        self.path, self.interval = options.checkpoint, options.checkpoint_seconds
        self.resume = options.resume
        self._last = time.perf_counter()
        self._fingerprint = fingerprint(quadratic, supports) if self.path else b""

    def save(self, search: Search, best: Incumbents, *, force: bool = False) -> None:
        """Write the open nodes if it is time."""
        now = time.perf_counter()
        if self.path is None or not (force or now - self._last >= self.interval):
            return
        self._last = now
        nodes = search.still_open()
        arrays = {name: np.array([getattr(n, name) for n in nodes]) for name in _NODE}
        if search.solver.log is not None:
            log = search.solver.log.stored(search.mark)
            arrays |= {_LOG + name: a for name, a in log.items()}
        arrays["w"] = np.array(best.w)
        arrays["scalars"] = np.array([search.closed, search.nodes, search.newton, search.root])
        arrays["fingerprint"] = np.frombuffer(self._fingerprint, dtype=np.uint8)
        write_arrays(self.path, arrays)

    def restore(self, search: Search, best: Incumbents) -> bool:
        """Replace the search's open nodes by the file's; False where there is none.

        Raises
        ------
        DataError
            If the file is damaged or belongs to another problem.
        """
        if self.path is None or not self.resume or not self.path.exists():
            return False
        arrays = read_arrays(self.path, _NAMES, self._fingerprint)
        self._fill(search, arrays)
        if search.solver.log is not None:
            log = {n.removeprefix(_LOG): a for n, a in arrays.items() if n.startswith(_LOG)}
            if not log:
                raise DataError(
                    f"{self.path} was written without a proof log; resume without one, or start "
                    "anew with proof=True"
                )
            search.solver.log.restore(log)
        best.take(
            Solution(best.problem, torch.from_numpy(arrays["w"]), "checkpoint", Status.FEASIBLE)
        )
        return True

    def _fill(self, search: Search, a: dict[str, Array]) -> None:
        search.heap, search.dive, search.out = [], [], {}
        for i in range(len(a["lower"])):
            arrays = (a["state"][i].copy(), float(a["lower"][i]), a["d"][i], a["z"][i], a["nu"][i])
            numbers = (int(a[name][i]) for name in ("depth", "step", "side", "witness_row"))
            search.push(Node(*arrays, float(a["mu"][i]), *numbers))
        closed, nodes, newton, root = a["scalars"]
        search.closed, search.root = float(closed), float(root)
        search.nodes, search.newton = int(nodes), int(newton)


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write whole or not at all, and to the disk itself."""
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_arrays(path: Path, names: tuple[str, ...], mark: bytes) -> dict[str, Array]:
    """All arrays of a checkpoint, which must hold ``names`` and be about the problem ``mark``.

    Raises
    ------
    DataError
        If the file is damaged or belongs to another problem.
    """
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            arrays = {name: stored[name] for name in {*stored.files, *names}}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable checkpoint: {error}") from error
    if arrays["fingerprint"].tobytes() != mark:
        raise DataError(
            f"{path} belongs to another problem; remove it, or give the problem it was written for"
        )
    return arrays


def fingerprint(quadratic: Quadratic, supports: SupportFamily) -> bytes:
    """SHA-256 over the quadratic and the family's rows."""
    rows = supports.rows()
    digest = hashlib.sha256(repr(sorted(map(str, supports.specification.items()))).encode())
    parts = [a for M in (rows.G, rows.E) for a in (M.indptr, M.indices, M.data)]
    for array in (quadratic.H, quadratic.b, *parts, rows.h):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
