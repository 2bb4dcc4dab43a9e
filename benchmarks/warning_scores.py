"""How rules that give at most one alarm a run did: counts, leads, and how sure they are.

Runs are the independent units: intervals of shares are Wilson's, those of everything else percentile bootstraps over runs,
collapsing and healthy ones drawn apart. All at 95%, and the same each time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from warning_runs import Truth

from ppomax.evaluate.agreement import bootstrap
from ppomax.evaluate.reward_model import wilson
from ppomax.evaluate.winrate import sign_test

Floats = NDArray[np.float64]
Alarms = Mapping[str, int | None]
"""run -> iteration of its alarm"""
RESAMPLES = 2000
FEW = 5
"""fewer leads than this get no interval"""


def kinds(runs: Sequence[Truth]) -> tuple[list[Truth], list[Truth]]:
    """The collapsing and the healthy ones."""
    return [r for r in runs if r.kind == "collapsing"], [r for r in runs if r.kind == "healthy"]


@dataclass(frozen=True)
class Score:
    """How a rule did."""

    in_time: int
    collapsing: int
    lead: float
    """median iterations from alarm to fall, of the alarms in time"""
    false: int
    healthy: int
    rising: int = 0
    """alarms in time that came before the win rate's highest point"""
    leads: tuple[float, ...] = field(default=(), repr=False)
    """of every collapsing run, NaN where there was no alarm in time"""

    @property
    def worth(self) -> tuple[float, float]:
        """For choosing among settings: alarms in time less false ones, as shares; then the lead."""
        gained = self.in_time / max(self.collapsing, 1) - self.false / max(self.healthy, 1)
        return gained, self.lead if math.isfinite(self.lead) else -1.0

    def lead_interval(self) -> tuple[float, float]:
        """Of the median, by bootstrap over the collapsing runs; (nan, nan) for fewer than `FEW` alarms in time."""
        if self.in_time < FEW:
            return math.nan, math.nan
        leads = np.asarray(self.leads)

        def medians(counts: Floats) -> Floats:
            drawn = (np.repeat(leads, row.astype(int)) for row in counts)
            kept = (values[~np.isnan(values)] for values in drawn)
            return np.asarray([np.median(values) if values.size else np.nan for values in kept])

        found = bootstrap(medians, len(leads), resamples=RESAMPLES)
        return found.low, found.high

    def cells(self) -> list[str]:
        """In time, of these before the peak, lead, false alarms."""
        lead = f"{self.lead:.0f}{between(*self.lead_interval(), '.0f')}" if math.isfinite(self.lead) else "-"
        return [part(self.in_time, self.collapsing), str(self.rising), lead, part(self.false, self.healthy)]

    def as_dict(self) -> dict[str, Any]:
        return {
            "in_time": self.in_time, "collapsing": self.collapsing, "in_time_interval": wilson(self.in_time, self.collapsing),
            "before_the_peak": self.rising, "lead": self.lead, "lead_interval": self.lead_interval(),
            "false": self.false, "healthy": self.healthy, "false_interval": wilson(self.false, self.healthy),
        }  # fmt: skip


def score(runs: Sequence[Truth], alarms: Alarms) -> Score:
    """An alarm is in time before the fall: the first evaluation of the last stretch below 50%; on a healthy run it is false."""
    collapsing, healthy = kinds(runs)
    leads, rising = [], 0
    for run in collapsing:
        at = alarms[run.name]
        if at is None or run.fall is None or at >= run.fall:
            leads.append(math.nan)
            continue
        leads.append(float(run.fall - at))
        rising += run.rising(at)
    known = [lead for lead in leads if math.isfinite(lead)]
    false = sum(alarms[r.name] is not None for r in healthy)
    lead = statistics.median(known) if known else math.nan
    return Score(len(known), len(collapsing), lead, false, len(healthy), rising, tuple(leads))


@dataclass(frozen=True)
class Paired:
    """Two rules on the same runs."""

    in_time: tuple[int, int, int, int]
    """both, only the first, only the second, neither: of the collapsing runs"""
    false: tuple[int, int, int, int]
    """likewise: of the healthy runs"""
    earlier: float
    """median iterations by which the first comes before the second, where both are in time"""

    def cells(self) -> list[str]:
        p = f"{sign_test(self.in_time[1], self.in_time[2]):.2g}"
        earlier = f"{self.earlier:.0f}" if math.isfinite(self.earlier) else "-"
        return [*map(str, self.in_time), p, earlier, *map(str, self.false)]


def paired(runs: Sequence[Truth], one: Alarms, other: Alarms) -> Paired:
    healthy = kinds(runs)[1]

    def count(pairs: Sequence[tuple[bool, bool]]) -> tuple[int, int, int, int]:
        return (
            pairs.count((True, True)),
            pairs.count((True, False)),
            pairs.count((False, True)),
            pairs.count((False, False)),
        )

    leads = list(zip(score(runs, one).leads, score(runs, other).leads, strict=True))
    both = [a - b for a, b in leads if math.isfinite(a) and math.isfinite(b)]
    return Paired(
        count([(math.isfinite(a), math.isfinite(b)) for a, b in leads]),
        count([(one[r.name] is not None, other[r.name] is not None) for r in healthy]),
        statistics.median(both) if both else math.nan,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ areas


def wins(bad: float, good: float) -> float:
    """1 where the collapsing run stands out more than the healthy one, half where they are equal."""
    return float(bad > good) + 0.5 * float(bad == good)


def areas(won: Floats, seed: int = 0) -> Floats:
    """(1 + RESAMPLES,): the mean over all pairs, then over the pairs of each resample; ``won`` is (collapsing, healthy).

    Matrices of one shape are resampled alike, so that their areas can be subtracted one by one.
    """
    bad, good = won.shape
    if not won.size:
        return np.full(1 + RESAMPLES, np.nan)
    rng = np.random.default_rng(seed)
    a = rng.multinomial(bad, np.full(bad, 1 / bad), size=RESAMPLES)
    b = rng.multinomial(good, np.full(good, 1 / good), size=RESAMPLES)
    return np.concatenate([[won.mean()], (a @ won * b).sum(axis=1) / won.size])


def interval(values: Floats) -> tuple[float, float]:
    """95% percentile interval of resamples: all but the first value."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(low), float(high)


# ------------------------------------------------------------------------------------------------ words


def between(low: float, high: float, form: str) -> str:
    return f" [{low:{form}}, {high:{form}}]" if math.isfinite(low) else ""


def part(count: int, whole: int) -> str:
    """'3 of 14 [8%, 48%]'"""
    found = wilson(count, whole)
    return f"{count} of {whole}" + (f" [{found[0]:.0%}, {found[1]:.0%}]" if found else "")
