"""What PPO does at a collapse alarm: warns, stops, or goes back; and which checkpoints stay for that."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.errors import UserError
from ppomax.options import warnings_for
from ppomax.options_check import refuse_contradictions
from ppomax.train.checkpoint import list_checkpoints, load_part, step_of
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_guard import LOOK_BACK, Guard
from ppomax.train.ppo_update import Updater
from ppomax.train.run import RunDirectory
from ppomax.watch import collapse
from ppomax.watch.detectors import DETECTORS, Detector, Sign
from ppomax.watch.history import History
from ppomax.watch.webhook import Webhook

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import byte_sum, lines, make_config, run, timeless, weights

SIX: dict[str, Any] = {"iterations": 6, "checkpoint": {"every": 1, "keep": 1}, "watch.every": 100}
SPIKE = next(d for d in DETECTORS if d.name == "spikes")
"""a detector that speaks at once"""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def collapse_at(monkeypatch: pytest.MonkeyPatch, *iterations: int, ago: int = 0) -> None:
    """Put a detector in place of all others that sees a collapse in these iterations, begun ``ago`` earlier."""

    def look(history: History) -> Iterator[tuple[Detector, Sign]]:
        if history.iteration() in iterations:
            yield SPIKE, Sign("collapse", "it turned", ago=ago)

    monkeypatch.setattr(collapse, "look", look)


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def steps(folder: Path) -> list[int]:
    return [step_of(p) for p in list_checkpoints(folder / "checkpoints")]


def test_warn_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = run(tmp_path / "quiet", {**SIX, "watch.detect": False})
    posted: list[str] = []
    monkeypatch.setattr(Webhook, "post", lambda self, text: posted.append(text))
    collapse_at(monkeypatch, 2, 3)
    found = run(tmp_path / "run", {**SIX, "watch.webhook": "http://127.0.0.1:9/x"})
    assert timeless(found.metrics) == timeless(quiet.metrics), "the watch only looks"
    alarms = lines(tmp_path / "run" / "alarms.jsonl")
    assert [(a["iteration"], a["level"], a["detector"], a["since"]) for a in alarms] == [(2, "collapse", "spikes", 2)]
    assert posted == [f"run, iteration 2, collapse: {alarms[0]['message']}"]
    assert "collapse: it turned, since iteration 2; usually" in capsys.readouterr().err


def test_stop_ends_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    collapse_at(monkeypatch, 3)
    found = run(tmp_path / "run", {**SIX, "watch.on_collapse": "stop"})
    assert [m["iteration"] for m in found.metrics] == [0, 1, 2, 3]
    assert "stopped after iteration 3 (watch.on_collapse: stop)" in capsys.readouterr().err
    assert (tmp_path / "run" / "final" / "model.safetensors").exists() and 4 in steps(tmp_path / "run")
    again = run(tmp_path / "run", {**SIX, "watch.on_collapse": "stop"}, resume=True)
    assert timeless(again.metrics) == timeless(found.metrics), "a stopped run stays stopped"


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.4), (0.0, 0.05)])
def test_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: float, after: float
) -> None:
    collapse_at(monkeypatch, 3, ago=2)
    changes = {**SIX, "watch.on_collapse": "rollback", "kl.coef": before}
    found = run(tmp_path / "run", changes)
    assert [m["iteration"] for m in found.metrics] == list(range(6)), "the run goes on with fresh prompts"
    assert [m["kl/coef"] for m in found.metrics] == [before] * 4 + [after] * 2
    assert found.metrics[3]["kl/ref_k3"] > 1e-4
    assert abs(found.metrics[4]["kl/ref_k3"]) < 1e-9, "only step-000000 lies before iteration 1: the reference itself"
    assert found.metrics[5]["kl/ref_k3"] > 1e-6, "and it learns again"
    alarms = lines(tmp_path / "run" / "alarms.jsonl")
    assert [(a["iteration"], a["detector"]) for a in alarms] == [(3, "spikes"), (3, "rollback")]
    told = f"rolled back to the weights of step-000000, and kl.coef from {before:g} to {after:g} (1 of at most 3 times)"
    assert alarms[1]["message"] == told and told in capsys.readouterr().err


def test_rollback_to_a_later_checkpoint_and_at_most_so_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collapse_at(monkeypatch, 3, 5)
    changes = {**SIX, "checkpoint.keep": 9, "watch.on_collapse": "rollback", "watch.max_rollbacks": 1, "kl.coef": 0.1}
    found = run(tmp_path / "run", changes)
    messages = [a["message"] for a in lines(tmp_path / "run" / "alarms.jsonl")]
    assert len(messages) == 3 and "step-000003, and kl.coef from 0.1 to 0.4 (1 of at most 1 times)" in messages[1]
    assert "not rolled back: watch.max_rollbacks 1 reached" in capsys.readouterr().err
    assert [m["kl/coef"] for m in found.metrics] == [0.1] * 4 + [0.4] * 2


def test_a_resumed_run_rolls_back_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse_at(monkeypatch, 3, ago=2)
    changes = {**SIX, "watch.on_collapse": "rollback", "kl.coef": 0.1, "buffer_iterations": 2, "checkpoint.every": 2}
    whole = run(tmp_path / "whole", changes)
    for fails_at in (3, 4):
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
            run(folder, changes, reward=killed)
        resumed = run(folder, changes, resume=True)
        assert timeless(resumed.metrics) == timeless(whole.metrics)
        assert lines(folder / "alarms.jsonl") == lines(whole.path / "alarms.jsonl")
        assert same(resumed.policy, whole.policy) and steps(folder) == steps(whole.path)


def ruin_at(monkeypatch: pytest.MonkeyPatch, *updates: int) -> None:
    """Let these updates of the run (from 0) end in weights that are no numbers."""
    update, calls = Updater.update, [0]

    def ruined(self: Updater, *args: Any, **kwargs: Any) -> dict[str, float]:
        numbers = update(self, *args, **kwargs)
        if calls[0] in updates:
            for p in self.policy.parameters():
                p.data.fill_(torch.nan)
            numbers["loss/policy"] = float("nan")
        calls[0] += 1
        return numbers

    monkeypatch.setattr(Updater, "update", ruined)


def test_ruined_weights_are_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates an iteration: the first of iteration 2 is bad, and its second is not made."""
    ruin_at(monkeypatch, 4)
    changes = {**SIX, "checkpoint.keep": 9, "watch.on_collapse": "rollback", "kl.coef": 0.1}
    found = run(tmp_path / "run", changes)
    assert [m["iteration"] for m in found.metrics] == list(range(6))
    assert [m["update"] for m in found.metrics] == [2, 4, 5, 7, 9, 11]
    assert [m["kl/coef"] for m in found.metrics] == [0.1] * 3 + [0.4] * 3
    assert [math.isnan(m["loss/policy"]) for m in found.metrics] == [i == 2 for i in range(6)]
    assert all(w.isfinite().all() for w in weights(found.policy).values())
    told = [(a["iteration"], a["level"], a["detector"], a["since"]) for a in lines(found.path / "alarms.jsonl")]
    assert told == [(2, "collapse", "not_finite", 2), (2, "notice", "rollback", 2)], (
        "to step-000002, before iteration 2"
    )
    assert lines(found.path / "metrics.jsonl")[2]["loss/policy"] is None


