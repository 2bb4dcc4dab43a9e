"""Accuracy by subset, and how subsets make one number; RewardBench's sections and score where the subsets are its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppomax.evaluate.reward_model import accuracy

CODE = tuple(f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust"))
REWARD_BENCH = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": ("math-prm", *CODE),
}  # fmt: skip
"""RewardBench's subsets by section (Lambert et al. 2024)"""


def mean_over(parts: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None) -> dict[str, Any]:
    """Mean of accuracies {accuracy, interval}, unweighted or by ``weights``, with a 95% interval.

    The interval joins the Wilson intervals of the parts (Zou and Donner 2008, "MOVER"): mean -/+ the root of the sum of
    squares of their one-sided widths, each times its share of the weights.
    """
    given = np.ones(len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = given / given.sum()
    values = np.array([part["accuracy"] for part in parts])
    below = shares * (values - [part["interval"][0] for part in parts])
    above = shares * ([part["interval"][1] for part in parts] - values)
    mean = float(shares @ values)
    interval = [max(0.0, mean - math.sqrt(below @ below)), min(1.0, mean + math.sqrt(above @ above))]
    return {"accuracy": mean, "interval": interval, "n": len(parts)}


def by_subset(gaps: np.ndarray, subsets: Sequence[str | None]) -> dict[str, Any] | None:
    """Accuracy of each subset and the mean over them; None where no pair names one. ``without``: pairs that name none.

    Of RewardBench's subsets also ``sections``, and ``score``, the unweighted mean of the four, where all are there.
    """
    names = sorted({name for name in subsets if name is not None})
    if not names:
        return None
    parts = {name: accuracy(gaps[[s == name for s in subsets]]) for name in names}
    found = {"by_subset": parts, "mean": mean_over(list(parts.values())), "without": subsets.count(None)}
    sections = reward_bench_sections(parts)
    if sections:
        found["sections"] = sections
    if len(sections) == len(REWARD_BENCH):
        found["score"] = mean_over(list(sections.values()))
    return found


def reward_bench_sections(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """RewardBench's sections {accuracy, interval, n (pairs)}; none where a subset is not RewardBench's.

    Each pair of a section counts alike, except that math counts as much as all code.
    """
    if set(parts) - {name for names in REWARD_BENCH.values() for name in names}:
        return {}
    code = sum(parts[name]["n"] for name in CODE if name in parts)
    found = {}
    for section, names in REWARD_BENCH.items():
        there = [name for name in names if name in parts]
        weights = [code if name == "math-prm" and code else parts[name]["n"] for name in there]
        if there:
            pairs = sum(parts[name]["n"] for name in there)
            found[section] = {**mean_over([parts[name] for name in there], weights), "n": pairs}
    return found
