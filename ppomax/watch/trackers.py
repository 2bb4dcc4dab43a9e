"""TensorBoard, Weights & Biases and trackio beside ``metrics.jsonl``, by option (``trackers: [tensorboard, wandb, trackio]``).

Each gets the numbers of every line of metrics.jsonl, evaluations.jsonl and held_out.jsonl under their own names, the
histograms of the latter two, and tables of samples and alarms. Each works in a thread of its own, so that neither a slow
network nor one that hangs holds up training. One that fails says so in one line and is off; metrics.jsonl has everything
whatever happens.

A tracker begins with the first line of metrics: a run that fails before leaves nothing behind. Keys are read by the
trackers' own libraries from the environment; nothing here sees or writes them, and the settings are sent without secrets.
"""

from __future__ import annotations

import importlib.util
import json
import math
import netrc
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ppomax.report.markdown import table as markdown_table
from ppomax.report.markdown import verbatim

WAITING = 10_000
"""messages that may wait for a tracker; with more it is taken to hang"""
CLOSE_SECONDS = 60.0
"""how long the end of a run waits for a tracker to hand over what it has"""
NUMBERS = ("metrics.jsonl", "evaluations.jsonl", "held_out.jsonl")
TABLES = {"samples.jsonl": "samples", "alarms.jsonl": "alarms"}
HIDDEN = "(not shown)"
_SECRET_FIELD = re.compile(
    r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?|authorization|webhook)$", re.I
)
_SECRET_VARIABLE = re.compile(r"(key|token|secret|password|passwd|credential|webhook)", re.I)
_ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class About:
    """What a tracker is told of its run."""

    name: str
    project: str
    id: str
    """the same in every life of the run"""
    folder: Path
    """the run directory"""
    config: Mapping[str, Any]
    """settings as plain data, without secrets"""
    resumed: bool = False


class Tracker(Protocol):
    """What each library must do. Anything that it raises switches it off."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...
    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def histogram(self, step: int, name: str, counts: Sequence[int], edges: Sequence[float]) -> None: ...
    def close(self) -> None: ...


# ------------------------------------------------------------------------------------------- libraries


class TensorBoard:
    """Event files in RUN/tensorboard. ``first``: what an earlier life wrote from this step on is forgotten."""

    def __init__(self, about: About, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(about.folder / "tensorboard", purge_step=first if about.resumed else None)
        settings = json.dumps(about.config, indent=1, ensure_ascii=False)
        self.writer.add_text("settings", "\n".join("    " + line for line in settings.splitlines()), first)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        cells = [["" if cell is None else verbatim(_short(cell)) for cell in row] for row in rows]
        self.writer.add_text(name, markdown_table(columns, cells), step)
        self.writer.flush()

    def histogram(self, step: int, name: str, counts: Sequence[int], edges: Sequence[float]) -> None:
        """Sums are told as if all values of a bin lay in its middle: the values themselves are not here."""
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        self.writer.add_histogram_raw(
            name, min=edges[0], max=edges[-1], num=sum(counts), bucket_limits=list(edges[1:]), bucket_counts=list(counts),
            sum=sum(n * x for n, x in zip(counts, middles, strict=True)), global_step=step,
            sum_squares=sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        )  # fmt: skip
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of its own, beside any that the caller has open. Without a key it stays offline, in RUN/wandb."""

    def __init__(self, about: About, first: int) -> None:
        import wandb

        self.table_of, self.histogram_of = wandb.Table, wandb.Histogram
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, init_timeout=60, finish_timeout=CLOSE_SECONDS,
            x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
        )  # fmt: skip
        self.run = wandb.init(
            project=about.project, name=about.name, id=about.id, dir=about.folder, config=dict(about.config),
            resume="allow", reinit="create_new", settings=settings, mode=None if _wandb_knows() else "offline",
        )  # fmt: skip
        # a resumed run goes back to its checkpoint, and wandb's own steps cannot
        self.run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "step": step})

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.run.log({name: self.table_of(columns=list(columns), data=[list(row) for row in rows]), "step": step})

    def histogram(self, step: int, name: str, counts: Sequence[int], edges: Sequence[float]) -> None:
        self.run.log({name: self.histogram_of(np_histogram=(counts, edges)), "step": step})

    def close(self) -> None:
        self.run.finish()


