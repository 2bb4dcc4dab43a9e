"""What is told of a policy while it trains: its answers to fixed prompts, judged against a baseline's (Fig. 4, red line).

Arithmetic on scores and counts: no model, no configuration. Who draws and scores the answers is ``train/ppo_watch.py``;
the numbers are defined in docs/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ppomax.evaluate.winrate import Outcomes, as_half_wins, outcomes_from_scores
from ppomax.watch.metrics import repetition, reward_shape

BINS = 20
"""of a histogram"""


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer of the policy, and what was found out about it."""

    text: str
    tokens: tuple[int, ...]
    """of the response, its end included"""
    finished: bool
    """False: cut at the length limit"""
    judge: float | None
    """the judge's score; None: it compares and gives none"""
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
    """none where the judge compares"""
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
    judged = [a.judge for a in answers if a.judge is not None]
    outcomes = {name: outcomes_from_scores(judged, b.judge, tie_band) for name, b in baselines.items()}
    numbers: dict[str, float] = {"eval/prompts": len(answers)}
    for name, baseline in baselines.items():
        numbers |= _against(name, outcomes[name], categories, first=name == next(iter(baselines)))
        numbers[f"eval/judge_{name}"] = float(np.mean(baseline.judge))
    numbers |= {"eval/judge": float(np.mean(judged)), **_by_category(judged, categories, "eval/judge")}
    first = next(iter(baselines))
    return numbers | proxy_numbers(answers, baselines[first], outcomes[first].tolist()) | _besides(answers, baselines)


def comparison_numbers(
    answers: Sequence[JudgedAnswer], baselines: Mapping[str, Baseline], categories: Sequence[str],
    verdicts: Mapping[str, Sequence[int | None]],
) -> dict[str, float]:  # fmt: skip
    """The same of a judge that compares and gives no scores; ``verdicts``: by baseline, an outcome a prompt.

    A prompt without a verdict (None) is left out of the win rates, and counted in eval/judge_failed. Raises ValueError
    where a baseline has no verdict at all.
    """
    numbers: dict[str, float] = {}
    for name in baselines:
        valid = [(outcome, c) for outcome, c in zip(verdicts[name], categories, strict=True) if outcome is not None]
        if not valid:
            raise ValueError(f"no verdict against {name}")
        first, failed = name == next(iter(baselines)), len(categories) - len(valid)
        outcomes = np.array([outcome for outcome, _ in valid], dtype=np.int8)
        numbers |= _against(name, outcomes, [c for _, c in valid], first=first)
        numbers[f"eval/judge_failed_{name}"] = failed
        if first:
            numbers |= {"eval/prompts": len(valid), "eval/judge_failed": failed}
            numbers |= proxy_numbers(answers, baselines[name], verdicts[name])
    return numbers | _besides(answers, baselines)


def _against(name: str, outcomes: Outcomes, categories: Sequence[str], *, first: bool) -> dict[str, float]:
    """Rates against one baseline; the first one's stand without its name too."""
    numbers = win_rates(outcomes, categories, f"eval/win_rate_{name}")
    if first:
        numbers |= win_rates(outcomes, categories, "eval/win_rate")
        shares = {"win": 1, "tie": 0, "lose": -1}
        numbers |= {f"eval/{word}": float((outcomes == sign).mean()) for word, sign in shares.items()}
    return numbers


def proxy_numbers(
    answers: Sequence[JudgedAnswer], baseline: Baseline, outcomes: Sequence[int | None]
) -> dict[str, float]:
    """The training reward as if it were the judge, on all prompts; and how often it sides with the judge.

    ``outcomes``: the judge's, one a prompt. Agreement is over the prompts on which both prefer one of the two answers, and is
    left out where there is none.
    """
    proxy = outcomes_from_scores([a.reward for a in answers], baseline.reward, 0.0)
    halves = as_half_wins(proxy)
    numbers = {
        "eval/proxy_win_rate": float(halves.mean()),
        "eval/proxy_win_rate_se": _std(halves) / math.sqrt(len(halves)),
    }
    same = [own == judged for own, judged in zip(proxy.tolist(), outcomes, strict=True) if own and judged]
    return numbers | ({"eval/proxy_agreement": float(np.mean(same))} if same else {})


def reward_numbers(rewards: Sequence[float]) -> dict[str, float]:
    """The distribution of the rewards of answers to fixed prompts (Fig. 13): eval/reward and its spread and quantiles."""
    return {
        "eval/reward": float(np.mean(rewards)),
        "eval/reward_std": _std(rewards),
        **reward_shape(torch.tensor(rewards, dtype=torch.double), "eval/reward_"),
    }


def distributions(rewards: Sequence[float], lengths: Sequence[int]) -> dict[str, Any]:
    """The same in full for a line on disk: ``rewards`` in the order of the prompts, and histograms of both."""
    return {
        "rewards": [float(f"{reward:.6g}") for reward in rewards],
        "histograms": {"eval/reward": histogram(rewards), "eval/length": histogram(lengths)},
    }


def histogram(values: Sequence[float]) -> dict[str, list[float]]:
    """``counts`` of the values between neighbouring ``edges``, the last one included; equal widths from least to most.

    Whole numbers (lengths) have edges at halves, so that each bin holds as many of them. All equal: one bin around them.
    """
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        width = -(-(high - low + 1) // BINS)
        edges = np.arange(low - 0.5, high + width + 0.5, width)
    elif low == high:
        edges = np.array([low - 0.5, low + 0.5])
    else:
        edges = np.linspace(low, high, BINS + 1)
    counts, edges = np.histogram(values, bins=edges)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _besides(answers: Sequence[JudgedAnswer], baselines: Mapping[str, Baseline]) -> dict[str, float]:
    """What no judge is needed for."""
    numbers: dict[str, float] = {}
    for name, baseline in baselines.items():
        numbers[f"eval/reward_{name}"] = float(np.mean(baseline.reward))
        numbers[f"eval/reward_{name}_std"] = _std(baseline.reward)
    tokens = sum(len(a.tokens) for a in answers)
    each = max(1, tokens)
    different, pairs, *_ = repetition([a.tokens for a in answers])
    if pairs:
        numbers["eval/distinct_2"] = different / pairs
    return numbers | {
        **reward_numbers([a.reward for a in answers]),
        "eval/kl": float(np.mean([a.kl for a in answers])),
        "eval/kl_k3": float(np.mean([a.kl_k3 for a in answers])),
        "eval/length": tokens / len(answers),
        "eval/truncated": float(np.mean([not a.finished for a in answers])),
        "eval/perplexity": float(np.exp(sum(a.nll for a in answers) / each)),
        "eval/entropy": sum(a.entropy for a in answers) / each,
        "eval/distinct": len({a.text for a in answers}) / len(answers),
    }


def _by_category(values: Sequence[float], categories: Sequence[str], name: str) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for value, category in zip(values, categories, strict=True):
        groups.setdefault(category, []).append(value)
    return {f"{name}/{category}": float(np.mean(group)) for category, group in sorted(groups.items())}


def _std(values: Sequence[float] | np.ndarray) -> float:
    """Unbiased; 0 where there is one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
