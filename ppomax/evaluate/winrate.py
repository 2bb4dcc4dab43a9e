"""Win, tie and lose between two systems that answered the same prompts: rates, intervals, sign test, length control.

An outcome is +1 (A wins), 0 (tie) or -1 (B wins), one a prompt. A tie counts as half a win. Prompts are the independent
units, so intervals come from resampling prompts. Every function is pure and seeded.

The length-controlled win rate answers "how often would A win if both answers were equally long?". Model: the
probability that A wins is ``sigmoid(intercept + slope * tanh(d / std(d)))``, where d is the length of A's answer minus
that of B's and a tie is half a win and half a loss; the rate is the model's value at d = 0, ``sigmoid(intercept)``. The
slope alone carries a weak ridge penalty, a normal prior of std 2 (few prompts, or lengths that separate wins from losses,
would otherwise send it to infinity), the intercept none. This is AlpacaEval's length control without its terms for model and instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TieUnit = Literal["std", "score"]
Outcomes = NDArray[np.int8]
Floats = NDArray[np.float64]
Numbers = Sequence[float] | Floats

LENGTH_MODEL = (
    "logistic regression: P(win) = sigmoid(intercept + slope * tanh(d / std(d))), d = difference of lengths (A - B) in "
    "{unit}, a tie is half a win, normal prior of std 2 on the slope; the rate is the prediction at d = 0"
)
"""the length-controlled model in words, for results; ``{unit}`` is characters or tokens"""
RIDGE = 0.25
"""penalty RIDGE / 2 * slope^2 beside a log-likelihood that is summed over prompts"""
_CHUNK = 2_000_000
"""resamples x prompts that are worked on at once"""


@dataclass(frozen=True)
class Estimate:
    """A share with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LengthFit:
    """The fitted length-control model."""

    intercept: float
    slope: float
    """change of the log-odds as ``tanh`` goes from 0 to 1: positive = the judge likes the longer answer"""

    @property
    def win_rate(self) -> float:
        """Predicted probability that A wins at equal lengths."""
        return float(_sigmoid(np.float64(self.intercept)))


def outcomes_from_scores(scores_a: Numbers, scores_b: Numbers, band: float = 0.0) -> Outcomes:
    """(n,) outcomes; a difference of at most ``band`` is a tie. Raises ValueError for NaN or unequal lengths."""
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"scores of A {a.shape} and B {b.shape} must be two lists of the same length")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a score is not a finite number")
    if not band >= 0:
        raise ValueError(f"the tie band must be at least 0, not {band}")
    difference = a - b
    # of 0.4 and 0.3 the difference is no more than 0.1, whatever rounding makes of it
    rounding = 4 * np.finfo(np.float64).eps * np.maximum(np.abs(a), np.abs(b)) if band > 0 else 0.0
    return np.where(np.abs(difference) <= band + rounding, 0, np.sign(difference)).astype(np.int8)


def tie_band(scores_a: Numbers, scores_b: Numbers, width: float, unit: TieUnit = "std") -> float:
    """Width of the tie band in units of the score; unit "std": of the std of all scores, A's and B's together."""
    if unit == "score":
        return width
    return width * float(np.std(np.concatenate([np.asarray(scores_a, float), np.asarray(scores_b, float)])))


def as_half_wins(outcomes: Outcomes) -> Floats:
    """1 for a win, 0.5 for a tie, 0 for a loss."""
    return (np.asarray(outcomes, dtype=np.float64) + 1) / 2


def win_rate(outcomes: Outcomes) -> float:
    """Share of wins, ties as half."""
    return float(as_half_wins(outcomes).mean())


