"""Single metrics as warnings: the paper's four, and two that it says show nothing, at equal rates of false alarms.

A metric is out when the median of `SMOOTH` iterations is so many units away from its start, three times in a row. The unit is
its own noise, or its own start. How sensitive that is depends on the width alone, so metrics are compared at widths that give
the same false alarms, and over all widths at once.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from warning_runs import Truth
from warning_scores import Floats, areas, kinds, wins

from ppomax.watch.history import BASELINE, SMOOTH
from ppomax.watch.robust import noise

Row = Mapping[str, Any]
Number = Callable[[Row], float | None]
PATIENCE = 3
"""iterations in a row"""


def _log_perplexity(row: Row) -> float | None:
    return math.log(row["policy/perplexity"]) if row.get("policy/perplexity") else None


def _log_tail(row: Row) -> float | None:
    """Right side of the reward distribution against its left side, as a logarithm."""
    p5, p50, p95 = (row.get(f"reward/{p}") for p in ("p5", "p50", "p95"))
    if p5 is None or p50 is None or p95 is None:
        return None
    return math.log(max(p95 - p50, 1e-9) / max(p50 - p5, 1e-9))


def _get(name: str) -> Number:
    return lambda row: row.get(name)


def _one(row: Row) -> float:
    return 1.0


METRICS: dict[str, list[tuple[Number, Number | None]]] = {
    "KL to the reference": [(_get("kl/ref"), _get("policy/entropy"))],
    "perplexity": [(_log_perplexity, _log_perplexity)],
    "response length": [(_get("response/length"), _get("response/length"))],
    "reward distribution": [
        (_get("reward/std"), _get("reward/std")), (_get("reward/skewness"), _one), (_log_tail, _one),
    ],
    "reward, mean (not one of the four)": [(_get("reward/mean"), _get("reward/std"))],
    "policy loss (not one of the four)": [(_get("loss/policy"), None)],
}  # fmt: skip
"""(number, its unit at the start) of section 5.2's four, and of two that the paper says show nothing; KL starts at 0, so the
entropy is its unit. A metric of several numbers is out when one of them is"""
FOUR = [name for name in METRICS if "not one of" not in name]
UNITS = ("noise", "start")
READINGS = [(name, unit) for name, numbers in METRICS.items() for unit in UNITS if unit == "noise" or numbers[0][1]]


def departures(run: Truth, metric: str, unit: str) -> list[float]:
    """By iteration of the policy: how many units the metric is from its start, on either side; the median of `SMOOTH`."""
    rows = run.policy_rows
    largest = [0.0] * len(rows)
    for number, at_start in METRICS[metric]:
        values = [number(row) for row in rows]
        known = [v for v in values[: 4 * BASELINE] if v is not None]
        if len(known) < BASELINE:
            continue
        start, size = statistics.median(known[:BASELINE]), noise(known)
        if unit == "start":
            sizes = [s for row in rows[:BASELINE] if at_start and (s := at_start(row)) is not None]
            size = abs(statistics.median(sizes)) if sizes else math.inf
        for i in range(BASELINE + SMOOTH - 1, len(values)):
            recent = [v for v in values[i - SMOOTH + 1 : i + 1] if v is not None]
            if recent:
                largest[i] = max(largest[i], abs(statistics.median(recent) - start) / max(size, 1e-9))
    return largest


def reach(run: Truth, metric: str, unit: str) -> list[float]:
    """By iteration of the policy: the width below which there has been an alarm by then. Never falls."""
    out, widest = departures(run, metric, unit), 0.0
    found = []
    for i in range(len(out)):
        if i >= PATIENCE - 1:
            widest = max(widest, min(out[i - PATIENCE + 1 : i + 1]))
        found.append(widest)
    return found


Reaches = Mapping[str, Sequence[float]]
"""run -> its reach"""


def reaches(runs: Sequence[Truth], metric: str, unit: str) -> Reaches:
    return {run.name: reach(run, metric, unit) for run in runs}


def crossed(runs: Sequence[Truth], found: Reaches, width: float) -> dict[str, int | None]:
    """Iteration of each run's alarm at this width."""

    def first(run: Truth) -> int | None:
        by_row = zip(run.policy_rows, found[run.name], strict=True)
        return next((int(row["iteration"]) for row, widest in by_row if widest > width), None)

    return {run.name: first(run) for run in runs}


def tightest(runs: Sequence[Truth], found: Reaches, allowed: int = 0) -> float:
    """The most sensitive width at which at most so many of the healthy runs raise an alarm."""
    ends = sorted((max(found[r.name], default=0.0) for r in kinds(runs)[1]), reverse=True)
    return ends[allowed] if allowed < len(ends) else 0.0


def won(runs: Sequence[Truth], found: Reaches, *, as_long: bool) -> Floats:
    """(collapsing, healthy): does the collapsing run reach further *before its fall* than the healthy one? Ties are halves.

    The mean is the area under the curve of alarms in time against false alarms, over all widths. ``as_long``: the healthy run
    counts for as many iterations only, so that a long healthy run has no longer to go astray.
    """
    collapsing, healthy = kinds(runs)
    table = np.zeros((len(collapsing), len(healthy)))
    for i, bad in enumerate(collapsing):
        until = sum(row["iteration"] < (bad.fall or 0) for row in bad.policy_rows)
        furthest = max(found[bad.name][:until], default=0.0)
        for j, good in enumerate(healthy):
            other = found[good.name][:until] if as_long else found[good.name]
            table[i, j] = wins(furthest, max(other, default=0.0))
    return table


def areas_of(runs: Sequence[Truth], found: Reaches, *, as_long: bool) -> Floats:
    return areas(won(runs, found, as_long=as_long))
