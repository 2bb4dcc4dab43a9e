"""Published files of votes: MT-Bench's and AlpacaEval's layouts, and agreement by hand and by a slow loop."""

from __future__ import annotations

import csv
import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ppomax.cli import main
from ppomax.errors import UserError
from ppomax.evaluate.agreement import krippendorff_alpha
from ppomax.evaluate.votes import read_votes, report_votes


def mt_bench(judge: Any, winner: Any, question: int = 1, turn: int = 1, a: str = "x", b: str = "y") -> dict[str, Any]:
    return {"question_id": question, "model_a": a, "model_b": b, "winner": winner, "judge": judge, "turn": turn}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair_of(part: dict[str, Any], one: str, other: str) -> dict[str, Any]:
    return next(
        p for p in part["pairs"] if {p["one"], p["other"]} == {one, other} and (p["one"] == one or one != other)
    )


def test_mt_bench_by_hand(tmp_path: Path) -> None:
    """Question 1: experts x, y, tie; GPT-4 x. Question 2, sides the other way round: experts x, x; GPT-4 inconsistent."""
    human = write(
        tmp_path / "human.jsonl",
        [
            mt_bench("expert_1", "model_a"),
            mt_bench("expert_2", "model_b"),
            mt_bench("expert_3", "tie"),
            mt_bench("expert_1", "model_b", 2, a="y", b="x"),
            mt_bench("expert_2", "model_a", 2),
            mt_bench("author_1", "model_a"),
            mt_bench("expert_2", "model_a", turn=2),
        ],
    )
    words = (("model_a", 1, 1), ("tie (inconsistent)", 2, 1), ("model_b", 1, 2))
    gpt = [mt_bench("gpt4_pair", word, question, turn) for word, question, turn in words]
    report = report_votes([human, write(tmp_path / "gpt4_pair.jsonl", gpt)], resamples=100)
    assert list(report["parts"]) == ["turn 1", "turn 2", "all"]
    first = report["parts"]["turn 1"]
    mixed = pair_of(first, "expert", "gpt4_pair")  # x-x; y-x, tie-x; x-tie twice
    assert (mixed["votes"], mixed["votes_decided"]) == (5, 2)
    assert mixed["agreement"]["value"] == pytest.approx(1 / 5)
    assert mixed["agreement_decided"]["value"] == pytest.approx(1 / 2)
    assert mixed["agreement_half"]["value"] == pytest.approx((1 + 0 + 0.5 + 0.5 + 0.5) / 5)
    people = pair_of(first, "expert", "expert")  # three pairs of three votes, none alike; x-x in question 2
    assert (people["votes"], people["votes_decided"]) == (4, 2)
    assert people["agreement"]["value"] == pytest.approx(1 / 4)
    assert people["agreement_decided"]["value"] == pytest.approx(1 / 2)
    assert pair_of(first, "author", "gpt4_pair")["agreement"]["value"] == 1
    assert pair_of(report["parts"]["turn 2"], "expert", "gpt4_pair")["agreement"]["value"] == 0
    both = pair_of(report["parts"]["all"], "expert", "gpt4_pair")  # turns are apart: no vote meets one on another turn
    assert both["votes"] == 6
    assert report["kinds"]["expert"] == {"votes": 6, "judges": 3, "pairs": 3, "ties": pytest.approx(1 / 6)}


