"""Bradley-Terry ratings: hand-worked numbers, a slow independent fit, coverage of intervals, and systems that win all."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from ppomax.evaluate.ratings import RIDGE, finite, fit_ratings, predicted, rate


def outcomes_of(*counts: int) -> np.ndarray:
    """(wins, ties, losses) as outcomes."""
    return np.repeat(np.array([1, 0, -1], dtype=np.int8), counts)


def slow_fit(wins: np.ndarray, prior: float) -> np.ndarray:
    """The same optimum by plain gradient ascent, one comparison after another."""
    k = len(wins)
    r = [0.0] * k
    for _ in range(60_000):
        g = [-prior * x for x in r]
        for i in range(k):
            for j in range(k):
                p = 1 / (1 + math.exp(-(r[i] - r[j])))
                g[i] += wins[i][j] * (1 - p)
                g[j] -= wins[i][j] * (1 - p)
        step = [0.5 / wins.sum() * x for x in g]
        r = [x + s for x, s in zip(r, step, strict=True)]
        if max(map(abs, g)) < 1e-10:
            break
    return np.array(r) - sum(r) / k


def test_two_systems_by_hand() -> None:
    """60 wins, 20 ties, 20 losses: win rate 0.7, so the ratings differ by log(0.7 / 0.3); the prior hardly matters."""
    found = rate({(0, 1): outcomes_of(60, 20, 20)}, 2, resamples=100)
    one, other = (r["value"] for r in found["ratings"])
    assert one == -other
    assert one - other == pytest.approx(math.log(0.7 / 0.3), abs=3e-4)
    assert found["ratings"][0]["win_rate"] == pytest.approx(0.7) and found["finite"]
    # the exact optimum with the prior: 70 (1 - p) - 30 p = RIDGE * d / 2 for the difference d
    d = one - other
    p = 1 / (1 + math.exp(-d))
    assert 70 - 100 * p == pytest.approx(RIDGE * d / 2, abs=1e-9)


def test_three_systems_by_hand() -> None:
    """Odds 4:1, 2:1 and 2:1 fit exactly: log-odds log 4 = log 2 + log 2, and mean 0."""
    wins = 1000 * np.array([[0, 2 / 3, 4 / 5], [1 / 3, 0, 2 / 3], [1 / 5, 1 / 3, 0]])
    assert fit_ratings(wins) == pytest.approx([math.log(2), 0, -math.log(2)], abs=1e-4)


def test_against_a_slow_independent_fit() -> None:
    rng = np.random.default_rng(3)
    wins = rng.integers(1, 12, size=(4, 4)) + 0.5
    np.fill_diagonal(wins, 0)
    assert fit_ratings(wins) == pytest.approx(slow_fit(wins, RIDGE), abs=1e-8)
    tables = np.stack([wins, wins.T, 2 * wins])  # all at once is each by itself
    for table, found in zip(tables, fit_ratings(tables), strict=True):
        assert found == pytest.approx(fit_ratings(table), abs=1e-10)
    assert fit_ratings(wins.T) == pytest.approx(-fit_ratings(wins), abs=1e-9)


def test_ties_are_half_and_names_do_not_matter() -> None:
    ties = rate({(0, 1): outcomes_of(0, 10, 0)}, 2, resamples=100)
    assert [r["value"] for r in ties["ratings"]] == [0.0, 0.0] and ties["ratings"][0]["best"] == 0.5
    a, b, c = outcomes_of(5, 3, 2), outcomes_of(7, 0, 3), outcomes_of(2, 4, 4)
    found = rate({(0, 1): a, (0, 2): b, (1, 2): c}, 3, resamples=100)
    turned = rate({(2, 1): a, (2, 0): b, (1, 0): c}, 3, resamples=100)
    swapped = rate({(1, 0): -a, (2, 0): -b, (2, 1): -c}, 3, resamples=100)
    for i in range(3):
        assert found["ratings"][i] == pytest.approx(turned["ratings"][2 - i])
        assert found["ratings"][i] == pytest.approx(swapped["ratings"][i])
    assert sum(r["value"] for r in found["ratings"]) == pytest.approx(0, abs=1e-12)
    assert found["pairs"][0] == {
        "one": 0, "other": 1, "win_rate": pytest.approx(0.65),
        "predicted": pytest.approx(predicted(np.array([r["value"] for r in found["ratings"]]), 0, 1)),
    }  # fmt: skip


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Prompts differ (a hard prompt makes all pairs ties), as they do in earnest: pairs are not independent."""
    truth = np.array([0.5, 0.0, -0.5])
    rng = np.random.default_rng(0)
    pairs = list(combinations(range(3), 2))
    held: list[bool] = []
    for trial in range(60):
        tied = rng.random(150) < 0.3
        drawn: dict[tuple[int, int], Any] = {}
        for i, j in pairs:
            # a tie in 30% pulls the win rate to 1/2; decided prompts are set so that the rate is the model's
            p = 1 / (1 + math.exp(-(truth[i] - truth[j])))
            decided = (p - 0.15) / 0.7
            drawn[i, j] = np.where(tied, 0, np.where(rng.random(150) < decided, 1, -1)).astype(np.int8)
        found = rate(drawn, 3, seed=trial, resamples=200)
        held += [r["low"] <= t <= r["high"] for r, t in zip(found["ratings"], truth, strict=True)]
    assert 0.88 <= np.mean(held) <= 0.99


def test_a_system_that_wins_everything_is_told() -> None:
    all_won = rate({(0, 1): outcomes_of(20, 0, 0)}, 2, resamples=100)
    assert not all_won["finite"] and 2 < all_won["ratings"][0]["value"] < 10 and all_won["ratings"][0]["best"] == 1
    assert finite(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))  # a ring of wins
    assert not finite(np.array([[0, 1, 1], [0, 0, 1], [0, 1, 0]]))


@pytest.mark.parametrize(
    ("outcomes", "systems"),
    [({}, 2), ({(0, 2): outcomes_of(1, 1, 1)}, 2), ({(0, 1): outcomes_of(0, 0, 0)}, 2),
     ({(0, 1): outcomes_of(1, 1, 1), (0, 2): outcomes_of(1, 1, 0)}, 3),
     ({(0, 1): outcomes_of(1, 1, 1), (1, 0): outcomes_of(1, 1, 1)}, 2)],
)  # fmt: skip
def test_refused(outcomes: Any, systems: int) -> None:
    with pytest.raises(ValueError):
        rate(outcomes, systems)
    with pytest.raises(ValueError):
        fit_ratings(np.ones((2, 3)))
