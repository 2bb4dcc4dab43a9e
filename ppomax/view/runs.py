"""Runs below a folder: where they are, whether they live, and their last numbers. Only reads.

A run is a directory with the config.yaml of a training stage. Whether it lives is told by its lock
(`ppomax.train.requests`); one without a lock counts as running while it writes.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppomax.regular_file import open_regular
from ppomax.report.text import shortened, visible
from ppomax.train.requests import FILE, asked, ending, is_running
from ppomax.view.files import last_rows, number, stamp
from ppomax.watch.detectors import LEVELS

Kind = Literal["ppo", "reward", "sft"]
State = Literal["running", "finished", "stopped", "stopped by the watch", "dead"]
MARKS: dict[Kind, str] = {"ppo": "reward_shaping", "reward": "calibration_data", "sft": "packing"}
"""a field that only the settings of this kind have"""
WITHIN = {"checkpoints", "final", "figures", "__pycache__"}
"""folders that hold no runs; what is inside a run is not looked at anyway, and a run may itself be called judge"""
DEEPEST = 8
LONGEST_CONFIG = 100_000
"""bytes of config.yaml that are looked at: it may hold long lists"""
MOST_RUNS = 1000
"""more are not looked for, and the list says so"""
FILES = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "evaluations.jsonl",
    "alarms.jsonl",
    FILE,
    "checkpoints",
    "judge",
    "final",
)
PATIENCE = 180.0
"""seconds without a write after which a run without a lock counts as dead, if its iterations are not long themselves"""
NUMBERS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "ppo": (("reward/mean", "reward"), ("kl/ref", "KL"), ("response/length", "length"), ("policy/perplexity", "perplexity")),
    "reward": (("loss/preference", "loss"), ("eval/accuracy", "accuracy")),
    "sft": (("loss/train", "loss"), ("eval/loss", "held-out loss")),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A directory with the settings of a training stage."""

    name: str
    """path below the folder, with slashes; its own name if it is the folder itself"""
    path: Path
    kind: Kind
    planned: int | None
    """iterations of PPO, critic pre-training included (which may end sooner)"""
    stops: bool = False
    """an alarm of level collapse ends it (`watch.on_collapse: stop`)"""

    @property
    def key(self) -> str:
        """Its name in addresses."""
        return hashlib.sha256(os.fsencode(self.name)).hexdigest()[:20]


def find_runs(root: Path) -> list[Run]:
    """All runs below ``root``, or ``root`` itself, by name, links followed. What cannot be read is passed over."""
    found: list[Run] = []
    walked: set[tuple[int, int]] = set()
    for folder, inside, files in os.walk(root, followlinks=True):
        path = Path(folder)
        try:
            place = path.stat()
        except OSError:
            inside.clear()
            continue
        if (place.st_dev, place.st_ino) in walked:  # links may go round in circles
            inside.clear()
            continue
        walked.add((place.st_dev, place.st_ino))
        if "config.yaml" in files and (run := read_run(root, path)) is not None:
            found.append(run)
            inside.clear()
            if len(found) == MOST_RUNS:
                break
        elif len(path.relative_to(root).parts) >= DEEPEST:
            inside.clear()
        inside[:] = sorted(name for name in inside if name not in WITHIN and not name.startswith("."))
    return sorted(found, key=lambda run: run.name)


def read_run(root: Path, path: Path) -> Run | None:
    """None where the settings are not those of a training stage. Only a few fields are read."""
    try:
        with open_regular(path / "config.yaml") as file:
            text = file.read(LONGEST_CONFIG).decode("utf-8", "replace")
    except OSError:
        return None
    fields = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    kind = next((kind for kind, mark in MARKS.items() if mark in fields), None)
    if kind is None:
        return None
    planned = [
        re.search(rf"^{name}: (\d{{1,9}})$", text, re.MULTILINE) for name in ("iterations", "  pretrain_iterations")
    ]
    total = sum(int(match[1]) for match in planned if match) if kind == "ppo" and planned[0] else None
    name = path.relative_to(root).as_posix()
    stops = re.search(r"^  on_collapse: stop$", text, re.MULTILINE) is not None
    return Run(path.resolve().name if name == "." else name, path, kind, total, stops)


