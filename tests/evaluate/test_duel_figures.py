"""Bars of duels: what they are called, and that they are drawn."""

from __future__ import annotations

from pathlib import Path

from ppomax.evaluate.duel_figures import against_one, draw_judges, told_apart


def test_names_lose_the_folders_that_all_share() -> None:
    assert told_apart(["runs/a/final", "runs/b/final"]) == {"runs/a/final": "a", "runs/b/final": "b"}
    assert told_apart(["x/answers_a/answers.jsonl", "x/answers_b/answers.jsonl", "world"]) == {
        "x/answers_a/answers.jsonl": "answers_a", "x/answers_b/answers.jsonl": "answers_b", "world": "world",
    }  # fmt: skip
    assert told_apart(["x/a", "x/a/b"]) == {"x/a": "a", "x/a/b": "a/b"}, "never nothing"
    alone = ["/a/final", "http://127.0.0.1/v1", "http://127.0.0.1/v2", "file.jsonl"]
    assert told_apart(alone) == {name: name for name in alone}


def test_judges_side_by_side_are_drawn_by_their_short_names(tmp_path: Path) -> None:
    counts = {"win": 3, "tie": 1, "lose": 0}
    rows = {"world": counts, "runs/reward/final": counts, "runs/second/final": counts}
    draw_judges({"a": "runs/ppo/final", "b": "runs/sft/final", "by_category": {"helpful": rows}}, tmp_path)
    drawn = (tmp_path / "win_tie_lose.svg").read_text(encoding="utf-8")
    for name in ("ppo against sft", "world  (n = 4)", "reward  (n = 4)", "second  (n = 4)"):
        assert f"<!-- {name} -->" in drawn
    assert (tmp_path / "win_tie_lose.png").stat().st_size > 5000


def test_the_second_of_a_pair_loses_what_the_first_wins() -> None:
    part = {"win": 3, "tie": 1, "lose": 2}
    pairs = [
        {"one": "a", "other": "b", "overall": part, "by_category": {"helpful en": {"win": 1, "tie": 0, "lose": 0}}}
    ]
    assert against_one(pairs, "a", "b")["all"] == part
    assert against_one(pairs, "b", "a")["all"] == {"win": 2, "tie": 1, "lose": 3}
    assert against_one(pairs, "b", "a")["helpful en"] == {"win": 0, "tie": 0, "lose": 1}
    assert against_one(pairs, "a", "a") == {}
