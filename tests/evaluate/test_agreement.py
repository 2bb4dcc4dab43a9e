"""Agreement between judges: the textbook example, hand-worked tables, scikit-learn, slow loops, and the report of duels."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from ppomax.cli import main
from ppomax.evaluate.agreement import (
    agreement_report,
    bootstrap,
    cohen_kappa,
    krippendorff_alpha,
    length_bias,
    pair_agreement,
    raw_agreement,
    share,
)
from ppomax.evaluate.duel_report import DuelReportConfig, report_duels

NAN = float("nan")
# four observers, twelve units, missing values: the example of "Computing Krippendorff's Alpha-Reliability"
TEXTBOOK = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_textbook_example(metric: Any, alpha: float) -> None:
    assert krippendorff_alpha(TEXTBOOK, metric) == pytest.approx(alpha, abs=5e-4)


def slow_alpha(table: Any, metric: str) -> float:
    """By pairs of values within units and over all units, as the definition says."""
    units = [[v for v in column if not np.isnan(v)] for column in np.asarray(table, float).T]
    units = [u for u in units if len(u) > 1]
    every = [v for u in units for v in u]

    def delta(c: float, k: float) -> float:
        if metric == "nominal":
            return float(c != k)
        if metric == "interval":
            return (c - k) ** 2
        low, high = min(c, k), max(c, k)
        between = sum(low <= v <= high for v in every)
        return (between - (every.count(c) + every.count(k)) / 2) ** 2 if c != k else 0.0

    observed = sum(delta(c, k) / (len(u) - 1) for u in units for c, k in permutations(u, 2)) / len(every)
    expected = sum(delta(c, k) for c, k in permutations(every, 2)) / (len(every) * (len(every) - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("metric", ["nominal", "ordinal", "interval"])
def test_alpha_against_a_slow_loop(metric: Any) -> None:
    rng = np.random.default_rng(3)
    table = rng.integers(-1, 2, size=(3, 40)).astype(float)
    table[1] = np.where(rng.random(40) < 0.6, table[0], table[1])
    table[rng.random(table.shape) < 0.2] = NAN
    assert krippendorff_alpha(table, metric) == pytest.approx(slow_alpha(table, metric), abs=1e-12)


def test_kappa_by_hand() -> None:
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: agreement .7, by chance .5, kappa .4."""
    one = [1] * 25 + [0] * 25
    other = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert raw_agreement(one, other) == pytest.approx(0.7)
    assert cohen_kappa(one, other) == pytest.approx(0.4)


@pytest.mark.parametrize(("ours", "theirs"), [("nominal", None), ("linear", "linear")])
def test_kappa_against_scikit_learn(ours: Any, theirs: str | None) -> None:
    rng = np.random.default_rng(5)
    for _ in range(5):
        one = rng.integers(-1, 2, size=60)
        other = np.where(rng.random(60) < 0.5, one, rng.integers(-1, 2, size=60))
        assert cohen_kappa(one, other, ours) == pytest.approx(cohen_kappa_score(one, other, weights=theirs), abs=1e-12)


def test_linear_kappa_counts_steps_even_where_ties_are_missing() -> None:
    # wins and losses only: every error is two steps, and both forms are the same
    one, other = [1, 1, -1, -1, 1], [1, -1, -1, -1, 1]
    assert cohen_kappa(one, other, "linear") == pytest.approx(cohen_kappa(one, other))


def test_missing_outcomes_are_left_out_and_nothing_to_agree_about_is_nan() -> None:
    assert raw_agreement([1, NAN, 0, -1], [1, 1, NAN, 1]) == 0.5
    assert np.isnan(raw_agreement([NAN], [1])) and np.isnan(cohen_kappa([NAN], [1]))
    assert np.isnan(cohen_kappa([1, 1], [1, 1])) and np.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert np.isnan(krippendorff_alpha([[1, NAN], [NAN, 1]]))
    with pytest.raises(ValueError, match="same length"):
        raw_agreement([1], [1, 0])


