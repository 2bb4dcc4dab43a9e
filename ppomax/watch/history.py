"""What the watch remembers of a run: its beginning, and the latest iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from ppomax.watch.robust import noise

WATCHED = (
    "reward/mean", "reward/std", "reward/skewness", "reward/p5", "reward/p50", "reward/p95",
    "kl/ref", "kl/ref_sequence", "kl/coef", "kl/price", "policy/perplexity", "policy/entropy", "policy/approx_kl", "policy/ratio_deviation",
    "response/length", "response/truncated", "response/distinct", "response/distinct_2", "response/repeated_ngram_rate",
    "response/compression", "value/explained_variance", "grad_norm/policy", "grad_norm/critic", "loss/value",
)  # fmt: skip
"""metrics that the detectors read; a stream may lack any of them"""
BASELINE = 6
"""iterations that make the baseline: the policy is still nearly the reference"""
SMOOTH = 5
"""'now' is the median over this many iterations"""
KEPT = 60
"""iterations that are remembered besides the baseline's"""


def number(value: Any) -> float | None:
    """A finite number, or None for what is missing, null, NaN, infinite or too large for one."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None


def of_policy(metrics: Mapping[str, Any]) -> bool:
    """Whether the policy was trained: in every phase but the critic's pre-training, whatever a stream calls it."""
    return metrics.get("phase") != "critic"


class History:
    """Rows of metrics: the first `BASELINE` (critic pre-training included), and the last `KEPT` of the policy."""

    def __init__(self) -> None:
        self.first: list[dict[str, float]] = []
        self.rows: list[dict[str, float]] = []
        self.policy_iterations = 0
        """iterations of the policy so far"""

    def add(self, metrics: Mapping[str, Any]) -> None:
        row = {name: value for name in WATCHED if (value := number(metrics.get(name))) is not None}
        row["iteration"] = float(metrics["iteration"])
        if len(self.first) < BASELINE:
            self.first.append(row)
        if of_policy(metrics):
            self.policy_iterations += 1
            row["policy_iteration"] = float(self.policy_iterations)
            self.rows = [*self.rows, row][-KEPT:]

    def forget_after(self, iteration: int) -> None:
        """Back to the state before ``iteration``: what came since belongs to weights that were given up."""
        self.first = [row for row in self.first if row["iteration"] < iteration]
        oldest = self.rows[0] if self.rows else None
        self.rows = [row for row in self.rows if row["iteration"] < iteration]
        if self.rows:
            self.policy_iterations = int(self.rows[-1]["policy_iteration"])
        elif oldest is not None:  # further back than is remembered
            self.policy_iterations = max(0, int(oldest["policy_iteration"] - 1 - (oldest["iteration"] - iteration)))

    def series(self, name: str, last: int | None = None) -> list[float]:
        """Values of the policy's iterations, oldest first, those without the metric left out."""
        values = [row[name] for row in self.rows if name in row]
        return values if last is None else values[-last:]

    def start(self, name: str) -> float | None:
        """Median over the first iterations."""
        values = [row[name] for row in self.first if name in row]
        return median(values) if len(values) >= min(3, BASELINE) else None

    def start_noise(self, name: str) -> float:
        """Standard deviation of one iteration's number about the trend: over the iterations that are remembered."""
        rows = self.first if len(self.rows) < 8 else self.rows
        return noise([row[name] for row in rows if name in row])

    def now(self, name: str, ago: int = 0) -> float | None:
        """Median over the last `SMOOTH` iterations, ``ago`` iterations back."""
        values = self.series(name)
        end = len(values) - ago
        return median(values[max(0, end - SMOOTH) : end]) if end >= SMOOTH else None

    def since(self, iteration: float) -> int:
        """Iterations of the policy that are remembered from after ``iteration``; a stream may leave numbers out."""
        return sum(row["iteration"] > iteration for row in self.rows)

    def iteration(self, ago: int = 0) -> int:
        """Number of the iteration ``ago`` back, or the oldest one that is remembered."""
        return int(self.rows[max(0, len(self.rows) - 1 - ago)]["iteration"])

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "rows": self.rows, "policy_iterations": self.policy_iterations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first = [dict(row) for row in state["first"]]
        self.rows = [dict(row) for row in state["rows"]]
        self.policy_iterations = int(state["policy_iterations"])
