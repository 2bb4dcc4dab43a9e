"""Progress with the numbers that matter: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL = 15.0
"""seconds between lines where the output is not a terminal"""


class ProgressLine:
    """``with ProgressLine("sft", total) as bar: bar.step(loss=...)``."""

    def __init__(self, name: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.name, self.total, self.done, self.quiet = name, total, done, quiet
        self._live = sys.stderr.isatty() and not quiet
        self._last = self._start = time.monotonic()
        self._first = done
        if self._live:
            columns = (
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, completed=done, numbers="")

    def __enter__(self) -> ProgressLine:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def step(self, count: int = 1, /, **numbers: float | str) -> None:
        """Advance, and show ``numbers``."""
        self.done += count
        if self.quiet:
            return
        text = "  ".join(f"{k} {v if isinstance(v, str) else format(v, '.4g')}" for k, v in numbers.items())
        if self._live:
            self._bar.update(self._task, completed=self.done, numbers=text)
            return
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL or self.done >= self.total:
            self._last = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = f"{(self.total - self.done) / rate:.0f}s left" if rate > 0 else ""
            print(f"{self.name} {self.done}/{self.total}  {text}  {left}".rstrip(), file=sys.stderr, flush=True)
