"""gpu.sh and gpu_wheels.sh as far as they can be tried without a GPU and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def gpu(out: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("WHEELS", "TRL", "PYTHONPATH")}
    return subprocess.run(
        ["bash", str(SCRIPT), str(out)], env=environment | {"PYTHON": sys.executable, "DEVICE": "cpu", **variables},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_time_limits_leave_room_within_eight_minutes() -> None:
    limits = [int(n) for n in re.findall(r"\bpart \w+ (\d+) ", SCRIPT.read_text(encoding="utf-8"))]
    assert len(limits) == 3
    assert (
        sum(limits) + 10 * len(limits) <= 480 - 15
    )  # each may need its ten seconds to be killed; start and installation


def test_wheels_that_are_not_there(tmp_path: Path) -> None:
    done = gpu(tmp_path / "out", WHEELS=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr == f"gpu.sh: WHEELS={tmp_path}/nowhere: no such folder\n"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """An interpreter that finds nothing but the standard library."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    done = gpu(tmp_path / "out", PYTHON=str(bare))
    assert done.returncode == 2
    assert re.search(r"lacks torch, transformers, datasets.*pydantic.*hypothesis: .*gpu_wheels.sh", done.stderr)
    assert not (tmp_path / "out" / "gpu.md").exists()


def test_every_wheel_has_an_exact_version() -> None:
    text = (ROOT / "benchmarks" / "gpu_wheels.sh").read_text(encoding="utf-8")
    found = re.search(r"^packages=\((.*)\)$", text, re.MULTILINE)
    assert found
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {name for name in found[1].split() if "==" not in name} <= pinned
