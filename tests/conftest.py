"""Shared fixtures: deterministic threads, and the real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# how long examples take says something about the machine, and nothing about the code
settings.register_profile("ppomax", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ppomax")
torch.set_num_threads(int(os.environ.get("PPOMAX_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets; the test skips where they are absent."""
    folder = Path(os.environ.get("PPOMAX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder} (set PPOMAX_DATA)")
    return folder
