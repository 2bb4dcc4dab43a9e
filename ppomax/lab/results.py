"""A finished run as one small file of JSON lines, which is kept in the repository.

    {"kind": "header", "arm": ..., "claims": [...], "seed": 1, "identity": {...}, "world": {...}, "seconds": {...}, ...}
    {"kind": "evaluation", "iteration": 0, "update": 0, "eval/win_rate": ..., ...}      one an evaluation of the live judge
    {"kind": "stream", "iteration": [0, ...], "update": [4, ...], "reward/mean": [...], ...}   training, every iteration
    {"kind": "endpoint", ...}                                                             the last, thorough evaluation

Numbers have five significant digits, those of the stream four. The file appears whole, when the run is finished. The
stream holds what the collapse watch reads, so that detectors can be judged on finished runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.lab.plan import REFERENCE, Run, flatten, plain_values
from ppomax.train.checkpoint import write_atomic
from ppomax.train.run import plain
from ppomax.watch.history import WATCHED, number

FORMAT = 2
LINES = 45
"""points of a training curve at most: means over successive iterations"""
KEPT = (
    *WATCHED, "kl/ref_k3", "policy/perplexity_moss", "policy/clip_fraction", "loss/policy", "loss/ptx",
    "response/length_std", "reward/shaped_mean", "kl/coef", "advantage/mean", "advantage/std",
)  # fmt: skip
"""of metrics.jsonl"""
LEFT_OUT = ("rewards", "histograms")
"""of evaluations.jsonl: numbers of each prompt, of which the quantiles stay"""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    path: Path
    header: dict[str, Any]
    evaluations: list[dict[str, Any]]
    stream: list[dict[str, Any]]
    """training, every iteration"""
    metrics: list[dict[str, Any]]
    """the same as means over successive iterations: see `thin`"""
    endpoint: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.header["key"])

    @property
    def seed(self) -> int:
        return int(self.header["seed"])


def thin(rows: Sequence[Mapping[str, Any]], lines: int = LINES) -> list[dict[str, Any]]:
    """Means over successive iterations of the same phase, so many that at most ``lines`` are left.

    A line's iteration and update are those of its last iteration; ``iterations`` says over how many the mean goes.
    """
    out: list[dict[str, Any]] = []
    phases = [[r for r in rows if r.get("phase") == phase] for phase in ("critic", "policy")]
    for part in phases:
        room = max(1, lines - 5 if part is phases[1] else 5)
        step = math.ceil(len(part) / room) or 1
        for start in range(0, len(part), step):
            group = part[start : start + step]
            line = {"iteration": group[-1]["iteration"], "update": group[-1]["update"], "phase": group[0].get("phase")}
            line["iterations"] = len(group)
            for name in KEPT:
                values = [r[name] for r in group if isinstance(r.get(name), int | float)]
                if values:
                    line[name] = sum(values) / len(values)
            out.append(line)
    return out


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows of metrics.jsonl by column; null where a row has no such number. What no row has is left out."""
    names = [n for n in KEPT if any(n in r for r in rows)]
    return {n: [r.get(n) for r in rows] for n in ("iteration", "update", "phase", *names)}


def rows_of(stream: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows again."""
    return [dict(zip(stream, values, strict=True)) for values in zip(*stream.values(), strict=True)]


def rounded(value: Any, digits: int = 5) -> Any:
    """So many significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: rounded(v, digits) for k, v in value.items()}
    return [rounded(v, digits) for v in value] if isinstance(value, list | tuple) else value


