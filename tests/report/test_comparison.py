"""The comparison of PPO runs: what its sentences say of given numbers, which dialogues it shows, and an escaped page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.report.comparison import Compared, Rate, compare_runs, dialogues, sentences, verdict
from ppomax.report.comparison_page import comparison_page, table

EXAM = Rate(0.5, 0.4, 0.6, 60)
START = {"reward": 0.0, "kl": 0.0, "length": 20.0, "perplexity": 1.5}


def evaluation(iteration: int, rate: float, reward: float = 0.0, greedy: float = 0.5) -> dict[str, Any]:
    return {
        "iteration": iteration, "update": 4 * iteration, "eval/prompts": 100, "eval/win_rate": rate,
        "eval/win_rate_se": 0.03, "eval/win_rate_greedy": greedy, "eval/win_rate_greedy_se": 0.05,
        "eval/reward": reward, "eval/reward_sampled_std": 2.0, "eval/kl": 3.0, "eval/length": 20.0,
        "eval/perplexity": 1.4,
    }  # fmt: skip


def run(name: str, wins: Rate, rates: list[float], reward: float, exam: dict[str, Any] | None = None) -> Compared:
    rows = [evaluation(10 * i, rate, reward) for i, rate in enumerate(rates)]
    title = {"ppo_max": "PPO-max", "vanilla": "vanilla PPO"}[name]
    measures = START | {"reward": reward, "kl": 3.0}
    return Compared(name, title, measures, EXAM, {"overall": wins}, exam or {"sign_test_p": 1.0}, rows, [{"update": 4}])


SFT = Compared("sft", "SFT", START, EXAM, {}, {}, [], [])


def said(*runs: Compared) -> str:
    return "\n".join(sentences([SFT, *runs]))


def test_verdicts_go_by_the_interval() -> None:
    assert verdict(Rate(0.6, 0.51, 0.7, 9)) == "better than SFT"
    assert verdict(Rate(0.4, 0.3, 0.49, 9)) == "worse than SFT"
    assert verdict(Rate(0.5, 0.4, 0.6, 9)) == verdict(Rate(0.55, 0.5, 0.6, 9)) == "not to be told from SFT"


def test_the_pattern_of_the_paper() -> None:
    text = said(
        run("ppo_max", Rate(0.7, 0.65, 0.75, 400), [0.5, 0.6, 0.7], 1.0),
        run("vanilla", Rate(0.2, 0.15, 0.25, 400), [0.5, 0.6, 0.2], 5.0),
    )
    assert "PPO-max: its reward rose by 0.5 standard deviations of SFT's, and its answers are better than SFT" in text
    assert "vanilla PPO: its reward rose by 2.5 standard deviations" in text
    assert text.count("exploit the reward model") == 1
    assert "vanilla PPO was at its best at iteration 10 with 60%, and ended at 20%" in text
    assert "PPO-max was at its best" not in text
    assert "is 50 points above that of vanilla PPO." in text and "overlap" not in text
    assert "vanilla PPO did not fall below SFT" not in text
    assert "Against SFT's greedy answers PPO-max wins 50% [40, 60] on 100 prompts: not to be told from these." in text


def test_disappointments_are_said() -> None:
    text = said(
        run("ppo_max", Rate(0.4, 0.35, 0.45, 400), [0.5, 0.4], 1.0, {"gained": 1, "lost": 12, "sign_test_p": 0.003}),
        run("vanilla", Rate(0.6, 0.55, 0.65, 400), [0.5, 0.6], -0.4),
    )
    assert "PPO-max: its reward rose by 0.5 standard deviations of SFT's, and its answers are worse than SFT" in text
    assert "exploit the reward model" in text.split("\n")[0]
    assert "PPO-max forgot: in the exam 1 questions were gained and 12 lost (p = 0.003)." in text
    assert "vanilla PPO: its reward fell by 0.2 standard deviations" in text
    assert "is 20 points below that of vanilla PPO." in text
    assert "vanilla PPO did not fall below SFT" in text


def judgement(source: str, number: int, a: str, b: str) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"{source} {number}?"}]
    return {"prompt": prompt, "response_a": a, "response_b": b, "score_a": 0.9, "score_b": 0.1, "source": source}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of a pipeline with two runs."""
    rate = {"value": 0.6, "low": 0.5, "high": 0.7}
    for name, mark in (("ppo_max", "A"), ("vanilla", "B")):
        (tmp_path / name).mkdir()
        lines = [evaluation(0, 0.5), evaluation(10, 0.6, 1.0)]
        (tmp_path / name / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"phase": "policy", "update": 4}) + "\n")
        duel = tmp_path / f"duel_{name}"
        duel.mkdir()
        part = {"win_rate": rate, "prompts": 3}
        (duel / "result.json").write_text(
            json.dumps({"overall": part, "by_source": {"harmful": part, "helpful": part}})
        )
        rows = [
            judgement("harmful", 1, "same", "same"),
            judgement("harmful", 2, f"{mark} <script>alert(1)</script>", "no & never"),
            judgement("helpful", 3, "same", "same"),
        ]
        (duel / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    accuracy = {"n": 10, "chance": 0.25, "acc": {"accuracy": 0.5, "interval": [0.2, 0.8]}}
    exam = {
        "models": {name: {"overall": accuracy} for name in ("x/sft", "x/ppo_max", "x/vanilla")},
        "against_first": {name: {"gained": 1, "lost": 1, "sign_test_p": 1.0} for name in ("x/ppo_max", "x/vanilla")},
    }
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "result.json").write_text(json.dumps(exam))
    return tmp_path


