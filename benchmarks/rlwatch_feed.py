"""Runs in rlwatch's own environment: streams of metrics and settings in, first alerts out, as JSON on stdin and stdout.

    {"streams": {name: [{"step": 0, "entropy": ..., ...}, ...]}, "settings": {name: {section: {field: value}}}}
    -> {setting: {stream: {detector: {"warning": step or null, "critical": step or null}}}}

Each setting is laid over rlwatch's defaults. Nothing of rlwatch is imported but its detectors and their configuration.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from rlwatch.config import RLWatchConfig
from rlwatch.detectors import DetectorSuite

SECTIONS = {
    "entropy_collapse": "entropy_detector", "kl_explosion": "kl_detector", "reward_hacking": "reward_detector",
    "advantage_variance": "advantage_detector", "loss_nan": "loss_nan_detector",
    "gradient_norm_spike": "grad_norm_detector", "reward_mean_drift": "reward_drift_detector",
}  # fmt: skip


def suite(setting: dict[str, dict[str, Any]]) -> DetectorSuite:
    config = RLWatchConfig()
    for section, fields in setting.items():
        for name, value in fields.items():
            if not hasattr(getattr(config, section), name):
                raise SystemExit(f"rlwatch has no setting {section}.{name}")
            setattr(getattr(config, section), name, value)
    return DetectorSuite(config)


def feed(rows: list[dict[str, Any]], setting: dict[str, dict[str, Any]]) -> dict[str, dict[str, int | None]]:
    """First step of each level, by detector."""
    watch = suite(setting)
    first: dict[str, dict[str, int | None]] = {section: {"warning": None, "critical": None} for section in SECTIONS}
    for row in rows:
        values = {k: v for k, v in row.items() if v is not None}
        for alert in watch.check_step(values.pop("step"), **values):
            levels = ("warning", "critical") if alert.severity == "critical" else ("warning",)
            for level in levels:  # what is critical is more than a warning
                if first[alert.detector][level] is None:
                    first[alert.detector][level] = alert.step
    return first


def main() -> None:
    work = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        answer = {
            name: {stream: feed(rows, setting) for stream, rows in work["streams"].items()}
            for name, setting in work["settings"].items()
        }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
