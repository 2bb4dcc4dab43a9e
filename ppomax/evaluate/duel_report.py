"""Several finished duels of the same two sides by different judges, put together: who agrees with whom.

Pairs of answers are matched by their text (prompt and both answers), so it does not matter where a duel's answers came from.
Where a judge gave no verdict on a pair (an LLM whose reply held none), that pair is missing for it, not a tie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ppomax.config import Section
from ppomax.errors import UserError
from ppomax.evaluate.agreement import agreement_report
from ppomax.train.checkpoint import write_atomic
from ppomax.train.run import plain

OUTCOMES = {"win": 1.0, "tie": 0.0, "lose": -1.0}
Identity = tuple[str, str, str]


class DuelReportConfig(Section):
    """Agreement between the judges of several finished duels of the same two sides."""

    duels: list[str] = Field(min_length=2)
    """directories of finished duels"""
    output_dir: str | None = None
    """folder for agreement.json and agreement.png; null: the table only"""
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
    lengths: dict[Identity, tuple[float, float]]
    without_verdict: int


def read_duel(place: str) -> FinishedDuel:
    """A finished duel's directory; UserError where it is none."""
    folder = Path(place).expanduser()
    result_file, file = folder / "result.json", folder / "judgements.jsonl"
    try:
        result = json.loads(result_file.read_text(encoding="utf-8"))
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{folder}: not a finished duel: {Path(error.filename).name} cannot be read") from None
    except ValueError as error:
        raise UserError(f"{result_file}: malformed JSON: {error}") from None
    if not isinstance(result, dict):
        raise UserError(f"{result_file}: not the result of a duel")
    outcomes: dict[Identity, float] = {}
    lengths: dict[Identity, tuple[float, float]] = {}
    without = 0
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            a, b = row["response_a"], row["response_b"]
            identity = (json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False), a, b)
            outcome = OUTCOMES[row["outcome"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}:{number}: not a judgement ({type(error).__name__}: {error}); prompt, response_a, response_b and "
                "outcome (win, tie, lose) are expected"
            ) from None
        lengths[identity] = (len(a), len(b))
        if row.get("valid") is False:
            without += 1
        outcomes[identity] = float("nan") if row.get("valid") is False else outcome
    named = result.get("judge") or [folder.name]
    judge = " + ".join(map(str, named)) if isinstance(named, list) else str(named)
    return FinishedDuel(place, judge, result, outcomes, lengths, without)


def report_duels(config: DuelReportConfig) -> dict[str, Any]:
    """What agreement.json says: `agreement_report`'s figures, and of each judge its place, what was left out, position."""
    duels = [read_duel(place) for place in config.duels]
    common = [i for i in duels[0].outcomes if all(i in duel.outcomes for duel in duels[1:])]
    if not common:
        raise UserError(
            "duel report: the duels judge no pair of answers in common (same prompt, same answer of A, same answer of B)"
        )
    names = _names(duels)
    judges = {
        name: np.array([duel.outcomes[i] for i in common], dtype=np.float64)
        for name, duel in zip(names, duels, strict=True)
    }
    lengths = [duels[0].lengths[i] for i in common]
    report = agreement_report(
        judges, [a for a, _ in lengths], [b for _, b in lengths], seed=config.seed, resamples=config.resamples
    )
    for name, duel in zip(names, duels, strict=True):
        report["judges"][name] |= {
            "place": duel.place,
            "left_out": len(duel.outcomes) - len(common),
            "without_verdict": duel.without_verdict,
            "position": (duel.result.get("llm") or {}).get("position"),
        }
    report |= {"a": duels[0].result.get("a"), "b": duels[0].result.get("b")}
    report |= {"seed": config.seed, "resamples": config.resamples}
    report = dict(plain(report))
    if config.output_dir:
        from ppomax.report.agreement_figure import agreement_matrix

        folder = Path(config.output_dir).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "agreement.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
            agreement_matrix(report, folder / "agreement.png")
        except OSError as error:
            raise UserError(f"output_dir: {folder} cannot be written: {error.strerror or error}") from None
    return report


def _names(duels: Sequence[FinishedDuel]) -> list[str]:
    """The judges' names; where two are the same, with the duel's folder."""
    every = [duel.judge for duel in duels]
    named = [f"{duel.judge} ({Path(duel.place).name})" if every.count(duel.judge) > 1 else duel.judge for duel in duels]
    return [name if named.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(named)]
