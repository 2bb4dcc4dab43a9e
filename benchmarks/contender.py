"""The part of a benchmark that runs inside a contender's own process and environment: it waits for its turn.

Standard library only, since it is imported in TRL's environment as well. Lines of JSON go to what was standard output;
everything that the contender itself prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


def resident_mib() -> float:
    """Memory that the process has resident now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> float:
    """Highest resident memory of the process so far, by the kernel's own mark, which may lag a little."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def versions() -> dict[str, str]:
    """Of Python and of what decides the speed, as far as it is installed in this environment."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "ppomax", "trl"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class Turns:
    """Runs an iteration whenever it is told to. ``finish`` ends one and waits for the next.

    ``settle`` waits for a device that works in the background.
    """

    def __init__(self) -> None:
        self.settle: Callable[[], None] = lambda: None
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lap = self._start = (0.0, 0.0)
        self._reset()

    def _say(self, **record: Any) -> None:
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()

    def ready(self, **settings: Any) -> None:
        """Libraries are loaded; everything from here to the first `finish` is start-up."""
        self._say(ready=settings, versions=versions(), resident_mib=resident_mib())
        self._wait()

    def phase(self, name: str) -> None:
        """Everything since the last phase of this iteration belongs to this one."""
        self.settle()
        now, busy = time.perf_counter(), time.process_time()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._lap[0]
        self._cpu_seconds[name] = self._cpu_seconds.get(name, 0.0) + busy - self._lap[1]
        self._lap = now, busy

    def finish(self, **facts: Any) -> None:
        """The iteration is over: says its seconds, and those of all its threads on a processor, which other work on the
        machine changes less."""
        self.settle()
        seconds = {**self._seconds, "total": time.perf_counter() - self._start[0]}
        cpu_seconds = {**self._cpu_seconds, "total": time.process_time() - self._start[1]}
        resident = resident_mib()
        self._say(
            seconds=seconds, cpu_seconds=cpu_seconds, peak_mib=max(peak_mib(), resident), resident_mib=resident, **facts
        )
        self._wait()

    def _reset(self) -> None:
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] = {}
        self._lap = self._start = time.perf_counter(), time.process_time()

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if line.strip() != "go":  # "stop", or the benchmark is gone
            os._exit(0)
        self._reset()
