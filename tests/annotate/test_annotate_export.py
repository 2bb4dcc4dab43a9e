"""From votes to pairs, outcomes and agreement, by hand-worked counts; and the verb from end to end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from annotate_tools import Browser, begin, item, known

from ppomax.annotate.export import decide, export
from ppomax.annotate.store import Item, Store
from ppomax.cli import main
from ppomax.config import DataSource
from ppomax.data.records import PreferencePair
from ppomax.data.sources import load_mixture
from ppomax.evaluate.duel_report import read_duel


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def judge(store: Store, who: int, wanted: dict[str, tuple[str, str | None]]) -> None:
    """Give each prompt the outcome (of A) and strength that are wanted; tests are answered right."""
    n = 0
    while (task := store.next(who)) is not None:
        outcome, strength = wanted.get(task.item.prompt[0]["content"], ("win", None))
        a = "right" if task.swapped else "left"
        b = "left" if task.swapped else "right"
        store.submit(who, task.number, f"{who}:{n}", {"win": a, "lose": b, "tie": "tie"}[outcome], strength)
        n += 1


@pytest.mark.parametrize(
    ("outcomes", "decided"),
    [
        (["win"], "win"), (["win", "win", "lose"], "win"), (["win", "lose"], None), (["tie", "lose"], None),
        (["tie", "tie", "lose"], "tie"), (["win", "tie", "lose"], None), (["win", "win", "lose", "lose"], None),
    ],
)  # fmt: skip
def test_majority(outcomes: list[str], decided: str | None) -> None:
    assert decide(outcomes) == decided == decide(outcomes[::-1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight prompts (one answered alike by both sides), seven judged by three people, and a test item."""
    items = [item(i) for i in range(5)]
    items += [item(5, "same", "same"), item(6, " ", "something", "harmless"), item(7, "half \ud83d", "whole")]
    store = begin(tmp_path, items, [known(0)], overlap=1.0)
    store._db.execute("UPDATE items SET needed = 3 WHERE kind = 'duel'")
    anna, bo, cy = (a.number for a in store.add_annotators(["anna", "bo", "cy"]))
    q = [f"question {i}" for i in range(8)]
    lose, tie = ("lose", None), ("tie", None)
    judge(store, anna, {q[0]: ("win", "clear"), q[1]: ("win", "slight"), q[2]: tie, q[3]: lose, q[6]: lose})
    judge(store, bo, {q[0]: ("win", "slight"), q[1]: ("lose", "clear"), q[2]: tie, q[3]: ("win", None), q[6]: lose})
    judge(store, cy, {q[0]: ("lose", "clear"), q[1]: ("lose", None), q[2]: lose, q[3]: tie, q[4]: lose, q[6]: lose,
                      "known 0": lose})  # fmt: skip
    store.close()
    return tmp_path


def test_pairs_are_read_by_the_reward_stage(folder: Path) -> None:
    out = folder / "pairs.jsonl"
    result = export(folder, out, resamples=100)
    # 0: win 2:1; 1: lose 2:1; 2: tie 2:1; 3: undecided; 4: win 2:1; 6: an empty answer; 7: win 3:0
    assert result["pairs"] == {"pairs": 4, "ties": 1, "undecided": 1, "empty answers": 1}
    records, report = load_mixture([DataSource(path=str(out))], "pair")
    assert report.dropped == {"not valid Unicode": 1}  # the half of a surrogate pair, told by the reader
    found = {r.prompt[0]["content"]: r for r in records if isinstance(r, PreferencePair)}
    assert {k: (p.chosen[0]["content"], p.rejected[0]["content"]) for k, p in found.items()} == {
        "question 0": ("a0 text", "b0 text"), "question 1": ("b1 text", "a1 text"), "question 4": ("a4 text", "b4 text"),
    }  # fmt: skip
    margins = {k: p.margin for k, p in found.items()}
    assert margins == {"question 0": pytest.approx((1 + 1 / 3) / 2), "question 1": 1.0, "question 4": None}
    assert {p.source for p in found.values()} == {"helpful"}


