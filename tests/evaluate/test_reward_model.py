"""What is said about a reward model: intervals, baselines, calibration, and the pairs it gets wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ppomax.data.records import PreferencePair
from ppomax.evaluate.reward_model import (
    accuracy,
    bag_of_words,
    calibration,
    evaluate_pairs,
    format_table,
    histogram,
    most_confidently_wrong,
    wilson,
    words,
)


def pair(chosen: str, rejected: str, prompt: str = "q", source: str = "s", origin: str = "memory") -> PreferencePair:
    return PreferencePair(
        ({"role": "user", "content": prompt},),
        ({"role": "assistant", "content": chosen},),
        ({"role": "assistant", "content": rejected},),
        source,
        origin,
    )


def test_wilson_by_hand() -> None:
    """Published values: 81 of 263 -> [.2553, .3662]; 0 of 20 -> [0, .1611]; 29 of 29 -> [.8830, 1]."""
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson(0, 20) == pytest.approx([0, 0.1611], abs=5e-5)
    assert wilson(29, 29) == pytest.approx([0.8830, 1.0], abs=5e-5)
    assert wilson(0, 0) is None


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_contains_the_share(n: int, share: float) -> None:
    right = round(share * n)
    interval = wilson(right, n)
    assert interval is not None
    low, high = interval
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


def test_ties_count_half() -> None:
    got = accuracy(np.array([1.0, 0.0, -1.0, 0.0]))
    assert got["accuracy"] == 0.5 and got["ties"] == 2 and got["n"] == 4
    assert accuracy(np.array([])) == {"accuracy": None, "interval": None, "n": 0, "ties": 0}


def test_words_of_spaced_scripts_and_characters_of_others() -> None:
    assert words("Good day") == ["good", "day", "good day"]
    assert words("你好吗") == ["你", "好", "吗", "你 好", "好 吗"]
    assert words("看Python吧") == ["看", "python", "吧", "看 python", "python 吧"]


@pytest.mark.parametrize(
    ("good", "bad", "fill"),
    [("certainly", "never", ["the river", "a plum", "grey sky"]), ("谢谢", "讨厌", ["河流", "李子", "天空"])],
)
def test_bag_of_words_finds_a_planted_word(good: str, bad: str, fill: list[str]) -> None:
    def make(n: int, start: int) -> list[PreferencePair]:
        join = " " if good.isascii() else ""
        return [
            pair(join.join((good, fill[i % 3])), join.join((bad, fill[(i // 3) % 3]))) for i in range(start, start + n)
        ]

    classifier = bag_of_words(make(30, 0))
    assert classifier is not None
    assert (classifier(make(20, 100)) > 0).all()
    turned = [PreferencePair(p.prompt, p.rejected, p.chosen) for p in make(20, 100)]
    np.testing.assert_allclose(classifier(turned), -classifier(make(20, 100)))  # no preference for a position
    assert bag_of_words([pair("alpha", "beta")]) is None  # no word occurs twice


def test_calibration_of_a_calibrated_and_of_a_boastful_model() -> None:
    draw = np.random.default_rng(0)
    logit = draw.normal(0, 1.5, 20_000)
    right = draw.random(20_000) < 1 / (1 + np.exp(-logit))
    gaps = np.where(right, logit, -logit)  # preferred minus other
    honest, boastful = calibration(gaps), calibration(4 * gaps)
    assert honest["ece"] < 0.02 and boastful["ece"] > 0.1
    assert sum(row["n"] for row in honest["bins"]) == 40_000  # both orders
    for low, high in zip(honest["bins"], reversed(honest["bins"]), strict=True):
        assert low["n"] == high["n"] and low["observed"] == pytest.approx(1 - high["observed"])
    for row in honest["bins"]:
        assert row["from"] <= row["predicted"] <= row["to"]
    # by hand: every answer is right, p = sigmoid(ln 3) = .75 -> error .25
    assert calibration(np.full(4, np.log(3)))["ece"] == pytest.approx(0.25)


def test_evaluation_by_hand() -> None:
    pairs = [
        pair("aaaaaaaaaa", "bbbbbbbbb", source="x"),  # equal length: 10 and 9
        pair("aaaa", "b", source="x"),  # longer is better
        pair("a", "bbbb", source="y"),  # shorter is better
        pair("aaa", "bbb", source="y"),  # exactly as long: a tie for the baseline
    ]
    got = evaluate_pairs([2, 1, 0, 1], [1, 2, -3, 1], pairs)
    assert got["overall"]["model"]["accuracy"] == (1 + 0 + 1 + 0.5) / 4
    assert got["overall"]["longer"]["accuracy"] == (1 + 1 + 0 + 0.5) / 4
    assert got["overall"]["length_matched"]["accuracy"] == 0.75 and got["overall"]["length_matched"]["n"] == 2
    assert got["sources"]["x"]["model"]["accuracy"] == 0.5 and got["sources"]["y"]["model"]["accuracy"] == 0.75
    assert got["better_is_longer"]["accuracy"] == 0.5 and got["better_is_longer"]["n"] == 2
    assert got["better_is_shorter"]["accuracy"] == 1.0 and got["better_is_shorter"]["n"] == 1
    assert got["gap"]["mean"] == pytest.approx(0.75) and got["gap"]["median"] == pytest.approx(0.5)
    assert got["gap"]["std"] == pytest.approx(np.std([1, -1, 3, 0], ddof=1))
    assert got["gap"]["loss"] == pytest.approx(np.mean(np.log1p(np.exp([-1, 1, -3, 0]))))
    assert sum(got["gap"]["histogram"]["counts"]) == 4
    assert "bag_of_words" not in got["overall"]
    json.dumps(got, allow_nan=False)


def test_evaluation_names_files_and_their_sources() -> None:
    pairs = [pair("aa", "b", source=s, origin=o) for s, o in
             (("oasst", "d/en.jsonl.gz:1"), ("tulu", "d/en.jsonl.gz:2"), ("oasst", "d/zh.jsonl.gz:1"))]  # fmt: skip
    got = evaluate_pairs([1, 1, 1], [0, 0, 2], pairs)
    assert {k: v["model"]["n"] for k, v in got["sources"].items()} == {"en": 2, "en/oasst": 1, "en/tulu": 1, "zh": 1}
    with pytest.raises(ValueError, match="2 scores for 3 pairs"):
        evaluate_pairs([1, 1], [0, 0], pairs)


def test_evaluation_of_nothing_and_of_ties() -> None:
    json.dumps(evaluate_pairs([], [], []), allow_nan=False)
    flat = evaluate_pairs([1, 1], [1, 1], [pair("a", "b"), pair("ab", "b")], train_pairs=[pair("a", "b")])
    assert flat["overall"]["model"]["accuracy"] == 0.5 and flat["length_correlation"] is None
    json.dumps(flat, allow_nan=False)


def test_length_correlation_of_a_model_that_counts_characters() -> None:
    pairs = [pair("a" * i, "b" * (i * 7 % 11 + 1)) for i in range(1, 12)]
    chosen, rejected = [len(p.chosen[0]["content"]) for p in pairs], [len(p.rejected[0]["content"]) for p in pairs]
    got = evaluate_pairs(chosen, rejected, pairs)
    assert got["length_correlation"] == pytest.approx(1.0)
    assert got["overall"]["model"] == got["overall"]["longer"]


def test_histogram_is_symmetric_and_keeps_everything() -> None:
    got = histogram(np.array([-3.0, 0.0, 1.0, 3.0]))
    assert sum(got["counts"]) == 4 and got["edges"][0] == -3 and got["edges"][-1] == 3
    assert sum(histogram(np.array([]))["counts"]) == 0
    assert sum(histogram(np.zeros(3))["counts"]) == 3


def test_most_confidently_wrong() -> None:
    pairs = [pair(f"c{i}", f"r{i}") for i in range(4)]
    wrong = most_confidently_wrong([1, 0, 0, 2], [0, 5, 1, 2], pairs, limit=5)
    assert [w["chosen"] for w in wrong] == ["c1", "c2"]
    assert wrong[0]["gap"] == -5 and wrong[0]["reward_rejected"] == 5
    assert len(most_confidently_wrong([0] * 4, [1] * 4, pairs, limit=3)) == 3


def test_table_shows_accuracies_beside_baselines() -> None:
    pairs = [pair("aaaa", "b", source="x"), pair("a", "bbbb", source="y")]
    out = io.StringIO()
    Console(file=out, width=120).print(format_table(evaluate_pairs([1, 1], [0, 0], pairs, train_pairs=pairs * 2)))
    for word in ("overall", "reward model", "longer wins", "bag of words", "1.000", "0.500"):
        assert word in out.getvalue()


def test_length_baseline_on_real_pairs(real_data: Path) -> None:
    """The longer answer is the chosen one in about 70% of English, 75% of Chinese and 45% of harmless pairs."""
    from ppomax.config import DataSource
    from ppomax.data.sources import load_mixture

    for name, share in (("helpful_pairs_en", 0.70), ("helpful_pairs_zh", 0.75), ("hh_harmless_pairs", 0.45)):
        records, _ = load_mixture([DataSource(path=str(real_data / f"{name}.jsonl.gz"))], "pair")
        pairs = [r for r in records if isinstance(r, PreferencePair)]
        got = evaluate_pairs([0.0] * len(pairs), [0.0] * len(pairs), pairs)
        assert got["overall"]["longer"]["accuracy"] == pytest.approx(share, abs=0.02)
