"""Several finished duels of the same two sides by different judges, put together: who agrees with whom.

Pairs of answers are matched by their text (prompt and both answers), so it does not matter where a duel's answers came from,
nor which side was called A: sides are those of the first duel, and a win of its B in another duel is a win of B here. Where a
judge gave no verdict on a pair (an LLM whose reply held none), that pair is missing for it, not a tie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.evaluate.agreement import Floats, agreement_report
from ppomax.evaluate.categories import label
from ppomax.evaluate.votes import is_votes, report_votes
from ppomax.regular_file import expand_path
from ppomax.train.checkpoint import write_atomic
from ppomax.train.run import plain

WORDS = {1.0: "win", 0.0: "tie", -1.0: "lose"}
OUTCOMES = {"win": 1.0, "tie": 0.0, "lose": -1.0}
Identity = tuple[str, str, str]


class DuelReportConfig(Section):
    """Agreement between the judges of several finished duels of the same two sides, or of published files of votes."""

    duels: list[str] = Field(min_length=1)
    """directories of finished duels; or files of votes (MT-Bench's human judgements, AlpacaEval's annotations), one or more"""
    pair: str = Field("ab", pattern="^[a-z]{2}$")
    """letters of the two sides that are reported, of duels of more than two; the same in all duels"""
    output_dir: str | None = None
    """folder for agreement.json and, of duels, the figures agreement and win_tie_lose (PNG, SVG); null: the table only"""
    seed: int = 0
    """of the bootstrap over prompts"""
    resamples: int = Field(1000, ge=100)
    """bootstrap resamples"""


@dataclass(frozen=True)
class FinishedDuel:
    """One duel's judgements by pair of answers."""

    place: str
    judge: str
    result: dict[str, Any]
    outcomes: dict[Identity, float]
    categories: dict[Identity, str]
    """category and language, such as "harmless zh" """
    without_verdict: int

    def outcome(self, identity: Identity) -> float | None:
        """Of a pair of answers, whichever side they are on here; None where it was not judged."""
        if identity in self.outcomes:
            return self.outcomes[identity]
        prompt, a, b = identity
        swapped = self.outcomes.get((prompt, b, a))
        return None if swapped is None else 0.0 - swapped


def read_duel(place: str, pair: str = "ab") -> FinishedDuel:
    """A finished duel's directory, and which two of its sides; UserError where it is none, or has no such sides."""
    folder = Path(expand_path(place))
    name = "judgements.jsonl" if pair == "ab" else f"judgements_{pair[0]}_{pair[1]}.jsonl"
    result_file, file = folder / "result.json", folder / name
    try:
        result = json.loads(result_file.read_text(encoding="utf-8"))
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        if error.filename == str(file):  # the result is there, so it is the pair that is not
            raise UserError(f"{folder}: this duel has no sides {' and '.join(pair)} (no {name} in it)") from None
        raise UserError(f"{folder}: not a finished duel: {Path(error.filename).name} cannot be read") from None
    except ValueError as error:
        raise UserError(f"{result_file}: malformed JSON: {error}") from None
    if not isinstance(result, dict):
        raise UserError(f"{result_file}: not the result of a duel")
    if "systems" in result:
        result |= {"a": result["systems"][pair[0]], "b": result["systems"][pair[1]]}
    outcomes: dict[Identity, float] = {}
    categories: dict[Identity, str] = {}
    without = 0
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            a, b = row["response_a"], row["response_b"]
            identity = (json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False), a, b)
            outcome = OUTCOMES[row["outcome"]]
            categories[identity] = row.get("category") or label(row["prompt"], str(row.get("source", "")), {})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}:{number}: not a judgement ({type(error).__name__}: {error}); prompt, response_a, response_b and "
                "outcome (win, tie, lose) are expected"
            ) from None
        if row.get("valid") is False:
            without += 1
        outcomes[identity] = float("nan") if row.get("valid") is False else outcome
    named = result.get("judge") or [folder.name]
    judge = " + ".join(map(str, named)) if isinstance(named, list) else str(named)
    return FinishedDuel(place, judge, result, outcomes, categories, without)