@pytest.mark.parametrize(("action", "ends_at"), [("warn", 2), ("stop", 2), ("rollback", 3)])
def test_ruined_weights_are_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, ends_at: int
) -> None:
    """Where there is no rollback left the run ends, and its checkpoints are sound."""
    ruin_at(monkeypatch, 4, 6)
    changes = {**SIX, "watch.on_collapse": action, "watch.max_rollbacks": 1, "kl.coef": 0.1}
    with pytest.raises(UserError, match=rf"iteration {ends_at}: loss/policy not finite, training stopped; begin again"):
        run(tmp_path / "run", changes)
    told = lines(tmp_path / "run" / "alarms.jsonl")[-1]
    assert (told["iteration"], told["level"], told["detector"]) == (ends_at, "collapse", "not_finite")
    assert told["message"].startswith(
        f"loss/policy not finite, unlike at the start, since iteration {ends_at}; usually"
    )
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        assert all(w.isfinite().all() for w in load_part(checkpoint, "policy").values())


def guard_in(folder: Path, **changes: Any) -> Guard:
    return Guard(make_config(folder, **changes), Ranks(), RunDirectory(folder, Ranks()))


@pytest.mark.parametrize(("every", "keep"), [(1, 1), (5, 2), (7, 1)])
def test_a_healthy_checkpoint_always_stays(tmp_path: Path, every: int, keep: int) -> None:
    """Where a sign begins at any time, at most LOOK_BACK before it is told, a checkpoint from before it is there."""
    guard, kept = guard_in(tmp_path), []
    for step in range(every, 200, every):
        protected = guard.protect(step)
        assert len(protected) <= 2
        kept = [s for s in [*kept, step] if s in protected or s in [*kept, step][-keep:]]
        if step > 2 * LOOK_BACK + 2 * every:
            assert min(kept) <= step - LOOK_BACK, "one from before any sign that can begin now"
            assert min(kept) >= step - 2 * LOOK_BACK - 2 * every, "and not from long ago"


