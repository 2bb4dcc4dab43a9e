"""Files of a run that is being written: read on as they grow, whatever state they are in.

A last line without its end waits; lines that are no JSON objects are counted and left out; a file that was replaced
(a resumed run does so) is read anew; one that has gone gives nothing, and neither does what is no regular file. Long
files are sampled first, and read as a whole in the background.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppomax.regular_file import open_regular

AT_ONCE = 4_000_000
"""bytes read before the answer is given; of more, `SAMPLED` lines stand for all until the rest is read"""
SAMPLED = 500
LONGEST_LINE = 1_000_000
"""bytes; a longer line is no line of ours"""


def parse(line: bytes) -> dict[str, Any] | None:
    """One line; None if it holds no JSON object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def number(value: Any) -> float:
    """A finite number, or NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        value = float(value)
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def last_rows(path: Path, size: int = 64_000) -> list[dict[str, Any]]:
    """The rows within the last ``size`` bytes of a file, oldest first; within more where no whole row is so short."""
    try:
        with open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            while True:
                start = max(0, end - size)
                file.seek(start)
                lines = file.read(end - start).split(b"\n")[:-1]
                if start:
                    lines = lines[1:]  # its beginning is missing
                rows = [row for line in lines if (row := parse(line)) is not None]
                if rows or not start or size > LONGEST_LINE:
                    return rows
                size *= 4
    except OSError:
        return []


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


class Columns:
    """Some numbers of every row of a file of JSON lines, as columns."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, tuple(names)
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._forget()

    def _forget(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._columns = {name: array("d") for name in self.names}
        self._sample: dict[str, array[float]] | None = None
        self.unreadable = 0

    def read(self) -> tuple[dict[str, array[float]], bool]:
        """(columns so far, whether they are a sample of the lines only). NaN where a row has no such number."""
        with self._lock:
            left = self._advance()
            if left and self._sample is None:
                self._sample = self._sampled()
            if left and self._reader is None:
                self._reader = threading.Thread(target=self._read_all, daemon=True)
                self._reader.start()
            shown = self._columns if self._sample is None else self._sample
            return {name: column[:] for name, column in shown.items()}, self._sample is not None

    def _read_all(self) -> None:
        time.sleep(0.3)  # whoever waits for the sample comes first
        while True:
            time.sleep(0.005)  # and whoever looks meanwhile
            with self._lock:
                if not self._advance():
                    self._sample = self._reader = None
                    return

    def _advance(self) -> bool:
        """Read on, `AT_ONCE` at most; whether more is left."""
        try:
            with open_regular(self.path) as file:
                found = os.fstat(file.fileno())
                if self._identity != (found.st_dev, found.st_ino) or found.st_size < self._offset:
                    self._forget()
                    self._identity = (found.st_dev, found.st_ino)
                file.seek(self._offset)
                chunk = file.read(AT_ONCE)
        except OSError:
            return False
        whole = chunk.rfind(b"\n") + 1
        if not whole and len(chunk) > LONGEST_LINE:
            whole = len(chunk)
        for line in chunk[:whole].split(b"\n"):
            if line:
                self._add(line, self._columns)
        self._offset += whole
        return len(chunk) == AT_ONCE

    def _add(self, line: bytes, columns: dict[str, array[float]]) -> None:
        row = parse(line)
        if row is None:
            self.unreadable += columns is self._columns
            return
        for name, column in columns.items():
            column.append(number(row.get(name)))

    def _sampled(self) -> dict[str, array[float]]:
        """`SAMPLED` lines, evenly over the file, and the last one."""
        columns = {name: array("d") for name in self.names}
        seen = -1
        try:
            with open_regular(self.path) as file:
                size = file.seek(0, os.SEEK_END)
                for i in range(SAMPLED):
                    file.seek(i * size // SAMPLED)
                    if i:
                        file.readline(LONGEST_LINE)
                    begin = file.tell()
                    line = file.readline(LONGEST_LINE)
                    if begin > seen and line.endswith(b"\n"):
                        self._add(line, columns)
                        seen = begin
        except OSError:
            return columns
        for row in last_rows(self.path)[-1:]:
            for name, column in columns.items():
                column.append(number(row.get(name)))
        return columns
