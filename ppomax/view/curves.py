"""What the page of a run draws, as plain values for JSON, thinned: a page is sent anew with each iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppomax.report.figures import (
    MOST_POINTS,
    SMOOTHED_FROM,
    Panel,
    density,
    extremes,
    phase_seconds,
    running_mean,
)
from ppomax.view.runs import rounded

RIDGES = 8
"""times at which the distribution of rewards is drawn"""
RIDGE_POINTS = 80
"""places at which each is computed"""
RIDGE_HEIGHT = 1000
"""of the highest of them; heights are whole numbers"""
STRETCHES = 120
"""of the iterations, whose mean times are drawn"""


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of the places 0 to ``count`` - 1, the first and the last among them."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, most))}) if count else []


def curve(panel: Panel, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """One curve, thinned: the extremes of `MOST_POINTS` stretches, and of long ones a running mean."""
    metric, title, unit = panel
    places, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(places) & np.isfinite(values)
    places, values = places[known], values[known]
    found: dict[str, Any] = {
        "metric": metric,
        "title": title,
        "unit": unit,
        "x": [],
        "y": [],
        "mean": None,
        "band": None,
    }
    if not len(values):
        return found
    array: Any = values  # as it is: a list would be converted again and again
    raw = extremes(array, MOST_POINTS)
    found["x"], found["y"] = places[raw].tolist(), [rounded(float(v)) for v in values[raw]]
    if len(values) >= SMOOTHED_FROM:
        at = evenly(len(values), MOST_POINTS)
        mean = running_mean(array, len(values) // 20 | 1, at)
        found["mean"] = [places[at].tolist(), [rounded(v) for v in mean]]
    return found


def ridge(iterations: Sequence[float], rewards: Sequence[float]) -> dict[str, Any] | None:
    """Distributions of the rewards of the held-out prompts, oldest first (Fig. 13): None where there are no rewards.

    ``iterations``, ``rewards``: one of each an answer. ``heights``: densities at `RIDGE_POINTS` places from ``low`` to
    ``high``, all on one scale on which the highest is `RIDGE_HEIGHT`.
    """
    at, values = np.asarray(iterations, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    known = np.isfinite(at) & (np.abs(values) < 1e100)  # no distribution of what would overflow
    at, values = at[known], values[known]
    if not len(values):
        return None
    times = np.unique(at)
    times = times[evenly(len(times), RIDGES)]
    shown = [values[at == time] for time in times]
    low, high = min(float(v.min()) for v in shown), max(float(v.max()) for v in shown)
    margin = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    grid = np.linspace(low - margin, high + margin, RIDGE_POINTS)
    densities = [density(v, grid) for v in shown]
    most = max(float(d.max()) for d in densities)
    return {
        "at": times.tolist(), "low": rounded(float(grid[0])), "high": rounded(float(grid[-1])), "full": RIDGE_HEIGHT,
        "heights": [np.round(RIDGE_HEIGHT * d / most).astype(int).tolist() for d in densities],
        "medians": [rounded(float(np.median(v))) for v in shown], "counts": [len(v) for v in shown],
    }  # fmt: skip


def times(x: Sequence[float], seconds: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Seconds of each phase an iteration, in means of `STRETCHES` stretches; None where no time was measured.

    ``seconds``: metric (time/...) -> values (len(x),), NaN where the phase did not come. ``x``: where each stretch begins,
    and where the last one ends; ``phases``: [name, its share of all the time, seconds by stretch].
    """
    places = np.asarray(x, dtype=np.float64)
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in seconds.items()}
    known = np.isfinite(places) & np.any([np.isfinite(column) for column in columns.values()], axis=0)
    places = places[known]
    columns = {name: np.nan_to_num(column[known]) for name, column in columns.items()}
    if not len(places):
        return None
    parts = np.array_split(np.arange(len(places)), min(len(places), STRETCHES))
    found = phase_seconds([{name: float(c[part].mean()) for name, c in columns.items()} for part in parts])
    sizes = np.array([len(part) for part in parts])
    sums = {name: float((means * sizes).sum()) for name, means in found.items()}
    whole = sum(sums.values())
    return {
        "x": [*(float(places[part[0]]) for part in parts), float(places[-1]) + 1],
        "phases": [
            [name, rounded(sums[name] / whole), [rounded(float(v)) for v in means]]
            for name, means in found.items()
            if sums[name] > 0
        ],
    } if whole > 0 else None  # fmt: skip
