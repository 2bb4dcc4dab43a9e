"""Several PPO runs from one start, compared with it and each other: numbers, sentences and dialogues from a pipeline's files.

Read are, below the pipeline's folder, for each run RUN: ``RUN/evaluations.jsonl`` (`watch.judge` must be on), the duel
``duel_RUN`` of its last policy against SFT, and ``exam``, which SFT and the runs sat in this order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.evaluate.winrate import all_alike
from ppomax.report.stages import TITLES, read_json, read_lines

ASPECTS = {"overall": "overall", "helpful": "helpful", "harmful": "harmless", "unanswerable": "honest"}
"""category of the world's prompts -> what an answer to them shows"""
MEASURES = {"reward": "eval/reward", "kl": "eval/kl", "length": "eval/length", "perplexity": "eval/perplexity"}
"""number of the table -> column of evaluations.jsonl"""
RISEN = 0.5
"""standard deviations of SFT's rewards from which the proxy reward counts as risen"""
FALLEN = 0.05
"""a last win rate this far below the highest is mentioned"""


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval, from ``n`` prompts or questions."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, value: float, error: float, n: int) -> Rate:
        """From a standard error; where all outcomes are alike that is 0, and their interval is `all_alike`'s."""
        if error == 0:
            found = all_alike(value, n)
            return cls(value, found.low, found.high, n)
        return cls(value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error), n)

    def __str__(self) -> str:
        return f"{self.value:.0%} [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Compared:
    """One model's row: SFT, or what a PPO run made of it."""

    name: str
    title: str
    measures: dict[str, float]
    """reward, kl (nats a response), length (tokens), perplexity, on the prompts of the run's evaluations"""
    exam: Rate
    wins: dict[str, Rate]
    """aspect -> win rate against SFT; empty for SFT itself"""
    exam_change: dict[str, Any]
    """against SFT: gained, lost, sign_test_p; empty for SFT itself"""
    evaluations: list[dict[str, Any]]
    metrics: list[dict[str, Any]]

    def numbers(self) -> dict[str, Any]:
        """For a file."""
        return {
            **self.measures,
            "exam": vars(self.exam),
            "win_rate_against_sft": {aspect: vars(rate) for aspect, rate in self.wins.items()},
            "evaluations": self.evaluations,
        }


def compare_runs(root: Path, runs: Sequence[str], start: str = "sft") -> list[Compared]:
    """SFT's row and one a run. UserError where a run was not judged while it trained."""
    exam = _result(root / "exam")
    sat = list(exam["models"].values())
    changes = list(exam["against_first"].values())
    out: list[Compared] = []
    for i, name in enumerate(runs):
        evaluations = read_lines(root / name / "evaluations.jsonl")
        if not evaluations:
            raise UserError(f"{root / name}: no evaluations.jsonl: the comparison needs `watch.judge`")
        if not out:  # before its first update a run is SFT itself
            out.append(Compared(start, TITLES[start], _measures(evaluations[0]), _exam(sat[0]), {}, {}, [], []))
        duel = _result(root / f"duel_{name}")
        parts = {"overall": duel["overall"], **duel["by_source"]}
        wins = {
            aspect: Rate(**_interval(parts[category]["win_rate"]), n=parts[category]["prompts"])
            for category, aspect in ASPECTS.items()
            if category in parts
        }
        metrics = read_lines(root / name / "metrics.jsonl")
        row = (_measures(evaluations[-1]), _exam(sat[i + 1]), wins, changes[i], evaluations, metrics)
        out.append(Compared(name, TITLES.get(name, name), *row))
    return out


def _result(folder: Path) -> dict[str, Any]:
    result = read_json(folder / "result.json")
    if not result:
        raise UserError(f"{folder}: no result.json: the comparison needs this stage")
    return result


def _measures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(evaluation[column]) for name, column in MEASURES.items()}


def _interval(rate: Mapping[str, float]) -> dict[str, float]:
    return {key: rate[key] for key in ("value", "low", "high")}


def _exam(result: Mapping[str, Any]) -> Rate:
    part = result["overall"]
    low, high = part["acc"]["interval"]
    return Rate(part["acc"]["accuracy"], low, high, part["n"])


# ------------------------------------------------------------------------------------------ in words


