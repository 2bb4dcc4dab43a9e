"""Which runs are there, whether they live, and what their page shows."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from view_tools import HOSTILE, finish, line, make_run, write

from ppomax.train.requests import LOCK, ask
from ppomax.view import runs
from ppomax.view.live import LiveRun
from ppomax.view.runs import find_runs, state_of, summary


def age(run: Path, seconds: float) -> None:
    """As if nothing had been written for so long."""
    then = time.time() - seconds
    for file in run.rglob("*"):
        os.utime(file, (then, then))


def only(root: Path) -> runs.Run:
    (found,) = find_runs(root)
    return found


def state(run: Path) -> tuple[str, str]:
    return state_of(only(run), [line(0)])


def test_runs_below_a_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "ppo one")
    make_run(tmp_path / "b", "reward")
    make_run(tmp_path / "c" / "d" / "e", "sft")
    make_run(tmp_path / "c" / "judge", "reward")  # as our recipes call a stage
    for elsewhere in ("a/ppo one/checkpoints/step-1", "a/ppo one/judge", "b/final", ".hidden/run", "b/within"):
        make_run(tmp_path / elsewhere)
    (tmp_path / "duel").mkdir()
    (tmp_path / "duel" / "config.yaml").write_text("a: x\njudge: world\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_bytes(b"\xff\x00{{{{")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_runs(tmp_path)
    names = [(run.name, run.kind) for run in found]
    assert names == [("a/ppo one", "ppo"), ("b", "reward"), ("c/d/e", "sft"), ("c/judge", "reward")]
    assert found[0].planned == 30 and found[1].planned is None, "20, and 10 of critic pre-training"
    assert len({run.key for run in found}) == 4
    assert [run.name for run in find_runs(tmp_path / "b")] == ["b"], "a run itself will do"
    assert find_runs(tmp_path / "nowhere") == []


def test_runs_behind_links_are_found_once(tmp_path: Path) -> None:
    make_run(tmp_path / "disk" / "one")
    make_run(tmp_path / "disk" / "more" / "two")
    shown = tmp_path / "shown"
    (shown / "own").mkdir(parents=True)
    for name, where in (
        ("a", "disk/one"),
        ("b", "disk/more"),
        ("c", "disk/more/two"),
        ("own/up", "shown"),
        ("dead", "no"),
    ):
        (shown / name).symlink_to(tmp_path / where)
    assert [run.name for run in find_runs(shown)] == ["a", "b/two"]


def test_numbers_of_the_list_are_the_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "ppo")
    write(run / "metrics.jsonl", [line(0), line(1, **{"reward/mean": None})])
    long = {"iteration": 1, "update": 4, "eval/win_rate": 0.75, "rewards": [0.123] * 20_000}
    write(run / "evaluations.jsonl", [{"iteration": 0, "update": 0, "eval/win_rate": 0.5}, long])
    numbers = summary(only(tmp_path))["numbers"]
    assert numbers["reward"] is None and numbers["KL"] == 0.01
    assert numbers["win rate"] == 0.75, "though its line is longer than what is read at first"
    write(make_run(tmp_path / "b" / "rm", "reward") / "metrics.jsonl", [
        {"update": 0, "loss/preference": 0.7, "eval/accuracy": 0.6}, {"update": 1, "loss/preference": 0.5}
    ])  # fmt: skip
    assert summary(only(tmp_path / "b"))["numbers"] == {"loss": 0.5, "accuracy": 0.6}


def test_too_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST_RUNS", 2)
    for i in range(3):
        make_run(tmp_path / f"run{i}", "sft", iterations=1)
    assert len(find_runs(tmp_path)) == 2


def test_a_run_with_a_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    age(run, 1e6)
    with (run / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"on {socket.gethostname()}")
        assert state(run) == ("running", "") and summary(only(run))["obeys"]
        finish(run)
        assert state(run) == ("running", ""), "one that was finished, and goes on for longer"
    assert state(run) == ("dead", "killed") and not summary(only(run))["obeys"]
    (run / LOCK).write_text("stopped")
    assert state(run) == ("stopped", "")
    (run / LOCK).write_text("failed: UserError: out of luck\nand more")
    assert state(run) == ("dead", "failed: UserError: out of luck")
    (run / LOCK).unlink()
    assert state(run) == ("finished", "")
    shutil.rmtree(run / "final")
    (run / LOCK).write_text("on another machine")
    (run / "metrics.jsonl").touch()
    assert state(run)[0] == "running", "its lock may not reach this machine, and it writes"
    age(run, 1e6)
    assert state(run)[0] == "dead"


def test_a_run_that_the_watch_stopped(tmp_path: Path) -> None:
    """It has final/ as a finished one, and fewer iterations than planned."""
    run = make_run(tmp_path / "run", text="KL grows")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    assert "\n  on_collapse: warn\n" in config
    finish(run)
    assert summary(only(run))["state"] == "finished", "it was to warn only"
    (run / "config.yaml").write_text(config.replace("on_collapse: warn", "on_collapse: stop"), encoding="utf-8")
    assert summary(only(run))["state"] == "finished", "the collapse of iteration 9 is not of the last one, 11"
    write(run / "alarms.jsonl", [{"iteration": 11, "level": "warning", "message": "KL grows"}])
    assert summary(only(run))["state"] == "finished"
    with (run / "alarms.jsonl").open("a") as f:
        f.write(json.dumps({"iteration": 11, "level": "collapse", "message": "KL grows"}) + "\n")
    told = summary(only(run))
    assert (told["state"], told["why"]) == ("stopped by the watch", "collapse, iteration 11: KL grows")
    write(run / "metrics.jsonl", [line(i) for i in range(30)])
    write(run / "alarms.jsonl", [{"iteration": 29, "level": "collapse", "message": "KL grows"}])
    assert summary(only(run))["state"] == "finished", "it was the last of those planned"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe is opened only once somebody writes into it."""
    run = make_run(tmp_path / "run")
    names = ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl", "alarms.jsonl", "requests.jsonl")
    for name in names:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    os.mkfifo(run / LOCK)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.yaml")
    (tmp_path / "endless").mkdir()
    (tmp_path / "endless" / "config.yaml").symlink_to("/dev/zero")
    shown: list[dict[str, object]] = []
    reader = threading.Thread(target=lambda: shown.append(LiveRun(only(tmp_path)).look()), daemon=True)
    reader.start()
    reader.join(timeout=60)
    assert shown and shown[0]["panels"] == shown[0]["alarms"] == shown[0]["samples"] == []


