"""From judged pairs of answers to what a duel's result says of them, and the same over the time of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppomax.errors import UserError
from ppomax.evaluate.answers import Answer, read_samples
from ppomax.evaluate.judges import Judged, PairJudge, ScoreJudge, Scorer, judged_by_scores
from ppomax.evaluate.winrate import TieUnit, summarise

UNIT = "characters"
"""lengths are counted in characters: the sides may have different tokenizers"""


def compare(
    a: Sequence[Answer], b: Sequence[Answer], scores_a: Sequence[float], scores_b: Sequence[float], sources: Sequence[str],
    *, tie_band: float, tie_unit: TieUnit = "std", seed: int = 0, resamples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """`tally` of scored answers."""
    return tally(
        a, b, judged_by_scores(scores_a, scores_b, tie_band, tie_unit), sources, seed=seed, resamples=resamples
    )


def tally(
    a: Sequence[Answer], b: Sequence[Answer], judged: Judged, sources: Sequence[str], *,
    categories: Sequence[str] | None = None, seed: int = 0, resamples: int = 1000,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    """(result, one judgement a prompt) of judged answers to the same prompts in the same order.

    result: overall, by_source and, with ``categories`` (one a prompt, such as "harmless zh"), by_category as
    `winrate.summarise` gives them, and what the judge tells: tie_band (in units of the score), mean_score_a, mean_score_b,
    and `llm` of a language model.
    """
    outcomes = judged.outcomes
    lengths = [[len(answer.response) for answer in side] for side in (a, b)]

    def summary(rows: Sequence[int]) -> dict[str, Any]:
        return summarise(
            outcomes[list(rows)], [lengths[0][i] for i in rows], [lengths[1][i] for i in rows],
            unit=UNIT, seed=seed, resamples=resamples,
        )  # fmt: skip

    def apart(names: Sequence[str]) -> dict[str, Any]:
        return {name: summary([i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(names)}

    result = {
        "overall": summary(range(len(outcomes))),
        "by_source": apart(sources),
        **({"by_category": apart(categories)} if categories is not None else {}),
        **judged.about,
    }
    words = {1: "win", 0: "tie", -1: "lose"}
    judgements = [
        {
            "prompt": [dict(m) for m in a[i].prompt],
            "response_a": a[i].response,
            "response_b": b[i].response,
            **judged.rows[i],
            "length_a": lengths[0][i],
            "length_b": lengths[1][i],
            "outcome": words[int(outcomes[i])],
            "source": sources[i],
            **({"category": categories[i]} if categories is not None else {}),
        }
        for i in range(len(outcomes))
    ]
    return result, judgements


def duel_over_training(
    samples: Sequence[Any] | str,
    judge: PairJudge | Scorer,
    *,
    tie_band: float = 0.1,
    tie_unit: TieUnit = "std",
    seed: int = 0,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Judged win rate over training: a PPO run's answers to its fixed prompts, at each time, against its first ones.

    The first answers are those of the model that PPO started from, with the same random numbers. ``samples`` is a
    samples.jsonl or what `read_samples` made of it; ``judge`` compares, or is a function that scores answers, whose scores
    are then compared by ``tie_band``. One dict a time: iteration, update, overall and by_source (as in `tally`), tie_band,
    mean_score (judge's), mean_score_first, and means of what the run itself wrote down: trained_score, kl (nats a
    response), length_tokens.
    """
    pairs: PairJudge = judge if isinstance(judge, PairJudge) else ScoreJudge(judge, ["function"], tie_band, tie_unit)
    moments = read_samples(samples) if isinstance(samples, str) else list(samples)
    first = moments[0].answers
    for moment in moments:
        if moment.answers.keys() != first.keys():
            raise UserError(
                f"over_training: iteration {moment.iteration} answers other prompts than iteration {moments[0].iteration}"
            )
    base = list(first.values())
    out = []
    for moment in moments:
        answers = [moment.answers[key] for key in first]
        judged = pairs.compare(answers, base)
        result, _ = tally(answers, base, judged, [answer.source for answer in base], seed=seed, resamples=resamples)
        means = {
            name: sum(row[key] for row in moment.rows) / len(moment.rows)
            for name, key in (("trained_score", "score"), ("kl", "kl"), ("length_tokens", "length"))
            if all(isinstance(row.get(key), int | float) for row in moment.rows)
        }
        out.append({
            "iteration": moment.iteration, "update": moment.update,
            **{name: result[name] for name in ("overall", "by_source", "tie_band")},
            "mean_score": result["mean_score_a"], "mean_score_first": result["mean_score_b"], **means,
        })  # fmt: skip
    return out