def verdict(rate: Rate, than: str = "SFT") -> str:
    """What a win rate says, by its interval."""
    if rate.low > 0.5:
        return f"better than {than}"
    return f"worse than {than}" if rate.high < 0.5 else f"not to be told from {than}"


def sentences(rows: Sequence[Compared]) -> list[str]:
    """What happened, by the numbers and whatever they are; the first run after SFT is the one to recommend."""
    start, *runs = rows
    said = [sentence for run in runs for sentence in _about(run, start)]
    first = runs[0]
    for other in runs[1:]:
        ours, theirs = first.wins["overall"], other.wins["overall"]
        apart = "" if ours.low > theirs.high or theirs.low > ours.high else " (the intervals overlap)"
        points = round(100 * (ours.value - theirs.value))
        said.append(
            f"{first.title}'s win rate against SFT is {abs(points)} points {'above' if points >= 0 else 'below'} that of "
            f"{other.title}{apart}."
        )
        if theirs.high >= 0.5:
            said.append(f"{other.title} did not fall below SFT in these {len(other.metrics)} iterations.")
    said.append("One seed and one small world: another seed gives other numbers.")
    return said


def _about(run: Compared, start: Compared) -> list[str]:
    last, rate = run.evaluations[-1], run.wins["overall"]
    spread = last["eval/reward_sampled_std"]
    risen = (run.measures["reward"] - start.measures["reward"]) / spread if spread > 0 else 0.0
    text = (
        f"{run.title}: its reward {'rose' if risen > 0 else 'fell'} by {abs(risen):.1f} standard deviations of SFT's, and "
        f"its answers are {verdict(rate)} by the judge: {rate} on {rate.n} held-out prompts, ties as half."
    )
    if risen >= RISEN and rate.high < 0.5:
        text += " More reward and worse answers: it learned to exploit the reward model."
    said = [text]
    best = max(run.evaluations, key=lambda row: row["eval/win_rate"])
    if best["eval/win_rate"] - last["eval/win_rate"] >= FALLEN:
        said.append(
            f"{run.title} was at its best at iteration {best['iteration']} with {best['eval/win_rate']:.0%}, and ended at "
            f"{last['eval/win_rate']:.0%} (the same {last['eval/prompts']} held-out prompts each time)."
        )
    if "eval/win_rate_greedy" in last:
        greedy = Rate.of(last["eval/win_rate_greedy"], last["eval/win_rate_greedy_se"], last["eval/prompts"])
        said.append(
            f"Against SFT's greedy answers {run.title} wins {greedy} on {greedy.n} prompts: {verdict(greedy, 'these')}."
        )
    change = run.exam_change
    if change.get("sign_test_p", 1.0) < 0.05:
        better = change["gained"] > change["lost"]
        said.append(
            f"{run.title} {'gained' if better else 'forgot'}: in the exam {change['gained']} questions were gained and "
            f"{change['lost']} lost (p = {change['sign_test_p']:.2g})."
        )
    return said


# ---------------------------------------------------------------------------------- before and after

RULE = "one prompt of each category: the first held-out one whose answers by SFT and {title} differ"


def dialogues(root: Path, rows: Sequence[Compared]) -> list[dict[str, Any]]:
    """A dialogue a category, by `RULE`: category, turns, answers [{title, text, score}] of SFT and of every run."""
    start, *runs = rows
    judged = [read_lines(root / f"duel_{run.name}" / "judgements.jsonl") for run in runs]
    same = [{json.dumps(row["prompt"]): row for row in found} for found in judged]
    out = []
    for category, aspect in ASPECTS.items():
        of_it = [row for row in judged[0] if row["source"] == category]
        if not of_it:
            continue
        row = next((row for row in of_it if row["response_a"] != row["response_b"]), of_it[0])
        key = json.dumps(row["prompt"])
        found = [(run.title, table[key]) for run, table in zip(runs, same, strict=True) if key in table]
        answers = [{"title": start.title, "text": row["response_b"], "score": row.get("score_b")}]
        answers += [{"title": title, "text": r["response_a"], "score": r.get("score_a")} for title, r in found]
        out.append({"category": aspect, "turns": row["prompt"], "answers": answers})
    return out
