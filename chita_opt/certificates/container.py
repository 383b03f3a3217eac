"""One file for arrays and claims: safetensors with a JSON text, sealed by a digest of every byte.

Nothing is unpickled. The digest is the SHA-256 of the whole file with the digest's own place
zeroed, so that any changed byte, header and padding included, is noticed. It guards against
accidents; claims are trusted because they are recomputed, not because of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from chita_opt.errors import CertificateError
from chita_opt.files import write_atomically

FORMAT = "chita-opt-certificate-1"
_BLANK = "0" * 64


def write_sealed(
    path: str | Path, arrays: Mapping[str, np.ndarray], claims: Mapping[str, Any]
) -> None:
    """Write arrays and claims atomically: a reader sees the old file or the whole new one."""
    metadata = {"format": FORMAT, "digest": _BLANK, "claims": json.dumps(claims, sort_keys=True)}
    contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    content = bytearray(save(contiguous, metadata))
    place = _digest_place(content, _BLANK)
    content[place : place + 64] = hashlib.sha256(content).hexdigest().encode()
    write_atomically(path, content)


def read_sealed(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a sealed file; refuse it if a byte differs from what was written.

    Raises
    ------
    CertificateError
        If the file is not a certificate, or was changed or cut.
    """
    try:
        content = bytearray(Path(path).read_bytes())
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        digest, form = metadata["digest"], metadata["format"]
        place = _digest_place(content, digest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CertificateError(f"{path} is not a chita-opt certificate, or is damaged") from error
    if form != FORMAT:
        raise CertificateError(f"{path} has format {form!r}; this version reads {FORMAT!r}")
    sealed = bytes(content)
    content[place : place + 64] = _BLANK.encode()
    if hashlib.sha256(content).hexdigest() != digest:
        raise CertificateError(
            f"{path} was changed after it was written: its digest does not match"
        )
    try:
        arrays, claims = load(sealed), json.loads(metadata["claims"])
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CertificateError(f"{path} is malformed: {error}") from error
    if not isinstance(claims, dict):
        raise CertificateError(f"{path} is malformed: its claims are no JSON object")
    return arrays, claims


def array_hash(arrays: Mapping[str, np.ndarray], specification: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of arrays and a JSON description."""
    total = hashlib.sha256(json.dumps(specification, sort_keys=True).encode())
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        total.update(f"{name}|{a.dtype.str}|{a.shape}".encode())
        total.update(a.view(np.uint8).reshape(-1).data if a.size else b"")
    return total.hexdigest()


def _digest_place(content: bytearray, digest: str) -> int:
    """Where the digest stands in the header."""
    end = 8 + int.from_bytes(content[:8], "little")
    place = content.find(b'"digest":"' + digest.encode() + b'"', 8, end)
    if len(digest) != 64 or place < 0:
        raise ValueError("no digest")
    return place + len(b'"digest":"')
