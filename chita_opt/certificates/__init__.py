"""Certificates: made with torch, checked with numpy alone.

Names load on first use, so that checking a certificate never imports PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Certificate": "chita_opt.certificates.certificate",
    "certify": "chita_opt.certificates.certificate",
    "save_problem": "chita_opt.certificates.certificate",
    "Verification": "chita_opt.certificates.verification",
    "verify_file": "chita_opt.certificates.verification",
    "ProofReport": "chita_opt.certificates.tree_proof",
    "verify_proof": "chita_opt.certificates.tree_proof",
    "PathReport": "chita_opt.certificates.path_proof",
    "save_proof": "chita_opt.certificates.proof_log",
    "verify": "chita_opt.certificates.checking",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'chita_opt.certificates' has no attribute {name!r}")
