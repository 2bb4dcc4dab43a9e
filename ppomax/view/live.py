"""What the page of one run shows, as plain values for JSON: panels, alarms, newest samples, requests."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppomax.report.figures import (
    MOST_POINTS,
    PANELS,
    REWARD_PANELS,
    SMOOTHED_FROM,
    Panel,
    extremes,
    running_mean,
)
from ppomax.report.text import shortened, visible
from ppomax.train.requests import FILE
from ppomax.view.files import Columns, last_rows, number, stamp
from ppomax.view.runs import FILES, Kind, Run, alarm, rounded, summary

SFT_PANELS: tuple[Panel, ...] = (
    ("loss/train", "training loss", "nats per token, each update"),
    ("eval/loss", "held-out loss", "nats per token"),
    ("grad_norm", "gradient norm", "before clipping"),
    ("lr", "learning rate", ""),
)
OF_KIND: dict[Kind, tuple[Panel, ...]] = {"ppo": PANELS, "reward": REWARD_PANELS, "sft": SFT_PANELS}
WIN_RATE = ("eval/win_rate", "win rate", "share, by the judge; band: 2 standard errors")
MOST_ALARMS = 50
MOST_MARKS = 200
MOST_SAMPLES = 16
LONGEST_TEXT = 3000
"""characters of a turn or an answer"""


class LiveRun:
    """One run, read on at every look."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.x = "iteration" if run.kind == "ppo" else "update"
        self.metrics = Columns(run.path / "metrics.jsonl", [self.x, *(panel[0] for panel in OF_KIND[run.kind])])
        self._drawn: tuple[Any, list[dict[str, Any]], bool] | None = None

    def look(self) -> dict[str, Any]:
        """Everything that the page shows; ``version`` changes when something does."""
        shown: dict[str, Any] = {"head": summary(self.run), "x": self.x}
        shown["panels"], shown["sampled"] = self._panels()
        shown["unreadable"] = self.metrics.unreadable
        rows = last_rows(self.run.path / "alarms.jsonl", 500_000)
        shown["alarms"] = [alarm(row) for row in rows[-MOST_ALARMS:]][::-1]
        marks = [alarm(row) for row in rows[-MOST_MARKS:]]
        shown["marks"] = [[m["iteration"], m["level"]] for m in marks if m["iteration"] is not None]
        shown["samples"] = self._samples()
        asked = {"step": self.x, "request": "request", "checkpoint": "checkpoint"}
        shown["requests"] = [
            {name: visible(shortened(str(row.get(key)), 100)) for name, key in asked.items()}
            for row in last_rows(self.run.path / FILE)[-3:]
        ]
        shown["resume"] = visible(f"ppomax {self.run.kind} {shlex.quote(str(self.run.path / 'config.yaml'))} --resume")
        shown["version"] = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
        return shown

    def _panels(self) -> tuple[list[dict[str, Any]], bool]:
        """Curves, and whether they are of a sample of the lines; drawn anew only when the files have changed."""
        files = tuple(stamp(self.run.path / name) for name in FILES[1:4])
        if self._drawn and self._drawn[0] == files and not self._drawn[2]:
            return self._drawn[1], False
        columns, sampled = self.metrics.read()
        x = columns[self.x]
        panels = [curve(panel, x, columns[panel[0]]) for panel in OF_KIND[self.run.kind]]
        if self.run.kind == "ppo":
            panels.insert(0, self._win_rate())
        self._drawn = (files, [panel for panel in panels if panel["x"]], sampled)
        return self._drawn[1], sampled

    def _win_rate(self) -> dict[str, Any]:
        rows = last_rows(self.run.path / "evaluations.jsonl", 5_000_000)
        x = [number(row.get("iteration")) for row in rows]
        y = [number(row.get("eval/win_rate")) for row in rows]
        panel = curve(WIN_RATE, x, y)
        band = {number(row.get("iteration")): 2 * number(row.get("eval/win_rate_se")) for row in rows}
        panel["band"] = [rounded(band.get(at, math.nan)) for at in panel["x"]]
        return panel

    def _samples(self) -> list[dict[str, Any]]:
        """The newest answers to the held-out prompts."""
        rows = last_rows(self.run.path / "samples.jsonl", 1_000_000)
        newest = [row for row in rows if row.get("iteration") == rows[-1].get("iteration")][:MOST_SAMPLES]
        return [
            {
                "iteration": rounded(number(row.get("iteration"))), "prompt": turns(row.get("prompt")),
                "response": text(row.get("response")), "finished": row.get("finished") is not False,
                **{key: rounded(number(row.get(key))) for key in ("score", "kl", "length")},
            }
            for row in newest
        ]  # fmt: skip


def curve(panel: Panel, x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """One curve, thinned: the extremes of `MOST_POINTS` stretches, and of long ones a running mean."""
    metric, title, unit = panel
    places, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(places) & np.isfinite(values)
    places, values = places[known], values[known]
    found: dict[str, Any] = {
        "metric": metric,
        "title": title,
        "unit": unit,
        "x": [],
        "y": [],
        "mean": None,
        "band": None,
    }
    if not len(values):
        return found
    array: Any = values  # as it is: a list would be converted again and again
    raw = extremes(array, MOST_POINTS)
    found["x"], found["y"] = places[raw].tolist(), [rounded(float(v)) for v in values[raw]]
    if len(values) >= SMOOTHED_FROM:
        at = sorted({round(k) for k in np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS))})
        mean = running_mean(array, len(values) // 20 | 1, at)
        found["mean"] = [places[at].tolist(), [rounded(v) for v in mean]]
    return found


def turns(prompt: Any) -> list[dict[str, str]]:
    """A prompt as (role, content), whatever the file holds."""
    given = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    return [
        {"role": text(turn.get("role"))[:50], "content": text(turn.get("content"))}
        for turn in given[-20:]
        if isinstance(turn, dict)
    ]


def text(value: Any) -> str:
    return visible(shortened(str(value), LONGEST_TEXT))
