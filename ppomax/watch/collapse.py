"""The collapse watch: reads one line of metrics an iteration, and says what turns, since when, and what can be done.

    watch = CollapseWatch()
    for line in lines_of_metrics:
        for alarm in watch.step(line):
            print(alarm.level, alarm.message)

``scan("RUN/metrics.jsonl")`` does so for a run that has ended. Nothing is random: the same lines give the same alarms.
What is detected and how it was judged: docs/watch.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.watch.detectors import KL_ADVICE, LEVELS, Level, at_start, look
from ppomax.watch.history import History, of_policy

MEMORY = 10
"""iterations for which a sign counts after it was last seen"""


OF_TRAINING = ("reward/", "kl/", "policy/", "value/", "advantage/", "loss/", "grad_norm/")
"""numbers that every iteration has: a null among them is a NaN; elsewhere it may be what was not measured"""
STANDING = (("kl/ref", "KL to the reference at", " nats a token"), ("reward/mean", "reward at", ""))
"""(metric, words before, unit): where the run stands, told when several signs meet"""


def sentence(what: str, since: int, means: str, advice: str) -> str:
    """The message of every alarm, of what `Sign` and `Detector` say."""
    return f"{what}, since iteration {since}; usually {means}; against it, {advice}"


@dataclass(frozen=True)
class Alarm:
    """A line of RUN/alarms.jsonl."""

    iteration: int
    level: Level
    detector: str
    since: int
    """iteration at which it began, as far as can be told"""
    message: str
    """one sentence: what turned and how it compares with the start, since when, what it usually means, which details help"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class CollapseWatch:
    """Online: `step` takes one line of metrics.jsonl and returns the new alarms, most often none.

    A detector speaks when its sign has held for its patience, once a level; again after `MEMORY` iterations without it.
    The level ``collapse`` is reached by two kinds of warnings within `MEMORY` iterations, one of them about distance (of a
    stream without KL: about reward), by a KL beyond the entropy of the start or on the way there
    (`kl_doubling`), or by a number that is not finite.
    """

    def __init__(self) -> None:
        self.history = History()
        self.seen: dict[str, dict[str, Any]] = {}
        """by detector: the run of signs that is going on (since, last, count, level told, kind)"""

    def step(self, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Alarms of this iteration; ``metrics`` has at least ``iteration``, and whatever else is known."""
        iteration = int(metrics["iteration"])
        self.history.add(metrics)
        for name in [n for n, s in self.seen.items() if self.history.since(s["last"]) > MEMORY]:
            del self.seen[name]
        alarms = self._not_finite(metrics, iteration)
        if not of_policy(metrics):
            return alarms
        before = self.history.iteration(1) if len(self.history.rows) > 1 else iteration - 1
        for detector, sign in look(self.history):
            state = self.seen.setdefault(
                detector.name,
                {"since": self.history.iteration(sign.ago), "last": before, "count": 0, "told": -1, "kind": ""},
            )
            # a single miss starts the count anew, not the episode
            state["count"] = state["count"] + 1 if state["last"] == before else 1
            state["last"] = iteration
            level = LEVELS.index(sign.level)
            if state["count"] < detector.patience:
                continue
            if level >= LEVELS.index(detector.counts_from):
                state["kind"] = detector.kind
            if level > state["told"]:
                state["told"] = level
                text = sentence(sign.what, state["since"], detector.means, detector.advice)
                alarms.append(Alarm(iteration, sign.level, detector.name, state["since"], text))
        return alarms + self._combined(iteration, alarms)

    def _not_finite(self, metrics: Mapping[str, Any], iteration: int) -> list[Alarm]:
        bad = [
            name
            for name, value in metrics.items()
            if "/" in name
            and (
                (value is None and name.startswith(OF_TRAINING))
                or (isinstance(value, float) and not math.isfinite(value))
            )
        ]
        if not bad:
            return []
        known = "not_finite" in self.seen
        state = self.seen.setdefault("not_finite", {"since": iteration, "count": 1, "told": 2, "kind": ""})
        state["last"] = iteration
        if known:
            return []
        return [self.not_finite(bad, iteration)]

    def not_finite(self, names: Sequence[str], iteration: int) -> Alarm:
        """The alarm about metrics that are no numbers in ``iteration``."""
        first = self.history.first[0]["iteration"] if self.history.first else 0
        what = f"{', '.join(names)} not finite" + (", unlike at the start" if iteration > first else " from the start")
        known = [f"{name} {start:.3g}" for name in names if (start := self.history.start(name)) is not None]
        if known:
            what += f" ({known[0]} then)"
        text = sentence(
            what, iteration, "the learning rate is too high",
            "details 1, 11 and 12: lower policy_optim.lr or critic_optim.lr, set grad_clip.norm, lower surrogate.clip_range, "
            "raise kl.coef",
        )  # fmt: skip
        return Alarm(iteration, "collapse", "not_finite", iteration, text)

    def _combined(self, iteration: int, alarms: list[Alarm]) -> list[Alarm]:
        """One more alarm where warnings of two kinds meet."""
        signs = {name: s for name, s in self.seen.items() if s["kind"]}
        kinds = {s["kind"] for s in signs.values()}
        # a policy that has not gone far has not collapsed: without a sign of distance, other signs meet in healthy runs too
        needed = "distance" if self.history.now("kl/ref") is not None else "reward"
        if len(kinds) < 2 or needed not in kinds:
            return []
        state = self.seen.get("combined")
        since = min(s["since"] for s in signs.values() if s["told"] >= 1)
        if state is not None:
            state["last"] = iteration
            return []
        self.seen["combined"] = {"since": since, "last": iteration, "count": 1, "told": 2, "kind": ""}
        if any(a.level == "collapse" for a in alarms):
            return []
        stands = " and ".join(
            f"{words} {now:.3g}{unit} ({at_start(self.history, name)})"
            for name, words, unit in STANDING
            if (now := self.history.now(name)) is not None
        )
        text = sentence(
            f"{' and '.join(sorted(signs))} show together" + (f", with {stands}" if stands else ""), since,
            "the policy exploits the reward model and its answers are becoming worse (section 5.2)",
            f"{KL_ADVICE}, or go back to an earlier checkpoint",
        )  # fmt: skip
        return [Alarm(iteration, "collapse", "combined", since, text)]

    @property
    def level(self) -> Level | None:
        """The gravest thing that is going on."""
        told = max((s["told"] for s in self.seen.values()), default=-1)
        return LEVELS[told] if told >= 0 else None

    @property
    def healthy_until(self) -> float:
        """The iteration before which nothing that is going on had begun; infinite while there is no warning."""
        return min((s["since"] for s in self.seen.values() if s["told"] >= 1), default=math.inf)

    def forget_after(self, iteration: int) -> None:
        """The weights went back to those before ``iteration``: so do the memories."""
        self.history.forget_after(iteration)
        self.seen = {}

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history.state_dict(), "seen": {k: dict(v) for k, v in self.seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        self.seen = {k: dict(v) for k, v in state["seen"].items()}


def scan(path: str | Path) -> list[Alarm]:
    """All alarms that the watch gives for a metrics.jsonl, or for the run directory that holds one.

    Where the run was rolled back (its alarms.jsonl says so), the watch forgets what the run's own forgot. A last line that
    was not written to its end is passed over; any other that is no line of metrics is a UserError.
    """
    file = Path(path)
    file = file / "metrics.jsonl" if file.is_dir() else file
    if not file.exists():
        raise UserError(f"{file}: no such file; name a run directory or its metrics.jsonl")
    rolled_back = _rollbacks(file.with_name("alarms.jsonl"))
    watch, alarms = CollapseWatch(), []
    lines = file.read_text(encoding="utf-8-sig", errors="replace").split("\n")  # a kill may cut a letter
    for i, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            alarms += watch.step(line)
            step = rolled_back.get(line["iteration"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if i == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise UserError(f"{file}:{i}: not a line of metrics with an `iteration`") from None
        if step is not None:
            watch.forget_after(step)
    return alarms


def _rollbacks(file: Path) -> dict[int, int]:
    """Iteration after which a run was rolled back -> the one before which its weights were then."""
    found: dict[int, int] = {}
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []:
        try:
            row = json.loads(text)
            if row["detector"] == "rollback":
                found[int(row["iteration"])] = int(row["since"])
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return found
