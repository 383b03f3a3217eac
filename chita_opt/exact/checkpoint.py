"""Open nodes on disk, written whole or not at all, and read back without trust."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile

import numpy as np
import torch

from chita_opt.errors import DataError
from chita_opt.exact.incumbents import Incumbents
from chita_opt.exact.node import Node
from chita_opt.exact.options import TreeOptions
from chita_opt.exact.quadratic import Quadratic
from chita_opt.exact.tree import Search
from chita_opt.solution import Solution, Status
from chita_opt.supports import SupportFamily

_NAMES = ("state", "lower", "d", "z", "nu", "mu", "depth", "w", "scalars", "fingerprint")


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
        self._fingerprint = _fingerprint(quadratic, supports) if self.path else b""

    def save(self, search: Search, best: Incumbents, *, force: bool = False) -> None:
        """Write the open nodes if it is time."""
        now = time.perf_counter()
        if self.path is None or not (force or now - self._last >= self.interval):
            return
        self._last = now
        nodes = search.still_open()
        arrays = {
            name: np.array([getattr(n, name) for n in nodes])
            for name in ("state", "lower", "d", "z", "nu", "mu", "depth")
        }
        arrays["w"] = np.array(best.w)
        arrays["scalars"] = np.array([search.closed, search.nodes, search.newton, search.root])
        arrays["fingerprint"] = np.frombuffer(self._fingerprint, dtype=np.uint8)
        partial = self.path.with_name(self.path.name + ".part")
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)

    def restore(self, search: Search, best: Incumbents) -> bool:
        """Replace the search's open nodes by the file's; False where there is none.

        Raises
        ------
        DataError
            If the file is damaged or belongs to another problem.
        """
        if self.path is None or not self.resume or not self.path.exists():
            return False
        try:
            with self.path.open("rb") as file:
                stored = np.load(file, allow_pickle=False)
                arrays = {name: stored[name] for name in _NAMES}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} is not a readable checkpoint: {error}") from error
        if arrays["fingerprint"].tobytes() != self._fingerprint:
            raise DataError(
                f"{self.path} belongs to another problem; remove it, or give the problem it was "
                "written for"
            )
        self._fill(search, arrays)
        best.take(
            Solution(best.problem, torch.from_numpy(arrays["w"]), "checkpoint", Status.FEASIBLE)
        )
        return True

    def _fill(self, search: Search, a: dict[str, np.ndarray]) -> None:
        search.heap, search.dive, search.out = [], [], {}
        for i in range(len(a["lower"])):
            arrays = (a["state"][i].copy(), float(a["lower"][i]), a["d"][i], a["z"][i], a["nu"][i])
            search.push(Node(*arrays, float(a["mu"][i]), int(a["depth"][i])))
        closed, nodes, newton, root = a["scalars"]
        search.closed, search.root = float(closed), float(root)
        search.nodes, search.newton = int(nodes), int(newton)


def _fingerprint(quadratic: Quadratic, supports: SupportFamily) -> bytes:
    """SHA-256 over the quadratic and the family's rows."""
    G, h = supports.rows()
    digest = hashlib.sha256(repr(sorted(map(str, supports.specification.items()))).encode())
    for array in (quadratic.H, quadratic.b, G.indptr, G.indices, G.data, h):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