def test_a_run_without_a_lock_lives_while_it_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert state(run) == ("running", "") and not summary(only(run))["obeys"]
    age(run, 170)
    assert state(run)[0] == "running"
    age(run, 190)
    assert state(run)[0] == "dead"
    assert state_of(only(run), [line(0, **{"time/total": 60.0})])[0] == "running", "its iterations take minutes"


def test_summary(tmp_path: Path) -> None:
    make_run(tmp_path / "ppo")
    make_run(tmp_path / "rm", "reward")
    ppo, reward = (summary(run) for run in find_runs(tmp_path))
    assert ppo["step"] == 11 and ppo["planned"] == 30 and ppo["kind"] == "ppo"
    assert ppo["numbers"] == {"reward": 1.1, "KL": 0.11, "length": 20.0, "perplexity": 3.0, "win rate": 0.625}
    assert ppo["alarm"] == {"iteration": 9, "level": "collapse", "message": "hello"}
    alarms = [(2, "warning"), (5, "collapse"), (7, "collapse"), (8, "notice"), (9, "warning")]
    write(tmp_path / "ppo" / "alarms.jsonl", [{"iteration": i, "level": level, "message": ""} for i, level in alarms])
    assert summary(find_runs(tmp_path)[0])["alarm"]["iteration"] == 7, "the newest of the gravest"
    assert reward["numbers"] == {"loss": 0.0833333, "accuracy": None} and reward["alarm"] is None