def write_result(
    path: Path, header: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]],
    stream: Sequence[Mapping[str, Any]], endpoint: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the file, whole or not at all; settings in the header keep all their digits."""
    lines: list[dict[str, Any]] = [{"kind": "header", "format": FORMAT, **plain(header)}]
    lines += [
        {"kind": "evaluation", **rounded({k: v for k, v in row.items() if k not in LEFT_OUT})} for row in evaluations
    ]
    lines.append({"kind": "stream", **rounded(columns(stream), digits=4)})
    lines.append({"kind": "endpoint", **rounded(endpoint)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_result(path: Path) -> Result:
    """UserError for a file that is none."""
    header: dict[str, Any] = {}
    rows: dict[str, list[dict[str, Any]]] = {"evaluation": [], "stream": [], "endpoint": []}
    for row_number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            kind = row.pop("kind")
            if kind == "header":
                header = row
                if header.get("format") != FORMAT:  # before its lines, of which this version may not know the kinds
                    raise UserError(
                        f"{path}: format {header.get('format')} is not the {FORMAT} that this version reads; remove it"
                    )
            else:
                rows[kind].append(row)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(
                f"{path}:{row_number}: not a line of a lab result; remove the file to run it again"
            ) from None
    if not header or not rows["stream"] or not rows["endpoint"]:
        raise UserError(f"{path}: not a whole lab result; remove the file to run it again")
    stream = rows_of(rows["stream"][-1])
    return Result(path, header, rows["evaluation"], stream, thin(stream), rows["endpoint"][-1])


def not_finite(result: Result) -> list[str]:
    """Where a number is missing that was not finite: ``eval/kl (2 of 21 evaluations, the last among them)``.

    In a stream null also stands for a metric that an iteration does not have, so the critic's own are not looked at.
    """
    told = []
    policy = [row for row in result.stream if row["phase"] != "critic"]
    for rows, what in ((result.evaluations, "evaluations"), (policy, "iterations")):
        for name in dict.fromkeys(key for row in rows for key in row if key not in ("phase", *LEFT_OUT)):
            holes = [name in row and number(row[name]) is None for row in rows]
            if any(holes) and not (rows is policy and all(holes)):
                last = ", the last among them" if holes[-1] else ""
                told.append(f"{name} ({sum(holes)} of {len(rows)} {what}{last})")
    flat = flatten(result.endpoint)
    return told + [f"{name} (last evaluation)" for name, value in flat.items() if value is None]


def read_results(folder: Path) -> dict[str, Result]:
    """Key -> result of every file below ``folder``; empty where there is none. Two of one key are an error."""
    found: dict[str, Result] = {}
    for path in sorted(folder.rglob("*.jsonl")) if folder.is_dir() else []:
        if path.name.startswith("."):  # left by a kill while it was written
            continue
        result = read_result(path)
        if result.key in found:
            raise UserError(f"{path} and {found[result.key].path} are results of the same run: remove one")
        found[result.key] = result
    return found


def outdated(result: Result, run: Run) -> list[str]:
    """Settings in which a result of the same key differs from the run: a default has changed since."""
    usual, missing = plain_values(), object()
    now, then = run.identity(), result.header["identity"]
    asks = any(judge.get("llm") for judge in now.get("watch.judge") or [])  # else how it would be asked changes nothing
    names = {n for n in now.keys() | then.keys() if asks or not n.startswith("watch.llm.")}
    return sorted(
        n
        for n in names
        # a setting that did not exist then, or does not now, is no difference while it is at its default
        if then.get(n, usual.get(n, missing)) != now.get(n, then.get(n))
    )


def other_start(result: Result) -> str | None:
    """The stage that the policy starts from and is compared with, where that is no SFT model (C8's is ``base``)."""
    asked = REFERENCE.fullmatch(str(result.header.get("overrides", {}).get("ppo", {}).get("model", "${sft}")))
    return asked[1] if asked and not asked[1].startswith("sft") else None


def reward_facts(result: Result) -> dict[str, Any]:
    """What the header says of the reward model (not of the second judge). KeyError where the start was given."""
    for name, facts in result.header["start"].items():
        if re.fullmatch(r"reward-[0-9a-f]{8}", name):
            return dict(facts)
    raise KeyError("accuracy")


def cached(run: Run, results: Mapping[str, Result]) -> Result | None:
    """The run's result, if it is there and was made with the same settings."""
    result = results.get(run.key)
    return result if result is not None and not outdated(result, run) else None
