"""Shared fixtures; they make sure that the installed package is tested."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Thousands of tiny problems: one thread a process is faster than two, and far faster where another
# process shares the cores. Set before torch is imported, so that subprocesses follow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in its background deaf to Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the bare checkout first on sys.path, where there is no
# chita_opt.formulations; the installed package (editable or a wheel) is what users have.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# the first call of a compiled kernel takes seconds, so time says nothing about an example
settings.register_profile("chita-opt", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("chita-opt")


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with ``data/``, ``instances/`` and ``reference/``; the test is skipped without it."""
    value = os.environ.get("CHITA_OPT_DATA")
    if not value:
        pytest.skip("CHITA_OPT_DATA is not set: no full data sets or reference figures")
    folder = Path(value)
    if not folder.is_dir():  # set but wrong is a mistake, not a reason to skip
        pytest.fail(f"CHITA_OPT_DATA={value} is not a folder")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Return numpy random numbers, the same for every test."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Torch's random numbers do not depend on which tests ran before."""
    import torch

    torch.manual_seed(0)
