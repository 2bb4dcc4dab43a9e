"""Curves and small samples: smoothing, onset of a collapse, turns of a monitor, intervals over seeds.

Seeds are the independent units of every claim. Intervals of means are Student's t at 95% over seeds (paired by seed where
two arms are compared: they share the start); with one seed there is none.

A number that is null, nan or infinite is none: it is left out, and whoever leaves it out tells of it (`Estimate`,
`results.not_finite`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from ppomax.lab.results import Result
from ppomax.report.figures import running_mean
from ppomax.watch.history import number

Floats = NDArray[np.float64]
EDGE = 1e-9
"""what rounding may take from a difference that reaches a threshold"""
SMOOTH = 3
"""evaluations of a running mean"""
FIRST = 5
"""values from which the band of a monitor is worked out"""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% t interval; (nan, nan) with fewer than two."""

    mean: float
    low: float
    high: float
    n: int
    """seeds with a finite number"""
    of: int
    """seeds that were asked"""

    def __str__(self) -> str:
        told = "" if self.n == self.of else f" ({self.n} of {self.of} seeds finite)"
        if self.n < 2:
            return (f"{self.mean:.3g}" if self.n else "-") + told
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]{told}"


def known(value: Any) -> float:
    """The number, or nan for what is null, infinite or no number."""
    found = number(value)
    return math.nan if found is None else found


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean over seeds and its 95% t interval; values that are not finite are left out, and the estimate says so."""
    x = np.asarray([v for value in values if math.isfinite(v := known(value))], dtype=np.float64)
    if len(x) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, len(values))
    mean = float(x.mean())
    if len(x) == 1:
        return Estimate(mean, math.nan, math.nan, 1, len(values))
    half = float(student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Estimate(mean, mean - half, mean + half, len(x), len(values))


def course(result: Result, name: str) -> tuple[list[int], list[float]]:
    """(policy updates, values) of an ``eval/...`` number, or of a training metric (policy phase only); empty where no row
    has it. nan where a row has no finite number."""
    rows = result.evaluations if name.startswith("eval/") else [m for m in result.metrics if m["phase"] != "critic"]
    if not any(name in r for r in rows):
        return [], []
    return [int(r["update"]) for r in rows], [known(r.get(name)) for r in rows]


def curve(result: Result, name: str) -> tuple[list[int], list[float]]:
    """`course` without what is not finite, for drawing and for what bears gaps."""
    kept = [(u, v) for u, v in zip(*course(result, name), strict=True) if math.isfinite(v)]
    return [u for u, _ in kept], [v for _, v in kept]


def smooth(values: Sequence[float], window: int = SMOOTH) -> list[float]:
    """Running mean over ``window`` evaluations, fewer at the ends; the first value, before any training, stays itself."""
    return [values[0], *running_mean(values[1:], window)] if values else []


def end(values: Sequence[float], window: int = SMOOTH) -> float:
    """Mean of the last ``window`` values."""
    return float(np.mean(values[-window:])) if values else math.nan


def peak(values: Sequence[float]) -> float:
    """The largest mean of `SMOOTH` successive values after the first, which comes before any training and is chance around 1/2.

    Of fewer values, their mean.
    """
    trained = values[1:] or values
    windows = [trained[i : i + SMOOTH] for i in range(max(1, len(trained) - SMOOTH + 1))]
    return max((end(window) for window in windows), default=math.nan)


def onset(updates: Sequence[int], values: Sequence[float], drop: float) -> int:
    """First update from which the smoothed curve stays ``drop`` below its best so far; the last update if it never does.

    Smoothed values are means of three evaluations, of two at the ends of the curve.
    """
    s = smooth(values)
    best = np.maximum.accumulate(s) if s else np.zeros(0)
    fallen = [b - v >= drop - EDGE for b, v in zip(best, s, strict=True)]
    for i in range(len(s)):
        if all(fallen[i:]):
            return updates[i]
    return updates[-1] if updates else 0


def turn(updates: Sequence[int], values: Sequence[float], first: int = FIRST, width: float = 3.0) -> int | None:
    """The update at which a monitor turns; None where it does not, or has too few values.

    The band: a line through the first ``first`` values by Theil and Sen (median of the slopes between them), since KL
    and reward rise from the start; ``width`` robust standard deviations (1.4826 times the median absolute residual), but
    at least 5% of the median level, on either side. The monitor turns where it is outside in two successive evaluations.
    """
    if len(values) < first + 2:
        return None
    x, y = np.asarray(updates, dtype=np.float64), np.asarray(values, dtype=np.float64)
    i, j = np.triu_indices(first, 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    level = float(np.median(y[:first] - slope * x[:first]))
    residuals = y - (level + slope * x)
    spread = 1.4826 * float(np.median(np.abs(residuals[:first])))
    band = max(width * spread, 0.05 * abs(float(np.median(y[:first]))), 1e-9)
    outside = np.abs(residuals) > band
    for k in range(first, len(y) - 1):
        if outside[k] and outside[k + 1]:
            return int(x[k])
    return None
