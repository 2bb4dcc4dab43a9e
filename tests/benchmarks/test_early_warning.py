"""Who collapses, what is in time, and how far a metric departs: by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from ppomax.lab.results import Result

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import early_warning as ew


def result(rates: list[float], stream: list[dict[str, Any]] | None = None, **identity: Any) -> Result:
    evaluations = [{"iteration": 8 * i, "eval/win_rate": rate} for i, rate in enumerate(rates)]
    header = {"arm": "vanilla", "seed": 2, "key": "k", "format": 2, "identity": identity}
    return Result(Path("x"), header, evaluations, stream or [], [], {"same_temperature": {"win_rate": 0.25}})


@pytest.mark.parametrize(
    ("rates", "kind", "fall"),
    [
        ([0.5, 0.6, 0.62, 0.6, 0.4, 0.3, 0.2], "collapsing", 32),
        ([0.5, 0.6, 0.4, 0.6, 0.4, 0.3, 0.2], "collapsing", 32),  # the last stretch below 50% counts
        ([0.4, 0.3, 0.3, 0.3, 0.2], "collapsing", 8),  # never above: from the first evaluation after the start
        ([0.4, 0.6, 0.62, 0.61, 0.6], "healthy", None),  # before any training, 50% is chance
        ([0.5, 0.6, 0.3, 0.3, 0.3, 0.6, 0.7, 0.7], "neither", None),
        ([0.5, 0.62, 0.62, 0.62, 0.56, 0.56, 0.56], "neither", None),  # has lost six points for good
    ],
)
def test_truth(rates: list[float], kind: str, fall: int | None) -> None:
    found = ew.truth(result(rates))
    assert (found.kind, found.fall) == (kind, fall)


def test_a_run_whose_numbers_ended_is_neither_healthy_nor_collapsing() -> None:
    run = result([0.5, 0.6, 0.62, 0.6, 0.61])
    assert ew.truth(run).kind == "healthy"
    run.header["diverged"] = {"told": "loss/policy not finite", "policy_iterations": 32}
    assert ew.truth(run).kind == "diverged"


def test_a_run_that_the_watch_rolled_back_is_not_judged_but_shown_beside_vanilla() -> None:
    rows = [{"iteration": i, "kl/coef": c} for i, c in enumerate([0.0, 0.0, 0.05, 0.05, 0.2])]
    steered = ew.truth(result([0.5, 0.6, 0.62, 0.6, 0.58], rows, **{"watch.on_collapse": "rollback"}))
    assert steered.kind == "steered"
    vanilla = ew.truth(result([0.5, 0.6, 0.4, 0.3, 0.2]))
    other = ew.Truth("x", "collapsing", 8, [], "scaling", 2, 0.1, 0.1)
    row = ew.rollback_table([steered], [other, vanilla]).split("\n")[-1]
    assert row == "| 2 | 30.0% | 25.0% | 60.0% | 25.0% | 2, 4 |"


def test_score_counts_alarms_before_the_fall_and_on_healthy_runs() -> None:
    runs = [ew.Truth("a", "collapsing", 32, []), ew.Truth("b", "collapsing", 32, []), ew.Truth("c", "collapsing", 32, []),
            ew.Truth("d", "healthy", None, []), ew.Truth("e", "neither", None, [])]  # fmt: skip
    found = ew.score(runs, {"a": 22, "b": 32, "c": 12, "d": 5, "e": 5})
    assert (found.in_time, found.collapsing, found.false, found.healthy) == (2, 3, 1, 1)
    assert found.lead == 15  # of 10 and 20
    assert math.isnan(ew.score(runs, dict.fromkeys("abcde")).lead)


def rows(values: list[float]) -> list[dict[str, Any]]:
    return [{"iteration": i, "phase": "policy", "response/length": v} for i, v in enumerate(values)]


def test_departure_is_in_units_of_the_metrics_own_noise() -> None:
    quiet = [10.0, 11.0] * 12  # neighbours differ by 1 up and 1 down: noise 1.4826 / sqrt(2)
    unit = 1.4826 / 2**0.5
    run = ew.Truth("a", "collapsing", 40, rows(quiet + [31.5] * 10))
    found = ew.departures(run, "response length")
    assert found[-1] == pytest.approx((31.5 - 10.5) / unit)
    # the median of five is out from the third long answer on, and must be so three times
    assert ew.crossed(run, "response length", 5) == 24 + 2 + 2
    assert ew.crossed(run, "response length", 1000) is None


def test_separation_looks_only_at_what_came_before_the_fall() -> None:
    quiet = [10.0, 11.0] * 12
    early = ew.Truth("a", "collapsing", 30, rows(quiet + [31.5] * 10))
    late = ew.Truth("b", "collapsing", 24, rows(quiet + [31.5] * 10))
    calm = ew.Truth("c", "healthy", None, rows(quiet + [10.0, 11.0] * 5))
    assert ew.separation([early, calm], "response length") == 1.0
    assert ew.separation([late, calm], "response length") == 0.5


def test_the_watchs_alarms_are_those_of_a_run() -> None:
    """A line without a number is no line with a number that is not finite."""
    run = ew.truth(result([0.5, 0.6, 0.6, 0.6], [*rows([10.0, 11.0] * 12)[:3], {"iteration": 3, "kl/ref": None}]))
    assert ew.watched([run]) == {"collapse": {run.name: None}}
