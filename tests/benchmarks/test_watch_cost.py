"""The arithmetic of watch_cost.py, and one small run of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import watch_cost


def test_cost_by_hand() -> None:
    lines = [
        {"time/total": total, "time/metrics": metrics} for total, metrics in ((99.0, 50.0), (9.0, 0.5), (4.5, 0.5))
    ]
    found = watch_cost.cost(lines, [5.0, 0.75, 0.25], [5.0, 0.25, 0.25])  # after the lap: 10, 1 and .5 s
    assert found == pytest.approx({"iteration": 7.5, "metrics": 0.5, "watch_and_log": 0.75, "share": (0.15 + 0.2) / 2})


def test_a_run_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_cost.ppo, "time", time)  # put back afterwards
    found = watch_cost.measure("tiny", 8, 6, 3, "cpu", tmp_path, time.process_time)
    assert 0 < found["metrics"] < found["iteration"] and found["watch_and_log"] > 0
    assert 0 < found["share"] < 1
