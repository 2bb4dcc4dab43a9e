"""A real run that the watch ends is listed as such, not as finished."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from ppo_tools import run
from test_ppo_watch_actions import SIX, collapse_at

from ppomax.view.runs import find_runs, summary


def test_a_run_that_the_watch_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse_at(monkeypatch, 3)
    run(tmp_path / "stopped", {**SIX, "watch.on_collapse": "stop"})
    run(tmp_path / "warned", SIX)
    told = {found.name: summary(found) for found in find_runs(tmp_path)}
    assert told["stopped"]["state"] == "stopped by the watch" and told["stopped"]["step"] == 3
    assert told["stopped"]["why"].startswith("collapse, iteration 3: ")
    assert (told["warned"]["state"], told["warned"]["why"], told["warned"]["step"]) == ("finished", "", 5)