def report_duels(config: DuelReportConfig) -> dict[str, Any]:
    """What agreement.json says: `agreement_report`'s figures, and of each judge its place, what was left out, position.

    Of files of votes: what `votes.report_votes` gives.
    """
    for place in config.duels:
        if not Path(expand_path(place)).exists():
            raise UserError(
                f"duels: {place} does not exist: a file of votes, or the directory of a finished duel, is expected"
            )
    of_votes = [is_votes(place) for place in config.duels]
    if all(of_votes):
        return _report_votes(config)
    if any(of_votes):
        place = config.duels[of_votes.index(True)]
        raise UserError(f"duels: {place} is a file of votes, others are finished duels: give one kind or the other")
    if len(config.duels) < 2:
        raise UserError(f"duels: at least 2 needed, one is given: {config.duels[0]}")
    duels = [read_duel(place, config.pair) for place in config.duels]
    common = [i for i in duels[0].outcomes if all(duel.outcome(i) is not None for duel in duels[1:])]
    if not common:
        raise UserError(
            "duel report: the duels judge no pair of answers in common (same prompt, same answer of A, same answer of B)"
        )
    names = _names(duels)
    judges = {
        name: np.array([duel.outcome(i) for i in common], dtype=np.float64)
        for name, duel in zip(names, duels, strict=True)
    }
    lengths = [[len(answers[side]) for _, *answers in common] for side in (0, 1)]
    report = agreement_report(judges, *lengths, seed=config.seed, resamples=config.resamples)
    by_category = _by_category([duels[0].categories[i] for i in common], judges)
    for name, duel in zip(names, duels, strict=True):
        report["judges"][name] |= {
            "place": duel.place,
            "left_out": len(duel.outcomes) - len(common),
            "swapped": sum(i not in duel.outcomes for i in common),
            "without_verdict": duel.without_verdict,
            "position": (duel.result.get("llm") or {}).get("position"),
        }
    report |= {"a": duels[0].result.get("a"), "b": duels[0].result.get("b"), "by_category": by_category}
    report |= {"seed": config.seed, "resamples": config.resamples}
    report = dict(plain(report))
    _write(report, config.output_dir, figures=True)
    return report


def _report_votes(config: DuelReportConfig) -> dict[str, Any]:
    report = dict(plain(report_votes(config.duels, seed=config.seed, resamples=config.resamples)))
    _write(report, config.output_dir, figures=False)
    return report


def _write(report: dict[str, Any], output_dir: str | None, *, figures: bool) -> None:
    """agreement.json and the figures, where a folder for them is named."""
    if not output_dir:
        return
    from ppomax.evaluate.duel_figures import SUFFIXES, draw_judges
    from ppomax.report.agreement_figure import agreement_matrix

    folder = Path(expand_path(output_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "agreement.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
        if figures:
            for suffix in SUFFIXES:
                agreement_matrix(report, folder / f"agreement.{suffix}")
            draw_judges(report, folder)
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be written: {error.strerror or error}") from None


def _by_category(categories: Sequence[str], judges: Mapping[str, Floats]) -> dict[str, dict[str, dict[str, int]]]:
    """Category -> judge -> win, tie, lose; pairs on which a judge gave no verdict are left out for it."""
    out: dict[str, dict[str, dict[str, int]]] = {}
    for category in dict.fromkeys(categories):
        rows = np.array([c == category for c in categories])
        out[category] = {
            name: {word: int((outcomes[rows] == value).sum()) for value, word in WORDS.items()}
            for name, outcomes in judges.items()
        }
    return out


def _names(duels: Sequence[FinishedDuel]) -> list[str]:
    """The judges' names; where two are the same, with the duel's folder."""
    every = [duel.judge for duel in duels]
    named = [f"{duel.judge} ({Path(duel.place).name})" if every.count(duel.judge) > 1 else duel.judge for duel in duels]
    return [name if named.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(named)]
