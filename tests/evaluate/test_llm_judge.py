"""An LLM judge on a real HTTP server with planted accuracy, position bias, bad replies and faults."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppomax.cli import main
from ppomax.errors import UserError
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.categories import prompt_language
from ppomax.evaluate.duel import DuelConfig, run_duel
from ppomax.evaluate.judges import as_judges
from ppomax.evaluate.llm_judge import Rubric, load_rubric, parse_verdict, position_bias
from ppomax.options import from_mapping

_spec = importlib.util.spec_from_file_location("judge_server", Path(__file__).with_name("judge_server.py"))
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
JudgeServer, SECRET, chance = _module.JudgeServer, _module.SECRET, _module.chance
make, number, pairs, raw = _module.make, _module.number, _module.pairs, _module.raw


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


# ------------------------------------------------------------------------------------------- what was planted


def test_planted_accuracy_and_position_bias_are_found(tmp_path: Path) -> None:
    accuracy, bias, better, n = 0.8, 0.3, 0.7, 200
    a, b = pairs(n, better)
    with JudgeServer(accuracy, bias) as server:
        judge = make(tmp_path, server)
        verdicts = judge.verdicts(a, b)
        about = judge.about(a, b, verdicts)
        assert server.requests == 2 * n and set(server.asked.values()) == {1}
        for x, y, v in zip(a, b, verdicts, strict=True):  # each outcome from the two replies that the server gave
            ab = {"A": 1, "B": -1, "C": 0}[server.given[x.response, y.response]]
            ba = {"A": -1, "B": 1, "C": 0}[server.given[y.response, x.response]]
            assert v["outcome"] == (ab if ab == ba else 0)
    # chances of naming the first shown where it is the good one, and where it is the bad one
    right = bias + (1 - bias) * accuracy
    wrong = bias + (1 - bias) * (1 - accuracy)
    expected = {
        "preferred_first": (right + wrong) / 2,
        "flipped": right * wrong + (1 - right) * (1 - wrong),
        "first_when_flipped": right * wrong / (right * wrong + (1 - right) * (1 - wrong)),
    }
    position = about["position"]
    assert position["both_decided"] == n
    for name, value in expected.items():
        found = position[name]
        assert found["low"] <= value <= found["high"], (name, value, found)
        assert 0.5 * value < found["value"] < 1.5 * value and found["high"] - found["low"] < 0.2
    good = sum((v["outcome"] == 1) == ("good" in x.response) for x, v in zip(a, verdicts, strict=True) if v["outcome"])
    decided = sum(v["outcome"] != 0 for v in verdicts)
    share, chance_of_right = good / decided, right * (1 - wrong) / (right * (1 - wrong) + wrong * (1 - right))
    assert abs(share - chance_of_right) < 2 * math.sqrt(chance_of_right * (1 - chance_of_right) / decided)
    assert about["tokens"] == {"prompt": 200 * n, "completion": 20 * n, "estimated_replies": 0}
    assert about["requests"] == about["replies"] == 2 * n and about["faults"] == {}
    assert sum(about["questions_without_verdict"].values()) == 0


def test_malformed_and_refused_replies(tmp_path: Path) -> None:
    """0: malformed once, asked again. 1: always malformed. 2: refused in one order. 3: filtered. 4: empty once. 5: rejected."""

    def plan(first: str, second: str, times: int) -> str | None:
        i, forward = number(first), "good" in first
        if i in (0, 4) and times == 0:
            return "malformed" if i == 0 else "empty"
        return {1: "malformed", 2: "refusal" if forward else None, 3: "filter", 5: "400" if forward else None}.get(i)

    a, b = pairs(8)
    with JudgeServer(plan=plan) as server:
        judge = make(tmp_path, server, attempts=3)
        verdicts = judge.verdicts(a, b)
        about = judge.about(a, b, verdicts)
        assert [v["outcome"] for v in verdicts] == [1, 0, 0, 0, 1, 0, 1, 1]
        assert [v["valid"] for v in verdicts] == [True, False, False, False, True, False, True, True]
        assert (verdicts[2]["verdict_ab"], verdicts[2]["verdict_ba"]) == ("refused", "a")
        assert about["questions_without_verdict"] == {"malformed": 2, "refused": 3, "rejected": 1, "failed": 0}
        assert about["prompts_without_verdict"] == 4
        assert about["malformed_replies"] == 2 + 6 + 2
        assert server.asked["good 1", "bad 1"] == 3 and server.asked["good 5", "bad 5"] == 1
        assert server.asked["good 2", "bad 2"] == 1  # a refusal is taken at its word
        again = [body for body in server.bodies if len(body["messages"]) == 3]
        assert len(again) == 2 + 4  # of prompts 0 and 1; an empty reply is asked again as it was
        assert "[[C]]" in again[0]["messages"][2]["content"] and again[0]["messages"][1]["role"] == "assistant"
        # nothing is asked twice, whatever the state
        before = server.requests
        fresh = make(tmp_path, server, attempts=3)
        assert fresh.verdicts(a, b) == verdicts and fresh.about(a, b, verdicts) == about
        assert server.requests == before


def test_everything_planted_at_once_is_found_again(tmp_path: Path) -> None:
    """Accuracy, position bias, refusals, malformed replies, 429, 500, dropped and slow connections, all mixed."""
    accuracy, bias, n = 0.85, 0.2, 300
    faults = {"429": 0.04, "500": 0.04, "drop": 0.03, "timeout": 0.01, "drip": 0.01, "malformed": 0.04}

    def planted(first: str, second: str) -> str | None:
        """What always happens, or what happens at the first request alone."""
        u = chance("fault", first, second)
        if u < 0.08:
            return "refusal"
        if u < 0.12:
            return "never"
        for kind, share in faults.items():
            if 0.12 <= u < 0.12 + share:
                return kind
            u -= share
        return None

    def plan(first: str, second: str, times: int) -> str | None:
        what = planted(first, second)
        if what in ("refusal", "never"):
            return "malformed" if what == "never" else what
        return what if times == 0 else None

    a, b = pairs(n, 0.6)
    with JudgeServer(accuracy, bias, plan=plan, slow=8.0, retry_after="0.05") as server:
        judge = make(tmp_path, server, attempts=2, timeout=4.0, concurrency=16)
        verdicts = judge.verdicts(a, b)
        about = judge.about(a, b, verdicts)
        orders = [(x.response, y.response) for p, q in zip(a, b, strict=True) for x, y in ((p, q), (q, p))]
        happened = [planted(*order) for order in orders]
        # nothing lost: every request is a line, and every question has the verdict that was sent, or its reason
        assert len(raw(tmp_path)) == server.requests == about["requests"]
        for p, q, v in zip(a, b, verdicts, strict=True):
            for order, key, words in (((p, q), "verdict_ab", "ab"), ((q, p), "verdict_ba", "ba")):
                what = planted(order[0].response, order[1].response)
                sent = server.given.get((order[0].response, order[1].response))
                told = {"refusal": "refused", "never": "malformed"}.get(str(what))
                assert v[key] == (told or {"A": words[0], "B": words[1], "C": "tie"}[str(sent)])
    counted = {kind: happened.count(kind) for kind in (*faults, "refusal", "never")}
    assert min(counted.values()) >= 2
    missing = about["questions_without_verdict"]
    assert missing == {"malformed": counted["never"], "refused": counted["refusal"], "rejected": 0, "failed": 0}
    assert about["malformed_replies"] == 2 * counted["never"] + counted["malformed"]
    assert about["faults"] == {
        "429": counted["429"], "5xx": counted["500"], "connection": counted["drop"],
        "timeout": counted["timeout"] + counted["drip"],
    }  # fmt: skip
    right, wrong = bias + (1 - bias) * accuracy, bias + (1 - bias) * (1 - accuracy)
    expected = {
        "preferred_first": (right + wrong) / 2,
        "flipped": right * wrong + (1 - right) * (1 - wrong),
        "first_when_flipped": right * wrong / (right * wrong + (1 - right) * (1 - wrong)),
    }
    for name, value in expected.items():
        found = about["position"][name]
        assert found["low"] <= value <= found["high"], (name, value, found)


def test_equal_answers_are_a_tie_that_is_not_asked(tmp_path: Path) -> None:
    a, _ = pairs(3)
    with JudgeServer() as server:
        judge = make(tmp_path, server)
        verdicts = judge.verdicts(a, a)
        assert server.requests == 0 and [v["outcome"] for v in verdicts] == [0, 0, 0]
        assert judge.about(a, a, verdicts)["identical"] == 3


# --------------------------------------------------------------------------------------------- whole duels


def write(path: Path, answers: list[Answer], **extra: Any) -> str:
    rows = [{"prompt": list(x.prompt), "response": x.response, **extra} for x in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def settings(tmp_path: Path, server: Any, count: int = 12, **llm: Any) -> dict[str, Any]:
    a, b = pairs(count, better=0.75)
    return {
        "a": write(tmp_path / "a.jsonl", a), "b": write(tmp_path / "b.jsonl", b), "judge": "llm:planted",
        "output_dir": str(tmp_path / "run"), "device": "cpu", "resamples": 200,
        "llm": {"base_url": server.url, "first_pause": 0.02, **llm},
    }  # fmt: skip


def test_a_duel_end_to_end_and_no_key_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the server repeats the key in its message
    with JudgeServer(plan=lambda f, s, n: "500" if n == 0 and number(f) == 1 else None) as server:
        fields = settings(tmp_path, server)
        words = ["duel", fields["a"], fields["b"], "--judge", "llm:planted", "--output_dir", fields["output_dir"]]
        words += ["--llm.base_url", server.url, "--llm.first_pause", "0.02", "--resamples", "200", "--device", "cpu"]
        assert main(words) == 0
        assert set(server.keys) == {f"Bearer {SECRET}"}
        assert main([*words, "--resume"]) == 0 and server.requests == 26
    shown = capsys.readouterr()
    assert "judge = llm:planted" in shown.out and "26 requests (0 malformed replies; faults: 2 5xx)" in shown.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    wins = sum(chance("better", i) < 0.75 for i in range(12))
    assert [result["overall"][k] for k in ("win", "tie", "lose")] == [wins, 0, 12 - wins]
    assert result["tie_band"] is None and result["llm"]["faults"] == {"5xx": 2}
    row = json.loads((tmp_path / "run" / "judgements.jsonl").read_text().split("\n")[0])
    assert row["verdict_ab"] == row["verdict_ba"] == {"win": "a", "lose": "b"}[row["outcome"]] and row["valid"]
    for file in (tmp_path / "run").iterdir():
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in shown.out + shown.err


def test_a_killed_duel_asks_nothing_twice(tmp_path: Path) -> None:
    killed = threading.Event()

    def plan(first: str, second: str, times: int) -> None:
        if server.requests > 60:  # further replies wait for the kill, so that it comes before the end
            killed.wait(120)

    with JudgeServer(plan=plan, pause=0.05) as server:
        fields = settings(tmp_path, server, count=60, concurrency=3)
        (tmp_path / "duel.yaml").write_text(json.dumps(fields))
        command = [sys.executable, "-m", "ppomax", "duel", str(tmp_path / "duel.yaml")]
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(command, stderr=log, stdout=log, env=os.environ.copy())
        limit = time.monotonic() + 120
        while server.requests < 40 and time.monotonic() < limit and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
        file = tmp_path / "run" / "judge_raw.jsonl"
        assert file.exists(), (tmp_path / "log").read_text()
        kept = file.read_bytes()
        assert 30 <= kept.count(b"\n") < 120
        file.write_bytes(kept + b'{"key": "half a li')  # the kill came in the middle of a line
        result = run_duel(from_mapping(DuelConfig, fields), resume=True)
        rows = raw(tmp_path / "run")
        assert len(rows) == 120 == len({row["key"] for row in rows})
        assert file.read_bytes().startswith(kept)
        twice = sum(n - 1 for n in server.asked.values())
        assert twice <= 3  # only what was under way at the kill
        assert result["llm"]["requests"] == 120 and result["overall"]["tie"] == 0


def test_over_training_with_an_llm(tmp_path: Path) -> None:
    rows = [
        {"iteration": i, "update": i, "prompt": f"question {k}", "response": f"{word} {k}", "score": 1.0}
        for i, word in ((0, "bad"), (1, "good"))
        for k in range(3)
    ]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with JudgeServer() as server:
        fields = settings(tmp_path, server) | {
            "a": str(samples),
            "b": str(samples),
            "b_iteration": 0,
            "over_training": str(samples),
        }
        result = run_duel(from_mapping(DuelConfig, fields))
        assert [m["overall"]["win_rate"]["value"] for m in result["over_training"]] == [0.5, 1.0]
        assert server.requests == 6  # the duel itself is its last moment


# ---------------------------------------------------------------------------------- rubrics, verdicts, names


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("so be it\n[[A]]", "A"),
        ("[[B]]\n\n  ", "B"),
        ("**[[C]]**", "C"),
        ("[[A]]。", "A"),
        ("first [[A]]\nthen\n[[B]]", "B"),
        ("Verdict: [[A]]", None),
        ("[[A]] or [[B]]", None),
        ("[[A]]\nbecause it is", None),
        ("[A]", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("", None),
    ],
)
def test_strict_verdicts(reply: str, verdict: str | None) -> None:
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is 熊猫?", "en"),
        ("请写一个 Python 函数", "zh"),
        ("什么是 RLHF？", "zh"),
        ("123", "en"),
        ("¿Qué tal?", "en"),
    ],
)
def test_language_of_a_prompt(text: str, language: str) -> None:
    assert prompt_language([{"role": "user", "content": text}]) == language


def test_rubrics_by_category_and_language(tmp_path: Path) -> None:
    def answer(text: str, source: str, category: str | None = None) -> Answer:
        extra = (("category", category),) if category else ()
        return Answer(({"role": "user", "content": text},), "x", source=source, metadata=extra)

    with JudgeServer() as server:
        judge = make(tmp_path, server)
        names = [
            judge.rubric_for(x).name
            for x in (
                answer("hello", "helpful-base"), answer("hello", "harmless-base"), answer("你好吗", "harmless-base", "helpful"),
                answer("你好吗", "prompts", "harmful"), answer("hello", "pharmacy"),
            )
        ]  # fmt: skip
        assert names == ["helpful_en", "harmless_en", "helpful_zh", "harmless_zh", "helpful_en"]
        a = Answer(({"role": "user", "content": "你好吗"},), "good 1", source="harmless")
        b = Answer(({"role": "user", "content": "你好吗"},), "bad 1", source="harmless")
        assert judge.verdicts([a], [b])[0]["outcome"] == 1
        assert "用户：你好吗" in server.bodies[0]["messages"][0]["content"]
        own = tmp_path / "own.md"
        own.write_text("{dialogue}\n=== Answer A ===\n{answer_a}\n=== Answer B ===\n{answer_b}\n=== End ===\nmine")
        folder = tmp_path / "own"
        folder.mkdir()
        verdict = make(folder, server, rubric=str(own)).verdicts([a], [b])[0]
        assert verdict["rubric"] == "own" and server.bodies[-1]["messages"][0]["content"].endswith("mine")
        own.write_text("{dialogue} {answer_a}")
        with pytest.raises(UserError, match=r"must hold \{answer_b\} exactly once"):
            make(folder, server, rubric=str(own))
        with pytest.raises(UserError, match="no readable file"):
            make(folder, server, rubric="nothing.md")
        with pytest.raises(UserError, match=r"llm.harmless: '\(' is no pattern"):
            make(folder, server, harmless="(")


def test_answers_that_hold_places_are_left_as_they_are() -> None:
    rubric = Rubric("x", "en", "{dialogue}|{answer_a}|{answer_b}")
    told = rubric.fill([{"role": "user", "content": "{answer_a}"}], "{answer_b}", "\\1 {dialogue}")
    assert told == "User: {answer_a}|{answer_b}|\\1 {dialogue}"


@pytest.mark.parametrize("name", ["helpful", "harmless"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_our_rubrics_are_whole(name: str, language: str) -> None:
    text = load_rubric(name, language).text
    assert all(text.count(p) == 1 for p in ("{dialogue}", "{answer_a}", "{answer_b}"))
    assert all(f"[[{v}]]" in text for v in "ABC")


def test_position_bias_by_hand() -> None:
    """Two consistent, two flips to the first, one to the second, one tie in one order, one without a verdict."""
    both = [("a", "a"), ("b", "b"), ("a", "b"), ("a", "b"), ("b", "a"), ("tie", "b"), ("refused", "b")]
    found = position_bias([
        {"verdict_ab": ab, "verdict_ba": ba, "valid": "refused" not in (ab, ba)} for ab, ba in both
    ])  # fmt: skip
    assert (found["both_decided"], found["flipped_pairs"]) == (5, 3)
    assert found["flipped"]["value"] == pytest.approx(3 / 5)
    assert found["first_when_flipped"]["value"] == pytest.approx(2 / 3)
    # first shown preferred: 1 + 1 + 2 + 2 + 0 + 1 of 11 verdicts that are no ties
    assert found["preferred_first"]["value"] == pytest.approx(7 / 11)


def test_what_two_orders_make_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A win takes both orders: a verdict beside a tie, against the other, or beside none at all is a tie."""
    judge = make(tmp_path, SimpleNamespace(url="http://127.0.0.1:9/v1"))
    words = ("a", "b", "tie", "malformed")
    for ab, ba in itertools.product(words, words):
        monkeypatch.setattr(judge, "_ask", lambda questions: None)
        monkeypatch.setattr(judge, "_verdict", lambda question, said=(ab, ba): said[question.order == "ba"])
        prompt = ({"role": "user", "content": "q"},)
        (row,) = judge.verdicts([Answer(prompt, "x")], [Answer(prompt, "y")])  # type: ignore[arg-type]
        assert row["outcome"] == {("a", "a"): 1, ("b", "b"): -1}.get((ab, ba), 0)
        assert row["valid"] == ("malformed" not in (ab, ba))


