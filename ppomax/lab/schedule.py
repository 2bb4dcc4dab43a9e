"""Jobs in processes of their own, as many at a time as the cores allow; one line of progress, a log file a job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ppomax.lab.plan import Run, placed, start_pipelines, world_code
from ppomax.train.checkpoint import write_atomic
from ppomax.train.progress import ProgressLine

POLL = 0.5
"""seconds between two looks at the running jobs"""
PATIENCE = 20.0
"""seconds that a stopped job has to end"""


@dataclass
class Job:
    """One process to be. ``spec`` is what it reads."""

    name: str
    spec: dict[str, Any]
    folder: Path | None = None
    """where a run counts its iterations"""
    iterations: int = 0
    needs: set[str] = field(default_factory=set)
    """names of jobs that must have ended well before"""
    locks: set[str] = field(default_factory=set)
    """no two jobs with one of these in common run at a time"""


def jobs_for(runs: Sequence[Run], work: Path, results: Path, *, keep: bool) -> list[Job]:
    """A job for each run and, before the first run that needs it, for its start; one that several share is made once."""
    out: dict[str, Job] = {}
    for run in runs:
        needs: set[str] = set()
        if run.stages:
            pipelines = start_pipelines(run.stages, work)
            name = f"start-seed{run.seed}-{_short(pipelines)}"
            locks = set(pipelines)
            out.setdefault(
                name,
                Job(name, {"kind": "start", "name": name, "pipelines": pipelines, "world": world_code()}, locks=locks),
            )
            needs = {name}
        folder = work / "ppo" / f"{run.arm}-seed{run.seed}-{run.key}"
        stages = {s.name: [s.kind, str(work / s.root / s.name)] for s in run.stages.values()}
        header = {
            "key": run.key, "arm": run.arm, "claims": run.claims, "seed": run.seed, "iterations": run.config.iterations,
            "overrides": run.overrides, "world": world_code() if _of_a_world(run) else None, "identity": run.identity(),
        }  # fmt: skip
        spec = {
            "kind": "run", "name": run.name, "world": header["world"], "folder": str(folder),
            "settings": placed(run.settings, run.stages, work),
            "endpoint": placed(run.endpoint, run.stages, work), "stages": stages, "header": header, "keep": keep,
            "memory": str(work / "memory"), "result": str(results / f"{run.name}.jsonl"),
        }  # fmt: skip
        out[run.name] = Job(run.name, spec, folder, run.iterations, needs)
    return list(out.values())


def _of_a_world(run: Run) -> bool:
    return any(stage.kind == "world" for stage in run.stages.values())


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine has under taskset, SLURM or a cpuset."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workshop:
    """Runs jobs; what fails is told in one line, and the others go on."""

    def __init__(
        self, work: Path, slots: int, say: Callable[[str], None], *, cores: int | None = None, spread: bool = False
    ) -> None:
        """``spread``: a start that nothing can run beside has all cores (how sums are rounded depends on their number,
        so not for runs that count)."""
        self.work, self.slots, self.say, self.spread = work, slots, say, spread
        self.cores = cores or usable_cores()
        self.threads = max(1, self.cores // slots)
        self.running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
        self.failed: dict[str, str] = {}
        self.done: set[str] = set()
        self.begun: list[Job] = []

    def run(self, jobs: Iterable[Job]) -> None:
        """Run them all. Ctrl-C ends the processes and is raised again; what they had done is kept."""
        waiting = list(jobs)
        total = sum(job.iterations for job in waiting)
        shown: tuple[int, str, int] = (0, "", 0)
        try:
            with ProgressLine("lab", total) as bar:
                while waiting or self.running:
                    waiting = self._begin(waiting)
                    time.sleep(POLL)
                    self._collect()
                    now = (self._iterations(), self._look(), len(waiting))
                    if now != shown:
                        bar.step(now[0] - shown[0], running=now[1], waiting=str(now[2]))
                        shown = now
        except BaseException:
            self._stop()
            raise

    def _begin(self, waiting: list[Job]) -> list[Job]:
        """Start what can start; what needs a job that failed has failed too."""
        left: list[Job] = []
        for job in waiting:
            if broken := sorted(job.needs & self.failed.keys()):
                self.failed[job.name] = f"needs {broken[0]}, which failed"
                self.say(f"{job.name}: left out: {self.failed[job.name]}")
                continue
            held = {lock for other, _, _ in self.running.values() for lock in other.locks}
            free = len(self.running) < self.slots and job.needs <= self.done and not (job.locks & held)
            if not free:
                left.append(job)
                continue
            with _uninterrupted():  # a process that has begun must be known, or nobody would end it
                alone = (
                    self.spread
                    and not self.running
                    and all(job.name in other.needs for other in waiting if other is not job)
                )
                threads = self.cores if alone else self.threads
                self.running[job.name] = (job, self._process(job, threads), time.monotonic())
            self.begun.append(job)
        return left

    def _process(self, job: Job, threads: int) -> subprocess.Popen[bytes]:
        label = job.name.replace("/", "_")
        spec, log = self.work / "jobs" / f"{label}.json", self.work / "logs" / f"{label}.txt"
        for folder in (spec.parent, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(spec, json.dumps(job.spec, indent=1, ensure_ascii=False) + "\n")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        with log.open("ab") as out:
            # a session of its own: Ctrl-C reaches this process alone, which then ends its children in order
            return subprocess.Popen(
                [sys.executable, "-m", "ppomax.lab.work", str(spec)], stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip

    def _collect(self) -> None:
        for name, (_, process, began) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[name]
            took = f"{time.monotonic() - began:.0f} s"
            if code == 0:
                self.done.add(name)
                self.say(f"{name}: done in {took}")
                continue
            log = self.work / "logs" / f"{name.replace('/', '_')}.txt"
            self.failed[name] = last_line(log)
            self.say(f"{name}: failed after {took}: {self.failed[name]} (log: {log})")

    def _iterations(self) -> int:
        """Of all jobs that were begun, those of earlier lives included."""
        return sum(self._of(job) for job in self.begun)

    def _of(self, job: Job) -> int:
        if job.name in self.done:
            return job.iterations
        return min(job.iterations, _count_lines(job.folder / "metrics.jsonl")) if job.folder else 0

    def _look(self) -> str:
        parts = []
        for name, (job, _, _) in self.running.items():
            parts.append(f"{name.rsplit('-', 1)[0]} {self._of(job)}/{job.iterations}" if job.iterations else name)
        return ", ".join(parts) or "none"

    def _stop(self) -> None:
        for _, process, _ in self.running.values():
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for _, process, _ in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM are dealt with after the block. Only the main thread is ever interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))  # and not, say, ignored
    }
    for number in before:
        signal.signal(number, lambda *what: came.append(what))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for what, frame in came[:1]:
            before[signal.Signals(what)](what, frame)


def last_line(log: Path) -> str:
    """What a failed job said last, without its "lab: "."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("lab: ")[:300] if lines else "it said nothing"


def _count_lines(path: Path) -> int:
    """0 where there is none, or none any more: a job that is done puts its run away while we look."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
