"""Curves and intervals against numbers worked out by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab_results import made

from ppomax.lab.statistics import course, curve, end, estimate, onset, peak, smooth, turn


def test_interval_of_a_mean() -> None:
    e = estimate([1.0, 2.0, 3.0])  # std 1, t(.975, 2) = 4.302653, half = 4.302653 / sqrt(3)
    assert (e.mean, e.n) == (2.0, 3)
    assert e.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert e.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert str(e) == "2 [-0.484, 4.48]"


def test_one_value_has_no_interval() -> None:
    e = estimate([0.25])
    assert (e.mean, e.n, str(e)) == (0.25, 1, "0.25")
    assert math.isnan(e.low)
    assert math.isnan(estimate([]).mean)
    assert estimate([]).n == 0


def test_what_is_not_finite_is_left_out_and_told() -> None:
    e = estimate([1.0, None, 3.0, math.inf])
    assert (e.mean, e.n, e.of) == (2.0, 2, 4)
    assert str(e) == "2 [-10.7, 14.7] (2 of 4 seeds finite)"  # std sqrt(2), t(.975, 1) = 12.706, half = 12.706
    assert str(estimate([0.25, math.nan])) == "0.25 (1 of 2 seeds finite)"
    assert str(estimate([None])) == "- (0 of 1 seeds finite)"


def test_smooth_keeps_the_start() -> None:
    assert smooth([0.5, 0.6, 0.9, 0.6]) == pytest.approx([0.5, 0.75, 0.7, 0.75])
    assert smooth([]) == []
    assert peak([0.9, 0.6, 0.6, 0.6]) == pytest.approx(0.6), "the first value, before any training, is no peak"
    assert peak([0.5, 0.7, 0.4, 0.4, 0.4]) == pytest.approx(0.5), "three values make a peak, at the ends too"
    assert peak([0.5, 0.45, 0.45, 0.65, 0.65]) == pytest.approx(1.75 / 3)
    assert peak([0.5, 0.6, 0.7]) == pytest.approx(0.65) and peak([0.4]) == pytest.approx(0.4)
    assert end([0.0, 0.3, 0.6, 0.9]) == pytest.approx(0.6)


def test_onset_is_where_it_stays_down() -> None:
    steps = [0, 10, 20, 30, 40, 50, 60]
    # smoothed: .5 .65 .7 .63 .57 .43 .45, best .7: .1 below it from update 40 on
    assert onset(steps, [0.5, 0.6, 0.7, 0.8, 0.4, 0.5, 0.4], 0.1) == 40
    assert onset(steps, [0.5] * 7, 0.1) == 60, "it never falls"
    back = [0.5, 0.9, 0.9, 0.2, 0.2, 0.9, 0.9]
    assert onset(steps, back, 0.1) == 60, "a dip from which it comes back is no fall"


def test_a_monitor_turns_where_it_leaves_its_line() -> None:
    x = list(range(0, 100, 10))
    line = [0.1 * v for v in x]
    assert turn(x, line) is None, "going on as it began is no turn"
    assert turn(x, [*line[:7], 20.0, 21.0, 22.0]) == 70
    assert turn(x, [*line[:7], 20.0, *line[8:]]) is None, "one value alone is chance"
    noisy = [1.0, 1.1, 0.9, 1.1, 0.9, 1.05, 1.0, 1.1, 0.95, 1.0]
    assert turn(x, noisy) is None
    assert turn(x[:6], line[:6]) is None, "too few values"


def test_curves_leave_out_the_critic_and_what_is_not_finite() -> None:
    result = made(1, [0.5, 0.6], metrics={"loss/value": [1.0, 2.0]})
    result.metrics.insert(0, {"update": 0, "phase": "critic", "loss/value": 9.0})
    result.evaluations[0]["eval/kl"] = None
    assert curve(result, "loss/value") == ([10, 20], [1.0, 2.0])
    assert curve(result, "eval/kl") == ([10], [1.0])
    updates, values = course(result, "eval/kl")
    assert updates == [0, 10] and math.isnan(values[0]) and values[1] == 1.0, (
        "a course keeps the place of what is missing"
    )
    assert course(result, "eval/none") == ([], [])


def test_a_drop_of_just_so_much_counts() -> None:
    assert 0.6 - 0.5 < 0.1, "by rounding"
    assert onset([0, 10, 20, 30, 40], [0.6, 0.6, 0.5, 0.5, 0.5], 0.1) == 30  # smoothed .6 .55 .533 .5 .5
