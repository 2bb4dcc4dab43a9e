"""Requests to an endpoint on a real HTTP server: faults, pauses, rate limits, budgets, stops."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ppomax.config import LLMConfig
from ppomax.errors import UserError
from ppomax.evaluate.llm_endpoint import Endpoint, ReplyFile

_spec = importlib.util.spec_from_file_location("judge_server", Path(__file__).with_name("judge_server.py"))
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
JudgeServer, SECRET = _module.JudgeServer, _module.SECRET
make, number, pairs, raw = _module.make, _module.number, _module.pairs, _module.raw


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


FAULTS = ("429", "500", "503", "drop", "html", "half", "no_choices", "timeout", "drip")
KINDS = {"429": "429", "500": "5xx", "503": "5xx", "drop": "connection", "timeout": "timeout", "drip": "timeout"}


def test_every_fault_is_survived_and_counted(tmp_path: Path) -> None:
    """Each of nine prompts meets one sort of fault twice in each order, another nine none."""

    def plan(first: str, second: str, times: int) -> str | None:
        i = number(first)
        return FAULTS[i] if i < len(FAULTS) and times < 2 else None

    a, b = pairs(2 * len(FAULTS), better=0.5)
    with JudgeServer() as untroubled:
        (tmp_path / "none").mkdir()
        wanted = [v["outcome"] for v in make(tmp_path / "none", untroubled).verdicts(a, b)]
    with JudgeServer(plan=plan, slow=6.0, retry_after="0.1") as server:
        judge = make(tmp_path, server, timeout=3.0)
        verdicts = judge.verdicts(a, b)
        about = judge.about(a, b, verdicts)
        assert [v["outcome"] for v in verdicts] == wanted and {1, -1} == set(wanted)
        assert all(v["valid"] for v in verdicts)
        planted = Counter(KINDS.get(fault, "broken") for fault in FAULTS for _ in range(4))
        # 'half' ends early: the client may tell it as a broken connection or as a broken reply
        found = Counter(about["faults"])
        assert found["broken"] + found["connection"] == planted["broken"] + planted["connection"] == 16
        for kind in ("429", "5xx", "timeout"):
            assert found[kind] == planted[kind]
        assert about["requests"] == server.requests == 8 * len(FAULTS)
        assert about["replies"] == 4 * len(FAULTS)
        assert len(raw(tmp_path)) == server.requests


def test_slow_replies_within_the_limit_are_kept(tmp_path: Path) -> None:
    a, b = pairs(2)
    with JudgeServer(plan=lambda *_: "drip", slow=0.6) as server:
        verdicts = make(tmp_path, server, timeout=20.0).verdicts(a, b)
        assert [v["outcome"] for v in verdicts] == [1, 1] and server.requests == 4


def test_retry_after_holds_everybody_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pairs(10)
    refused: list[float] = []
    asked: list[float] = []
    fault, request = Endpoint._fault, Endpoint._request

    def told(endpoint: Endpoint, error: Exception) -> Any:
        refused.append(time.monotonic())
        return fault(endpoint, error)

    async def asking(endpoint: Endpoint, client: Any, messages: Any, began: float) -> Any:
        asked.append(began)
        return await request(endpoint, client, messages, began)

    monkeypatch.setattr(Endpoint, "_fault", told)
    monkeypatch.setattr(Endpoint, "_request", asking)
    with JudgeServer(plan=lambda f, s, n: "429" if number(f) == 3 and n == 0 else None, retry_after="1") as server:
        make(tmp_path, server, concurrency=2).verdicts(a, b)
        assert len(refused) == 2 and server.requests == len(asked) == 22
        for moment in refused:  # from when the client knows: what is under way by then is let through
            assert min(t - moment for t in asked if t > moment) >= 1


def test_requests_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pairs(4)
    turns: list[tuple[float, float]] = []
    turn = Endpoint._turn

    async def taken(endpoint: Endpoint) -> None:
        await turn(endpoint)
        turns.append((time.monotonic(), endpoint._next))

    monkeypatch.setattr(Endpoint, "_turn", taken)
    with JudgeServer() as server:
        make(tmp_path, server, requests_a_minute=600).verdicts(a, b)
    assert len(turns) == server.requests == 8
    # where the next request may be made, and not where this one arrived: that may be late, and the next one not
    assert all(after - before >= 0.1 for (_, before), (_, after) in itertools.pairwise(turns))
    assert all(now >= before for (_, before), (now, _) in itertools.pairwise(turns))


@pytest.mark.parametrize(("budget", "most"), [({"max_requests": 7}, 7), ({"max_tokens": 550}, 5 + 1)])
def test_a_budget_stops_and_a_new_start_goes_on(tmp_path: Path, budget: dict[str, int], most: int) -> None:
    a, b = pairs(10)
    with JudgeServer() as server:
        with pytest.raises(UserError, match=rf"budget of llm.{next(iter(budget))}.* of 20 questions .* --resume"):
            make(tmp_path, server, **budget, concurrency=2).verdicts(a, b)
        assert 5 <= server.requests <= most and len(raw(tmp_path)) == server.requests  # what was paid for is kept
        make(tmp_path, server).verdicts(a, b)
        assert set(server.asked.values()) == {1} and server.requests == 20


def test_an_endpoint_that_is_down_stops_the_duel_and_loses_nothing(tmp_path: Path) -> None:
    a, b = pairs(6)
    down = [False]
    plan = lambda f, s, n: "500" if down[0] and number(f) >= 2 else None  # noqa: E731
    with JudgeServer(plan=plan) as server:
        down[0] = True
        with pytest.raises(UserError, match=r"no reply to 3 questions: 2 requests, .*500.*; 4 of 12 questions"):
            make(tmp_path, server, retries=1, concurrency=1).verdicts(a, b)
        down[0] = False
        assert [v["outcome"] for v in make(tmp_path, server).verdicts(a, b)] == [1] * 6
        assert all(n == 1 for (first, _), n in server.asked.items() if number(first) < 2)


def test_one_question_that_always_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    a, b = pairs(5)
    with JudgeServer(plan=lambda f, s, n: "500" if f == "good 1" else None) as server:
        judge = make(tmp_path, server, retries=1, concurrency=1)
        verdicts = judge.verdicts(a, b)
        assert [v["outcome"] for v in verdicts] == [1, 0, 1, 1, 1] and verdicts[1]["verdict_ab"] == "failed"
        assert judge.about(a, b, verdicts)["questions_without_verdict"]["failed"] == 1


@pytest.mark.parametrize(("what", "message"), [("401", "refuses every request"), ("400", "no reply to 3 questions")])
def test_an_endpoint_that_refuses_everything(tmp_path: Path, what: str, message: str) -> None:
    a, b = pairs(8)
    with JudgeServer(plan=lambda *_: what) as server:
        with pytest.raises(UserError, match=message) as error:
            make(tmp_path, server, concurrency=2).verdicts(a, b)
        assert server.requests <= 5 and SECRET not in str(error.value)


def test_a_long_wanted_pause_stops(tmp_path: Path) -> None:
    a, b = pairs(1)
    with (
        JudgeServer(plan=lambda *_: "429", retry_after="3600") as server,
        pytest.raises(UserError, match="asks for a pause of 3600 s"),
    ):
        make(tmp_path, server).verdicts(a, b)


def test_nobody_at_home(tmp_path: Path) -> None:
    with JudgeServer() as server:
        judge = make(tmp_path, server, retries=1)
    with pytest.raises(UserError, match="no reply to 3 questions"):
        judge.verdicts(*pairs(3))


def test_inside_a_running_loop(tmp_path: Path) -> None:
    a, b = pairs(2)
    with JudgeServer() as server:
        judge = make(tmp_path, server)

        async def notebook() -> list[dict[str, Any]]:
            return judge.verdicts(a, b)

        assert [v["outcome"] for v in asyncio.run(notebook())] == [1, 1]


def test_a_server_of_ones_own_needs_no_key_and_may_tell_no_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    a, b = pairs(2)
    with JudgeServer(usage=False) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        judge = make(tmp_path, server, base_url=None, temperature=None, reply_limit_name="max_tokens")
        verdicts = judge.verdicts(a, b)
        tokens = judge.about(a, b, verdicts)["tokens"]
        assert tokens["estimated_replies"] == 4 and tokens["prompt"] > 4 * 300
        assert "temperature" not in server.bodies[0] and server.bodies[0]["max_tokens"] == 1024


def test_half_a_surrogate_can_be_written(tmp_path: Path) -> None:
    """Valid in JSON, and no text that UTF-8 can hold."""
    config = LLMConfig(base_url="http://127.0.0.1:9/v1")
    endpoint = Endpoint("m", config, section="llm", title="judge", options={})
    cleaned = endpoint.clean(f"one \ud83d 好 {SECRET}")
    assert cleaned == "one ? 好 ***"
    ReplyFile(tmp_path / "raw.jsonl").add({"key": "k", "kind": "reply", "reply": cleaned})


def test_a_damaged_file_of_replies_is_named(tmp_path: Path) -> None:
    (tmp_path / "judge_raw.jsonl").write_text("[]\n")
    with JudgeServer() as server, pytest.raises(UserError, match=r"judge_raw.jsonl:1: not a line"):
        make(tmp_path, server).verdicts(*pairs(1))
