"""A model behind an endpoint as a side of a duel, on a real HTTP server: what is sent, what is kept, faults, a kill."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.evaluate.duel import DuelConfig, run_duel
from ppomax.options import from_mapping

_spec = importlib.util.spec_from_file_location("judge_server", Path(__file__).with_name("judge_server.py"))
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
JudgeServer, SECRET, number = _module.JudgeServer, _module.SECRET, _module.number


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def settings(tmp_path: Path, server: Any, count: int = 6, **fields: Any) -> dict[str, Any]:
    """The endpoint's answers begin with "good", those of the file with "bad"; the same server judges."""
    rows = [{"prompt": f"question {i}", "response": f"bad {i}"} for i in range(count)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {"base_url": server.url, "first_pause": 0.02}
    return {
        "a": "endpoint:big", "b": str(tmp_path / "b.jsonl"), "judge": "llm:planted", "output_dir": str(tmp_path / "run"),
        "device": "cpu", "resamples": 100, "llm": asked, "endpoint": {**asked, **fields.pop("endpoint", {})}, **fields,
    }  # fmt: skip


def duel(fields: dict[str, Any], resume: bool = False) -> dict[str, Any]:
    return run_duel(from_mapping(DuelConfig, fields), resume=resume)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answered(server: Any) -> dict[str, int]:
    """How often each question was put to the side, not to the judge."""
    return {first: n for (first, second), n in server.asked.items() if second == ""}


def test_an_endpoint_as_a_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plan(first: str, second: str, times: int) -> str | None:
        if second or times:
            return None
        return {1: "500", 2: "long", 3: "429"}.get(number(first))

    with JudgeServer(plan=plan, retry_after="0.05") as server:
        extra = {"repetition_penalty": 1.1}
        result = duel(
            settings(tmp_path, server, endpoint={"extra": extra}, sampling={"max_new_tokens": 99, "stop": ["#"]})
        )
        assert [result["overall"][k] for k in ("prompts", "win", "tie", "lose")] == [6, 6, 0, 0]
        assert answered(server) == {f"question {i}": 2 if i in (1, 3) else 1 for i in range(6)}
        body = next(b for b in server.bodies if b["messages"][0]["content"] == "question 0")
        assert {k: v for k, v in body.items() if k != "messages"} == {
            "model": "big", "temperature": 0.8, "top_p": 0.9, "max_completion_tokens": 99, "stop": ["#"],
            "repetition_penalty": 1.1,
        }  # fmt: skip
    answers = read(tmp_path / "run" / "answers_a.jsonl")
    assert [r["response"] for r in answers] == [f"good question {i}" for i in range(6)]
    assert [r["finished"] for r in answers] == [True, True, False, True, True, True]  # 2 was cut at the limit
    told = result["endpoint"]["a"]
    assert (told["requests"], told["faults"], told["no_answer"]) == (8, {"429": 1, "5xx": 1}, {})
    assert told["tokens"] == {"prompt": 600, "completion": 60, "estimated_replies": 0}
    assert "cannot be sent" not in capsys.readouterr().err
    assert all(SECRET.encode() not in file.read_bytes() for file in (tmp_path / "run").iterdir())


def test_prompts_without_an_answer_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plan(first: str, second: str, times: int) -> str | None:
        return None if second else {1: "400", 3: "500", 4: "filter"}.get(number(first))

    with JudgeServer(plan=plan) as server:
        result = duel(settings(tmp_path, server, endpoint={"retries": 1}))
        assert result["overall"]["prompts"] == 3 and result["left_out"]["no answer from an endpoint"] == 3
        assert result["endpoint"]["a"]["no_answer"] == {"rejected": 1, "failed": 1, "filtered": 1}
        assert [r["response_b"] for r in read(tmp_path / "run" / "judgements.jsonl")] == ["bad 0", "bad 2", "bad 5"]
        assert answered(server)["question 3"] == 2
    told = capsys.readouterr().err
    assert "no answer to 3 prompts" in told and "repetition_penalty cannot be sent" in told


def test_a_budget_stops_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    with JudgeServer() as server:
        fields = settings(tmp_path, server, count=10, endpoint={"max_requests": 4, "concurrency": 2})
        for done in (4, 8):
            with pytest.raises(
                UserError, match=rf"endpoint:big: the budget of endpoint.max_requests = 4 .*; {done} of 10"
            ):
                duel(fields, resume=done > 4)
        fields["endpoint"] |= {"max_requests": 100, "concurrency": 3}  # pace and budget may change
        result = duel(fields, resume=True)
        assert result["overall"]["prompts"] == 10 and set(answered(server).values()) == {1}
        total = server.requests
        assert duel(fields, resume=True) == result and server.requests == total
        (tmp_path / "run" / "result.json").unlink()  # as after a kill while judging
        assert duel(fields, resume=True) == result and server.requests == total


def test_an_endpoint_that_is_down_or_refuses(tmp_path: Path) -> None:
    with JudgeServer(plan=lambda f, s, n: "500") as server:
        fields = settings(tmp_path, server, endpoint={"retries": 0, "concurrency": 1})
        with pytest.raises(UserError, match=r"endpoint:big: no reply to 3 questions: .*; 0 of 6 prompts"):
            duel(fields)
    with JudgeServer(plan=lambda f, s, n: "401") as server:
        fields = settings(tmp_path, server, output_dir=str(tmp_path / "other"))
        with pytest.raises(UserError, match="refuses every request") as error:
            duel(fields)
        assert SECRET not in str(error.value)


def test_a_killed_duel_asks_nothing_twice(tmp_path: Path) -> None:
    killed = threading.Event()

    def plan(first: str, second: str, times: int) -> None:
        if server.requests > 8:  # further replies wait for the kill, so that it comes before the end
            killed.wait(120)

    with JudgeServer(plan=plan, pause=0.15) as server:
        fields = settings(tmp_path, server, count=12, endpoint={"concurrency": 2})
        (tmp_path / "duel.yaml").write_text(json.dumps(fields))
        command = [sys.executable, "-m", "ppomax", "duel", str(tmp_path / "duel.yaml")]
        process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file = tmp_path / "run" / "replies_a.jsonl"
        until = time.monotonic() + 120
        while time.monotonic() < until and not (file.exists() and file.read_bytes().count(b"\n") >= 4):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        kept = read_whole(file)
        assert 4 <= len(kept) < 12
        with file.open("ab") as tail:
            tail.write(b'{"key": "half a li')  # a kill in the middle of a line
        result = duel(fields, resume=True)
        assert result["overall"]["prompts"] == result["overall"]["win"] == 12
        asked = answered(server)
        again = [question for question, times in asked.items() if times > 1]
        assert len(again) <= 2 and max(asked.values()) <= 2  # requests under way at the kill, no others
        assert not {row["prompt"][0]["content"] for row in kept} & set(again)


def read_whole(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def test_of_several_systems_no_pair_of_answers_is_judged_twice(tmp_path: Path) -> None:
    with JudgeServer() as server:
        fields = settings(tmp_path, server)
        copy = tmp_path / "copy.jsonl"
        copy.write_text((tmp_path / "b.jsonl").read_text())
        result = duel({**fields, "others": [str(copy)]})
        assert set(server.asked.values()) == {1} and server.requests == 6 + 2 * 6  # A-C is A-B again, B-C is a tie
        wins = {letter: rating["win_rate"] for letter, rating in result["ratings"]["ratings"].items()}
        assert wins == {"a": 1.0, "b": 0.25, "c": 0.25} and not result["ratings"]["finite"]
        assert [pair["llm"]["questions"] for pair in result["pairs"]] == [12, 12, 0]