def test_dialogues_are_the_first_that_differ(root: Path) -> None:
    rows = compare_runs(root, ["ppo_max", "vanilla"])
    helpful, harmful = dialogues(root, rows)
    assert harmful["turns"][0]["content"] == "harmful 2?"  # the first one's answers are the same
    assert [(a["title"], a["text"][:2], a["score"]) for a in harmful["answers"]] == [
        ("SFT", "no", 0.1),
        ("PPO-max", "A ", 0.9),
        ("vanilla PPO", "B ", 0.9),
    ]
    assert (
        helpful["category"] == "helpful" and helpful["turns"][0]["content"] == "helpful 3?"
    )  # none differs: the first


def test_a_judge_that_compares_gives_no_scores(root: Path) -> None:
    for name in ("ppo_max", "vanilla"):
        file = root / f"duel_{name}" / "judgements.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            del row["score_a"], row["score_b"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compared = compare_runs(root, ["ppo_max", "vanilla"])
    found = dialogues(root, compared)
    assert [a["score"] for d in found for a in d["answers"]] == [None] * 6
    page = comparison_page("Title", "About", compared, [], found, 0.25)
    assert "no &amp; never</td>" in page and "None" not in page.split("no &amp; never")[1][:40]


def test_table_and_page(root: Path) -> None:
    rows = compare_runs(root, ["ppo_max", "vanilla"])
    cells = dict(table(rows))
    assert cells["wins"] == ["–", "60% [50, 70]", "60% [50, 70]"] and cells["exam"] == ["50% [20, 80]"] * 3
    assert cells["reward"] == ["0", "1", "1"] and list(cells)[4:] == ["wins", "wins, helpful", "wins, harmless", "exam"]
    page = comparison_page("Title", "About", rows, ["a < b"], dialogues(root, rows), 0.25)
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "a &lt; b" in page
    assert (
        "no &amp; never" in page and page.count("data:image/") == 1  # the win rate; no other numbers
    )  # the win rate, and a picture for each metric that the runs have


def test_missing_parts_are_named(root: Path) -> None:
    (root / "vanilla" / "evaluations.jsonl").unlink()
    with pytest.raises(UserError, match=r"vanilla: no evaluations.jsonl: the comparison needs `watch.judge`"):
        compare_runs(root, ["ppo_max", "vanilla"])
    (root / "exam" / "result.json").unlink()
    with pytest.raises(UserError, match=r"exam: no result.json"):
        compare_runs(root, ["ppo_max"])


def test_outcomes_that_are_all_alike_are_not_certain() -> None:
    found = Rate.of(1.0, 0.0, 6)  # Clopper and Pearson by hand: .025 ** (1 / 6)
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 6)), 1.0)
    found = Rate.of(0.9, 0.1, 9)
    assert (found.low, found.high) == (pytest.approx(0.9 - 0.196), 1.0)
