"""Best-of-n: the best of n answers of a model by a reward model. What PPO has to beat to be worth its cost.

How far best-of-n lies from the model it samples is known without measuring: KL = log n - (n - 1) / n nats a response
(Stiennon et al. 2020, "Learning to summarize from human feedback"). Beirami et al. 2024 ("Theoretical guarantees on the
best-of-n alignment policy") show that this is an upper bound: it is reached only where no two of the n answers are equal or
get the same score. The distance is to the distribution that is sampled, with its temperature and nucleus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ppomax.evaluate.answers import Answer
from ppomax.evaluate.judges import Scorer
from ppomax.train.progress import ProgressLine

KL_NOTE = (
    "nats a response, log n - (n - 1) / n (Stiennon et al. 2020): an upper bound (Beirami et al. 2024) on the distance to "
    "the sampled distribution"
)
_PART = 256
"""answers that are scored between two steps of the progress line"""


def kl_bound(n: int) -> float:
    """Upper bound on KL(best-of-n || the model it samples), nats a response."""
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return math.log(n) - (n - 1) / n


def choose(
    candidates: Sequence[Answer], n: int, scorer: Scorer, *, title: str = "best of n", quiet: bool = False
) -> tuple[list[Answer], list[float], dict[str, Any]]:
    """(the best answer of each n neighbours, its score, what is known of the choice); of equal scores the first drawn.

    ``candidates``: n answers to the first prompt, n to the second, and so on. What is known: n, kl_bound (see `KL_NOTE`),
    mean_score_chosen, mean_score_drawn (of all candidates), distinct (mean number of different texts among the n).
    """
    if n < 1 or len(candidates) % n:
        raise ValueError(f"{len(candidates)} candidates are no whole number of {n}")
    scores: list[float] = []
    with ProgressLine(title, len(candidates), quiet=quiet) as bar:
        for start in range(0, len(candidates), _PART):
            part = candidates[start : start + _PART]
            scores += scorer(part)
            bar.step(len(part))
    chosen, best, distinct = [], [], []
    for start in range(0, len(candidates), n):
        own = scores[start : start + n]
        at = start + own.index(max(own))
        chosen.append(candidates[at])
        best.append(scores[at])
        distinct.append(len({c.response for c in candidates[start : start + n]}))
    about = {
        "n": n, "kl_bound": kl_bound(n), "kl_note": KL_NOTE,
        "mean_score_chosen": sum(best) / len(best), "mean_score_drawn": sum(scores) / len(scores),
        "distinct": sum(distinct) / len(distinct),
    }  # fmt: skip
    return chosen, best, about
