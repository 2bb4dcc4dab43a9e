"""Do judges agree? Raw agreement, Cohen's kappa, Krippendorff's alpha, and the length bias of a judge, with intervals.

A judge's outcomes are +1 (A wins), 0 (tie), -1 (B wins), one a prompt; NaN where it gave none. Prompts are the independent
units, so intervals are percentile bootstraps over prompts. Every function is pure and seeded.

* Cohen's kappa (Cohen 1960): ``1 - sum(w * observed) / sum(w * expected)`` over pairs of outcomes; w = 1 where they differ
  (nominal), or their distance (linear: a win against a loss is twice as wrong as a win against a tie; Cohen 1968).
* Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"): ``1 - D_observed / D_expected`` from
  the coincidence matrix; any number of judges, missing outcomes allowed. Its ordinal form takes win > tie > lose.
* Length bias: how often the longer answer wins (a tie is half; prompts with equally long answers are left out), and the slope
  of the logistic model in ``winrate.py`` on tanh(d / std(d)), d = difference of lengths in characters. A judge may like long
  answers because they are better: what tells is the difference between judges of the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppomax.evaluate.winrate import Estimate, all_alike, as_half_wins, fit_length, fit_logistic, length_feature

Floats = NDArray[np.float64]
Weights = Literal["nominal", "linear"]
Metric = Literal["nominal", "ordinal", "interval"]
_CHUNK = 2_000_000
"""resamples x prompts that are worked on at once"""


# --------------------------------------------------------------------------------------- two judges


def _both(one: ArrayLike, other: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"outcomes {a.shape} and {b.shape} must be two lists of the same length")
    there = ~(np.isnan(a) | np.isnan(b))
    return a[there], b[there]


def raw_agreement(one: ArrayLike, other: ArrayLike) -> float:
    """Share of equal outcomes, among the items that both judged; NaN where there is none."""
    a, b = _both(one, other)
    return float((a == b).mean()) if a.size else float("nan")


def cohen_kappa(one: ArrayLike, other: ArrayLike, weights: Weights = "nominal") -> float:
    """Agreement beyond chance of two judges; 1 = always, 0 = as by chance. NaN where both gave one same outcome only."""
    a, b = _both(one, other)
    values = np.unique(np.concatenate([a, b]))
    cells = _cells(a, b, values)
    return float(kappa_of_tables(np.ones((1, a.size)) @ cells, values, weights)[0]) if a.size else float("nan")


def _cells(a: Floats, b: Floats, values: Floats) -> Floats:
    """(n, k * k) one-hot: which cell of the table of outcomes each item falls into."""
    k = len(values)
    places = np.searchsorted(values, a) * k + np.searchsorted(values, b)
    return np.eye(k * k)[places]


def kappa_of_tables(table: Floats, values: Floats, weights: Weights) -> Floats:
    """(r,) kappas of (r, k * k) tables of counts."""
    k = len(values)
    shares = (table / table.sum(axis=1, keepdims=True)).reshape(-1, k, k)
    expected = shares.sum(axis=2)[:, :, None] * shares.sum(axis=1)[:, None, :]
    distance = np.abs(values[:, None] - values[None, :])
    wrong = distance if weights == "linear" else (distance > 0).astype(np.float64)
    return 1 - _ratio((shares * wrong).sum(axis=(1, 2)), (expected * wrong).sum(axis=(1, 2)))


# ------------------------------------------------------------------------------------- any number of judges


def krippendorff_alpha(outcomes: ArrayLike, metric: Metric = "nominal") -> float:
    """Alpha of (judges, items) outcomes, NaN = not judged. Items with fewer than two outcomes count for nothing.

    NaN where all outcomes are the same (there is then nothing to agree about) or none can be paired.
    """
    coincidences, values = count_coincidences(outcomes)
    if not len(values):
        return float("nan")
    return float(alpha_of_coincidences(coincidences.sum(axis=0, keepdims=True), values, metric)[0])


def count_coincidences(outcomes: ArrayLike) -> tuple[Floats, Floats]:
    """((items, k * k) what each item adds to the coincidence matrix, (k,) the values that occur in pairs)."""
    table = np.asarray(outcomes, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"outcomes must be (judges, items), not {table.shape}")
    pairable = (~np.isnan(table)).sum(axis=0) >= 2
    values = np.unique(table[:, pairable][~np.isnan(table[:, pairable])])
    counts = (table[:, :, None] == values).sum(axis=0).astype(np.float64)  # (items, k)
    counts[~pairable] = 0
    judged = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    pairs /= np.maximum(judged - 1, 1)[:, None, None]
    return pairs.reshape(len(counts), len(values) ** 2), values  # two judges may have no item in common


def alpha_of_coincidences(coincidences: Floats, values: Floats, metric: Metric) -> Floats:
    """(r,) alphas of (r, k * k) coincidence matrices."""
    k = len(values)
    o = coincidences.reshape(len(coincidences), k, k)
    n_c = o.sum(axis=2)  # (r, k)
    n = n_c.sum(axis=1)
    if metric == "ordinal":
        # ranks up to and including c, half of c itself: the difference of two is the number of values between them
        ranks = np.cumsum(n_c, axis=1) - n_c / 2
        delta = (ranks[:, :, None] - ranks[:, None, :]) ** 2
    else:
        distance = values[:, None] - values[None, :]
        delta = np.broadcast_to(distance**2 if metric == "interval" else (distance != 0).astype(float), o.shape)
    observed = (o * delta).sum(axis=(1, 2))
    expected = (n_c[:, :, None] * n_c[:, None, :] * delta).sum(axis=(1, 2))
    return 1 - _ratio((n - 1) * observed, expected)


# ------------------------------------------------------------------------------------------ intervals


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise; NaN where the denominator is 0."""
    out = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 1e-12)


