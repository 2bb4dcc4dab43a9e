"""Bradley-Terry ratings of several systems that were compared pair by pair on the same prompts.

Model (Bradley and Terry 1952): the probability that i is preferred to j is ``sigmoid(r_i - r_j)``; a tie is half a win of
either. Ratings are log-odds with mean 0, fitted by maximum likelihood with a weak normal prior of std 10, which only
matters where a system beats all others every time: its rating would otherwise be infinite. Prompts are the independent
units: one resample draws prompts and takes all pairs' outcomes on them, since pairs that share a prompt are not
independent. Every function is pure and seeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppomax.evaluate.winrate import Outcomes, as_half_wins

Floats = NDArray[np.float64]
PairOutcomes = Mapping[tuple[int, int], Outcomes]
"""(i, j) -> (n,) outcomes of i against j: +1, 0, -1; a pair stands here once"""

RIDGE = 0.01
"""penalty RIDGE / 2 * r^2 for each rating, beside a log-likelihood that is summed over comparisons: 1 / std^2"""
RATING_MODEL = (
    "Bradley-Terry: P(i is preferred to j) = sigmoid(rating i - rating j), a tie is half a win, ratings have mean 0, "
    "normal prior of std 10"
)
_STEPS = 100
_CHUNK = 256
"""resamples that are fitted at once"""


def fit_ratings(wins: Floats) -> Floats:
    """(..., k) ratings from (..., k, k) wins, where ``wins[..., i, j]`` counts i preferred to j, ties as half.

    Newton's method on all tables at once. Raises ValueError for a negative or non-square table.
    """
    wins = np.asarray(wins, dtype=np.float64)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2] or not (wins >= 0).all():
        raise ValueError(f"wins {wins.shape}: square tables of counts are expected")
    k = wins.shape[-1]
    games = wins + np.swapaxes(wins, -1, -2)
    ratings = np.zeros(wins.shape[:-1])
    identity = np.eye(k)
    for _ in range(_STEPS):
        p = 0.5 * (1 + np.tanh(0.5 * (ratings[..., :, None] - ratings[..., None, :])))  # sigmoid that cannot overflow
        gradient = (wins - games * p).sum(axis=-1) - RIDGE * ratings
        curve = games * p * (1 - p)
        hessian = identity * (curve.sum(axis=-1)[..., None] + RIDGE) - curve
        # long steps are cut: far from the optimum the quadratic approximation overshoots
        step = np.clip(np.linalg.solve(hessian, gradient[..., None])[..., 0], -2, 2)
        ratings = ratings + step
        if np.abs(step).max() < 1e-12:
            break
    return ratings - ratings.mean(axis=-1, keepdims=True)


def predicted(ratings: Floats, i: int, j: int) -> float:
    """What the model says of the win rate of i against j."""
    return float(0.5 * (1 + np.tanh(0.5 * (ratings[i] - ratings[j]))))


def finite(wins: Floats) -> bool:
    """Whether ratings without a prior would be finite: from each system to each other leads a chain of wins (Ford 1957)."""
    reach = (np.asarray(wins) > 0) | np.eye(len(wins), dtype=bool)
    for through in range(len(wins)):
        reach |= reach[:, [through]] & reach[[through], :]
    return bool(reach.all())


def rate(
    outcomes: PairOutcomes, systems: int, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict[str, Any]:
    """Ratings of ``systems`` systems with percentile bootstrap intervals over prompts, as plain numbers.

    ratings: for each system value, low, high (log-odds, mean 0), win_rate (mean over the other systems that it met, ties
    half), best (share of resamples in which its rating is the highest). pairs: for each pair its observed and predicted
    win rate. finite: see `finite`. Raises ValueError for no outcomes, or pairs with different numbers of prompts.
    """
    pairs = sorted(outcomes)
    distinct = {frozenset(pair) for pair in pairs}
    if not pairs or len(distinct) < len(pairs) or any({i, j} - set(range(systems)) or i == j for i, j in pairs):
        raise ValueError(f"pairs {pairs} of {systems} systems: each two once, by their numbers from 0")
    table = np.stack([as_half_wins(outcomes[pair]) for pair in pairs], axis=1)  # (n, pairs); unequal lengths raise
    n = len(table)
    if n == 0:
        raise ValueError("no outcomes to rate")
    wins = _wins(np.full((1, n), 1.0), table, pairs, systems)[0]
    ratings = fit_ratings(wins)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, _CHUNK):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, resamples - start)).astype(np.float64)
        drawn.append(fit_ratings(_wins(counts, table, pairs, systems)))
    resampled = np.concatenate(drawn)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    top = np.isclose(resampled, resampled.max(axis=1, keepdims=True), rtol=0, atol=1e-9)
    best = (top / top.sum(axis=1, keepdims=True)).mean(axis=0)  # equal ratings share
    games = wins + wins.T
    return {
        "ratings": [
            {
                "value": float(ratings[i]), "low": float(low[i]), "high": float(high[i]),
                "win_rate": float(wins[i].sum() / games[i].sum()) if games[i].sum() else None, "best": float(best[i]),
            }
            for i in range(systems)
        ],
        "pairs": [
            {"one": i, "other": j, "win_rate": float(column.mean()), "predicted": predicted(ratings, i, j)}
            for (i, j), column in zip(pairs, table.T, strict=True)
        ],
        "prompts": n,
        "finite": finite(wins),
        "model": RATING_MODEL,
    }  # fmt: skip


def _wins(counts: Floats, table: Floats, pairs: Sequence[tuple[int, int]], systems: int) -> Floats:
    """(r, systems, systems) wins of resamples that hold each prompt ``counts`` (r, n) times."""
    won, met = counts @ table, counts.sum(axis=1)
    wins = np.zeros((len(counts), systems, systems))
    for column, (i, j) in enumerate(pairs):
        wins[:, i, j] = won[:, column]
        wins[:, j, i] = met - won[:, column]
    return wins
