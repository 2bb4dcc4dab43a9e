"""Win rates against hand-worked numbers, other implementations and planted truths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from ppomax.evaluate.winrate import (
    RIDGE,
    as_half_wins,
    fit_length,
    length_controlled_interval,
    length_feature,
    outcomes_from_scores,
    sign_test,
    summarise,
    tie_band,
    win_rate,
    win_rate_interval,
)

BY_HAND = np.array([1, 1, 0, -1, 1, 0], dtype=np.int8)


def test_by_hand() -> None:
    outcomes = outcomes_from_scores([2.0, 1.0, 0.5, 0.0, 3.0, 1.0], [1.0, 0.2, 0.25, 1.0, 0.0, 1.0], band=0.25)
    assert outcomes.tolist() == BY_HAND.tolist()  # a difference equal to the band is a tie
    assert win_rate(outcomes) == pytest.approx((3 + 0.5 * 2) / 6, abs=1e-15)
    result = summarise(outcomes, [10, 20, 30, 40, 50, 60], [10, 10, 30, 10, 50, 60])
    assert (result["prompts"], result["win"], result["tie"], result["lose"]) == (6, 3, 2, 1)
    assert result["sign_test_p"] == pytest.approx(0.625, abs=1e-12)  # 2 (1 + 4) / 2^4
    assert result["mean_length_a"] == 35 and result["mean_length_b"] == pytest.approx(170 / 6)


def test_no_band_ties_only_equal_scores() -> None:
    assert outcomes_from_scores([1.0, 1.0, 1.0], [1.0, 1.0 - 1e-12, 1.0 + 1e-12]).tolist() == [0, 1, -1]


def test_rounding_does_not_decide_at_the_edge_of_the_band() -> None:
    """0.4 - 0.3 is 0.10000000000000003 to a computer, and still no more than 0.1."""
    tenths = [i / 10 for i in range(-30, 31)]
    for band in (0.1, 0.3):
        steps = round(band * 10)
        found = outcomes_from_scores(tenths[steps:], tenths[: len(tenths) - steps], band)
        assert found.tolist() == [0] * (len(tenths) - steps)
    assert outcomes_from_scores([0.4 + 1e-9], [0.3], 0.1).tolist() == [1]


def test_the_longer_answer_that_wins_has_a_positive_slope() -> None:
    result = summarise(np.array([1, 1, 1, -1, 1, -1]), [9, 8, 9, 2, 7, 3], [1, 2, 3, 9, 1, 3], resamples=100)
    assert (
        result["length_controlled"]["slope"] > 1 and result["length_controlled"]["value"] < result["win_rate"]["value"]
    )


@pytest.mark.parametrize(
    ("a", "b", "band"), [([1.0], [1.0, 2.0], 0.0), ([math.nan], [1.0], 0.0), ([1.0], [2.0], -1.0), ([1.0], [2.0], math.nan)]
)  # fmt: skip
def test_bad_scores_are_refused(a: list[float], b: list[float], band: float) -> None:
    with pytest.raises(ValueError):
        outcomes_from_scores(a, b, band)


def test_tie_band_is_a_share_of_the_pooled_std() -> None:
    assert tie_band([1.0, 3.0], [5.0, 7.0], 0.1) == pytest.approx(0.1 * math.sqrt(5), rel=1e-12)
    assert tie_band([5.0, 7.0], [1.0, 3.0], 0.1) == tie_band([1.0, 3.0], [5.0, 7.0], 0.1)
    assert tie_band([1.0, 3.0], [5.0, 7.0], 0.1, "score") == 0.1


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (14, 6), (3, 30), (600, 520), (5000, 5200)])
def test_sign_test_is_the_exact_binomial(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_fit_equals_sklearn_on_two_weighted_rows_a_tie() -> None:
    rng = np.random.default_rng(3)
    outcomes = rng.choice([-1, 0, 1], size=150, p=[0.3, 0.3, 0.4]).astype(np.int8)
    difference = rng.normal(20, 50, size=150) + 25 * outcomes
    x, y = length_feature(difference), as_half_wins(outcomes)
    twice = np.concatenate([x, x])[:, None]
    label, weight = np.repeat([1, 0], 150), np.concatenate([y, 1 - y])
    reference = LogisticRegression(C=1 / RIDGE, tol=1e-10, max_iter=2000).fit(twice, label, sample_weight=weight)
    fit = fit_length(outcomes, difference)
    assert fit.intercept == pytest.approx(reference.intercept_[0], abs=1e-6)
    assert fit.slope == pytest.approx(reference.coef_[0, 0], abs=1e-6)
    assert fit.win_rate == pytest.approx(1 / (1 + math.exp(-fit.intercept)), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(-300, 300)), min_size=2, max_size=40),
)
def test_fit_is_at_the_optimum_and_antisymmetric(rows: list[tuple[int, int]]) -> None:
    outcomes = np.array([o for o, _ in rows], dtype=np.int8)
    difference = np.array([d for _, d in rows], dtype=float)
    fit = fit_length(outcomes, difference)
    x, y = length_feature(difference), as_half_wins(outcomes)
    residual = y - 1 / (1 + np.exp(-(fit.intercept + fit.slope * x)))
    if abs(fit.intercept) < 29:  # otherwise there is no finite optimum
        assert residual.sum() == pytest.approx(0, abs=1e-6)
        assert residual @ x - RIDGE * fit.slope == pytest.approx(0, abs=1e-6)
    swapped = fit_length(-outcomes, (-difference).tolist())
    assert swapped.win_rate == pytest.approx(1 - fit.win_rate, abs=1e-7)


def test_equal_lengths_leave_the_win_rate_alone() -> None:
    fit = fit_length(BY_HAND, [7.0] * 6)
    assert fit.slope == 0 and fit.win_rate == pytest.approx(win_rate(BY_HAND), abs=1e-9)
    every = length_controlled_interval(np.ones(20, dtype=np.int8), [0.0] * 20)
    assert (every.value, every.low, every.high) == pytest.approx((1, 0.025 ** (1 / 20), 1), abs=1e-9)


def plant(seed: int, *, quality: float, length: float, shift: float, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A judge with known tastes: log-odds = quality + length * tanh(d / std(d)), A longer by ``shift`` on average."""
    rng = np.random.default_rng(seed)
    difference = rng.normal(shift, 40, size=n)
    p = 1 / (1 + np.exp(-(quality + length * np.tanh(difference / difference.std()))))
    return np.where(rng.random(n) < p, 1, -1).astype(np.int8), difference