def bootstrap(statistic: Callable[[Floats], Floats], n: int, *, seed: int = 0, resamples: int = 1000) -> Estimate:
    """Value and 95% percentile interval of ``statistic``, which maps (r, n) multiplicities of n prompts to (r,) values.

    Resamples in which it is undefined (NaN) are left out; all NaN where none is left.
    """
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    parts = []
    for start in range(0, resamples, step):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start))
        parts.append(statistic(counts.astype(np.float64)))
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if values.size else (np.nan, np.nan)
    return Estimate(float(statistic(np.ones((1, n)))[0]), float(low), float(high))


def share(
    part: ArrayLike, whole: ArrayLike, *, lowest: float = 0.0, seed: int = 0, resamples: int = 1000
) -> Estimate:  # fmt: skip
    """sum(part) / sum(whole), from ``lowest`` to 1, with its interval; both (n,), one number a prompt.

    Where the share is the same in all prompts that have a part in the whole: `winrate.all_alike`.
    """
    p, w = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    shares = p[w > 0] / w[w > 0]
    if shares.size and np.all(shares == shares[0]):
        return all_alike(float(shares[0]), shares.size, lowest=lowest)
    return bootstrap(lambda counts: _ratio(counts @ p, counts @ w), p.size, seed=seed, resamples=resamples)


def pair_agreement(one: ArrayLike, other: ArrayLike, *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Agreement of two judges as plain numbers: items, agreement, agreement_decided (where neither says tie), kappa,
    kappa_linear, alpha_nominal, alpha_ordinal; each {value, low, high}."""
    a, b = _both(one, other)
    values = np.unique(np.concatenate([a, b]))
    cells, decided = _cells(a, b, values), (a != 0) & (b != 0)
    coincidences, paired = count_coincidences(np.stack([a, b]))

    def interval(statistic: Callable[[Floats], Floats]) -> dict[str, float]:
        return asdict(bootstrap(statistic, a.size, seed=seed, resamples=resamples))

    return {
        "items": int(a.size),
        "decided": int(decided.sum()),
        "agreement": asdict(share(a == b, np.ones(a.size), seed=seed, resamples=resamples)),
        "agreement_decided": asdict(share((a == b) & decided, decided, seed=seed, resamples=resamples)),
        "kappa": interval(lambda c: kappa_of_tables(c @ cells, values, "nominal")),
        "kappa_linear": interval(lambda c: kappa_of_tables(c @ cells, values, "linear")),
        "alpha_nominal": interval(lambda c: alpha_of_coincidences(c @ coincidences, paired, "nominal")),
        "alpha_ordinal": interval(lambda c: alpha_of_coincidences(c @ coincidences, paired, "ordinal")),
    }


def length_bias(
    outcomes: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """longer_wins {value, low, high}, slope {value, low, high} (log-odds), prompts with unequal lengths, of one judge."""
    y = np.asarray(outcomes, dtype=np.float64)
    there = ~np.isnan(y)
    d = (np.asarray(lengths_a, dtype=np.float64) - np.asarray(lengths_b, dtype=np.float64))[there]
    signs = y[there].astype(np.int8)
    halves, x = as_half_wins(signs), length_feature(d)
    longer = np.where(d > 0, halves, 1 - halves) * (d != 0)
    slope = bootstrap(lambda c: fit_logistic(x, halves, c)[1], signs.size, seed=seed, resamples=resamples)
    return {
        "unequal": int((d != 0).sum()),
        "longer_wins": asdict(share(longer, d != 0, seed=seed, resamples=resamples)),
        "slope": {**asdict(slope), "value": fit_length(signs, d).slope} if signs.size else asdict(slope),
    }


def agreement_report(
    judges: Mapping[str, ArrayLike], lengths_a: Sequence[float], lengths_b: Sequence[float],
    *, seed: int = 0, resamples: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    """Everything about several judges of the same items: ``judges`` maps a name to its (n,) outcomes, NaN = none.

    items, judges (name -> judged, win, tie, lose, win_rate, length), pairs (one, other, and `pair_agreement`), and
    all_judges (alpha_nominal, alpha_ordinal over all of them).
    """
    outcomes = {name: np.asarray(values, dtype=np.float64) for name, values in judges.items()}
    about: dict[str, Any] = {}
    for name, y in outcomes.items():
        there = ~np.isnan(y)
        rate = share(np.where(there, (np.nan_to_num(y) + 1) / 2, 0), there, seed=seed, resamples=resamples)
        about[name] = {
            "judged": int(there.sum()),
            **{word: int((y == sign).sum()) for word, sign in (("win", 1), ("tie", 0), ("lose", -1))},
            "win_rate": asdict(rate),
            "length": length_bias(y, lengths_a, lengths_b, seed=seed, resamples=resamples),
        }
    coincidences, values = count_coincidences(np.stack(list(outcomes.values())))
    everyone: dict[str, Any] = {}
    for metric in ("nominal", "ordinal"):
        alpha = bootstrap(
            lambda c, m=metric: alpha_of_coincidences(c @ coincidences, values, m),  # type: ignore[misc]
            len(coincidences), seed=seed, resamples=resamples,
        )  # fmt: skip
        everyone[f"alpha_{metric}"] = asdict(alpha)
    return {
        "items": len(lengths_a),
        "judges": about,
        "pairs": [
            {
                "one": one,
                "other": other,
                **pair_agreement(outcomes[one], outcomes[other], seed=seed, resamples=resamples),
            }
            for one, other in combinations(outcomes, 2)
        ],
        "all_judges": everyone,
    }