def test_names_of_judges() -> None:
    assert as_judges("llm:gpt-x:latest") == [{"llm": "gpt-x:latest"}]
    assert as_judges("rm:runs/rm/final") == as_judges("runs/rm/final") == [{"model": "runs/rm/final"}]
    assert as_judges("rm:a") == [{"model": "a"}]  # not a function `a` of a module `rm`
    assert as_judges(["world", "m.n:f", "http://x/y"]) == [
        {"function": "ppomax.world.reward:score", "name": "world"}, {"function": "m.n:f"}, {"url": "http://x/y"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge": ["llm:x", "world"]}, "make it the only judge"),
        ({"judge": "llm:"}, "needs the name of a model"),
        ({"llm": {"base_url": "http://key@host/v1"}}, "must hold no key"),
        ({"llm": {"base_url": "localhost:8000"}}, "must begin with http"),
        ({"llm": {"key_variable": "NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE holds no key"),
        ({"llm": {"attempts": 0}}, "must be >= 1"),
        ({"llm": {"ask_often": 1}}, "ask_often"),
    ],
)
def test_refused_before_anything_is_written(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    a, b = pairs(2)
    values = {"a": write(tmp_path / "a.jsonl", a), "b": write(tmp_path / "b.jsonl", b), "judge": "llm:x"}
    with pytest.raises(UserError) as error:
        run_duel(from_mapping(DuelConfig, {**values, "output_dir": str(tmp_path / "run"), **fields}))
    assert message in str(error.value) and not (tmp_path / "run").exists()