def test_judgements_read_as_a_duels(folder: Path) -> None:
    result = export(folder, folder / "pairs.jsonl", resamples=100)
    rows = {row["prompt"][0]["content"]: row for row in rows_of(folder / "judgements.jsonl")}
    outcomes = [rows[f"question {i}"]["outcome"] for i in range(8)]
    assert outcomes == ["win", "lose", "tie", "tie", "win", "tie", "lose", "win"]
    assert [i for i in range(8) if rows[f"question {i}"]["undecided"]] == [3]
    assert [i for i in range(8) if rows[f"question {i}"]["same"]] == [5]
    assert rows["question 0"]["votes"] == {"win": 2, "tie": 0, "lose": 1}
    assert rows["question 5"]["votes"] == {"win": 0, "tie": 0, "lose": 0}
    duel = {"prompt", "response_a", "response_b", "score_a", "score_b", "length_a", "length_b", "outcome", "source"}
    for row in rows.values():
        assert duel <= row.keys() and row["length_a"] == len(row["response_a"])
        sign = (row["score_a"] > row["score_b"]) - (row["score_a"] < row["score_b"])
        assert {"win": 1, "tie": 0, "lose": -1}[row["outcome"]] == sign
    overall = result["overall"]
    assert (overall["win"], overall["tie"], overall["lose"]) == (3, 3, 2)
    assert overall["win_rate"]["value"] == 4.5 / 8 and result["by_source"].keys() == {"helpful", "harmless"}
    assert result["items"] == {
        "all": 8, "same": 1, "judged": 7, "open": 0, "meant_for_two": 7, "judged_by_two": 7, "undecided": 1,
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result


def test_agreement_and_attention_by_hand(folder: Path) -> None:
    result = export(folder, folder / "pairs.jsonl", resamples=100)
    # anna: W W T L W L W   bo: W L T W W L W   cy: L L L T L L W   (prompts 0 1 2 3 4 6 7)
    assert {k: (v["same"], v["items"], v["decided_same"], v["decided"]) for k, v in result["agreement"].items()} == {
        "anna - bo": (5, 7, 4, 6), "anna - cy": (2, 7, 2, 5), "bo - cy": (3, 7, 3, 5), "all": (10, 21, 9, 16),
    }  # fmt: skip
    # anna - bo: 5/7 the same; both gave W 4, L 2, T 1 times, so by chance (16 + 4 + 1) / 49
    chance = result["beyond_chance"]
    (kappa,) = [p["kappa"]["value"] for p in chance["pairs"] if (p["one"], p["other"]) == ("anna", "bo")]
    assert kappa == pytest.approx((5 / 7 - 21 / 49) / (1 - 21 / 49))
    # nominal alpha: 10 of 21 pairs the same; all 21 votes: W 9, L 9, T 3, each against the 20 others
    by_chance = 1 - (9 * 8 + 9 * 8 + 3 * 2) / (21 * 20)
    assert chance["all_judges"]["alpha_nominal"]["value"] == pytest.approx(1 - (11 / 21) / by_chance)
    tests = {name: row["tests"] for name, row in result["annotators"].items()}
    assert tests["anna"] == {"right": 1, "tie": 0, "wrong": 0} and tests["cy"] == {"right": 0, "tie": 0, "wrong": 1}
    assert all(
        row["judged"] == 7 and row["left"] + row["right"] + row["tie"] == 7 for row in result["annotators"].values()
    )
    votes = rows_of(folder / "votes.jsonl")
    assert len(votes) == 24 and {v["kind"] for v in votes} == {"duel", "test"}
    without = export(folder, folder / "pairs.jsonl", without=["cy"], resamples=100)
    assert without["pairs"] == {"pairs": 3, "ties": 1, "undecided": 2, "empty answers": 1}
    assert without["agreement"].keys() == {"anna - bo", "all"} and "cy" in without["annotators"]


def test_withdrawn_judgements_do_not_count(tmp_path: Path) -> None:
    store = begin(tmp_path, [item(0), item(1)])
    (anna,) = store.add_annotators(["anna"])
    judge(store, anna.number, {})
    last = store.last(anna.number)
    assert last is not None and store.undo(anna.number, last)
    store.close()
    result = export(tmp_path, tmp_path / "pairs.jsonl", resamples=100)
    assert len(rows_of(tmp_path / "pairs.jsonl")) == len(rows_of(tmp_path / "judgements.jsonl")) == 1
    assert result["items"]["open"] == 1 and result["annotators"]["anna"]["withdrawn"] == 1
    assert len(rows_of(tmp_path / "votes.jsonl")) == 2 and result["beyond_chance"] is None


def test_people_are_a_judge_in_the_duel_report(folder: Path) -> None:
    export(folder, folder / "pairs.jsonl", resamples=100)
    found = read_duel(str(folder))
    assert found.judge == "people" and sorted(found.outcomes.values()) == [-1, -1, 0, 0, 0, 1, 1, 1]


def write_answers(path: Path, items: list[Item], side: str) -> None:
    rows = [{"prompt": list(i.prompt), "response": getattr(i, f"response_{side}"), "source": i.source} for i in items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_verb_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Served by the command, judged over HTTP, stopped with Ctrl-C, exported."""
    for side in "ab":
        write_answers(tmp_path / f"answers_{side}.jsonl", [item(0), item(1)], side)
    pair = {"prompt": "known", "chosen": "good", "rejected": "bad"}
    (tmp_path / "known.jsonl").write_text(json.dumps(pair) + "\n")
    # a shell may have started us with Ctrl-C ignored
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from ppomax.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", script, "annotate", str(tmp_path), "--annotators", "anna,bo", "--tests"]
    server = subprocess.Popen([*words, str(tmp_path / "known.jsonl")], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = []
        while not (lines and lines[-1].startswith("every judgement")):
            lines.append(server.stdout.readline())
            assert lines[-1], lines
        urls = re.findall(r"http://127\.0\.0\.1:\d+/\d+/\?token=\S+", "".join(lines))
        assert len(urls) == 2 and lines[-3].startswith("anna: ")
        anna = Browser(urls[0]).enter()
        while not anna.done:
            assert anna.post("judge", {**anna.hidden("judge"), "choice": "right"}) == 303
            anna.look()
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    out = tmp_path / "new.jsonl"
    assert main(["annotate", "export", str(tmp_path), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 prompts judged" in told and "2 pairs; left out: 0 ties" in told and "anna: 2 judged" in told
    assert len(rows_of(out)) == 2 and (tmp_path / "people" / "judgements.jsonl").exists()
    out.write_text("mine\n")
    assert main(["annotate", "export", str(tmp_path), "--out", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err and out.read_text() == "mine\n"
    assert main(["annotate", "export", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "already exists: choose another --out" in capsys.readouterr().err
    assert main(["annotate", "export", str(tmp_path), "--out", str(out), "--overwrite"]) == 0
    assert len(rows_of(out)) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["annotate"], "missing answers"),
        (["annotate", "{d}"], "no answers_a.jsonl and answers_b.jsonl in it"),
        (["annotate", "{d}/a.jsonl", "{d}/b.jsonl"], "--output_dir is needed with two files"),
        (["annotate", "a", "b", "c", "--output_dir", "{d}/o"], "give the folder of a duel, or two files"),
        (["annotate", "{d}/a.jsonl", "{d}/c.jsonl", "--output_dir", "{d}/o"], "answer no prompt in common"),
        (
            ["annotate", "{d}/a.jsonl", "{d}/b.jsonl", "--output_dir", "{d}/o", "--annotators", "x,x"],
            "a name occurs twice",
        ),
        (["annotate", "{d}", "--overlap", "1.5"], "overlap = 1.5: must be <= 1"),
        (["annotate", "export", "{d}", "--out", "{d}/p.jsonl"], "no annotation has begun"),
        (["annotate", "export", "{d}", "--out", "{d}/no/p.jsonl"], "is not a folder"),
        (["annotate", "export", "{d}"], "missing out"),
        (["annotate", "export", "{d}", "more", "--out", "x"], "unexpected word 'more'"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("a", 0), ("b", 0), ("c", 1)):
        write_answers(tmp_path / f"{name}.jsonl", [item(number)], "a")
    assert main([word.replace("{d}", str(tmp_path)) for word in words]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_export_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = begin(tmp_path, [item(0)])
    store.add_annotators(["anna"])
    store.close()
    out = str(tmp_path / "p.jsonl")
    assert main(["annotate", "export", str(tmp_path), "--out", out]) == 2
    assert "nothing is judged yet" in capsys.readouterr().err
    assert main(["annotate", "export", str(tmp_path), "--out", out, "--without", "bo"]) == 2
    assert "there is no annotator 'bo'; there are anna" in capsys.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()
