"""Runs of the lab with what became of them, and which of them tune and which are judged."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.lab.results import Result, read_result
from ppomax.lab.statistics import end, smooth

LOOKED_AT = {(arm, seed) for arm in ("vanilla", "ppo_max", "eta_005", "eta_01", "eta_02") for seed in (2, 3, 4)}
"""(arm, seed) of counted runs that were looked at while thresholds were chosen. With those of lab/development that have a
stream they tune; every other run is judged, whatever its arm and seed. Nobody looked at it to choose a threshold; but the rule
about a KL penalty in force came when seventeen of them had been counted already (it changed no count of theirs)."""
SEEN = frozenset(Path(__file__).with_name("warning_seen.txt").read_text(encoding="utf-8").split())
"""Keys of the counted runs that were there on 1 December 2026, when `combined` came to need a sign of distance and `kl_doubling`
was added: that was done in sight of all of them, so the watch's counts on later runs alone are a test of it."""


@dataclass(frozen=True)
class Truth:
    """What became of a run, by the judge."""

    name: str
    kind: str
    """collapsing, healthy or neither; steered: the watch itself rolled it back, or diverged: its numbers ended before it did,
    so what would have become of it is not seen"""
    fall: int | None
    """first iteration of the last stretch of evaluations below 50%"""
    rows: list[dict[str, Any]]
    arm: str = ""
    seed: int = 0
    end: float = math.nan
    """mean of the last three evaluations"""
    last: float = math.nan
    """win rate of the last, thorough evaluation"""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(iteration, smoothed win rate) of every evaluation after the first, which comes before any training"""
    dip: int | None = None
    """of a collapsing run: first iteration of any evaluation below 50%, whether or not the win rate came back"""
    seen: bool = False
    """whether the watch's rules were last changed in its sight"""

    @property
    def policy_rows(self) -> list[dict[str, Any]]:
        """Without the critic's pre-training."""
        return [row for row in self.rows if row.get("phase", "policy") == "policy"]

    @property
    def penalised(self) -> bool:
        """Whether a KL penalty was on."""
        return any(row.get("kl/coef", 0.0) > 0 for row in self.rows)

    @property
    def peak(self) -> int | None:
        """Iteration of the highest smoothed win rate, the first of equals."""
        return max(self.curve, key=lambda point: point[1])[0] if self.curve else None

    def rising(self, at: int) -> bool:
        """Whether the win rate had its highest point still ahead at that iteration."""
        return self.peak is not None and at < self.peak


def truth(result: Result) -> Truth:
    """Collapsing: the mean of the last three evaluations is below 50%. Healthy: it is within five points of the smoothed
    best, and no smoothed evaluation is below 50%.

    The first evaluation comes before any training, where 50% is chance.
    """
    at = [int(e["iteration"]) for e in result.evaluations]
    rates = [float(e["eval/win_rate"]) for e in result.evaluations]
    name = f"{result.header['arm']}, seed {result.seed}, {result.key}"
    rows = [
        {k: v for k, v in row.items() if v is not None} for row in result.stream
    ]  # null: no such number in this line
    last = float(result.endpoint["same_temperature"]["win_rate"])
    kind, fall, curve = "neither", None, smooth(rates)[1:]
    if result.header["identity"].get("watch.on_collapse") == "rollback":
        kind = "steered"
    elif "diverged" in result.header:
        kind = "diverged"
    elif end(rates) < 0.5:
        first = max(i for i, rate in enumerate(rates) if rate < 0.5)
        while first > 1 and rates[first - 1] < 0.5:
            first -= 1
        kind, fall = "collapsing", at[first]
    elif min(curve) >= 0.5 and max(curve) - end(rates) <= 0.05:
        kind = "healthy"
    points = list(zip(at[1:], curve, strict=True))
    dip = next((i for i, rate in zip(at[1:], rates[1:], strict=True) if rate < 0.5), None) if fall is not None else None
    arm, seen = result.header["arm"], result.key in SEEN
    return Truth(name, kind, fall, rows, arm, result.seed, end(rates), last, points, dip, seen)


def finished(folder: Path) -> Iterator[Result]:
    """Results of all files below a folder, those that cannot be read named and left out."""
    for path in sorted(folder.rglob("*.jsonl")):
        try:
            yield read_result(path)
        except UserError as error:  # runs of an earlier format have no stream
            print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)


def split(development: Path, results: Path) -> tuple[list[Truth], list[Truth], list[Truth]]:
    """Runs that tune, runs that are judged, and runs that the watch rolled back (of the counted ones).

    Tuning: all of ``development``, and of ``results`` those of `LOOKED_AT`. Judged: the rest.
    """
    tuning = {r.key: truth(r) for r in finished(development)}
    judged: dict[str, Truth] = {}
    for result in finished(results):
        tunes = result.key in tuning or (result.header["arm"], result.seed) in LOOKED_AT
        (tuning if tunes else judged)[result.key] = truth(result)
    steered = [r for r in judged.values() if r.kind == "steered"]
    return list(tuning.values()), [r for r in judged.values() if r.kind != "steered"], steered
