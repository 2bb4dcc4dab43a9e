"""Robust statistics of short series, in plain Python: the watch reads a few dozen numbers an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

MAD_TO_STD = 1.4826
"""a normal distribution's standard deviation is this many median absolute deviations"""


def spread(values: Sequence[float]) -> float:
    """Standard deviation by the median absolute deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = median(values)
    return MAD_TO_STD * median(abs(v - middle) for v in values)


def noise(values: Sequence[float]) -> float:
    """Standard deviation about a slow trend: from the differences of neighbours, whose variance is twice the noise's."""
    if len(values) < 3:
        return 0.0
    steps = [b - a for a, b in pairwise(values)]
    return MAD_TO_STD * median(abs(s) for s in steps) / 2**0.5


def theil_sen(values: Sequence[float], at: Sequence[float] | None = None) -> float:
    """Median slope over all pairs of points; ``at`` are their places (default: 0, 1, 2, ...). 0 without two places."""
    places = range(len(values)) if at is None else at
    points = list(zip(places, values, strict=True))
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x1 != x2]
    return median(slopes) if slopes else 0.0


def residual_noise(values: Sequence[float]) -> float:
    """Spread of the values about their own Theil-Sen line."""
    slope = theil_sen(values)
    return spread([v - slope * i for i, v in enumerate(values)])
