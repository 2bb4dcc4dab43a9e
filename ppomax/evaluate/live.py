"""What is told of a policy while it trains: its answers to fixed prompts, judged against a baseline's (Fig. 4, red line).

Arithmetic on scores and counts: no model, no configuration. Who draws and scores the answers is ``train/ppo_watch.py``;
the numbers are defined in docs/metrics.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppomax.evaluate.winrate import Outcomes, as_half_wins, outcomes_from_scores


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer of the policy, and what was found out about it."""

    text: str
    tokens: tuple[int, ...]
    """of the response, its end included"""
    finished: bool
    """False: cut at the length limit"""
    judge: float
    """the judge's score"""
    reward: float
    """the score that is trained on"""
    kl: float
    """nats a response: sum of k1 over its tokens"""
    kl_k3: float
    """nats a response: sum of k3 over its tokens"""
    nll: float
    """nats a response: negative log-likelihood under the policy"""
    entropy: float
    """nats a response: sum of the entropies of the policy's distributions"""


@dataclass(frozen=True)
class Baseline:
    """Scores of the answers that the policy's are compared with, one a prompt."""

    judge: tuple[float, ...]
    reward: tuple[float, ...]


def win_rates(outcomes: Outcomes, categories: Sequence[str], name: str) -> dict[str, float]:
    """``name``: win rate, ties as half; ``name``_se: its standard error over prompts; ``name``/CATEGORY for each."""
    halves = as_half_wins(outcomes)
    error = _std(halves) / math.sqrt(len(halves))
    return {name: float(halves.mean()), f"{name}_se": error, **_by_category(halves.tolist(), categories, name)}


def evaluation_numbers(
    answers: Sequence[JudgedAnswer], baselines: Mapping[str, Baseline], categories: Sequence[str], tie_band: float
) -> dict[str, float]:
    """All ``eval/*`` numbers of one evaluation; answers, baselines and categories are in the order of the prompts.

    ``baselines``: name -> scores; the first one is what eval/win_rate, eval/win, eval/tie and eval/lose are against. A
    difference of the judge's scores up to ``tie_band`` is a tie. Raises ValueError for unequal lengths or a NaN.
    """
    judged = [a.judge for a in answers]
    numbers: dict[str, float] = {"eval/prompts": len(answers)}
    for i, (name, baseline) in enumerate(baselines.items()):
        outcomes = outcomes_from_scores(judged, baseline.judge, tie_band)
        if i == 0:
            numbers |= win_rates(outcomes, categories, "eval/win_rate")
            shares = {"win": 1, "tie": 0, "lose": -1}
            numbers |= {f"eval/{word}": float((outcomes == sign).mean()) for word, sign in shares.items()}
        numbers |= win_rates(outcomes, categories, f"eval/win_rate_{name}")
        numbers[f"eval/judge_{name}"] = float(np.mean(baseline.judge))
        numbers[f"eval/reward_{name}"] = float(np.mean(baseline.reward))
        numbers[f"eval/reward_{name}_std"] = _std(baseline.reward)
    tokens = sum(len(a.tokens) for a in answers)
    numbers |= {"eval/judge": float(np.mean(judged)), **_by_category(judged, categories, "eval/judge")}
    numbers |= {
        "eval/reward": float(np.mean([a.reward for a in answers])),
        "eval/kl": float(np.mean([a.kl for a in answers])),
        "eval/kl_k3": float(np.mean([a.kl_k3 for a in answers])),
        "eval/length": tokens / len(answers),
        "eval/truncated": float(np.mean([not a.finished for a in answers])),
        "eval/perplexity": float(np.exp(sum(a.nll for a in answers) / tokens)),
        "eval/entropy": sum(a.entropy for a in answers) / tokens,
        "eval/distinct": len({a.text for a in answers}) / len(answers),
        "eval/distinct_2": distinct_pairs([a.tokens for a in answers]),
    }
    return numbers


def distinct_pairs(sequences: Sequence[Sequence[int]]) -> float:
    """distinct-2 (Li et al. 2016): different pairs of neighbouring tokens / all of them; nan where there is none."""
    pairs = [pair for tokens in sequences for pair in itertools.pairwise(tokens)]
    return len(set(pairs)) / len(pairs) if pairs else math.nan


def _by_category(values: Sequence[float], categories: Sequence[str], name: str) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for value, category in zip(values, categories, strict=True):
        groups.setdefault(category, []).append(value)
    return {f"{name}/{category}": float(np.mean(group)) for category, group in sorted(groups.items())}


def _std(values: Sequence[float] | np.ndarray) -> float:
    """Unbiased; 0 where there is one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
