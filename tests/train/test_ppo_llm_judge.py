"""A language model judges while PPO trains: the numbers, what it is asked, and what happens when it cannot be asked.

The judge is a real HTTP server that prefers answers by a rule of this file, so its win rates must be those of a judge that
gives scores by the same rule.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.config import PPOConfig, RewardSourceConfig
from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.evaluate.llm_endpoint import ReplyFile
from ppomax.options import resolve, warnings_for
from ppomax.train import ppo_compare

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluate"))
sys.path.insert(0, str(Path(__file__).parent))
from judge_server import SECRET, JudgeServer
from kill_tools import end, forget_to_sync, start_script
from ppo_tools import byte_sum, lines, make_policy, make_tokenizer, prompts, run, skip_report, timeless
from rank_tools import free_port, start_ranks

BAND = 0.3
SCORED: dict[str, Any] = {
    "iterations": 5, "watch": {"judge": ["test_ppo_llm_judge:byte_sum"], "judge_every": 2, "judge_prompts": 5, "tie_band": BAND},
    "watch.every": 2, "watch.eval_prompts": 5, "watch.baselines": ["sampled", "greedy"],
}  # fmt: skip
QUICK = {"first_pause": 0.01, "retries": 0, "concurrency": 2}


class RuleServer(JudgeServer):
    """Prefers the answer with the higher `byte_sum`; one within the band is a tie."""

    def verdict(self, first: str, second: str) -> str:
        one, other = byte_sum([], [first, second])
        if abs(one - other) <= BAND:
            return "C"
        return "A" if one > other else "B"


class FirstServer(JudgeServer):
    """Prefers whatever is shown first."""

    def verdict(self, first: str, second: str) -> str:
        return "A"


def compared(url: str, **changes: Any) -> dict[str, Any]:
    watch = {**SCORED["watch"], "judge": ["llm:planted"], "llm": {"base_url": url, **QUICK}}
    return {**SCORED, "watch": watch, **changes}


def of_kinds() -> list[Prompt]:
    kinds = ("even", "odd")
    return [Prompt(p.messages, "asked", metadata=(("category", kinds[i % 2]),)) for i, p in enumerate(prompts())]


def told(folder: Path) -> list[dict[str, Any]]:
    return lines(folder / "judge/judge_raw.jsonl")


def one_run(folder: Path, url: str, size: int, rank: int) -> int:
    ppo_compare.SIGN_OF_LIFE = 0.02
    run(folder / f"run-{size}", compared(url, iterations=2))
    return 0


def script(folder: Path) -> None:
    forget_to_sync()
    make_policy()(torch.tensor([[1]]))
    make_tokenizer()
    skip_report()
    with RuleServer(pause=0.05) as server:
        jobs = {size: functools.partial(one_run, folder, server.url, size) for size in (1, 2)}
        children = [child for size, job in jobs.items() for child in start_ranks(job, size, folder / "log")]
        codes = [end(child) for child in children]
    (folder / "results.json").write_text(json.dumps({"codes": codes}), encoding="utf-8")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def server() -> Iterator[RuleServer]:
    with RuleServer() as server:
        yield server


def test_numbers_are_those_of_a_judge_with_scores(
    server: RuleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    run(tmp_path / "scored", SCORED, prompts=of_kinds())
    capsys.readouterr()
    run(tmp_path / "run", compared(server.url), prompts=of_kinds(), report=True)
    rows, scored = (lines(tmp_path / name / "evaluations.jsonl") for name in ("run", "scored"))
    assert [row["iteration"] for row in rows] == [0, 2, 4, 5]
    assert len({row["eval/win_rate"] for row in rows}) > 1
    for row, other in zip(rows, scored, strict=True):
        expected = {k: v for k, v in other.items() if not k.startswith("eval/judge")}
        failed = dict.fromkeys(("eval/judge_failed", "eval/judge_failed_sampled", "eval/judge_failed_greedy"), 0)
        assert row == expected | failed
        assert {"eval/win_rate_sampled/even", "eval/win_rate_greedy/odd", "eval/win_rate_se"} <= set(row)
    best, other = (json.loads((tmp_path / name / "best/best.json").read_text()) for name in ("run", "scored"))
    assert best == other and (tmp_path / "run/best/model.safetensors").exists()
    # Every reply is kept, nothing was asked twice, and the key is nowhere.
    replies = told(tmp_path / "run")
    assert len(replies) == server.requests == len({row["key"] for row in replies})
    assert server.requests <= 4 * 20 and max(server.asked.values()) == 1
    assert set(server.keys) == {f"Bearer {SECRET}"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8 and not any(SECRET.encode() in path.read_bytes() for path in files)
    error = capsys.readouterr().err
    assert (
        "judge llm:planted: up to 20 requests an evaluation (5 prompts, both orders, 2 baselines), and 4 evaluations: up to "
        "80, besides retries" in error
    )
    assert "answers to 5 held-out prompts" in error and not (tmp_path / "run/judge/sampled.jsonl").read_text().count(
        '"score"'
    )
    page = (tmp_path / "run/report.html").read_text()
    assert "Judged by llm:planted on 5 fixed held-out prompts" in page and "turns with the order of the answers" in page


def test_a_verdict_that_turns_with_the_order_is_a_tie(tmp_path: Path) -> None:
    with FirstServer() as server:
        run(tmp_path / "run", compared(server.url, iterations=1))
    for row in lines(tmp_path / "run/evaluations.jsonl"):
        assert (row["eval/tie"], row["eval/win_rate"], row["eval/win_rate_se"]) == (1.0, 0.5, 0.0)


def test_prompts_without_a_verdict_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "scored", {**SCORED, "iterations": 1})
    sampled = lines(tmp_path / "scored/judge/sampled.jsonl")
    no, broken = sampled[1]["response"], sampled[3]["response"]
    assert len({row["response"] for row in sampled}) == 5

    def plan(first: str, second: str, times: int) -> str | None:
        return "refusal" if no in (first, second) else "400" if second == broken else None

    with RuleServer(plan=plan) as server:
        run(tmp_path / "run", compared(server.url, iterations=1))
    answers = {s["iteration"]: [] for s in lines(tmp_path / "run/samples.jsonl")}
    for sample in lines(tmp_path / "run/samples.jsonl"):
        answers[sample["iteration"]].append(sample["response"])
    rows = lines(tmp_path / "run/evaluations.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1]
    for row in rows:
        halves = []
        for i in (0, 2, 4):
            one, other = byte_sum([], [answers[row["iteration"]][i], sampled[i]["response"]])
            halves.append(0.5 if abs(one - other) <= BAND else float(one > other))
        assert (row["eval/prompts"], row["eval/judge_failed"], row["eval/judge_failed_greedy"]) == (3, 2, 0)
        assert row["eval/win_rate"] == pytest.approx(sum(halves) / 3)
        assert row["eval/length"] > 0
    assert "answers to 3 held-out prompts (2 more without a verdict)" in capsys.readouterr().err


def test_few_verdicts_find_no_best_policy(tmp_path: Path) -> None:
    """Two verdicts of five leave a line, but one win would be 100%, and no later policy could be better."""
    run(tmp_path / "scored", {**SCORED, "iterations": 1})
    refused = {row["response"] for row in lines(tmp_path / "scored/judge/sampled.jsonl")[:3]}

    def plan(first: str, second: str, times: int) -> str | None:
        return "refusal" if refused & {first, second} else None

    with RuleServer(plan=plan) as server:
        run(tmp_path / "run", compared(server.url, iterations=1))
    assert [row["eval/prompts"] for row in lines(tmp_path / "run/evaluations.jsonl")] == [2, 2]
    assert not (tmp_path / "run/best").exists() and (tmp_path / "scored/best").exists()


def test_an_endpoint_that_is_gone_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = f"http://127.0.0.1:{free_port()}/v1"
    without = run(tmp_path / "silent", {**SCORED, "watch.judge": []})
    result = run(tmp_path / "run", compared(gone))
    assert timeless(result.metrics) == timeless(without.metrics)
    assert (tmp_path / "run/final/model.safetensors").exists()
    assert not any((tmp_path / "run" / name).exists() for name in ("evaluations.jsonl", "best"))
    error = capsys.readouterr().err
    assert error.count("no evaluation") == 2  # once when it began, once at the end
    assert "warning: iteration 0: no evaluation: judge llm:planted: no reply to 3 questions" in error
    assert "no evaluation was judged; 4 evaluations of this start could not be had" in error
    [alarm] = [row for row in lines(tmp_path / "run/alarms.jsonl") if row["detector"] == "judge"]
    assert (alarm["iteration"], alarm["level"]) == (0, "notice") and "no reply to 3 questions" in alarm["message"]


def test_a_refused_key_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RuleServer(plan=lambda *_: "401") as server:
        run(tmp_path / "run", compared(server.url, iterations=1))
    assert "refuses every request: HTTP status 401" in capsys.readouterr().err
    assert not (tmp_path / "run/evaluations.jsonl").exists()


def test_an_endpoint_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    """Away at the second of four evaluations."""
    times: list[int] = []

    def plan(first: str, second: str, _: int) -> str | None:
        return "503" if 1 in times else None

    evaluate = ppo_compare.Comparison.verdicts

    def counted(self: Any, answers: Any, baselines: Any, iteration: int) -> Any:
        times[:] = [int(iteration == 2)]
        return evaluate(self, answers, baselines, iteration)

    with RuleServer(plan=plan) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_compare.Comparison, "verdicts", counted)
        run(tmp_path / "run", compared(server.url))
    run(tmp_path / "scored", SCORED)
    rows, scored = (lines(tmp_path / name / "evaluations.jsonl") for name in ("run", "scored"))
    assert [row["iteration"] for row in rows] == [0, 4, 5]
    rates = {row["iteration"]: row["eval/win_rate"] for row in scored}
    assert all(row["eval/win_rate"] == rates[row["iteration"]] for row in rows)
    assert [row["iteration"] for row in lines(tmp_path / "run/alarms.jsonl") if row["detector"] == "judge"] == [2]


def test_a_budget_ends_evaluations_and_a_resumed_run_has_it_anew(
    server: RuleServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = compared(server.url, iterations=3, **{"checkpoint.every": 1, "watch.llm.max_requests": 25})
    run(tmp_path / "run", short)
    assert server.requests == 25 and len(told(tmp_path / "run")) == 25
    assert [row["iteration"] for row in lines(tmp_path / "run/evaluations.jsonl")] == [0]
    error = capsys.readouterr().err
    assert error.count("the budget of watch.llm.max_requests = 25 is used up") == 1
    assert "the budget is watch.llm.max_requests = 25 a start" in error
    run(tmp_path / "run", {**short, "iterations": 5, "watch.llm.max_requests": 1000}, resume=True)
    assert [row["iteration"] for row in lines(tmp_path / "run/evaluations.jsonl")] == [0, 4, 5]
    assert max(server.asked.values()) == 1


def test_nothing_is_asked_twice_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"iterations": 3, "checkpoint.every": 1, "watch.judge_every": 1, "watch.llm.concurrency": 1}
    with RuleServer() as server:
        run(tmp_path / "whole", compared(server.url, **changes))
        needed = server.requests
    add, lives = ReplyFile.add, 0
    with RuleServer() as server:
        while True:
            left = [13]

            def dying(self: ReplyFile, row: dict[str, Any], left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row)[:20])  # half a line
                    raise KeyboardInterrupt
                add(self, row)

            monkeypatch.setattr(ReplyFile, "add", dying)
            lives += 1
            try:
                run(tmp_path / "run", compared(server.url, **changes), resume=lives > 1)
                break
            except KeyboardInterrupt:
                assert lives < 10
        assert lives > 3 and server.requests == needed + lives - 1  # only what was under way at a kill
    for name in ("evaluations.jsonl", "judge/sampled.jsonl", "best/best.json"):
        assert lines(tmp_path / "run" / name) == lines(tmp_path / "whole" / name)
    assert {r["key"]: r["verdict"] for r in told(tmp_path / "run")} == {
        r["key"]: r["verdict"] for r in told(tmp_path / "whole")
    }


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    results = start_script(__file__, tmp_path)
    assert results["codes"] == [0, 0, 0], (tmp_path / "log").read_text()[-3000:]
    one, two = (lines(tmp_path / f"run-{n}" / "evaluations.jsonl") for n in (1, 2))
    assert [row["iteration"] for row in one] == [row["iteration"] for row in two] == [0, 2]
    assert [row["eval/win_rate"] for row in one] == [row["eval/win_rate"] for row in two]
    assert {row["key"] for row in told(tmp_path / "run-1")} == {row["key"] for row in told(tmp_path / "run-2")}


def test_what_cannot_be_asked_leaves_no_run(tmp_path: Path) -> None:
    for changes, message in (
        ({"watch.llm": {}}, "judge llm:planted: .*OPENAI_API_KEY holds no key; set it, or give --watch.llm.base_url"),
        ({"watch.llm.base_url": "localhost"}, "watch.llm.base_url: 'localhost' must begin with http"),
        ({"watch.llm.rubric": str(tmp_path / "none.md")}, "no readable file"),
        ({"watch.judge": ["llm:a", "world"]}, r"watch\.judge\.0: llm:a compares .* make it the only judge"),
    ):
        config = compared("http://127.0.0.1:9/v1", **{k: v for k, v in changes.items() if k != "watch.llm"})
        if "watch.llm" in changes:
            del config["watch"]["llm"]
        with pytest.raises(UserError, match=message):
            run(tmp_path / "run", config)
        assert not (tmp_path / "run").exists()


def configured(*words: str) -> PPOConfig:
    return resolve(PPOConfig, ["--model=m", "--reward=r", "--prompts=p", "--output_dir=o", *words])


def test_options() -> None:
    [judge] = configured("--watch.judge", "llm:gpt-x:latest").watch.judge
    assert judge.llm == "gpt-x:latest"
    assert judge.model_dump()["llm"] == "gpt-x:latest"
    [scores] = configured("--watch.judge", "world").watch.judge  # as before there were judges of this kind
    assert scores.model_dump() == RewardSourceConfig(function="ppomax.world.reward:score", name="world").model_dump()
    assert warnings_for(configured("--watch.judge", "llm:x", "--watch.llm.max_requests", "9")) == []
    for words, warning in (
        (["llm:x", "--watch.tie_band", "0.5"], "watch.tie_band does nothing: an llm:MODEL judge gives no scores"),
        (["llm:x", "--watch.llm.rubric", "helpful", "--watch.llm.harmless", "x"], "watch.llm.harmless does nothing"),
        (["world", "--watch.llm.attempts", "2"], "watch.llm.attempts does nothing: watch.judge is no llm:MODEL"),
        (["{llm: x, weight: 0.0}"], "watch.judge.0.weight does nothing: an llm:MODEL judge is the only one"),
        (["{llm: x, retries: 9}"], "watch.judge.0.retries does nothing: this source is no HTTP endpoint"),
    ):
        [found] = warnings_for(configured("--watch.judge", *words))
        assert found.startswith(warning)
    with pytest.raises(UserError, match=r"watch\.judge\.0: llm: needs the name of a model"):
        configured("--watch.judge", "llm:")
    with pytest.raises(UserError, match=r"watch\.judge\.1: .* make it the only judge"):
        configured("--watch.judge", "world", "llm:x")


if __name__ == "__main__":
    script(Path(sys.argv[1]))
