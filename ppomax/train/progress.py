"""Progress with the numbers that matter: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ppomax.report.text import shortened, visible

PLAIN_INTERVAL = 15.0
"""seconds between lines where the output is not a terminal"""
BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=*#"
COLOURS = {"notice": "dim", "warning": "yellow", "collapse": "bold red"}
LONGEST_ALARM = 450
"""characters of the last alarm in the panel; alarms.jsonl has it whole"""


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The course of ``values`` in at most ``width`` characters: means of as many stretches, the lowest to the highest.

    A stretch without a finite value is blank; values that are all the same lie in the middle.
    """
    if not values:
        return ""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(width, len(values)))
    means = [float(known.mean()) if len(known := part[np.isfinite(part)]) else math.nan for part in parts]
    finite = [mean for mean in means if mean == mean]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def block(mean: float) -> str:
        if mean != mean:
            return " "
        share = (mean - low) / (high - low) if high > low else 0.5
        return blocks[min(int(share * len(blocks)), len(blocks) - 1)]

    return "".join(map(block, means))


def course(rows: Iterable[Mapping[str, Any]], metric: str) -> list[float]:
    """Values of ``metric`` in rows of metrics.jsonl, for a resumed run's panel: rows without it repeat the one before."""
    found: list[float] = []
    for row in rows:
        value = row.get(metric)
        if isinstance(value, int | float):
            found.append(float(value))
        elif found:
            found.append(found[-1])
    return found


class _Panel(Progress):
    """A bar, and below it a line for each number that is followed, and the last alarm."""

    rows: tuple[RenderableType, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from self.rows


class ProgressLine:
    """``with ProgressLine("sft", total) as bar: bar.step(loss=...)``.

    On a terminal the numbers named in ``sparklines`` are shown with their course, and the last line of ``alarms``, a file
    of alarms (RUN/alarms.jsonl), below them. ``sparklines``: name of a number -> its course in earlier lives of the run.
    """

    def __init__(
        self, name: str, total: int, *, done: int = 0, quiet: bool = False,
        sparklines: Mapping[str, Sequence[float]] | None = None, alarms: Path | None = None,
    ) -> None:  # fmt: skip
        self.name, self.total, self.done, self.quiet = name, total, done, quiet
        self._live = sys.stderr.isatty() and not quiet
        self._last = self._start = time.monotonic()
        self._first = done
        self._courses = {name: list(earlier) for name, earlier in (sparklines or {}).items()}
        self._alarms, self._alarms_size, self._alarm = alarms, -1, Text()
        if self._live:
            columns = (
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"),
            )  # fmt: skip
            self._bar = _Panel(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=total, completed=done, numbers="")

    def __enter__(self) -> ProgressLine:
        if self._live:
            self._follow({})
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
        if self._live:
            self._follow(numbers)
            others = {name: value for name, value in numbers.items() if name not in self._courses}
            self._bar.update(self._task, completed=self.done, numbers=_plain(others))
            return
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL or self.done >= self.total:
            self._last = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = f"{(self.total - self.done) / rate:.0f}s left" if rate > 0 else ""
            line = f"{self.name} {self.done}/{self.total}  {_plain(numbers)}  {left}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def _follow(self, numbers: dict[str, float | str]) -> None:
        """Draw the panel's rows anew."""
        console = self._bar.console
        blocks = ASCII if console.options.ascii_only else BLOCKS
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, course in self._courses.items():
            value = numbers.get(name)
            if isinstance(value, int | float):
                course.append(value)
            if course:
                drawn = sparkline(course, max(8, min(60, console.width - 44)), blocks)
                table.add_row(
                    name, Text(drawn, style="cyan"), f"{course[-1]:.4g}", Text(f"from {course[0]:.4g}", style="dim")
                )
        self._bar.rows = (*((table,) if table.row_count else ()), *((alarm,) if (alarm := self._last_alarm()) else ()))

    def _last_alarm(self) -> Text:
        """Read again only when the file has changed."""
        if self._alarms is None:
            return Text()
        try:
            size = self._alarms.stat().st_size
            if size != self._alarms_size:
                row = json.loads(self._alarms.read_text(encoding="utf-8").rstrip("\n").split("\n")[-1])
                told = shortened(
                    visible(f"{row['level']}, iteration {row['iteration']}: {row['message']}"), LONGEST_ALARM
                )
                self._alarm, self._alarms_size = Text(told, style=COLOURS.get(row["level"], "")), size
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or somebody else writes there
            pass
        return self._alarm


def _plain(numbers: dict[str, float | str]) -> str:
    return "  ".join(f"{k} {v if isinstance(v, str) else format(v, '.4g')}" for k, v in numbers.items())
