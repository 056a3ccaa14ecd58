"""Fixtures that every test may use."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share cores; threads that wait for each other cost minutes
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pathlib import Path

import pytest


def shared_data() -> Path:
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return Path(os.environ.get("LOWPOSE_SHARED_DATA", default))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared photographs; the test is skipped where they are not."""
    root = shared_data()
    if not (root / "lspet" / "joints.mat").is_file():
        pytest.skip(f"the shared photographs are not at {root} (set LOWPOSE_SHARED_DATA)")
    return root