def random_votes(seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    rows = []
    for question in range(30):
        for a, b in combinations("pqr", 2):
            for turn in (1, 2):
                better = draw.choice(["model_a", "model_b"])
                for judge in ["gpt4_pair", *(f"expert_{i}" for i in draw.sample(range(9), draw.randint(0, 3)))]:
                    word = draw.choice([better, better, "model_a", "model_b", "tie"])
                    if word == "tie" and judge == "gpt4_pair":
                        word = draw.choice(["tie", "tie (inconsistent)"])
                    row = mt_bench(judge, word, question, turn, a, b)
                    if draw.random() < 0.5:
                        turned = {"model_a": "model_b", "model_b": "model_a"}
                        row |= {"model_a": b, "model_b": a, "winner": turned.get(word, word)}
                    rows.append(row)
    draw.shuffle(rows)
    return rows


def slow(rows: list[dict[str, Any]], turn: int, kinds: tuple[str, str], ties: bool) -> tuple[int, int]:
    """(pairs of votes alike, pairs of votes): every two votes are held against each other."""
    alike = of = 0
    for one, other in combinations([row for row in rows if row["turn"] == turn], 2):
        if one["question_id"] != other["question_id"]:
            continue
        if {one["model_a"], one["model_b"]} != {other["model_a"], other["model_b"]}:
            continue
        if sorted(row["judge"].rsplit("_", 1)[0].replace("gpt4", "gpt4_pair") for row in (one, other)) != sorted(kinds):
            continue
        better = [row.get(row["winner"], "tie") for row in (one, other)]  # name of the better model
        if not ties and "tie" in better:
            continue
        of, alike = of + 1, alike + (better[0] == better[1])
    return alike, of


@pytest.mark.parametrize("kinds", [("expert", "gpt4_pair"), ("expert", "expert")])
def test_against_a_slow_loop(tmp_path: Path, kinds: tuple[str, str]) -> None:
    rows = random_votes(4)
    parts = report_votes([write(tmp_path / "votes.jsonl", rows)], resamples=100)["parts"]
    for turn in (1, 2):
        found = pair_of(parts[f"turn {turn}"], *kinds)
        for name, ties in (("", True), ("_decided", False)):
            alike, of = slow(rows, turn, kinds, ties)
            assert found[f"votes{name}"] == of > 30
            assert found[f"agreement{name}"]["value"] == pytest.approx(alike / of, abs=1e-12)


def test_kappa_and_alpha_are_those_of_single_votes(tmp_path: Path) -> None:
    """With one vote of each kind on a pair: Cohen's kappa, and alpha of the two judges."""
    draw = random.Random(1)
    words = [(w, w if draw.random() < 0.5 else draw.choice(["model_a", "model_b", "tie"]))
             for w in draw.choices(["model_a", "model_b", "tie"], k=80)]  # fmt: skip
    rows = [mt_bench(judge, word, i) for i, both in enumerate(words) for judge, word in zip("mn", both, strict=True)]
    part = report_votes([write(tmp_path / "v.jsonl", rows)], resamples=100)["parts"]["turn 1"]
    signs = [[{"model_a": 1.0, "tie": 0.0, "model_b": -1.0}[both[i]] for both in words] for i in (0, 1)]
    assert pair_of(part, "m", "n")["kappa"]["value"] == pytest.approx(cohen_kappa_score(*map(np.array, signs)))
    assert part["alpha_ordinal"]["value"] == pytest.approx(krippendorff_alpha(signs, "ordinal"))
    assert [p for p in part["pairs"] if p["one"] == p["other"]] == []


def test_a_judge_is_not_held_against_itself(tmp_path: Path) -> None:
    rows = [mt_bench("expert_1", "model_a"), mt_bench("expert_1", "model_a"), mt_bench("expert_2", "model_b")]
    found = report_votes([write(tmp_path / "v.jsonl", rows)], resamples=100)["parts"]["turn 1"]["pairs"][0]
    assert (found["votes"], found["same_judge"], found["agreement"]["value"]) == (2, 1, 0.0)


def test_replies_in_both_orders(tmp_path: Path) -> None:
    def reply(question: int, first: str, second: str, turn: int = 1) -> dict[str, Any]:
        judge = ["gpt-4", "pair-v2" if turn == 1 else "pair-v2-multi-turn"]
        return {"question_id": question, "model_1": "x", "model_2": "y", "g1_winner": first, "g2_winner": second,
                "judge": judge, "turn": turn}  # fmt: skip

    rows = [reply(1, "model_1", "model_1"), reply(2, "model_1", "model_2"), reply(3, "tie", "tie")]
    rows += [reply(4, "error", "tie"), reply(1, "model_2", "model_2", 2)]
    votes, without = read_votes(write(tmp_path / "gpt-4_pair.jsonl", rows))
    assert [v.value for v in votes] == [1, 0, 0, -1] and {v.kind for v in votes} == {"gpt-4 pair"}
    assert without == {"no winner": 1}


def test_alpaca_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1: the first output, 2: the second, 1.5 and 0: a tie; whichever output stands first."""

    def row(i: int, preference: Any, annotator: Any, swap: bool = False, **more: Any) -> dict[str, Any]:
        outputs = ["一个回答", "b"] if swap else ["b", "一个回答"]
        return {"instruction": f"q{i}", "output_1": outputs[0], "output_2": outputs[1], "preference": preference,
                "annotator": annotator, **more}  # fmt: skip

    one = [row(0, 1, "m"), row(1, 2.0, "m"), row(2, 1.5, "m"), row(3, 1.2, "m"), row(4, None, "m")]
    other = [row(0, 2, "n", True), row(1, 1, "n"), row(2, 0, "n"), row(3, 1.5, "n"), row(4, 1, "n")]
    files = [str(tmp_path / "one.json"), write(tmp_path / "other.jsonl", other)]
    (tmp_path / "one.json").write_text(json.dumps(one))
    out = tmp_path / "out"
    assert main(["duel", "report", *files, "--resamples", "100", "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "agreement.json").read_text())
    (found,) = report["parts"]["all"]["pairs"]
    assert (found["votes"], found["votes_decided"]) == (4, 2)
    assert found["agreement"]["value"] == 0.5 and found["agreement_decided"]["value"] == 0.5
    assert found["agreement_half"]["value"] == pytest.approx((1 + 0 + 1 + 0.7) / 4)
    assert report["files"][files[0]] == {"votes": 4, "without": {"no preference": 1}}
    assert "one.json: 4 votes, 1 rows left out: no preference" in shown and "m - n" in shown


def test_probabilities_of_the_second_and_people_without_names(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output_1": "a", "output_2": "b", "preference": p} for p in (0, 0.25, 0.5, 1)]
    votes, _ = read_votes(write(tmp_path / "people.jsonl", rows))
    assert [v.value for v in votes] == [1, 0.5, 0, -1] and {v.kind for v in votes} == {"people"}
    (found,) = report_votes([str(tmp_path / "people.jsonl")], resamples=100)["parts"]["all"]["pairs"]
    assert found["votes"] == 6 and found["agreement"]["value"] == pytest.approx(1 / 6)
    numbered = [row | {"annotator_index": i % 2, "preference": 1 + i % 2} for i, row in enumerate(rows)]
    votes, _ = read_votes(write(tmp_path / "humans.jsonl", numbered))
    assert [v.judge for v in votes] == ["humans 0", "humans 1"] * 2


def test_numbers_as_text_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["instruction", "output_1", "output_2", "preference", "annotator"])
        for judge, preference in (("m", "1.0"), ("n", "2"), ("o", "")):
            writer.writerow(["q", "a", "b", preference, judge])
    votes, without = read_votes(str(file))
    assert [v.value for v in votes] == [1, -1] and without == {"no preference": 1}


def test_what_is_no_file_of_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpaca: dict[str, Any] = {"instruction": "q", "output_1": "a", "output_2": "b"}
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"text": "a"}], "v.jsonl:1: not a vote"),
        ([mt_bench("e", "draw")], "winner: 'draw' is none of model_a, model_b"),
        ([{"winner": "tie", "model_a": "x", "model_b": "y", "question_id": 1}], "v.jsonl:1: judge: is missing"),
        ([alpaca | {"preference": 1}, alpaca | {"preference": 0}], "preference: only 0 and 1 occur"),
        ([alpaca | {"preference": 2}, alpaca | {"preference": 3}], "v.jsonl:2: preference: 3 is no number from 1"),
        ([alpaca | {"preference": 2}, alpaca | {"preference": True}], "preference: True is no number"),
        ([mt_bench("e", "tie")], "no two votes in"),
    ]
    for rows, message in cases:
        assert main(["duel", "report", write(tmp_path / "v.jsonl", rows)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="others are finished duels"):
        from ppomax.evaluate.duel_report import DuelReportConfig, report_duels

        report_duels(DuelReportConfig(duels=[str(tmp_path / "v.jsonl"), str(tmp_path)]))


def test_a_number_tells_people_apart_but_not_models(tmp_path: Path) -> None:
    judges = ("expert_1", "expert_2", "claude_2", "claude_3", "gpt_4", "李_1")
    votes, _ = read_votes(write(tmp_path / "v.jsonl", [mt_bench(judge, "tie") for judge in judges]))
    assert [v.kind for v in votes] == ["expert", "expert", "claude_2", "claude_3", "gpt_4", "李_1"]
    assert [v.judge for v in votes] == list(judges)


def test_ids_that_a_table_with_gaps_made_fractions(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [mt_bench("m", "model_a") | {"question_id": 81.0, "turn": 1.0}])
    other = write(tmp_path / "other.jsonl", [mt_bench("n", "model_a") | {"question_id": 81, "turn": 1}])
    parts = report_votes([one, other], resamples=20)["parts"]
    assert list(parts) == ["turn 1"] and parts["turn 1"]["items"] == 1


def test_people_without_names_in_two_files_of_one_name_are_others(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output_1": "a", "output_2": "b", "preference": p} for p in (1, 2)]
    places = []
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        places.append(write(tmp_path / folder / "people.jsonl", rows))
    (found,) = report_votes(places, resamples=20)["parts"]["all"]["pairs"]
    assert (found["votes"], found["same_judge"]) == (6, 0)


def test_a_place_given_twice_or_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "v.jsonl", [mt_bench("m", "tie"), mt_bench("n", "tie")])
    assert main(["duel", "report", file, str(tmp_path / "." / "v.jsonl")]) == 2
    assert "v.jsonl is given twice: its votes would count twice" in capsys.readouterr().err
    assert main(["duel", "report", str(tmp_path / "nix.jsonl")]) == 2
    assert "nix.jsonl does not exist: a file of votes, or the directory" in capsys.readouterr().err
