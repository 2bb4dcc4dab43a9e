"""Contenders in processes of their own, run in turns, one iteration each, so that the machine's noise hits all alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass
class Contender:
    """A process that runs one iteration whenever it is told to (contender.py)."""

    name: str
    python: str
    script: str
    spec: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    """what it said of itself: versions, settings, resident memory before anything was loaded"""

    def start(self, folder: Path, threads: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "spec.json"
        file.write_text(json.dumps({**self.spec, "threads": threads, "output_dir": str(folder / "run")}, indent=1))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
            "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen(
            [self.python, str(HERE / self.script), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env=environment,
        )  # fmt: skip
        self.facts = self._answer()

    def iterate(self) -> dict[str, Any]:
        """One iteration's seconds by phase, tokens and memory."""
        self._tell("go")
        return {"contender": self.name, **self._answer()}

    def stop(self) -> None:
        if self.process.poll() is None:
            self._tell("stop")
            self.process.wait(timeout=60)
        self.log.close()

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> None:
        code = self.process.wait()
        tail = "\n".join(Path(self.log.name).read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{self.name} ended with exit status {code}; the end of {self.log.name}:\n{tail}")


def run_in_turns(
    contenders: Sequence[Contender], *, warmup: int, iterations: int, threads: int, folder: Path,
    keep: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """``warmup`` + ``iterations`` rounds in which each contender runs once, in turning order; returns all records.

    A record has contender, round, warmup (bool), seconds and cpu_seconds (by phase, and total), units (of work: tokens,
    pairs), peak_mib, versions; ``keep`` is told each as it comes. The first round is start-up (loading, compiling), so at least
    one is always warm-up.
    """
    records: list[dict[str, Any]] = []
    try:
        for contender in contenders:
            contender.start(folder / contender.name, threads)
        for number in range(max(1, warmup) + iterations):
            order = contenders if number % 2 == 0 else contenders[::-1]
            for contender in order:
                record = {
                    **contender.iterate(),
                    "round": number,
                    "warmup": number < max(1, warmup),
                    "time": time.time(),
                    "versions": contender.facts.get("versions"),
                }
                records.append(record)
                keep(record)
                say(f"  round {number} {contender.name:<18} {record['seconds']['total']:8.3f} s")
    finally:
        for contender in contenders:
            if hasattr(contender, "process"):
                contender.stop()
    return records


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By contender: medians over the measured rounds, in seconds by phase, units/s, MiB; and their spread in total."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if not record["warmup"]:
            by_name.setdefault(record["contender"], []).append(record)
    summary: dict[str, dict[str, Any]] = {}
    for name, rows in by_name.items():
        phases = {p: statistics.median(r["seconds"][p] for r in rows) for p in rows[0]["seconds"]}
        cpu = {p: statistics.median(r["cpu_seconds"][p] for r in rows) for p in rows[0]["cpu_seconds"]}
        totals = [r["seconds"]["total"] for r in rows]
        summary[name] = {
            "iterations": len(rows), "seconds": phases, "cpu_seconds": cpu, "fastest": min(totals), "slowest": max(totals),
            "units": statistics.mean(r["units"] for r in rows),
            "units_per_s": statistics.median(r["units"] / r["seconds"]["total"] for r in rows),
            "peak_mib": max(r.get("device_peak_mib") or r["peak_mib"] for r in rows), "samples": rows[-1].get("samples"),
            "updates": rows[-1].get("updates"), "versions": rows[-1].get("versions"),
        }  # fmt: skip
    return summary


def ratio(
    records: Sequence[dict[str, Any]], slow: str, fast: str, *, phase: str = "total", clock: str = "seconds"
) -> dict[str, float]:
    """How many times the units a second of ``slow`` those of ``fast`` are: ratio of medians, and extremes by round.

    ``clock``: seconds or cpu_seconds.
    """

    def speeds(name: str) -> dict[int, float]:
        mine = [r for r in records if r["contender"] == name and not r["warmup"]]
        return {r["round"]: r["units"] / r[clock][phase] for r in mine}

    a, b = speeds(slow), speeds(fast)
    by_round = [b[n] / a[n] for n in a.keys() & b.keys()]
    return {
        "ratio": statistics.median(b.values()) / statistics.median(a.values()),
        "lowest": min(by_round), "highest": max(by_round),
    }  # fmt: skip


def table(summary: dict[str, dict[str, Any]], phases: Sequence[str], unit: str = "tokens") -> str:
    """The summary as a Markdown table."""
    head = [
        "",
        *(f"{p}, s" for p in phases),
        "total, s",
        f"{unit}/s",
        "processor, s",
        "peak, MiB",
        f"{unit} an iteration",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in summary.items():
        cells = [name, *(f"{row['seconds'][p]:.3f}" for p in (*phases, "total"))]
        cells += [f"{row['units_per_s']:.1f}", f"{row['cpu_seconds']['total']:.3f}", f"{row['peak_mib']:.0f}"]
        cells.append(f"{row['units']:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.machine(), "cores": os.cpu_count(), "threads": threads,
        "load": os.getloadavg()[0],
    }  # fmt: skip


def about(benchmark: str, options: argparse.Namespace) -> dict[str, Any]:
    """What every line of JSON says, so that it can be read by itself: which benchmark, machine and settings."""
    mine = {"out", "page", "trl", "quick", "action"}  # places, and words for other settings
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items() if k not in mine}
    return {"benchmark": benchmark, "machine": machine(options.threads), "settings": settings}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def append_line(file: Path, record: dict[str, Any]) -> None:
    """One more line of JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")
