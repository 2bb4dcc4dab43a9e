"""rlwatch on the same streams: at its defaults, and at its best setting on the tuning runs. It runs in an environment of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warning_runs import Truth
from warning_scores import Alarms, Score, score

FEED = Path(__file__).parent / "rlwatch_feed.py"
FED = {
    "entropy": "policy/entropy", "kl_divergence": "kl/ref", "reward_mean": "reward/mean", "reward_std": "reward/std",
    "loss": "loss/policy", "grad_norm": "grad_norm/policy", "advantage_std": "advantage/std",
}  # fmt: skip
"""what rlwatch reads, and the metric of ours that is it; streams have no rewards one by one, for its dip test"""
READS = {
    "entropy_collapse": "entropy", "kl_explosion": "kl_divergence", "reward_hacking": "reward_std",
    "advantage_variance": "advantage_std", "loss_nan": "loss", "gradient_norm_spike": "grad_norm", "reward_mean_drift": "reward_mean",
}  # fmt: skip
"""its detectors, and what each cannot do without"""
LEVELS = ("warning", "critical")

Fields = dict[str, Any]
Alerts = dict[str, dict[str, dict[str, int | None]]]
"""run -> detector -> first step of each level"""


def grid() -> dict[str, list[Fields]]:
    """Settings of each of rlwatch's detectors that are tried on the tuning runs."""

    def product(**fields: Sequence[Any]) -> list[Fields]:
        return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]

    rolling = {
        "rolling_window": [10, 12, 20, 50, 100],
        "warmup_steps": [10, 20],
        "baseline_mode": ["rolling", "frozen"],
    }
    spikes = product(sigma_multiplier=[2, 3, 4, 6, 10, 15, 20, 30, 50], **rolling)
    return {
        "entropy_collapse": product(
            threshold=[1.0, 0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05], consecutive_steps=[1, 3, 6, 10, 20, 50],
            warmup_steps=[5, 20],
        ),
        "kl_explosion": spikes,
        "gradient_norm_spike": spikes,
        "advantage_variance": product(std_multiplier=[1.1, 1.25, 1.5, 2, 3, 4], **rolling),
        "reward_hacking": product(variance_multiplier=[1.1, 1.25, 1.5, 2, 3], warmup_steps=[10, 20, 50]),
        "reward_mean_drift": product(
            consecutive_steps=[3, 4, 5, 6, 8, 10, 20, 50], warmup_steps=[5, 50], min_drift_magnitude=[0.05, 0.1, 0.5]
        ),
        "loss_nan": [{}],
    }  # fmt: skip


def has_input(run: Truth, detector: str) -> bool:
    return any(row.get(FED[READS[detector]]) is not None for row in run.policy_rows)


def ask(python: str, runs: Sequence[Truth], settings: Mapping[str, Mapping[str, Fields]]) -> dict[str, Alerts]:
    """Setting -> alerts; a setting is detector -> its fields, and what it does not name stays at rlwatch's defaults.

    Iterations that train the critic alone are left out: with them the yardsticks of its start have no noise, and it does worse.
    """
    streams = {
        run.name: [{"step": int(r["iteration"]), **{k: r.get(v) for k, v in FED.items()}} for r in run.policy_rows]
        for run in runs
    }
    work = json.dumps({"streams": streams, "settings": settings})
    try:
        done = subprocess.run([python, str(FEED)], input=work, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"rlwatch: {python}: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word"]
        raise SystemExit(f"rlwatch: {said[-1]}")
    answer: dict[str, Alerts] = json.loads(done.stdout)
    return answer


def earliest(alerts: Alerts, chosen: Mapping[str, str], runs: Sequence[Truth]) -> dict[str, int | None]:
    """First alert of each run among the chosen detectors, each from its chosen level on."""
    out: dict[str, int | None] = {}
    for run in runs:
        found = [at for name, level in chosen.items() if (at := alerts[run.name][name][level]) is not None]
        out[run.name] = min(found, default=None)
    return out


def tuned(python: str, runs: Sequence[Truth]) -> tuple[dict[str, Fields], dict[str, str], list[str]]:
    """On the tuning runs: the best setting of each detector, its level, and the detectors that together do best.

    A detector that no tuning run has input for gets no setting.
    """
    able = [name for name in READS if any(has_input(run, name) for run in runs)]
    numbered = [(name, fields) for name, choices in grid().items() if name in able for fields in choices]
    alone = {name: {other: {"enabled": False} for other in READS if other != name} for name in able}  # for speed
    answers = ask(python, runs, {str(i): {**alone[name], name: fields} for i, (name, fields) in enumerate(numbered)})
    best: dict[str, tuple[tuple[float, float], int, str]] = {}
    for i, (name, _) in enumerate(numbered):
        for level in ("critical", "warning"):
            found = score(runs, earliest(answers[str(i)], {name: level}, runs)).worth
            if name not in best or found > best[name][0]:
                best[name] = (found, i, level)
    settings = {name: numbered[i][1] for name, (_, i, _) in best.items()}
    levels = {name: level for name, (_, _, level) in best.items()}
    merged = ask(python, runs, {"best": settings})["best"]

    def worth(names: Sequence[str]) -> tuple[float, float]:
        return score(runs, earliest(merged, {name: levels[name] for name in names}, runs)).worth

    chosen: list[str] = []
    for name in sorted(best, key=lambda n: best[n][0], reverse=True):  # add a detector while it helps
        if not chosen or worth([*chosen, name]) > worth(chosen):
            chosen.append(name)
    return settings, levels, chosen


def scored(runs: Sequence[Truth], detector: str, alarms: Alarms) -> Score | None:
    """Over the runs that have the detector's input; None where there is none."""
    able = [run for run in runs if has_input(run, detector)]
    return score(able, alarms) if able else None
