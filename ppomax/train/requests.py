"""What a run in progress can be asked from outside, such as by `ppomax view`: a checkpoint now, or to stop.

    RUN/requests/checkpoint   an empty file: write a checkpoint after this iteration (SFT, reward model: this update)
    RUN/requests/stop         write one and end; `--resume` goes on exactly there
    RUN/requests.jsonl        what was obeyed, and when
    RUN/.running              locked while the run lives, and gone when it has finished; unlocked it says how the run
                              ended: "stopped" or "failed: ...", or after a kill still "on HOST"

The loop looks once an iteration. The main rank takes a request by removing its file, so each is obeyed once, and tells
the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ppomax.regular_file import open_regular

if TYPE_CHECKING:  # whoever only asks needs no torch
    from ppomax.train.run import RunDirectory

if sys.platform != "win32":
    import fcntl

REQUESTS = ("checkpoint", "stop")
FOLDER = "requests"
FILE = "requests.jsonl"
LOCK = ".running"
LONGEST_ENDING = 1000
"""bytes"""


class StopRequested(KeyboardInterrupt):
    """The run was asked to stop, and has left a checkpoint. Like Ctrl-C, it ends whatever the run is part of."""


def ask(run: Path, request: str) -> None:
    """Ask the run in directory ``run``; asking again before it has obeyed changes nothing. OSError where it cannot."""
    if request not in REQUESTS:
        raise ValueError(f"{request!r}: a run can be asked for {' or '.join(REQUESTS)}")
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / request).touch()


def asked(run: Path) -> list[str]:
    """Requests that the run has not obeyed yet."""
    return [name for name in REQUESTS if (run / FOLDER / name).is_file()]


def is_running(run: Path) -> bool | None:
    """Whether a run holds its lock; None where that cannot be told: there is none, or it was locked on another machine."""
    if sys.platform == "win32":
        return None
    try:
        with open_regular(run / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused while a run lives; others may look as well
            told = file.read(LONGEST_ENDING).decode("utf-8", "replace")
        return False if told and (told == _here() or not told.startswith("on ")) else None
    except BlockingIOError:
        return True
    except OSError:
        return None


def ending(run: Path) -> str:
    """How a run that does not live any more says that it ended, on one line; nothing if it could not say."""
    try:
        with open_regular(run / LOCK) as file:
            told = file.read(LONGEST_ENDING).decode("utf-8", "replace").strip().split("\n")[0]
    except OSError:
        return ""
    return "" if told.startswith("on ") else told


class Requests:
    """The run's side. ``with Requests(run) as requests:`` drops what was asked of an earlier life, and holds the lock.

    ``step``: what the run's loop counts, as in its metrics.jsonl. An exception in the block ends the lock and is written
    down. Otherwise it is held until the object goes, so that a run counts as alive while it writes its last files.
    """

    def __init__(self, run: RunDirectory, step: str = "iteration") -> None:
        self.run, self.ranks, self.step = run, run.ranks, step

    def __enter__(self) -> Requests:
        if self.ranks.is_main:
            for name in self._taken():
                self.ranks.say(f"{name}: was asked of an earlier life of this run, and is dropped")
            self._handle = _lock(self.run.path)
            self._release = weakref.finalize(self, _unlock, self.run.path, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self.ranks.is_main or not self._release.detach() or self._handle is None:
            return
        text = "stopped" if issubclass(kind, KeyboardInterrupt) else f"failed: {kind.__name__}: {error}"
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, text.encode("utf-8", "replace"), 0)
        os.close(self._handle)

    def take(self) -> list[str]:
        """What is asked now, the same on all ranks; each request is given out once."""
        return self.ranks.collect([self._taken() if self.ranks.is_main else []])[0]

    def obeyed(self, requests: list[str], step: int, checkpoint: int, *, last: bool) -> None:
        """Log requests after ``step``, whose checkpoint is written. StopRequested, unless it was the ``last`` anyway."""
        for name in requests:
            self.run.log({self.step: step, "request": name, "checkpoint": f"step-{checkpoint:06d}"}, FILE)
            self.ranks.say(f"{name}: asked for, checkpoint step-{checkpoint:06d} written after {self.step} {step}")
        if "stop" in requests and not last:
            self.ranks.say("stopped as asked; the same command with --resume goes on")
            raise StopRequested(f"stopped as asked after {self.step} {step}")

    def _taken(self) -> list[str]:
        taken = []
        for name in asked(self.run.path):
            try:
                (self.run.path / FOLDER / name).unlink()
                taken.append(name)
            except FileNotFoundError:
                continue
            except OSError as error:  # it would be obeyed again in each iteration
                self.ranks.say(f"warning: {name}: asked for, but not obeyed: {error}")
        return taken


def _here() -> str:
    """Not every file system tells other machines of a lock."""
    return f"on {socket.gethostname()}"


def _lock(run: Path) -> int | None:
    """Handle of the locked file; None where there are no locks, or another process holds it (and is shown as the run)."""
    if sys.platform == "win32":
        return None
    handle = None
    try:
        handle = os.open(run / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        for last in [False] * 50 + [True]:  # somebody may be looking just now
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    print(f"warning: {run}: another process seems to work on this run", file=sys.stderr, flush=True)
                    os.close(handle)
                    return None
                time.sleep(0.02)
        os.ftruncate(handle, 0)
        os.write(handle, _here().encode())
        return handle
    except OSError:
        if handle is not None:
            os.close(handle)
            (run / LOCK).unlink(missing_ok=True)
        return None


def _unlock(run: Path, handle: int | None) -> None:
    """The run has finished: away with the file first, since present and unlocked would mean a kill."""
    if handle is None:
        return
    with contextlib.suppress(OSError):
        (run / LOCK).unlink(missing_ok=True)
        (run / FOLDER).rmdir()  # stays if something was asked in the last moment
    os.close(handle)
