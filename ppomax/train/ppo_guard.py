"""What a PPO run does about the watch's alarms: tells them, stops, or goes back to the last healthy checkpoint.

Every rank keeps the same watch; what is done is decided by the main rank's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.train.checkpoint import list_checkpoints, load_part, step_of
from ppomax.train.parallel import Ranks
from ppomax.train.run import RunDirectory
from ppomax.watch.collapse import Alarm, CollapseWatch
from ppomax.watch.webhook import Webhook

LOOK_BACK = 20
"""iterations after which a checkpoint that no warning reaches back to is judged healthy"""
Action = Literal["go on", "stop", "rollback"]


class Diverged(UserError):
    """An update gave numbers that are not finite; the checkpoints are from before it."""


class Guard:
    """The watch at work in one run; ``with guard:`` ends its webhook's thread."""

    def __init__(self, config: PPOConfig, ranks: Ranks, run: RunDirectory) -> None:
        self.config, self.ranks, self.run = config.watch, ranks, run
        self.watch = CollapseWatch()
        self.stopped = False
        self.rollbacks = 0
        self.must_go_back = False
        """the weights are no longer numbers"""
        self.healthy: int | None = 0 if config.watch.on_collapse == "rollback" else None
        """step of the newest checkpoint that is judged healthy"""
        self.candidate: int | None = None
        """step of the checkpoint that comes next, if no warning reaches back to it"""
        self.given_up: list[list[int]] = []
        """[step gone back to, iteration of the alarm]: what was written after the one, up to the other, is of no use again"""
        self.webhook = Webhook(config.watch.webhook) if config.watch.webhook and ranks.is_main else None

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.webhook:
            self.webhook.close()

    @property
    def shown(self) -> dict[str, str]:
        """What is going on, for the progress line."""
        level = self.watch.level
        return {} if level in (None, "notice") else {"watch": str(level)}

    def tell(self, alarm: Mapping[str, Any]) -> None:
        """To RUN/alarms.jsonl, and to the webhook."""
        self.run.log(alarm, "alarms.jsonl")
        if self.webhook:
            self.webhook.post(
                f"{self.run.path.name}, iteration {alarm['iteration']}, {alarm['level']}: {alarm['message']}"
            )

    def ruined(self, numbers: Mapping[str, float], iteration: int) -> bool:
        """Whether an update gave numbers that are not finite: its weights are lost, and `look` will roll back.

        Diverged where it may not: the run ends before they are written anywhere.
        """
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad and not self._may_go_back():
            self.tell(self.watch.not_finite(bad, iteration).as_dict())
            raise Diverged(
                f"iteration {iteration}: {', '.join(bad)} not finite, training stopped; begin again in another output_dir with "
                "lower learning rates or a higher kl.coef"
            )
        self.must_go_back = bool(bad)
        return self.must_go_back

    def look(self, line: Mapping[str, Any]) -> Action:
        """Tell what the watch finds in this iteration's metrics, and say what is to be done."""
        alarms = self.watch.step(line) if self.config.detect else []
        for alarm in alarms:
            self.tell(alarm.as_dict())
            self.ranks.say(f"{alarm.level}: {alarm.message}")
        action: Action = "rollback" if self.must_go_back else self._action([a for a in alarms if a.level == "collapse"])
        self.must_go_back = False
        return self.ranks.collect([action])[0]

    def _action(self, collapses: list[Alarm]) -> Action:
        if not collapses or self.config.on_collapse == "warn":
            return "go on"
        if self.config.on_collapse == "stop":
            self.ranks.say(f"stopped after iteration {collapses[0].iteration} (watch.on_collapse: stop)")
            return "stop"
        if not self._may_go_back():
            self.ranks.say(f"not rolled back: watch.max_rollbacks {self.config.max_rollbacks} reached")
            return "go on"
        return "rollback"

    def _may_go_back(self) -> bool:
        active = self.config.detect and self.config.on_collapse == "rollback"
        return active and self.rollbacks < self.config.max_rollbacks

    def roll_back(self, iteration: int, kl_coef: float, parts: list[str]) -> tuple[dict[str, Any], float]:
        """States of the checkpoint to go back to, and the KL coefficient to go on with.

        A kill before the next checkpoint undoes it: the run goes on from one before it, and comes to the same alarm.
        """
        step = self.ranks.collect([self._last_healthy()])[0]
        if step is None:
            raise UserError(
                f"{self.run.checkpoints}: no healthy checkpoint is left to roll back to (watch.on_collapse: rollback)"
            )
        checkpoint = self.run.checkpoints / f"step-{step:06d}"
        raised = kl_coef * self.config.rollback_factor if kl_coef > 0 else self.config.rollback_kl
        self.rollbacks += 1
        message = (
            f"rolled back to the weights of {checkpoint.name}, and kl.coef from {kl_coef:g} to {raised:g} "
            f"({self.rollbacks} of at most {self.config.max_rollbacks} times)"
        )
        self.tell(
            {"iteration": iteration, "level": "notice", "detector": "rollback", "since": step, "message": message}
        )
        self.ranks.say(message)
        self.watch.forget_after(step)
        self.healthy, self.candidate = step, None
        self.given_up.append([step, iteration])
        return {name: load_part(checkpoint, name) for name in parts}, raised

    def _last_healthy(self) -> int | None:
        """Step of the newest checkpoint from before the signs began, else of the oldest; none of those given up."""
        found = [
            step
            for step in map(step_of, list_checkpoints(self.run.checkpoints))
            if not any(first < step <= last for first, last in self.given_up)
        ]
        since = self.watch.healthy_until
        return max((step for step in found if step <= since), default=min(found, default=None))

    def protect(self, step: int) -> set[int]:
        """Steps of checkpoints that must stay, the one now to be written at ``step`` perhaps among them.

        Two at most: a checkpoint is known to be healthy only some time later, and until then the one before it is kept.
        """
        if not self.config.detect:
            return set()
        until = self.watch.healthy_until
        if self.candidate is not None and self.candidate > until:
            self.candidate = None
        if self.candidate is not None and self.candidate <= min(step - LOOK_BACK, until):
            self.healthy, self.candidate = self.candidate, None
        if self.candidate is None and step <= until:
            self.candidate = step
        return {s for s in (self.healthy, self.candidate) if s is not None}

    def state_dict(self) -> dict[str, Any]:
        return {
            "watch": self.watch.state_dict(), "stopped": self.stopped, "rollbacks": self.rollbacks,
            "healthy": self.healthy, "candidate": self.candidate, "given_up": self.given_up,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.watch.load_state_dict(state["watch"])
        self.stopped, self.rollbacks = state["stopped"], state["rollbacks"]
        self.healthy, self.candidate = state["healthy"], state["candidate"]
        self.given_up = [list(pair) for pair in state.get("given_up", [])]  # earlier versions did not keep it
