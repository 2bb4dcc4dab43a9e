"""How good is a reward model on preference pairs (section 4), and how much of that is length or single words?

Accuracy comes with a 95% interval, beside two baselines and within pairs of equal length: in most preference data the
longer answer tends to be preferred, so accuracy by itself may be length alone.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from ppomax.data.records import PreferencePair, groups_of

LENGTH_TOLERANCE = 0.1
"""pairs count as length-matched when the shorter answer has at least 90% of the longer one's characters"""
MOST_TRAINING_PAIRS = 20_000
"""bag of words: more pairs than this are not needed"""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def answer_text(messages: Sequence[Any]) -> str:
    """What the assistant says in one side of a pair."""
    return "\n".join(m["content"] for m in messages if m["role"] == "assistant")


# ------------------------------------------------------------------------------------------- statistics


def wilson(right: float, n: int) -> list[float] | None:
    """95% interval of a share (Wilson's score); ``right`` may count ties as halves. None for n = 0."""
    if n == 0:
        return None
    z = 1.959963984540054
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def accuracy(gaps: np.ndarray) -> dict[str, Any]:
    """Share of pairs (N,) whose gap, preferred minus other, is positive; ties count half. None where N = 0."""
    n = len(gaps)
    right = float((gaps > 0).sum() + 0.5 * (gaps == 0).sum())
    return {"accuracy": right / n if n else None, "interval": wilson(right, n), "n": n, "ties": int((gaps == 0).sum())}


