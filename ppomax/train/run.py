"""The run directory: what a stage leaves behind, and how a killed run finds its place again.

    RUN/config.yaml  metrics.jsonl  samples.jsonl  checkpoints/step-000100/  final/

Lines are appended whole and flushed. On resume, lines written after the checkpoint are cut off, so that a resumed run's
files equal an uninterrupted run's.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shutil
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ppomax.config import RunConfig
from ppomax.errors import UserError
from ppomax.options import dump_yaml
from ppomax.output_dir import claim
from ppomax.train.checkpoint import latest_checkpoint, load_part, save_checkpoint, step_of, write_atomic
from ppomax.train.parallel import Ranks
from ppomax.watch.trackers import About, Trackers, without_secrets

MAY_CHANGE = {
    "output_dir", "device", "parallel.shard", "parallel.frozen", "parallel.activation_checkpointing",
    "checkpoint.every", "checkpoint.keep", "iterations", "micro_batch_tokens", "trackers",
    "tracker_project", "tracker_name",
    *(f"rollout.{name}" for name in ("url", "transfer", "colocated", "timeout", "retries", "first_pause")),
    *(f"{section}.{name}" for section in ("llm", "endpoint", "watch.llm") for name in (
        "concurrency", "requests_a_minute", "max_requests", "max_tokens", "timeout", "retries", "first_pause", "base_url",
        "key_variable",
    )),
}  # fmt: skip
"""fields that a resumed run may set anew"""


def _text(file: Path) -> str:
    """A full disk may cut a line within a letter: such a line is no JSON, and the others are as they were."""
    return file.read_text(encoding="utf-8", errors="replace")


def plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they are written as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


class RunDirectory:
    """One stage's run directory. Only the main rank writes, and only it has trackers."""

    def __init__(
        self, path: Path, ranks: Ranks, trackers: Trackers | None = None, settings_before: str | None = None
    ) -> None:
        """``settings_before``: the config.yaml that a resumed run had."""
        self.path = path
        self.ranks = ranks
        self.trackers = trackers or Trackers()
        self.settings_before = settings_before
        self.resumed = settings_before is not None
        # a run ends in many ways, and all of them let go of its directory
        weakref.finalize(self, self.trackers.close)

    @classmethod
    def open(cls, config: RunConfig, ranks: Ranks, *, resume: bool = False) -> RunDirectory:
        """Start a run, or go on with one. An existing run without ``resume`` is refused and left untouched."""
        path, resumed = claim(config, config.output_dir, "a run", resume=resume, may_change=MAY_CHANGE)
        saved = path / "config.yaml"
        before = saved.read_text(encoding="utf-8") if resumed and ranks.is_main else None
        ranks.barrier()  # all ranks have looked before the first one writes
        if ranks.is_main:
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_atomic(saved, dump_yaml(config))
            except OSError as error:
                raise UserError(f"output_dir: {path} cannot be written: {error.strerror or error}") from None
        return cls(path, ranks, cls._trackers(config, path, resumed) if ranks.is_main else None, before)

    @staticmethod
    def _trackers(config: RunConfig, path: Path, resumed: bool) -> Trackers:
        if not config.trackers:
            return Trackers()
        file = path / "trackers.json"
        try:
            identity = str(json.loads(file.read_text(encoding="utf-8"))["id"])
        except (OSError, ValueError, KeyError, TypeError):  # a new run, or one that somebody else wrote into
            identity = secrets.token_hex(6)
            write_atomic(file, json.dumps({"id": identity}) + "\n")
        name = config.tracker_name or path.resolve().name
        settings = without_secrets(config.model_dump(mode="json"))
        return Trackers(
            config.trackers, About(name, config.tracker_project, identity, path.resolve(), settings, resumed)
        )

    @contextlib.contextmanager
    def undone_if_nothing_came(self) -> Iterator[None]:
        """A UserError before the first metrics line leaves no run behind: the corrected command can be given at once.

        Of a run that was to be resumed it leaves what there was, settings included.
        """
        try:
            yield
        except UserError:
            if self.settings_before is not None:
                write_atomic(self.path / "config.yaml", self.settings_before)
            elif (
                not self.resumed
                and self.ranks.is_main
                and not (self.path / "metrics.jsonl").exists()
                and self.latest() is None
            ):
                for file in self.path.iterdir():
                    if file.is_file():
                        file.unlink()
                for folder in (self.path / "judge", self.path / "best", self.path / "rollout"):
                    shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # something else lives there
                    self.path.rmdir()
            raise

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"

    def latest(self) -> Path | None:
        return latest_checkpoint(self.checkpoints)

    def restore(self, parts: list[str], key: str) -> tuple[int, dict[str, Any]]:
        """Newest checkpoint as (step, states), or (0, {}); cuts lines whose ``key`` lies at or after the step."""
        checkpoint = self.latest()
        step = step_of(checkpoint) if checkpoint else 0
        states = {name: load_part(checkpoint, name) for name in parts} if checkpoint else {}
        if self.ranks.is_main:
            names = ("metrics.jsonl", "samples.jsonl", "held_out.jsonl", "alarms.jsonl")
            cut = [self._cut(self.path / name, key, step) for name in names]
            if cut[0] and not checkpoint:
                told = f"no checkpoint in {self.path} yet: it starts again, and its {cut[0]} lines of metrics are written anew"
                print(told, file=sys.stderr, flush=True)
        self.ranks.barrier()
        return step, states

    @staticmethod
    def _cut(file: Path, key: str, step: int) -> int:
        """How many lines were taken away."""
        if not file.exists():
            return 0
        kept, lines = [], [line for line in _text(file).split("\n") if line]
        for line in lines:
            try:
                if json.loads(line).get(key, -1) < step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # the half line of a kill
                continue
        write_atomic(file, "".join(kept))
        return len(lines) - len(kept)

    def checkpoint(self, step: int, parts: Mapping[str, Any], keep: int, protected: Collection[int] = ()) -> None:
        save_checkpoint(self.checkpoints, step, parts, keep, protected, self.ranks)
        self.ranks.barrier()

    def log(self, record: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        """Append one line."""
        self.settings_before = None  # it has begun, with the settings that are there now
        if self.ranks.is_main:
            with (self.path / file).open("a", encoding="utf-8") as f:
                f.write(json.dumps(plain(record), ensure_ascii=False) + "\n")
            self.trackers.log(record, file)

    def read(self, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """All lines so far; none where there is no file yet."""
        path = self.path / file
        lines = _text(path).split("\n") if path.exists() else []  # no other line ends
        return [json.loads(line) for line in lines if line]

    def write_page(self) -> None:
        """report.html, once everything else is written: an error while it is drawn loses nothing."""
        if not self.ranks.is_main:
            return
        try:
            from ppomax.report.page import run_page  # here: what draws it takes 28 MiB, which training has no use for

            self.write("report.html", run_page(self.path))
        except Exception as error:  # whatever it is: the run is done, and its files make the page again
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.ranks.say(f"warning: no report.html ({told}); `ppomax report {self.path}` makes it again")

    def write(self, file: str, text: str) -> None:
        if self.ranks.is_main:
            write_atomic(self.path / file, text)
            if file == "evaluations.jsonl":  # written anew as a whole each time
                self.trackers.log(json.loads(text.rstrip("\n").split("\n")[-1]), file)
