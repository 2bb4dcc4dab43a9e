"""A second rollback: never to a checkpoint that the first one gave up, also after a kill between the two."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.train.checkpoint import load_part, save_checkpoint
from ppomax.train.ppo_guard import LOOK_BACK, Guard

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import byte_sum, lines, run, timeless
from test_ppo_watch_actions import collapse_at, guard_in, same, steps

TWICE: dict[str, Any] = {
    "iterations": 9, "checkpoint": {"every": 2, "keep": 9}, "watch.every": 100, "watch.on_collapse": "rollback",
    "kl.coef": 0.1,
}  # fmt: skip
"""alarms at 4 and 6, by a detector that looks back 3 iterations: signs since 1, and since 5, the first line after the rollback"""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def rolled_back_to(folder: Path) -> list[int]:
    return [a["since"] for a in lines(folder / "alarms.jsonl") if a["detector"] == "rollback"]


def test_what_was_given_up_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 2 and 4 hold weights of after the first sign; the second sign began after them, in other weights."""
    collapse_at(monkeypatch, 4, 6, ago=3)
    found = run(tmp_path / "run", TWICE)
    assert [m["kl/coef"] for m in found.metrics] == pytest.approx([0.1] * 5 + [0.4] * 2 + [1.6] * 2)
    assert rolled_back_to(tmp_path / "run") == [0, 0]
    for at in (5, 7):
        assert abs(found.metrics[at]["kl/ref_k3"]) < 1e-9, "the reference itself"
    assert {2, 4} <= set(steps(tmp_path / "run")), "they stay to be looked at, as long as checkpoint.keep says"


def test_killed_between_two_rollbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed from the last checkpoint before the first rollback (killed in 5), between the two (6), and after both (8)."""
    collapse_at(monkeypatch, 4, 6, ago=3)
    whole = run(tmp_path / "whole", TWICE)
    for fails_at in (5, 6, 8):
        calls = [0]

        def killed(
            prompts: list[Any], responses: list[str], calls: list[int] = calls, at: int = fails_at
        ) -> list[float]:
            calls[0] += 1
            if calls[0] == at + 2:  # the held-out prompts are scored first
                raise KeyboardInterrupt
            return byte_sum(prompts, responses)

        killed.__name__ = "byte_sum"  # it names the source in the metrics
        folder = tmp_path / f"cut{fails_at}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, TWICE, reward=killed)
        resumed = run(folder, TWICE, resume=True)
        assert timeless(resumed.metrics) == timeless(whole.metrics)
        assert lines(folder / "alarms.jsonl") == lines(whole.path / "alarms.jsonl")
        assert same(resumed.policy, whole.policy) and steps(folder) == steps(whole.path)


def written(guard: Guard, step: int, keep: int = 2) -> None:
    """As `ppo.save` does, with next to nothing in it."""
    protected = guard.protect(step)
    guard.run.path.mkdir(exist_ok=True)
    save_checkpoint(guard.run.checkpoints, step, {"loop": {"step": step, "guard": guard.state_dict()}}, keep, protected)


def sign(guard: Guard, since: int, at: int) -> None:
    guard.watch.seen["x"] = {"since": since, "last": at, "count": 3, "told": 2, "kind": "reward"}


def back(guard: Guard, iteration: int) -> int:
    states, _ = guard.roll_back(iteration, 0.1, ["loop"])
    return int(states["loop"]["step"])


def test_checkpoints_of_a_long_run(tmp_path: Path) -> None:
    """A checkpoint every 10 iterations, 2 kept; signs since 25, told at 42, and since 46, told at 52."""
    guard = guard_in(tmp_path / "run", **{"watch.on_collapse": "rollback", "checkpoint.every": 10})
    for step in (0, 10, 20, 30, 40):
        written(guard, step)
    sign(guard, 25, 42)
    assert back(guard, 42) == 20
    written(guard, 50)
    assert steps(tmp_path / "run") == [20, 40, 50], "40 is one of the newest two"
    sign(guard, 46, 52)
    guard = reread(guard, tmp_path)
    sign(guard, 46, 52)
    assert back(guard, 52) == 20, "40 was written while the first sign was on"
    for step in range(60, 60 + LOOK_BACK, 10):
        written(guard, step)
        assert 20 in steps(tmp_path / "run"), "no other is known to be healthy yet"
    sign(guard, 63, 72)
    assert back(guard, 72) == 60, "written after both, and before the third sign"


def reread(guard: Guard, folder: Path) -> Guard:
    """The guard of a run that goes on from its newest checkpoint."""
    other = guard_in(folder / "run", **{"watch.on_collapse": "rollback", "checkpoint.every": 10})
    state = load_part(guard.run.checkpoints / "step-000050", "loop")["guard"]
    other.load_state_dict(json.loads(json.dumps(state)))
    return other


def test_nothing_but_what_was_given_up(tmp_path: Path) -> None:
    """Somebody has removed the healthy checkpoint."""
    guard = guard_in(tmp_path / "run", **{"watch.on_collapse": "rollback", "checkpoint.every": 10})
    written(guard, 10)
    sign(guard, 15, 22)
    assert back(guard, 22) == 10
    (guard.run.checkpoints / "step-000010").rename(guard.run.checkpoints / "step-000020")
    sign(guard, 25, 32)
    with pytest.raises(UserError, match="no healthy checkpoint is left to roll back to"):
        back(guard, 32)