def _wandb_knows() -> bool:
    """Whether wandb can decide by itself: asked for a mode, or given a key. Without either it would ask at a terminal."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Trackio:
    """trackio's own store on this machine (TRACKIO_DIR), or what its environment variables name."""

    def __init__(self, about: About, first: int) -> None:
        import trackio

        self.table_of, self.histogram_of = trackio.Table, trackio.Histogram
        self.run = trackio.init(
            project=about.project, name=about.name, config=dict(about.config), embed=False, auto_log_cpu=False,
            auto_log_gpu=False, resume="allow" if about.resumed else "never",
        )  # fmt: skip

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = [[_short(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
        self.run.log({name: self.table_of(columns=list(columns), data=data)}, step=step)

    def histogram(self, step: int, name: str, counts: Sequence[int], edges: Sequence[float]) -> None:
        self.run.log({name: self.histogram_of(np_histogram=(counts, edges))}, step=step)

    def close(self) -> None:
        self.run.finish()


LIBRARIES: dict[str, Callable[[About, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
"""name of the option, of the package, and of the extra -> what speaks to it, made with (about, first step)"""


# --------------------------------------------------------------------------------------------- threads


class Worker:
    """One tracker in its thread."""

    def __init__(self, name: str, about: About) -> None:
        self.name, self.about = name, about
        self.on = True
        self._telling = threading.Lock()
        self._waiting: queue.Queue[tuple[str, int, tuple[Any, ...]] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            self._off(f"it is not installed (pip install 'ppomax[{name}]')")

    def send(self, method: str, step: int, *rest: Any) -> None:
        """Hand over one call; returns at once."""
        if not self.on:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((method, step, rest))
        except queue.Full:
            self._off(f"{WAITING} messages wait for it")

    def close(self) -> None:
        """Wait until everything is handed over, but not for ever."""
        if self._thread is None or not self.on:
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._off(f"{WAITING} messages wait for it")
            return
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._off(f"it has not finished within {CLOSE_SECONDS:g} s")

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            while (message := self._waiting.get()) is not None and self.on:
                method, step, rest = message
                if tracker is None:
                    tracker = LIBRARIES[self.name](self.about, step)
                getattr(tracker, method)(step, *rest)
            if tracker is not None:
                tracker.close()
        except BaseException as error:  # whatever a library raises, SystemExit among it
            first = str(error).strip().splitlines()
            self._off(f"{type(error).__name__}{': ' + first[0] if first else ''}")

    def _off(self, why: str) -> None:
        # both threads may find a reason; off only once it is told, or nobody would wait for the line
        with self._telling:
            if self.on:
                print(f"tracker {self.name} is off: {why}; training goes on, and metrics.jsonl has everything",
                      file=sys.stderr, flush=True)  # fmt: skip
                self.on = False


class Trackers:
    """All trackers of one run. ``log`` takes every line that the run writes down; it never raises and never waits."""

    def __init__(self, names: Sequence[str] = (), about: About | None = None) -> None:
        self._workers = [Worker(name, about) for name in dict.fromkeys(names)] if about is not None else []
        self._begun = False
        self._rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}  # (table, step) -> rows not yet sent
        self._early: list[tuple[Any, ...]] = []  # calls: numbers, and what came before the first line of metrics
        self._lines = 0

    def log(self, record: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        """One line of one of the run's files; of files that are not known nothing is sent."""
        if not self._workers:
            return
        step = record.get("iteration", record.get("update", self._lines))
        if file in TABLES:
            self._rows.setdefault((TABLES[file], step), []).append(record)
            return
        if file not in NUMBERS:
            return
        self._begun = self._begun or file == "metrics.jsonl"
        self._early.append(("numbers", step, numbers_of(record)))
        for name, shape in record.get("histograms", {}).items():
            self._early.append(("histogram", step, f"histogram/{name}", shape["counts"], shape["edges"]))
        if self._begun:
            self._send()
        self._lines += file == "metrics.jsonl"

    def _send(self) -> None:
        for (name, step), rows in self._rows.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[_cell(row.get(column)) for column in columns] for row in rows]
            for worker in self._workers:
                worker.send("table", step, name, columns, cells)
        for call in self._early:
            for worker in self._workers:
                worker.send(*call)
        self._rows, self._early = {}, []

    def close(self) -> None:
        """Send what is left and wait for the trackers; a run without a line of metrics leaves nothing."""
        if self._begun:
            self._send()
        for worker in self._workers:
            worker.close()
        self._workers = []


# ---------------------------------------------------------------------------------------------- values


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line, by name."""
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _cell(value: Any) -> Any:
    """A value for a table: dialogues as text, what is nested as JSON."""
    if isinstance(value, list | tuple) and value and all(isinstance(m, Mapping) and "content" in m for m in value):
        return "\n".join(f"{m.get('role', '')}: {m['content']}" for m in value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def without_secrets(settings: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Settings as they may leave the machine.

    Hidden are fields named like a secret (key, token, password, webhook, ...), passwords and queries of addresses, and
    whatever equals the value of an environment variable named like a secret. ``$NAME`` stays: it names, and does not tell.
    """
    variables = os.environ if environment is None else environment
    secrets = {v for k, v in variables.items() if _SECRET_VARIABLE.search(k) and len(v) >= 8}

    def walk(value: Any, field: str) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item, str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item, field) for item in value]
        if not isinstance(value, str) or value.startswith("$"):
            return value
        if _SECRET_FIELD.search(field) or any(secret in value for secret in secrets):
            return HIDDEN
        return _ADDRESS.sub(lambda match: _address(match[0]), value)

    return walk(settings, "")


def _address(text: str) -> str:
    """scheme://host/path of an address."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
