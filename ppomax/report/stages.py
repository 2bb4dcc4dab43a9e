"""What the stages of a pipeline left behind, read for a page, and measurements of it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open

from ppomax.errors import UserError
from ppomax.report.figures import policy_series

TITLES = {"ppo_max": "PPO-max", "sft": "SFT", "base": "base model", "vanilla": "vanilla PPO"}


@dataclass
class Stage:
    """One stage's directory, as far as it is there."""

    name: str
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name.replace("_", " "))


@dataclass
class Pipeline:
    """The stages of a page. ``duels[i]`` compares ``ppo[i]`` with the SFT model."""

    root: Path
    language: list[Stage]
    rewards: list[Stage]
    ppo: list[Stage]
    duels: list[Stage]
    missing: list[str]


LARGEST = 1e100
"""a number beyond it is left out: no figure could show it"""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < LARGEST


def _is_update(row: Mapping[str, Any]) -> bool:
    return _is_count(row.get("update"))


def _is_sample(row: Mapping[str, Any]) -> bool:
    turns = row.get("prompt")
    return (
        _is_update(row) and _is_count(row.get("iteration")) and isinstance(row.get("response"), str)
        and isinstance(turns, list)
        and all(isinstance(t, dict) and isinstance(t.get("role"), str) and isinstance(t.get("content"), str) for t in turns)
    )  # fmt: skip


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    needed = ("iteration", "update", "eval/win_rate", "eval/win_rate_se", "eval/prompts")
    return all(isinstance(row.get(name), int | float) and math.isfinite(row[name]) for name in needed)


def _is_alarm(row: Mapping[str, Any]) -> bool:
    return _is_count(row.get("iteration")) and isinstance(row.get("level"), str)


def read_lines(path: Path, is_record: Callable[[Mapping[str, Any]], bool] = bool) -> list[dict[str, Any]]:
    """JSON lines of a file; none where it is absent. A last line without its end is still being written, and left out;
    other lines that are no records are left out and told of."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[dict[str, Any]] = []
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        if isinstance(row, dict) and is_record(row := {name: _shown(name, value) for name, value in row.items()}):
            rows.append(row)
        elif number < len(lines):
            bad.append(number)
    if bad:
        print(f"warning: {path}:{bad[0]}: no record; {len(bad)} such lines are left out", file=sys.stderr)
    return rows


def _shown(name: str, value: Any) -> Any:
    """A metric that is no number, or too large a one, is as good as missing."""
    no_number = isinstance(value, str) and "/" in name
    return None if no_number or (isinstance(value, int | float) and not -LARGEST <= value <= LARGEST) else value


def read_json(path: Path) -> dict[str, Any]:
    """Of a file that may be absent. UserError where it holds no mapping."""
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no JSON object ({error}); the stage that writes it must be run again") from None


def read_stage(root: Path, name: str) -> Stage | None:
    """None where the stage was not run."""
    path = root / name
    return read_directory(path, name) if (path / "config.yaml").exists() else None


def read_directory(path: Path, name: str) -> Stage:
    """What a stage left in ``path``, which holds a config.yaml."""
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{path / 'config.yaml'}: cannot be read as settings: {told}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.yaml'}: holds no settings")
    return Stage(
        name, path,
        config=config,
        metrics=read_lines(path / "metrics.jsonl", bool if {"a", "b"} <= set(config) else _is_update),  # duels have no updates
        samples=read_lines(path / "samples.jsonl", _is_sample),
        evaluations=read_lines(path / "evaluations.jsonl", _is_evaluation),
        alarms=read_lines(path / "alarms.jsonl", _is_alarm),
        evaluation=read_json(path / "evaluation.json"),
        result=read_json(path / "result.json"),
    )  # fmt: skip


def read_pipeline(
    root: Path, *, language: Sequence[str], rewards: Sequence[str], ppo: Sequence[str], duels: Sequence[str]
) -> Pipeline:
    """All stages that are there. Duels belong to PPO runs by their place in the list."""
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; give the output_dir of a pipeline")
    if len(duels) != len(ppo):
        raise UserError(f"--duels: {len(duels)} duels for {len(ppo)} PPO runs; name one for each")
    found = {name: read_stage(root, name) for name in (*language, *rewards, *ppo, *duels)}
    missing = [name for name, stage in found.items() if stage is None]
    if len(missing) == len(found):
        raise UserError(f"{root}: holds none of the stages {', '.join(found)}")

    def there(names: Sequence[str]) -> list[Stage]:
        return [stage for name in names if (stage := found[name]) is not None]

    return Pipeline(root, there(language), there(rewards), there(ppo), there(duels), missing)


# ----------------------------------------------------------------------------------------- measurements


@dataclass
class Course:
    """How one metric went over the policy iterations of a run: means of its first and last tenth."""

    first: float
    before_last: float
    last: float
    highest: float
    width: int
    """iterations in a tenth, one at least"""

    @classmethod
    def of(cls, stage: Stage, metric: str) -> Course | None:
        _, values = policy_series(stage.metrics, metric)
        if not values:
            return None
        width = max(1, len(values) // 10)
        before = values[-2 * width : -width] or values[-width:]
        return cls(
            float(np.mean(values[:width])), float(np.mean(before)), float(np.mean(values[-width:])), max(values), width
        )


def held_out_change(stage: Stage) -> tuple[float, float, float, float] | None:
    """(first mean, last mean, mean change, half width of its 95% interval) of the trained reward on fixed prompts."""
    updates = sorted({row["update"] for row in stage.samples})
    if len(updates) < 2:
        return None
    at = {
        u: {json.dumps(row["prompt"]): row["score"] for row in stage.samples if row["update"] == u}
        for u in (updates[0], updates[-1])
    }
    keys = [key for key in at[updates[0]] if key in at[updates[-1]]]
    first, last = (np.array([at[u][key] for key in keys], dtype=float) for u in (updates[0], updates[-1]))
    change = last - first
    half = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    return float(first.mean()), float(last.mean()), float(change.mean()), half


def parameters(folder: Path) -> int | None:
    """Number of weights in a model directory."""
    files = sorted(folder.glob("*.safetensors"))
    total = 0
    for file in files:
        with safe_open(file, framework="np") as weights:
            total += sum(int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118
    return total or None


def seconds(stage: Stage) -> dict[str, float]:
    """Seconds by phase, as the stage wrote them down."""
    total: dict[str, float] = {}
    for row in stage.metrics:
        for key, value in row.items():
            if key.startswith("time/") and isinstance(value, int | float):
                total[key.removeprefix("time/")] = total.get(key.removeprefix("time/"), 0.0) + value
    return total


def card_lines(stage: Stage) -> list[str]:
    """What the load reports in the model card say: files, counts, fingerprints. No card, no lines."""
    card = stage.path / "final" / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    match = re.search(r"^## Data\n+((?:- .*\n?)+)", text, re.MULTILINE)
    return [line.removeprefix("- ") for line in match[1].strip().split("\n")] if match else []


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix.rstrip("."): values}
    return {name: value for key, below in values.items() for name, value in flat(below, f"{prefix}{key}.").items()}