def test_a_judge_that_only_likes_length_is_seen_through() -> None:
    outcomes, difference = plant(0, quality=0.0, length=3.0, shift=35.0)
    raw = win_rate_interval(outcomes)
    controlled = length_controlled_interval(outcomes, difference)
    assert raw.low > 0.65
    assert controlled.low < 0.5 < controlled.high and abs(controlled.value - 0.5) < 0.08
    assert fit_length(outcomes, difference).slope == pytest.approx(3.0, abs=0.6)


def test_quality_survives_length_control() -> None:
    outcomes, difference = plant(1, quality=1.0, length=-2.0, shift=35.0)  # better, and punished for its length
    controlled = length_controlled_interval(outcomes, difference)
    assert win_rate(outcomes) < 0.5 < controlled.low
    assert controlled.value == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.08)


def test_intervals_cover_as_often_as_they_say() -> None:
    truth, raw, controlled = 1 / (1 + math.exp(-0.4)), 0, 0
    for seed in range(200):
        outcomes, difference = plant(seed, quality=0.4, length=1.0, shift=0.0, n=150)
        fit = length_controlled_interval(outcomes, difference, seed=seed, resamples=300)
        controlled += fit.low <= truth <= fit.high
        coins = np.random.default_rng(seed).choice([1, 0, -1], p=[0.5, 0.2, 0.3], size=150).astype(np.int8)
        estimate = win_rate_interval(coins, seed=seed, resamples=300)
        raw += estimate.low <= 0.6 <= estimate.high
    assert 0.90 <= controlled / 200 <= 0.99
    assert 0.90 <= raw / 200 <= 0.99


def test_interval_matches_the_normal_approximation() -> None:
    outcomes = np.repeat([1, 0, -1], [450, 100, 450]).astype(np.int8)
    estimate = win_rate_interval(outcomes, resamples=4000)
    error = as_half_wins(outcomes).std() / math.sqrt(1000)
    assert estimate.low == pytest.approx(0.5 - 1.96 * error, abs=0.002)
    assert estimate.high == pytest.approx(0.5 + 1.96 * error, abs=0.002)


def test_seeds_decide_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, difference = plant(5, quality=0.2, length=1.0, shift=10.0, n=100)
    once = length_controlled_interval(outcomes, difference, seed=4, resamples=200)
    assert once == length_controlled_interval(outcomes, difference, seed=4, resamples=200)
    assert once != length_controlled_interval(outcomes, difference, seed=5, resamples=200)
    monkeypatch.setattr("ppomax.evaluate.winrate._CHUNK", 700)  # 7 resamples at once
    chunked = length_controlled_interval(outcomes, difference, seed=4, resamples=200)
    assert (chunked.low, chunked.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_tiny_sets_do_not_fail() -> None:
    for size in (1, 2, 3):
        for outcomes in itertools.product([-1, 0, 1], repeat=size):
            result = summarise(np.array(outcomes, dtype=np.int8), [5.0] * size, list(range(size)), resamples=20)
            assert 0 <= result["length_controlled"]["low"] <= result["length_controlled"]["high"] <= 1
    with pytest.raises(ValueError, match="no outcomes"):
        summarise(np.array([], dtype=np.int8), [], [])


@pytest.mark.parametrize(
    ("outcome", "value", "low", "high"),
    [(1, 1.0, 0.5407, 1.0), (-1, 0.0, 0.0, 0.4593), (0, 0.5, 0.2704, 0.7296)],
)
def test_prompts_that_all_come_out_alike_leave_room_for_others(
    outcome: int, value: float, low: float, high: float
) -> None:
    """Clopper and Pearson's bound for 6 of 6: .025 ** (1 / 6) = .5407; a tie may hide wins or losses alike."""
    found = win_rate_interval(np.full(6, outcome, dtype=np.int8))
    assert found.value == value
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    controlled = length_controlled_interval(np.full(6, outcome, dtype=np.int8), np.arange(6.0), resamples=20)
    assert (controlled.value, controlled.low, controlled.high) == (value, found.low, found.high)
    many = win_rate_interval(np.full(2000, outcome, dtype=np.int8))
    assert many.high - many.low < 0.0019