def test_while_something_is_wrong_no_checkpoint_is_judged_healthy(tmp_path: Path) -> None:
    guard = guard_in(tmp_path)
    for step in range(5, 70, 5):
        guard.protect(step)
    healthy = guard.healthy
    guard.watch.seen["x"] = {"since": 62, "last": 70, "count": 3, "told": 1, "kind": "reward"}
    for step in range(70, 200, 5):
        assert max(guard.protect(step)) <= 62
    guard.watch.seen.clear()
    assert healthy is not None and 200 in guard.protect(200) | guard.protect(230)
    state = json.loads(json.dumps(guard.state_dict()))
    other = guard_in(tmp_path)
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOM", "")
    for changes, told in (
        (
            {"watch.on_collapse": "rollback", "checkpoint.every": 0},
            "rollback needs checkpoints: set checkpoint.every above 0",
        ),
        ({"watch.webhook": "slack"}, r"watch.webhook: neither an http\(s\) address nor the \$NAME"),
    ):
        with pytest.raises(UserError, match=told):
            refuse_contradictions(make_config(tmp_path / "no", **{**SIX, **changes}))
    with pytest.raises(UserError, match=r"watch.webhook: the environment variable ROOM is not set"):
        run(tmp_path / "no", {**SIX, "watch.webhook": "$ROOM"})
    assert not (tmp_path / "no").exists(), "the corrected command can be given at once"


def test_options_that_cannot_act_are_named(tmp_path: Path) -> None:
    def told(**changes: Any) -> str:
        return "\n".join(warnings_for(make_config(tmp_path, **changes)))

    off = told(**{"watch.detect": False, "watch.on_collapse": "stop", "watch.max_rollbacks": 9})
    assert "watch.on_collapse does nothing: watch.detect is off" in off
    assert "watch.max_rollbacks does nothing: watch.detect is off" in off
    assert "watch.rollback_factor does nothing: watch.on_collapse is not rollback" in told(
        **{"watch.rollback_factor": 2}
    )
    back = {"watch.on_collapse": "rollback", "watch.rollback_kl": 0.2, "checkpoint.every": 5}
    assert "watch.rollback_kl does nothing: kl.coef is above 0" in told(**back, **{"kl.coef": 0.1})
    assert "watch.rollback_kl" not in told(**back, **{"kl.coef": 0.0})
