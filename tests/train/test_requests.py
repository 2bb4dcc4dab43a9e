"""Requests to a run in progress: obeyed within one iteration, once, by all ranks; a stopped run goes on exactly."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.train.checkpoint import list_checkpoints, step_of
from ppomax.train.requests import FILE, LOCK, StopRequested, _lock, ask, asked, ending, is_running

sys.path.insert(0, str(Path(__file__).parent))
from kill_tools import begin, differing, end, forget_to_sync, start_script
from ppo_tools import byte_sum, lines, make_policy, make_tokenizer, run
from rank_tools import free_port

CHANGES: dict[str, Any] = {
    "iterations": 4, "critic.pretrain_iterations": 1, "checkpoint": {"every": 0, "keep": 9},
    "watch": {"every": 1, "detect": False},
    "buffer_iterations": 2, "kl": {"controller": "adaptive", "target": 0.3, "horizon": 60},
}  # fmt: skip
"""five iterations in all"""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def asking(path: Path, plan: dict[int, list[str]], seen: list[int] | None = None) -> Callable[..., list[float]]:
    """A reward that asks in the iterations of ``plan`` (and says in which iterations it was called)."""
    calls = seen if seen is not None else []

    def reward(prompts: list[Any], responses: list[str]) -> list[float]:
        if len(responses) == 8:  # of training; two are the watched ones
            for name in plan.get(len(calls), []):
                ask(path, name)
            calls.append(len(calls))
        return byte_sum(prompts, responses)

    return reward


def steps(path: Path) -> list[int]:
    return [step_of(p) for p in list_checkpoints(path / "checkpoints")]


def test_checkpoint_now_is_obeyed_once_and_changes_nothing(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", CHANGES, reward=asking(tmp_path / "plain", {}))
    path = tmp_path / "run"
    run(path, CHANGES, reward=asking(path, {2: ["checkpoint", "checkpoint"]}))
    assert steps(path) == [3, 5] and steps(plain.path) == [5]
    assert lines(path / FILE) == [{"iteration": 2, "request": "checkpoint", "checkpoint": "step-000003"}]
    assert set(differing(plain.path, path, ignore=("config.yaml", "checkpoints/step-000003"))) == {FILE}
    assert asked(path) == [] and is_running(path) is None and not (path / LOCK).exists()


@pytest.mark.parametrize("at", [0, 2])
def test_stop_leaves_a_checkpoint_from_which_resume_goes_on_exactly(
    tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """In critic pre-training, and later."""
    plain = run(tmp_path / "plain", CHANGES, reward=asking(tmp_path / "plain", {}))
    path, seen = tmp_path / "run", []
    with pytest.raises(StopRequested):
        run(path, CHANGES, reward=asking(path, {at: ["stop"]}, seen))
    assert seen == list(range(at + 1)), "not one iteration more"
    assert steps(path) == [at + 1] and not (path / "final").exists()
    assert [row["iteration"] for row in lines(path / "metrics.jsonl")] == seen
    assert "stopped as asked; the same command with --resume goes on" in capsys.readouterr().err
    assert is_running(path) is False and ending(path) == "stopped" and asked(path) == []
    run(path, CHANGES, reward=asking(path, {}), resume=True)
    assert is_running(path) is None and ending(path) == ""
    assert set(differing(plain.path, path, ignore=("config.yaml", f"checkpoints/step-00000{at + 1}"))) == {FILE}
    assert lines(path / FILE) == [{"iteration": at, "request": "stop", "checkpoint": f"step-00000{at + 1}"}]


def test_a_stopped_run_can_be_finished_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):  # ends a pipeline, too
        run(path, CHANGES, reward=asking(path, {2: ["stop"]}))
    run(path, {**CHANGES, "iterations": 2}, reward=asking(path, {}), resume=True)
    assert len(lines(path / "metrics.jsonl")) == 3 and (path / "final" / "config.json").exists()


def test_stop_in_the_last_iteration_lets_the_run_finish(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, CHANGES, reward=asking(path, {4: ["stop", "checkpoint"]}))
    assert (path / "final" / "config.json").exists() and steps(path) == [5]
    assert [row["request"] for row in lines(path / FILE)] == ["checkpoint", "stop"]


def test_what_was_asked_of_a_dead_run_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    with pytest.raises(StopRequested):
        run(path, CHANGES, reward=asking(path, {1: ["stop"]}))
    ask(path, "stop")
    assert asked(path) == ["stop"]
    capsys.readouterr()
    run(path, CHANGES, reward=asking(path, {}), resume=True)
    assert "stop: was asked of an earlier life of this run, and is dropped" in capsys.readouterr().err
    assert len(lines(path / "metrics.jsonl")) == 5 and asked(path) == []


def test_a_request_that_cannot_be_taken_away_is_told_and_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, unlink = tmp_path / "run", Path.unlink

    def refuse(file: Path, missing_ok: bool = False) -> None:
        if file.name == "stop":
            raise PermissionError(13, "Permission denied", str(file))
        unlink(file, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    run(path, {**CHANGES, "iterations": 1}, reward=asking(path, {1: ["stop"]}))
    assert "warning: stop: asked for, but not obeyed: [Errno 13]" in capsys.readouterr().err
    assert not (path / FILE).exists() and (path / "final" / "config.json").exists()


def test_the_lock_tells_living_ended_and_killed(tmp_path: Path) -> None:
    path, states = tmp_path / "run", []

    def reward(prompts: list[Any], responses: list[str]) -> list[float]:
        states.append(is_running(path))
        return byte_sum(prompts, responses)

    run(path, {**CHANGES, "iterations": 1}, reward=reward)
    assert set(states) == {True} and is_running(path) is None

    def failing(prompts: list[Any], responses: list[str]) -> list[float]:
        if (tmp_path / "failed" / "metrics.jsonl").exists():
            raise RuntimeError("no such\nluck")
        return byte_sum(prompts, responses)

    with pytest.raises(UserError) as caught:
        run(tmp_path / "failed", CHANGES, reward=failing)
    assert caught.value and is_running(tmp_path / "failed") is False, "though the traceback still holds the frame"
    assert ending(tmp_path / "failed").startswith(
        "failed: UserError: reward function failing raised RuntimeError: no such"
    )

    def killed() -> int:
        def reward(prompts: list[Any], responses: list[str]) -> list[float]:
            os.kill(os.getpid(), signal.SIGKILL)
            return []

        run(tmp_path / "killed", CHANGES, reward=reward)
        return 0

    assert end(begin(killed, tmp_path / "log")) == -signal.SIGKILL
    assert is_running(tmp_path / "killed") is False and ending(tmp_path / "killed") == ""


def test_a_second_process_on_the_same_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, warned = tmp_path / "run", []

    def reward(prompts: list[Any], responses: list[str]) -> list[float]:
        if not warned:
            warned.append(_lock(path))
        return byte_sum(prompts, responses)

    run(path, {**CHANGES, "iterations": 1}, reward=reward)
    assert warned == [None] and "another process seems to work on this run" in capsys.readouterr().err
    assert is_running(path) is None


def test_only_known_requests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint or stop"):
        ask(tmp_path, "../../evil")
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "gone", "stop")
    (tmp_path / "requests" / "stop").mkdir(parents=True)
    assert asked(tmp_path) == []


# ------------------------------------------------------------------------------------------- two ranks


def one_rank(folder: Path, name: str, rank: int, size: int, port: int, resume: bool, at: int | None) -> int:
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path, calls = folder / name, []

    def reward(prompts: list[Any], responses: list[str]) -> list[float]:
        if len(responses) == 8 // size:
            if rank == 0 and len(calls) == at:
                ask(path, "stop")
            calls.append(0)
        return byte_sum(prompts, responses)

    try:
        run(path, {**CHANGES, "watch.eval_prompts": 2}, reward=reward, resume=resume)
    except StopRequested:
        return 7
    return 0


def script(folder: Path) -> None:
    forget_to_sync()
    make_policy()
    make_tokenizer()
    codes: dict[str, list[int]] = {}
    for name, resume, at in (("plain", False, None), ("run", False, 1), ("run", True, None)):
        port = free_port()
        jobs = [functools.partial(one_rank, folder, name, rank, 2, port, resume, at) for rank in range(2)]
        pids = [begin(job, folder / "log") for job in jobs]
        codes[f"{name} {resume}"] = [end(pid) for pid in pids]
    found = {
        "codes": codes, "steps": steps(folder / "run"),
        "differences": differing(folder / "plain", folder / "run", ignore=("config.yaml", "checkpoints/step-000002")),
        "log": (folder / "log").read_text(encoding="utf-8")[-3000:],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")


def test_both_of_two_ranks_stop_and_go_on(tmp_path: Path) -> None:
    found = start_script(__file__, tmp_path)
    assert found["codes"] == {"plain False": [0, 0], "run False": [7, 7], "run True": [0, 0]}, found["log"]
    assert found["steps"] == [2, 5] and found["differences"] == [FILE]


if __name__ == "__main__":
    script(Path(sys.argv[1]))