def test_intervals_are_those_of_a_slow_bootstrap() -> None:
    """Resamples drawn as counts equal resamples drawn as items, whatever the statistic."""
    rng = np.random.default_rng(11)
    one = rng.integers(-1, 2, size=30).astype(float)
    other = np.where(rng.random(30) < 0.6, one, rng.integers(-1, 2, size=30))
    found = pair_agreement(one, other, seed=4, resamples=60)
    counts = np.random.default_rng(4).multinomial(30, np.full(30, 1 / 30), size=60)
    slow: dict[str, list[float]] = {"agreement": [], "kappa": [], "kappa_linear": [], "alpha_ordinal": []}
    for row in counts:
        items = np.repeat(np.arange(30), row)
        slow["agreement"].append(raw_agreement(one[items], other[items]))
        slow["kappa"].append(cohen_kappa(one[items], other[items]))
        slow["kappa_linear"].append(cohen_kappa(one[items], other[items], "linear"))
        slow["alpha_ordinal"].append(slow_alpha(np.stack([one[items], other[items]]), "ordinal"))
    for name, values in slow.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert found[name]["low"] == pytest.approx(low, abs=1e-9)
        assert found[name]["high"] == pytest.approx(high, abs=1e-9)


def test_the_intervals_cover() -> None:
    """95% of the intervals of a share hold the true value (200 samples of 100: 95 +- 4)."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        part = rng.random(100) < 0.7
        found = share(part, np.ones(100), seed=seed, resamples=300)
        inside += found.low <= 0.7 <= found.high
    assert 0.90 <= inside / 200 <= 0.99


def test_an_undefined_share_is_nan() -> None:
    found = share([0, 0], [0, 0], resamples=100)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(bootstrap(lambda c: c.sum(axis=1), 0).value)


def test_length_bias_by_hand() -> None:
    # longer: A wins (1), A ties (.5), B wins = A loses with the shorter (1), A wins with the shorter (0), equal, missing
    found = length_bias([1, 0, -1, 1, -1, NAN], [9, 9, 1, 1, 5, 9], [1, 1, 9, 9, 5, 1], resamples=100)
    assert found["unequal"] == 4 and found["longer_wins"]["value"] == pytest.approx(2.5 / 4)
    liking = length_bias([1, -1] * 50, [9, 1] * 50, [1, 9] * 50, resamples=100)
    assert (
        liking["longer_wins"] == {"value": 1.0, "low": pytest.approx(0.025 ** (1 / 100)), "high": 1.0}
        and liking["slope"]["low"] > 1
    )


def test_alpha_of_all_judges_and_of_each_pair() -> None:
    rng = np.random.default_rng(8)
    truth = rng.integers(-1, 2, size=80).astype(float)
    judges = {
        n: np.where(rng.random(80) < p, truth, rng.integers(-1, 2, size=80))
        for n, p in (("x", 0.9), ("y", 0.8), ("z", 0.1))
    }
    report = agreement_report(judges, [1.0] * 80, [2.0] * 80, resamples=100)
    table = list(judges.values())
    assert report["all_judges"]["alpha_ordinal"]["value"] == pytest.approx(slow_alpha(table, "ordinal"))
    assert [(p["one"], p["other"]) for p in report["pairs"]] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert report["pairs"][0]["kappa"]["value"] > 0.5 > 0.35 > report["pairs"][1]["kappa"]["value"]
    assert report["judges"]["x"]["win_rate"]["value"] == pytest.approx(((judges["x"] + 1) / 2).mean())


# --------------------------------------------------------------------------------------- report of duels


def duel(folder: Path, judge: str, outcomes: list[str], first: int = 0, **extra: Any) -> str:
    """A finished duel that judged the prompts from ``first`` on; an outcome "none" has no verdict."""
    folder.mkdir()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"q{first + i}"}],
            "response_a": "long answer",
            "response_b": "short",
            "outcome": "tie" if word == "none" else word,
            **({"valid": word != "none"} if judge.startswith("llm:") else {}),
        }
        for i, word in enumerate(outcomes)
    ]
    (folder / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps({"a": "ppo", "b": "sft", "judge": [judge], **extra}))
    return str(folder)


def test_report_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    position = {"preferred_first": {"value": 0.75, "low": 0.6, "high": 0.9}}
    places = [
        duel(tmp_path / "people", "people", ["win", "win", "tie", "lose", "lose", "win"]),
        duel(tmp_path / "llm", "llm:m", ["lose", "win", "win", "none", "lose", "lose"], 0, llm={"position": position}),
        duel(tmp_path / "rm", "rm", ["win", "tie", "lose", "lose", "lose", "win", "win"]),
    ]
    assert main(["duel", "report", *places, "--output_dir", str(tmp_path / "out"), "--resamples", "200"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert report["items"] == 6 and list(report["judges"]) == ["people", "llm:m", "rm"]
    pairs = {(p["one"], p["other"]): p for p in report["pairs"]}
    assert pairs["people", "rm"]["agreement"]["value"] == pytest.approx(4 / 6)
    assert pairs["people", "llm:m"]["items"] == 5 and pairs["people", "llm:m"]["agreement"]["value"] == 0.4
    assert pairs["people", "llm:m"]["decided"] == 4 and pairs["people", "llm:m"]["agreement_decided"]["value"] == 0.5
    llm = report["judges"]["llm:m"]
    assert (llm["without_verdict"], llm["judged"], llm["position"]) == (1, 5, position)
    assert llm["length"]["longer_wins"]["value"] == llm["win_rate"]["value"] == pytest.approx(2 / 5)  # of those judged
    assert report["judges"]["rm"]["left_out"] == 1 and report["judges"]["people"]["position"] is None
    assert "J2 = llm:m" in shown and "75.0% [60.0%, 90.0%]" in shown and "Krippendorff" in shown
    assert (tmp_path / "out" / "agreement.png").stat().st_size > 5000
    assert report == report_duels(DuelReportConfig(duels=places, resamples=200))


def test_two_duels_by_the_same_judge_are_told_apart(tmp_path: Path) -> None:
    places = [duel(tmp_path / name, "rm", ["win", "lose", "win"]) for name in ("one", "two")]
    report = report_duels(DuelReportConfig(duels=places, resamples=100))
    assert list(report["judges"]) == ["rm (one)", "rm (two)"]
    assert report["pairs"][0]["kappa"]["value"] == 1


def test_judges_that_all_say_the_same_have_no_kappa(tmp_path: Path) -> None:
    places = [duel(tmp_path / name, name, ["win", "win"]) for name in ("one", "two")]
    report = report_duels(DuelReportConfig(duels=places, resamples=100, output_dir=str(tmp_path / "out")))
    assert report["pairs"][0]["kappa"]["value"] is None and report["pairs"][0]["agreement"]["value"] == 1
    assert (tmp_path / "out" / "agreement.png").exists()


def test_what_is_no_finished_duel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = duel(tmp_path / "good", "rm", ["win", "lose"])
    other = duel(tmp_path / "other", "world", ["win"], first=50)
    bad = duel(tmp_path / "bad", "x", ["win", "undecided"])
    for words, message in (
        ([good], "at least 2 needed"),
        ([good, str(tmp_path)], "not a finished duel: result.json cannot be read"),
        ([good, other], "no pair of answers in common"),
        ([good, bad], "judgements.jsonl:2: not a judgement (KeyError: 'undecided')"),
        ([good, good, "--pair", "ac"], "good: this duel has no sides a and c (no judgements_a_c.jsonl in it)"),
    ):
        assert main(["duel", "report", *words]) == 2
        assert message in capsys.readouterr().err


def swapped(folder: Path, place: str) -> str:
    """The same judgements with the two sides exchanged."""
    folder.mkdir()
    turned = {"win": "lose", "tie": "tie", "lose": "win"}
    rows = [json.loads(line) for line in (Path(place) / "judgements.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"response_a": row["response_b"], "response_b": row["response_a"], "outcome": turned[row["outcome"]]}
    (folder / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((Path(place) / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "a": result["b"], "b": result["a"]}))
    return str(folder)


def test_sides_may_be_exchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = duel(tmp_path / "one", "people", ["win", "win", "tie", "lose", "lose", "win"])
    other = duel(tmp_path / "other", "llm:m", ["lose", "win", "win", "none", "lose", "lose"])
    straight = report_duels(DuelReportConfig(duels=[one, other], resamples=100))
    turned = report_duels(DuelReportConfig(duels=[one, swapped(tmp_path / "turned", other)], resamples=100))
    assert turned["judges"]["llm:m"].pop("swapped") == 6 and straight["judges"]["llm:m"].pop("swapped") == 0
    for report in (straight, turned):
        report["judges"]["llm:m"].pop("place")
    assert straight == turned and turned["a"] == "ppo"  # sides are the first duel's
    assert turned["judges"]["llm:m"]["win"] == 2 and turned["pairs"][0]["agreement"]["value"] == 0.4
    assert main(["duel", "report", one, str(tmp_path / "turned"), "--resamples", "100"]) == 0
    assert "J2: 6 pairs with the sides exchanged" in capsys.readouterr().out


def test_counts_by_category_and_judge(tmp_path: Path) -> None:
    """As in Fig. 10; a pair without a verdict is left out for that judge alone."""
    places = [
        duel(tmp_path / "people", "people", ["win", "win", "tie", "lose"]),
        duel(tmp_path / "llm", "llm:m", ["lose", "win", "none", "win"]),
    ]
    for place in places:  # one prompt is Chinese and harmless, one says its category itself
        file = Path(place) / "judgements.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[3] |= {"prompt": [{"role": "user", "content": "怎么偷？"}], "source": "harmless_zh"}
        rows[2] |= {"category": "harmless en"}
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    report = report_duels(DuelReportConfig(duels=places, resamples=100, output_dir=str(tmp_path / "out")))
    assert report["by_category"] == {
        "helpful en": {"people": {"win": 2, "tie": 0, "lose": 0}, "llm:m": {"win": 1, "tie": 0, "lose": 1}},
        "harmless en": {"people": {"win": 0, "tie": 1, "lose": 0}, "llm:m": {"win": 0, "tie": 0, "lose": 0}},
        "harmless zh": {"people": {"win": 0, "tie": 0, "lose": 1}, "llm:m": {"win": 1, "tie": 0, "lose": 0}},
    }
    for stem in ("agreement", "win_tie_lose"):
        assert (tmp_path / "out" / f"{stem}.png").read_bytes()[:4] == b"\x89PNG"
        assert "</svg>" in (tmp_path / "out" / f"{stem}.svg").read_text()


def test_judges_without_a_common_item() -> None:
    """Three people who share the work: two of them have judged nothing in common."""
    nan = float("nan")
    judges = {"a": [1, 1, nan, nan], "b": [1, nan, -1, nan], "c": [nan, nan, -1, 1]}
    report = agreement_report(judges, [1, 2, 3, 4], [2, 1, 4, 3], resamples=100)
    common = {f"{pair['one']}{pair['other']}": pair for pair in report["pairs"]}
    assert common["ac"]["items"] == 0 and np.isnan(common["ac"]["kappa"]["value"])
    assert common["ab"]["items"] == common["bc"]["items"] == 1
    assert report["all_judges"]["alpha_nominal"]["value"] == pytest.approx(1.0)


def test_what_is_alike_in_all_prompts_is_not_certain() -> None:
    """.025 ** (1 / 3) = .2924; prompts with no part in the whole count for nothing."""
    found = share([2.0, 1.0, 0.0, 3.0], [2.0, 1.0, 0.0, 3.0], resamples=20)
    assert found.value == 1.0 and (found.low, found.high) == (pytest.approx(0.2924, abs=5e-5), 1.0)
    half = share([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], resamples=20)
    assert (half.low, half.high) == (pytest.approx(0.1462, abs=5e-5), pytest.approx(0.8538, abs=5e-5))
    gap = share([-1.0] * 3, [1.0] * 3, lowest=-1.0, resamples=20)  # a difference: what was not seen may be 1
    assert (gap.value, gap.low, gap.high) == (-1.0, -1.0, pytest.approx(-1 + 2 * 0.7076, abs=1e-4))
    none = share([0.0] * 3, [1.0] * 3, lowest=-1.0, resamples=20)
    assert (none.low, none.high) == (pytest.approx(-0.7076, abs=5e-5), pytest.approx(0.7076, abs=5e-5))
    same = pair_agreement([1, 0, -1], [1, 0, -1], resamples=20)["agreement"]
    assert same == {"value": 1.0, "low": pytest.approx(0.2924, abs=5e-5), "high": 1.0}