def test_what_a_page_shows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    live = LiveRun(only(run))
    shown = live.look()
    assert [p["metric"] for p in shown["panels"]] == [
        "eval/win_rate", "reward/mean", "kl/ref", "policy/perplexity", "response/length", "loss/policy", "loss/value",
    ]  # fmt: skip
    rate = shown["panels"][0]
    assert (rate["x"], rate["y"], rate["band"]) == ([2, 6], [0.5, 0.625], [0.06, 0.06])
    assert shown["marks"] == [[5, "notice"], [9, "collapse"]]
    assert [a["message"] for a in shown["alarms"]] == ["hello", "first"], "the newest first"
    assert [s["response"] for s in shown["samples"]] == ["hello answered 11"], "of the newest iteration only"
    assert shown["samples"][0]["kl"] is None and not shown["samples"][0]["finished"]
    assert live.look()["version"] == shown["version"]
    with (run / "metrics.jsonl").open("a") as f:
        f.write(json.dumps(line(12)) + "\n" + json.dumps(line(13))[:40])
    later = live.look()
    assert later["version"] != shown["version"] and later["panels"][1]["x"][-1] == 12 and later["unreadable"] == 0
    (run / LOCK).touch()
    ask(run, "stop")
    with (run / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert live.look()["head"]["asked"] == ["stop"]
    shutil.rmtree(run)
    gone = live.look()
    assert gone["samples"] == gone["alarms"] == [] and gone["head"]["written"] == 0


def test_the_way_on_is_shown_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    live = LiveRun(only(run))
    assert live.look()["resume"] == ""
    (run / "checkpoints" / "step-000010").mkdir(parents=True)
    assert live.look()["resume"] == f"ppomax ppo {run / 'config.yaml'} --resume"


def test_a_stop_of_an_earlier_life_is_not_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [{"iteration": i, "request": request, "checkpoint": "c"} for i, request in ((3, "checkpoint"), (5, "stop"))]
    write(run / "requests.jsonl", rows)
    live = LiveRun(only(run))
    age(run, 190)
    assert [r["request"] for r in live.look()["requests"]] == ["checkpoint", "stop"]
    age(run, 0)
    assert [r["request"] for r in live.look()["requests"]] == ["checkpoint"], "it runs again"


def test_hostile_files(tmp_path: Path) -> None:
    """Whatever the files hold, the page gets something, and nothing in it acts unseen."""
    run = make_run(tmp_path / "run", text=HOSTILE)
    live = LiveRun(only(run))
    shown = live.look()
    told = json.dumps(shown, ensure_ascii=False)
    assert "[U+202E]abc" in told and "[U+001B][31m" in told and "[U+D800]" in told
    assert not any(c in told for c in "\x1b\u202e\ud800")
    odd = [
        {"iteration": "x", "level": 7, "message": None}, {"iteration": 10**400, "message": {"a": [1]}}, {},
        {"iteration": 1e999, "prompt": 5, "response": ["a"], "score": "high", "length": True, "eval/win_rate": "all"},
        {"iteration": None, "prompt": [3, {"role": None}, {"content": {"x": 1}}], "level": "<b>", "reward/mean": [1]},
    ]  # fmt: skip
    for name in ("metrics", "samples", "evaluations", "alarms", "requests"):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd) + "\0\n[[\n")
    shown = live.look()
    json.dumps(shown, allow_nan=False)
    assert {a["level"] for a in shown["alarms"]} == {"warning"} and shown["unreadable"] == 2
    for name in ("metrics", "samples", "evaluations", "alarms"):
        (run / f"{name}.jsonl").unlink()
        (run / f"{name}.jsonl").mkdir()
    json.dumps(live.look(), allow_nan=False)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_other_stages(tmp_path: Path, kind: str) -> None:
    shown = LiveRun(only(make_run(tmp_path / "run", kind))).look()
    assert shown["x"] == "update" and len(shown["panels"]) == 1 and shown["panels"][0]["y"][0] == 1.0


def test_evaluations_and_alarms_of_a_run_without_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    write(run / "alarms.jsonl", [{"iteration": 0, "level": "collapse", "message": "not finite"}])
    shown = LiveRun(only(run)).look()
    assert [p["metric"] for p in shown["panels"]] == ["eval/win_rate"] and shown["head"]["step"] is None