def written(run: Run) -> float:
    """When the run last wrote, in seconds since 1970; 0 where it has gone."""
    times = [found[2] / 1e9 for name in FILES if (found := stamp(run.path / name))]
    return max(times, default=0.0)


def state_of(run: Run, rows: list[dict[str, Any]]) -> tuple[State, str]:
    """(state, what the run says of its end); ``rows``: its last lines of metrics."""
    alive = is_running(run.path)
    if alive:
        return "running", ""
    if alive is False:
        told = ending(run.path)
        return ("stopped", "") if told == "stopped" else ("dead", told or "killed")
    if (run.path / "final" / "config.json").exists():
        told = why_the_watch_stopped(run, rows)
        return ("stopped by the watch", told) if told else ("finished", "")
    seconds = [sum(number(v) for k, v in row.items() if k.startswith("time/")) for row in rows]
    longest = max((s for s in seconds if s == s), default=0.0)
    if time.time() - written(run) < max(PATIENCE, min(10 * longest, 7200)):
        return "running", ""
    return "dead", "it writes no more, and there is no final/"


def why_the_watch_stopped(run: Run, rows: list[dict[str, Any]]) -> str:
    """The collapse for which the watch ended the run before its time: the one of its last iteration. Nothing if it did not."""
    last = number(rows[-1].get("iteration")) if rows else math.nan
    if not run.stops or last != last or (run.planned is not None and last + 1 >= run.planned):
        return ""
    alarms = [alarm(row) for row in last_rows(run.path / "alarms.jsonl")]
    told = [a for a in alarms if a["level"] == "collapse" and a["iteration"] == last]
    return f"collapse, iteration {told[0]['iteration']}: {told[0]['message']}" if told else ""


def summary(run: Run) -> dict[str, Any]:
    """A line of the list. All text is `visible`."""
    rows = last_rows(run.path / "metrics.jsonl")
    state, why = state_of(run, rows)
    last: dict[str, Any] = {}
    for row in rows[-1:] if run.kind == "ppo" else rows:  # the others' evaluations are not in every line
        last |= row
    numbers = {title: rounded(number(last.get(metric))) for metric, title in NUMBERS[run.kind]}
    if run.kind == "ppo":
        judged = last_rows(run.path / "evaluations.jsonl")
        numbers["win rate"] = rounded(number(judged[-1].get("eval/win_rate"))) if judged else None
    alarms = last_rows(run.path / "alarms.jsonl", 500_000)
    step = number(rows[-1].get("iteration" if run.kind == "ppo" else "update")) if rows else math.nan
    return {
        "name": visible(run.name), "key": run.key, "kind": run.kind, "state": state, "why": visible(shortened(why, 500)),
        "step": int(step) if step == step else None, "planned": run.planned, "numbers": numbers,
        "alarm": gravest(alarms), "written": written(run),
        "asked": asked(run.path) if state == "running" else [],
        "obeys": is_running(run.path) is True,
    }  # fmt: skip


def gravest(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The newest alarm of the highest level: a later notice hides no collapse."""
    shown = [alarm(row) for row in rows]
    return max(reversed(shown), key=lambda a: LEVELS.index(a["level"]), default=None)


def alarm(row: dict[str, Any]) -> dict[str, Any]:
    """An alarm as pages show it."""
    at = number(row.get("iteration"))
    level = row.get("level")
    return {
        "iteration": int(at) if at == at else None,
        "level": level if level in LEVELS else "warning",
        "message": visible(shortened(str(row.get("message", "")), 1000)),
    }


def rounded(value: float) -> float | None:
    """6 digits: enough to be drawn and read. None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