def verdicts_suffice(line: Mapping[str, Any]) -> bool:
    """Whether an evaluation of a run (evaluations.jsonl) may make its policy the best one: a verdict on half of the prompts."""
    return bool(line["eval/prompts"] >= line.get("eval/judge_failed", 0))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial p-value of wins against losses, ties left out, under equal chances."""
    n = wins + losses
    tail, term = 0, 1  # term = C(n, k)
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n) if n < 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def length_feature(length_difference: Numbers) -> Floats:
    """(n,) tanh(d / std(d)); all zero where the std is 0: length can then explain nothing."""
    d = np.asarray(length_difference, dtype=np.float64)
    spread = d.std()
    return np.tanh(d / spread) if spread > 0 else np.zeros_like(d)


def fit_length(outcomes: Outcomes, length_difference: Numbers) -> LengthFit:
    """Fit the length-control model to n prompts. ``length_difference`` is A minus B, in any unit."""
    y, x = as_half_wins(outcomes), length_feature(length_difference)
    if y.shape != x.shape or y.size == 0:
        raise ValueError(f"{y.size} outcomes and {x.size} length differences: equally many are needed, at least one")
    intercept, slope = fit_logistic(x, y, np.ones((1, y.size)))
    return LengthFit(float(intercept[0]), float(slope[0]))


def all_alike(value: float, n: int, *, lowest: float = 0.0, level: float = 0.95) -> Estimate:
    """Exact interval of a mean whose n units (prompts, questions) all have the same ``value`` from ``lowest`` to 1.

    Resamples of them are alike too, and would make six wins of six certain. But what nobody saw is at most so frequent that
    n units without it have half of 1 - ``level`` as their probability (Clopper and Pearson), and may be all ``lowest``, or
    all 1.
    """
    unseen = 1 - ((1 - level) / 2) ** (1 / n)
    return Estimate(value, value - (value - lowest) * unseen, value + (1 - value) * unseen)


def win_rate_interval(outcomes: Outcomes, *, seed: int = 0, resamples: int = 1000, level: float = 0.95) -> Estimate:
    """Win rate (ties as half) with its percentile bootstrap interval over prompts; `all_alike` where that is a point."""
    y = as_half_wins(outcomes)
    if np.all(y == y[0]):
        return all_alike(float(y[0]), y.size, level=level)
    return _bootstrap(lambda counts: counts @ y / y.size, win_rate(outcomes), y.size, seed, resamples, level)


def length_controlled_interval(
    outcomes: Outcomes, length_difference: Numbers, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Estimate:
    """Length-controlled win rate with its percentile bootstrap interval: the model is fitted anew to each resample.

    Where all outcomes are alike, length explains nothing of them: `all_alike`.
    """
    y, x = as_half_wins(outcomes), length_feature(length_difference)
    value = fit_length(outcomes, length_difference).win_rate
    if np.all(y == y[0]):
        return all_alike(float(y[0]), y.size, level=level)
    return _bootstrap(lambda counts: _sigmoid(fit_logistic(x, y, counts)[0]), value, y.size, seed, resamples, level)


def summarise(
    outcomes: Outcomes, lengths_a: Numbers, lengths_b: Numbers, *, unit: str = "characters", seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    """Everything about one set of prompts as plain numbers, ready for JSON.

    prompts, win, tie, lose (counts), win_rate {value, low, high}, length_controlled {value, low, high, slope, model},
    sign_test_p, mean_length_a, mean_length_b (in ``unit``). Raises ValueError where there is no prompt.
    """
    outcomes = np.asarray(outcomes, dtype=np.int8)
    if outcomes.size == 0:
        raise ValueError("no outcomes to summarise")
    win, tie, lose = (int((outcomes == o).sum()) for o in (1, 0, -1))
    difference = np.asarray(lengths_a, dtype=np.float64) - np.asarray(lengths_b, dtype=np.float64)
    controlled = length_controlled_interval(outcomes, difference, seed=seed, resamples=resamples)
    return {
        "prompts": int(outcomes.size),
        "win": win,
        "tie": tie,
        "lose": lose,
        "win_rate": asdict(win_rate_interval(outcomes, seed=seed, resamples=resamples)),
        "length_controlled": {
            **asdict(controlled),
            "slope": fit_length(outcomes, difference).slope,
            "model": LENGTH_MODEL.format(unit=unit),
        },
        "sign_test_p": sign_test(win, lose),
        "mean_length_a": float(np.mean(lengths_a)),
        "mean_length_b": float(np.mean(lengths_b)),
    }


# ----------------------------------------------------------------------------------------- machinery


def _sigmoid(z: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * z))  # cannot overflow


def _bootstrap(
    statistic: Callable[[Floats], Floats], value: float, n: int, seed: int, resamples: int, level: float
) -> Estimate:
    """Percentile interval of ``statistic``, which maps (r, n) multiplicities of the prompts to (r,) values."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    values = []
    for start in range(0, resamples, step):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        values.append(statistic(counts.astype(np.float64)))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def fit_logistic(x: Floats, y: Floats, weights: Floats, steps: int = 100) -> tuple[Floats, Floats]:
    """Weighted logistic regressions of ``y`` (n,) in [0, 1] on ``x`` (n,), one for each row of ``weights`` (r, n).

    Newton's method on all rows at once; returns intercepts (r,) and slopes (r,). Where all outcomes of a row are equal
    the intercept has no finite optimum: it ends near +-30, a rate of 0 or 1 to within 1e-13.
    """
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(steps):
        p = _sigmoid(intercept[:, None] + slope[:, None] * x)
        residual, curve = weights * (y - p), weights * p * (1 - p)
        g0, g1 = residual.sum(axis=1), residual @ x - RIDGE * slope
        h00, h01, h11 = curve.sum(axis=1) + 1e-13, curve @ x, curve @ (x * x) + RIDGE
        determinant = h00 * h11 - h01 * h01
        # long steps are cut: far from the optimum the quadratic approximation overshoots
        move0 = np.clip((h11 * g0 - h01 * g1) / determinant, -2, 2)
        move1 = np.clip((h00 * g1 - h01 * g0) / determinant, -2, 2)
        before, intercept, slope = intercept, np.clip(intercept + move0, -30, 30), slope + move1
        if max(np.abs(intercept - before).max(), np.abs(move1).max()) < 1e-10:
            break
    return intercept, slope