def calibration(gaps: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Reliability of p = sigmoid(r_first - r_second) as the probability that the first answer is the better one.

    Every pair is asked in both orders, so the curve is symmetric about 1/2. ``ece`` is the expected calibration error:
    mean |share - p| over bins, weighted by their counts.
    """
    p = 1.0 / (1.0 + np.exp(-np.clip(np.concatenate([gaps, -gaps]), -500, 500)))
    first = np.concatenate([np.ones(len(gaps)), np.zeros(len(gaps))])
    which = np.minimum((p * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for b in range(bins):
        inside = which == b
        n = int(inside.sum())
        predicted, observed = (float(p[inside].mean()), float(first[inside].mean())) if n else (None, None)
        if predicted is not None and observed is not None:
            error += n * abs(predicted - observed)
        rows.append({"from": b / bins, "to": (b + 1) / bins, "n": n, "predicted": predicted, "observed": observed})
    return {"bins": rows, "ece": error / max(len(p), 1)}


def histogram(values: np.ndarray, bins: int = 40) -> dict[str, Any]:
    """Counts (bins,) between edges (bins + 1,) that are symmetric about 0."""
    reach = float(np.abs(values).max()) if len(values) else 1.0
    counts, edges = np.histogram(values, bins=bins, range=(-(reach or 1.0), reach or 1.0))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


# -------------------------------------------------------------------------------------------- baselines


def length_gaps(pairs: Sequence[PreferencePair]) -> np.ndarray:
    """Characters of the preferred answer minus those of the other (N,): "the longer answer wins"."""
    return np.array([len(answer_text(p.chosen)) - len(answer_text(p.rejected)) for p in pairs], dtype=np.float64)


def words(text: str) -> list[str]:
    """Single tokens and pairs of neighbours: words of spaced scripts, characters of Chinese, Japanese and Korean."""
    single = _TOKEN.findall(text.lower())
    return single + [f"{a} {b}" for a, b in itertools.pairwise(single)]


def bag_of_words(
    train: Sequence[PreferencePair], *, seed: int = 0
) -> Callable[[Sequence[PreferencePair]], np.ndarray] | None:
    """Logistic regression on differences of word counts, fitted to ``train``; gives gaps (N,) for other pairs.

    None when the training pairs have no feature in common (fewer than two pairs, or all of them unlike).
    """
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(train) > MOST_TRAINING_PAIRS:
        kept = np.random.default_rng(seed).permutation(len(train))[:MOST_TRAINING_PAIRS]
        train = [train[i] for i in kept]
    vectorizer = CountVectorizer(analyzer=words, min_df=2, binary=True)
    chosen = [answer_text(p.chosen) for p in train]
    rejected = [answer_text(p.rejected) for p in train]
    try:
        vectorizer.fit(chosen + rejected)
    except ValueError:  # no word occurs twice
        return None
    difference = vectorizer.transform(chosen) - vectorizer.transform(rejected)
    # both orders, and no intercept: the classifier cannot prefer a position
    both = vstack([difference, -difference])
    model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=300)
    model.fit(both, np.repeat([1, 0], len(train)))

    def gaps(pairs: Sequence[PreferencePair]) -> np.ndarray:
        if not pairs:
            return np.zeros(0)
        first = vectorizer.transform([answer_text(p.chosen) for p in pairs])
        second = vectorizer.transform([answer_text(p.rejected) for p in pairs])
        return np.asarray(model.decision_function(first - second), dtype=np.float64)

    return gaps


# ------------------------------------------------------------------------------------------- evaluation


def evaluate_pairs(
    chosen: Sequence[float] | np.ndarray,
    rejected: Sequence[float] | np.ndarray,
    pairs: Sequence[PreferencePair],
    *,
    train_pairs: Sequence[PreferencePair] = (),
) -> dict[str, Any]:
    """Everything section 4 asks of a reward model on held-out ``pairs``, ready for JSON.

    ``chosen`` and ``rejected`` are the rewards (N,) of the two answers. Without ``train_pairs`` the bag-of-words
    baseline, which must not see the held-out pairs, is absent. Keys:

    * ``overall`` and ``sources`` -> name (file, or file/source; see `groups_of`): each with ``model``, ``longer``,
      ``bag_of_words`` (accuracy, interval, n, ties) and ``length_matched`` (model accuracy where the lengths differ by at most 10%)
    * ``better_is_longer``, ``better_is_shorter``: model accuracy on those pairs
    * ``gap``: mean, std, median of r(preferred) - r(other), loss = mean -log sigmoid(gap), and its ``histogram``
    * ``calibration``; ``length_correlation``: of the reward gap with the length gap
    """
    gaps = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    if len(gaps) != len(pairs):
        raise ValueError(f"{len(gaps)} scores for {len(pairs)} pairs")
    longer = length_gaps(pairs)
    baseline = bag_of_words(train_pairs) if train_pairs and pairs else None
    word_gaps = baseline(pairs) if baseline is not None else None
    longest = np.array([max(len(answer_text(p.chosen)), len(answer_text(p.rejected)), 1) for p in pairs], dtype=float)
    matched = np.abs(longer) <= LENGTH_TOLERANCE * longest

    def part(where: np.ndarray) -> dict[str, Any]:
        row = {"model": accuracy(gaps[where]), "longer": accuracy(longer[where])}
        if word_gaps is not None:
            row["bag_of_words"] = accuracy(word_gaps[where])
        row["length_matched"] = accuracy(gaps[where & matched])
        return row

    groups = groups_of(pairs)
    names = sorted({name for group in groups for name in group})
    everything = np.ones(len(pairs), dtype=bool)
    varied = len(gaps) > 1 and np.ptp(gaps) > 0 and np.ptp(longer) > 0
    return {
        "overall": part(everything),
        "sources": {name: part(np.array([name in group for group in groups])) for name in names},
        "better_is_longer": accuracy(gaps[longer > 0]),
        "better_is_shorter": accuracy(gaps[longer < 0]),
        "gap": {
            "mean": float(gaps.mean()) if len(gaps) else None,
            "std": float(gaps.std(ddof=1)) if len(gaps) > 1 else None,
            "median": float(np.median(gaps)) if len(gaps) else None,
            "loss": float(np.logaddexp(0.0, -gaps).mean()) if len(gaps) else None,
            "histogram": histogram(gaps),
        },
        "calibration": calibration(gaps),
        "length_correlation": float(np.corrcoef(gaps, longer)[0, 1]) if varied else None,
    }


def most_confidently_wrong(
    chosen: Sequence[float], rejected: Sequence[float], pairs: Sequence[PreferencePair], limit: int = 100
) -> list[dict[str, Any]]:
    """Pairs that the model orders against people, the widest gap first (Table 1 of the paper)."""
    order = sorted((i for i in range(len(pairs)) if chosen[i] < rejected[i]), key=lambda i: chosen[i] - rejected[i])
    return [
        {
            "prompt": list(pairs[i].prompt),
            "chosen": answer_text(pairs[i].chosen),
            "rejected": answer_text(pairs[i].rejected),
            "reward_chosen": float(chosen[i]),
            "reward_rejected": float(rejected[i]),
            "gap": float(chosen[i] - rejected[i]),
            "source": pairs[i].source,
            "origin": pairs[i].origin,
        }
        for i in order[:limit]
    ]


def accuracy_rows(evaluation: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Accuracies as text: row = overall or source, columns = n, model and its baselines."""
    rows = {}
    sources = evaluation["sources"] if len(evaluation["sources"]) > 1 else {}
    for name, part in {"overall": evaluation["overall"], **sources}.items():
        row = {"pairs": str(part["model"]["n"])}
        columns = {"reward model": "model", "longer wins": "longer", "bag of words": "bag_of_words"}
        row |= {title: _show(part[key]) for title, key in columns.items() if key in part}
        row["model, equal length"] = f"{_show(part['length_matched'])} (n {part['length_matched']['n']})"
        rows[name] = row
    return rows


def _show(cell: dict[str, Any]) -> str:
    if cell["accuracy"] is None:
        return "-"
    low, high = cell["interval"]
    return f"{cell['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def format_table(evaluation: dict[str, Any], title: str = "held-out accuracy [95% interval]") -> Table:
    """For a terminal: accuracy per source beside its baselines."""
    rows = accuracy_rows(evaluation)
    table = Table(title=title)
    table.add_column("source", no_wrap=True)
    for column in rows["overall"]:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *row.values())
    return table
