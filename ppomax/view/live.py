"""What the page of one run shows, as plain values for JSON: panels, alarms, newest samples, requests."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from array import array
from typing import Any

import numpy as np

from ppomax.report.figures import CRITIC_PANELS, PANELS, REWARD_PANELS, Panel
from ppomax.report.text import shortened, visible
from ppomax.train.requests import FILE
from ppomax.view.curves import curve, ridge, times
from ppomax.view.files import Columns, last_rows, number, stamp
from ppomax.view.runs import FILES, Kind, Run, alarm, rounded, summary

SFT_PANELS: tuple[Panel, ...] = (
    ("loss/train", "training loss", "nats per token, each update"),
    ("eval/loss", "held-out loss", "nats per token"),
    ("grad_norm", "gradient norm", "before clipping"),
    ("lr", "learning rate", ""),
)
OF_KIND: dict[Kind, tuple[Panel, ...]] = {"ppo": PANELS, "reward": REWARD_PANELS, "sft": SFT_PANELS}
PHASES: dict[Kind, tuple[str, ...]] = {
    "ppo": ("weights", "watch", "judge", "sample", "score", "update", "metrics", "total"),
    "reward": ("eval", "update"),
    "sft": ("eval", "update"),
}
"""time/... of each kind; what no phase accounts for is `other`"""
MOST_EVALUATIONS = 20_000_000
"""bytes of evaluations.jsonl that are looked at, the newest"""
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
        self.panels = OF_KIND[run.kind]
        self.critic = CRITIC_PANELS if run.kind == "ppo" else ()
        self.times = [f"time/{name}" for name in PHASES[run.kind]]
        names = [self.x, *(panel[0] for panel in (*self.panels, *self.critic)), *self.times]
        self.metrics = Columns(run.path / "metrics.jsonl", names)
        self.scores = Columns(run.path / "samples.jsonl", ["iteration", "score"])
        self._drawn: tuple[Any, dict[str, Any]] | None = None

    def look(self) -> dict[str, Any]:
        """Everything that the page shows; ``version`` changes when something does."""
        shown: dict[str, Any] = {"head": summary(self.run), "x": self.x, **self._figures()}
        shown["unreadable"] = self.metrics.unreadable
        rows = last_rows(self.run.path / "alarms.jsonl", 500_000)
        shown["alarms"] = [alarm(row) for row in rows[-MOST_ALARMS:]][::-1]
        marks = [alarm(row) for row in rows[-MOST_MARKS:]]
        shown["marks"] = [[m["iteration"], m["level"]] for m in marks if m["iteration"] is not None]
        shown["samples"] = self._samples()
        asked = {"step": self.x, "request": "request", "checkpoint": "checkpoint"}
        going = shown["head"]["state"] == "running"
        shown["requests"] = [
            {name: visible(shortened(str(row.get(key)), 100)) for name, key in asked.items()}
            for row in last_rows(self.run.path / FILE)[-3:]
            if not (going and row.get("request") == "stop")  # obeyed in an earlier life
        ]
        command = f"ppomax {self.run.kind} {shlex.quote(str(self.run.path / 'config.yaml'))} --resume"
        shown["resume"] = visible(command) if any(self.run.path.glob("checkpoints/step-*")) else ""
        shown["version"] = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]
        return shown

    def _figures(self) -> dict[str, Any]:
        """What is drawn, and whether it is of a ``sampled`` part of the lines; drawn anew only when the files change."""
        files = tuple(stamp(self.run.path / name) for name in FILES[1:4])
        if self._drawn and self._drawn[0] == files and not self._drawn[1]["sampled"]:
            return self._drawn[1]
        columns, sampled = self.metrics.read()
        with np.errstate(all="ignore"):  # whatever numbers a file holds
            found, waits = self._drawings(columns)
        self._drawn = (files, {**found, "sampled": sampled or waits})
        return self._drawn[1]

    def _drawings(self, columns: dict[str, array[float]]) -> tuple[dict[str, Any], bool]:
        """(what is drawn, whether some of it must wait for a long file)."""
        x, waits = columns[self.x], False
        panels, critic = ([curve(p, x, columns[p[0]]) for p in shown] for shown in (self.panels, self.critic))
        found: dict[str, Any] = {"ridge": None, "times": times(x, {name: columns[name] for name in self.times})}
        if self.run.kind == "ppo":
            evaluations = last_rows(self.run.path / "evaluations.jsonl", MOST_EVALUATIONS)
            panels.insert(0, win_rate(evaluations))
            found["ridge"], waits = self._rewards(evaluations)
        found |= {"panels": [p for p in panels if p["x"]], "critic": [p for p in critic if p["x"]]}
        return found, waits

    def _rewards(self, evaluations: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, bool]:
        """(distributions of the rewards of the held-out prompts, whether they must wait for a long file).

        Of the judged prompts where they are written down, which are more; otherwise of those that samples.jsonl shows.
        """
        judged = [
            (number(row.get("iteration")), number(reward))
            for row in evaluations
            if isinstance(rewards := row.get("rewards"), list)
            for reward in rewards
        ]
        if judged:
            return ridge(*zip(*judged, strict=True)), False
        columns, sampled = self.scores.read()
        return (None, True) if sampled else (ridge(columns["iteration"], columns["score"]), False)

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


def win_rate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The curve of the judged win rate, with its band; ``rows``: of evaluations.jsonl."""
    x = [number(row.get("iteration")) for row in rows]
    y = [number(row.get("eval/win_rate")) for row in rows]
    panel = curve(WIN_RATE, x, y)
    band = {number(row.get("iteration")): 2 * number(row.get("eval/win_rate_se")) for row in rows}
    panel["band"] = [rounded(band.get(at, math.nan)) for at in panel["x"]]
    return panel


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
