"""What rules read of finished runs: numbers of one run, and their means and differences over seeds.

"End" is the mean of the last 3 evaluations, "best" the largest mean of 3 successive ones. A number that a run does not have
as a finite one raises `NotFinite`; `if_finite` gives nan instead, for numbers that are only reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ppomax.lab.results import Result
from ppomax.lab.statistics import EDGE, SMOOTH, Estimate, course, end, estimate, known, onset, peak

Arm = Mapping[int, Result]
"""seed -> result"""
WIN = "eval/win_rate"


class NotFinite(Exception):
    """A rule reads a number that a run does not have, or not as a finite one."""

    def __init__(self, result: Result, name: str) -> None:
        super().__init__(name)
        self.result, self.name = result, name


def values_of(result: Result, name: str, last: int = 0) -> list[float]:
    """All values over training, or the ``last`` ones; all of them finite."""
    values = course(result, name)[1]
    if not values:
        raise KeyError(name)
    if any(v != v for v in values[-last:]):
        raise NotFinite(result, name)
    return values[-last:]


def end_of(result: Result, name: str = WIN) -> float:
    return end(values_of(result, name, SMOOTH))


def best_of(result: Result, name: str = WIN) -> float:
    return peak(values_of(result, name))


def largest_of(result: Result, name: str) -> float:
    return max(values_of(result, name))


def at_end(result: Result, *path: str) -> float:
    """A number of the last evaluation."""
    value: Any = result.endpoint
    for name in path:
        value = value[name]
    if (found := known(value)) != found:
        raise NotFinite(result, f"{'/'.join(path)} in the last evaluation")
    return found


def losses_of(result: Result, who: str) -> float:
    """Share of the answers that lose to the stronger opponent's."""
    return at_end(result, "opponent", who, "lose")


def fall_of(result: Result, drop: float) -> float:
    """As a share of the run: 1 where it never falls; one that diverged before it fell falls there."""
    updates, values = course(result, WIN)[0], values_of(result, WIN)
    return onset(updates, values, drop) / updates[-1] * share_done(result)


def share_done(result: Result) -> float:
    """Of the iterations planned: below 1 for a run that diverged."""
    done = result.header.get("diverged", {}).get("policy_iterations", result.header["iterations"])
    return float(done / result.header["iterations"])


def rise_of(result: Result) -> float:
    """Proxy reward at the end less SFT's, in standard deviations of SFT's."""
    mean, spread = (values_of(result, f"eval/reward_sampled{what}", 1)[0] for what in ("", "_std"))
    return (end_of(result, "eval/reward") - mean) / spread


def last_of(result: Result, form: str = "same_temperature") -> float:
    """Win rate of the last evaluation."""
    return at_end(result, form, "win_rate")


def over_seeds(arm: Arm, number: Callable[[Result], float]) -> list[float]:
    return [number(arm[seed]) for seed in sorted(arm)]


def mean_of(arm: Arm, number: Callable[[Result], float]) -> Estimate:
    return estimate(over_seeds(arm, number))


def paired(one: Arm, other: Arm, number: Callable[[Result], float]) -> Estimate:
    """One less the other, within seeds."""
    return estimate([number(one[s]) - number(other[s]) for s in sorted(one.keys() & other.keys())])


def if_finite(number: Callable[[Result], float]) -> Callable[[Result], float]:
    """The number, or nan in place of one that is not finite: for what is reported and does not decide."""

    def lenient(result: Result) -> float:
        try:
            return number(result)
        except NotFinite:
            return math.nan

    return lenient


def holds(result: Result, hold: float) -> bool:
    """Ends, at the iteration planned, within ``hold`` of its best."""
    return share_done(result) == 1 and end_of(result) >= best_of(result) - hold - EDGE
