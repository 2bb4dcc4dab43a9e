"""A finished run as one small file of JSON lines, which is kept in the repository.

    {"kind": "header", "arm": ..., "claims": [...], "seed": 1, "identity": {...}, "world": {...}, "seconds": {...}, ...}
    {"kind": "evaluation", "iteration": 0, "update": 0, "eval/win_rate": ..., ...}      one an evaluation of the live judge
    {"kind": "metrics", "iteration": 4, "update": 20, "reward/mean": ..., ...}          means over successive iterations
    {"kind": "endpoint", ...}                                                             the last, thorough evaluation

Numbers have five significant digits. The file appears whole, when the run is finished.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppomax.errors import UserError
from ppomax.lab.plan import Run, flatten
from ppomax.layers import defaults
from ppomax.train.checkpoint import write_atomic
from ppomax.train.run import plain

FORMAT = 1
LINES = 45
"""at most so many lines of metrics"""
KEPT = (
    "reward/mean", "reward/std", "kl/ref", "kl/ref_k3", "kl/ref_sequence", "response/length", "response/truncated",
    "policy/perplexity", "policy/entropy", "policy/clip_fraction", "loss/policy", "loss/value", "loss/ptx",
    "value/explained_variance", "grad_norm/policy", "grad_norm/critic",
)  # fmt: skip
"""of metrics.jsonl"""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    path: Path
    header: dict[str, Any]
    evaluations: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    endpoint: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.header["key"])

    @property
    def seed(self) -> int:
        return int(self.header["seed"])


def thin(rows: Sequence[Mapping[str, Any]], lines: int = LINES) -> list[dict[str, Any]]:
    """Means over successive iterations of the same phase, so many that at most ``lines`` are left.

    A line's iteration and update are those of its last iteration; ``iterations`` says over how many the mean goes.
    """
    out: list[dict[str, Any]] = []
    phases = [[r for r in rows if r.get("phase") == phase] for phase in ("critic", "policy")]
    for part in phases:
        room = max(1, lines - 5 if part is phases[1] else 5)
        step = math.ceil(len(part) / room) or 1
        for start in range(0, len(part), step):
            group = part[start : start + step]
            line = {"iteration": group[-1]["iteration"], "update": group[-1]["update"], "phase": group[0].get("phase")}
            line["iterations"] = len(group)
            for name in KEPT:
                values = [r[name] for r in group if isinstance(r.get(name), int | float)]
                if values:
                    line[name] = sum(values) / len(values)
            out.append(line)
    return out


def rounded(value: Any) -> Any:
    """Five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def write_result(
    path: Path, header: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]], endpoint: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the file, whole or not at all; settings in the header keep all their digits."""
    lines: list[dict[str, Any]] = [{"kind": "header", "format": FORMAT, **plain(header)}]
    lines += [{"kind": "evaluation", **rounded(row)} for row in evaluations]
    lines += [{"kind": "metrics", **rounded(row)} for row in metrics]
    lines.append({"kind": "endpoint", **rounded(endpoint)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_result(path: Path) -> Result:
    """UserError for a file that is none."""
    header: dict[str, Any] = {}
    rows: dict[str, list[dict[str, Any]]] = {"evaluation": [], "metrics": [], "endpoint": []}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            kind = row.pop("kind")
            if kind == "header":
                header = row
            else:
                rows[kind].append(row)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{path}:{number}: not a line of a lab result; remove the file to run it again") from None
    if not header or not rows["endpoint"]:
        raise UserError(f"{path}: not a whole lab result; remove the file to run it again")
    if header.get("format") != FORMAT:
        raise UserError(f"{path}: format {header.get('format')} is not the {FORMAT} that this version reads; remove it")
    return Result(path, header, rows["evaluation"], rows["metrics"], rows["endpoint"][-1])


def read_results(folder: Path) -> dict[str, Result]:
    """Key -> result of every file below ``folder``; empty where there is none. Two of one key are an error."""
    found: dict[str, Result] = {}
    for path in sorted(folder.rglob("*.jsonl")) if folder.is_dir() else []:
        if path.name.startswith("."):  # left by a kill while it was written
            continue
        result = read_result(path)
        if result.key in found:
            raise UserError(f"{path} and {found[result.key].path} are results of the same run: remove one")
        found[result.key] = result
    return found


def outdated(result: Result, run: Run) -> list[str]:
    """Settings in which a result of the same key differs from the run: a default has changed since."""
    from ppomax.config import PPOConfig
    from ppomax.lab.claims import EndpointConfig

    plain_values = {**flatten(defaults(PPOConfig)), **flatten({"endpoint": defaults(EndpointConfig)})}
    now, then = run.identity(), result.header["identity"]
    missing = object()
    names = now.keys() | then.keys()
    return sorted(
        n
        for n in names
        # a setting that did not exist then, or does not now, is no difference while it is at its default
        if then.get(n, plain_values.get(n, missing)) != now.get(n, then.get(n))
    )


def cached(run: Run, results: Mapping[str, Result]) -> Result | None:
    """The run's result, if it is there and was made with the same settings."""
    result = results.get(run.key)
    return result if result is not None and not outdated(result, run) else None
