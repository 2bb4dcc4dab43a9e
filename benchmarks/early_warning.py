"""How early, and how rightly, a collapse is told: the collapse watch, its detectors, the paper's four metrics, and rlwatch.

    python benchmarks/early_warning.py --rlwatch FOLDER/bin/python

Reads finished runs of the lab (`ppomax lab run`), each with the truth: the world's judge on held-out prompts, every eight
iterations. Runs for tuning and runs that are judged are different files; thresholds of rlwatch and of the single metrics are
chosen on the first and counted on the second, those of the watch are what ppomax ships. rlwatch runs in an environment of its own:

    python3 -m venv FOLDER && FOLDER/bin/pip install rlwatch==0.5.1

Writes docs/results/early_warning.json and the tables between the marks of docs/results/early_warning.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppomax.lab.results import Result, read_result
from ppomax.lab.statistics import end, smooth
from ppomax.train.checkpoint import write_atomic
from ppomax.watch.collapse import CollapseWatch
from ppomax.watch.history import BASELINE, SMOOTH
from ppomax.watch.robust import noise

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "early_warning.md"
BEGIN, END = "<!-- tables: made by benchmarks/early_warning.py -->", "<!-- end of tables -->"
RESULTS = Path("lab/results")
TUNING = [
    Path("lab/development"),
    *sorted(p for arm in ("vanilla", "ppo_max") for p in RESULTS.glob(f"shared/{arm}-seed[234]-*.jsonl")),
    *sorted(RESULTS.glob("*/eta_0*-seed[234]-*.jsonl")),
]
"""runs that were looked at while thresholds were chosen"""
FED = {
    "entropy": "policy/entropy", "kl_divergence": "kl/ref", "reward_mean": "reward/mean", "reward_std": "reward/std",
    "loss": "loss/policy", "grad_norm": "grad_norm/policy",
}  # fmt: skip
"""what rlwatch reads, and the metric of ours that is it; it gets no rewards one by one and no spread of advantages"""


@dataclass(frozen=True)
class Truth:
    """What became of a run, by the judge."""

    name: str
    kind: str
    """collapsing, healthy or neither; steered: the watch itself rolled it back, or diverged: its numbers ended before it did,
    so what would have become of it is not seen"""
    fall: int | None
    """first iteration of the last stretch of evaluations below 50%"""
    rows: list[dict[str, Any]]
    arm: str = ""
    seed: int = 0
    end: float = math.nan
    """mean of the last three evaluations"""
    last: float = math.nan
    """win rate of the last, thorough evaluation"""


def truth(result: Result) -> Truth:
    """Collapsing: the mean of the last three evaluations is below 50%. Healthy: it is within five points of the smoothed
    best, and no smoothed evaluation is below 50%.

    The first evaluation comes before any training, where 50% is chance.
    """
    at = [int(e["iteration"]) for e in result.evaluations]
    rates = [float(e["eval/win_rate"]) for e in result.evaluations]
    name = f"{result.header['arm']}, seed {result.seed}, {result.key}"
    rows = [
        {k: v for k, v in row.items() if v is not None} for row in result.stream
    ]  # null: no such number in this line
    last = float(result.endpoint["same_temperature"]["win_rate"])
    kind, fall, curve = "neither", None, smooth(rates)[1:]
    if result.header["identity"].get("watch.on_collapse") == "rollback":
        kind = "steered"
    elif "diverged" in result.header:
        kind = "diverged"
    elif end(rates) < 0.5:
        above = [i for i, rate in enumerate(rates) if rate >= 0.5]
        kind, fall = "collapsing", at[above[-1] + 1] if above else at[1]
    elif min(curve) >= 0.5 and max(curve) - end(rates) <= 0.05:
        kind = "healthy"
    return Truth(name, kind, fall, rows, result.header["arm"], result.seed, end(rates), last)


def load(paths: Iterable[Path]) -> list[Truth]:
    """Runs of files, and of all files in folders."""
    found: dict[str, Truth] = {}
    for where in paths:
        for path in sorted(where.rglob("*.jsonl")) if where.is_dir() else [where]:
            try:
                result = read_result(path)
            except Exception as error:  # runs of an earlier format have no stream
                print(f"left out: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            found[result.key] = truth(result)
    return list(found.values())


# ------------------------------------------------------------------------------------------------ scores


@dataclass(frozen=True)
class Score:
    """How a rule that gives at most one alarm a run did."""

    in_time: int
    collapsing: int
    lead: float
    """median iterations from alarm to fall, of the alarms in time"""
    false: int
    healthy: int

    @property
    def worth(self) -> tuple[float, float]:
        """For choosing among settings: alarms in time less false ones, as shares; then the lead."""
        gained = self.in_time / max(self.collapsing, 1) - self.false / max(self.healthy, 1)
        return gained, self.lead if math.isfinite(self.lead) else -1.0

    def cells(self) -> list[str]:
        lead = f"{self.lead:.0f}" if math.isfinite(self.lead) else "-"
        return [f"{self.in_time} of {self.collapsing}", lead, f"{self.false} of {self.healthy}"]


def score(runs: Sequence[Truth], alarms: Mapping[str, int | None]) -> Score:
    """An alarm is in time before the evaluation that first finds the win rate below 50%; on a healthy run it is false."""
    collapsing = [r for r in runs if r.kind == "collapsing"]
    healthy = [r for r in runs if r.kind == "healthy"]
    leads = [
        r.fall - at for r in collapsing if (at := alarms[r.name]) is not None and r.fall is not None and at < r.fall
    ]
    false = sum(alarms[r.name] is not None for r in healthy)
    return Score(len(leads), len(collapsing), statistics.median(leads) if leads else math.nan, false, len(healthy))


# ------------------------------------------------------------------------------------------------ the watch


def watched(runs: Sequence[Truth]) -> dict[str, dict[str, int | None]]:
    """By rule: the iteration of the first alarm in each run; `collapse`, and each detector by its first warning."""
    rules: dict[str, dict[str, int | None]] = {"collapse": {}}
    for run in runs:
        watch = CollapseWatch()
        for row in run.rows:
            for alarm in watch.step(row):
                if alarm.level == "collapse":
                    rules["collapse"].setdefault(run.name, alarm.iteration)
                if alarm.level != "notice":
                    rules.setdefault(alarm.detector, {}).setdefault(run.name, alarm.iteration)
    return {rule: {run.name: found.get(run.name) for run in runs} for rule, found in rules.items()}


# ------------------------------------------------------------------------------------------------ single metrics


def tail(row: Mapping[str, Any]) -> float | None:
    """Right side of the reward distribution against its left side."""
    p5, p50, p95 = (row.get(f"reward/{p}") for p in ("p5", "p50", "p95"))
    return None if p5 is None or p50 is None or p95 is None else (p95 - p50) / max(p50 - p5, 1e-9)


METRICS = {
    "KL to the reference": [lambda r: r.get("kl/ref")],
    "perplexity": [lambda r: math.log(r["policy/perplexity"]) if r.get("policy/perplexity") else None],
    "response length": [lambda r: r.get("response/length")],
    "reward distribution": [lambda r: r.get("reward/std"), lambda r: r.get("reward/skewness"), tail],
    "reward, mean (not one of the four)": [lambda r: r.get("reward/mean")],
    "policy loss (not one of the four)": [lambda r: r.get("loss/policy")],
}
"""section 5.2's four, and two that the paper says show nothing; a metric of several numbers is out when one of them is"""


def departures(run: Truth, metric: str) -> list[float]:
    """By iteration: how many times its own noise the metric is from its start; the median of `SMOOTH`, either side."""
    rows = [row for row in run.rows if row.get("phase", "policy") == "policy"]
    largest = [0.0] * len(rows)
    for number in METRICS[metric]:
        values = [number(row) for row in rows]
        known = [v for v in values[: 4 * BASELINE] if v is not None]
        if len(known) < BASELINE:
            continue
        start, unit = statistics.median(known[:BASELINE]), max(noise(known), 1e-9)
        for i in range(BASELINE + SMOOTH - 1, len(values)):
            recent = [v for v in values[i - SMOOTH + 1 : i + 1] if v is not None]
            if recent:
                largest[i] = max(largest[i], abs(statistics.median(recent) - start) / unit)
    return largest


def crossed(run: Truth, metric: str, width: float) -> int | None:
    """First iteration at which the metric has been so far out for three iterations."""
    rows = [row for row in run.rows if row.get("phase", "policy") == "policy"]
    out = [d > width for d in departures(run, metric)]
    return next((int(rows[i]["iteration"]) for i in range(2, len(out)) if all(out[i - 2 : i + 1])), None)


def separation(runs: Sequence[Truth], metric: str) -> float:
    """Probability that a collapsing run goes further out *before its fall* than a healthy one in as many iterations.

    Every pair of a collapsing and a healthy run, ties as half; 0.5: the metric says nothing.
    """
    wins: list[float] = []
    by_run = {run.name: departures(run, metric) for run in runs}
    for bad in (r for r in runs if r.kind == "collapsing"):
        rows = [row for row in bad.rows if row.get("phase", "policy") == "policy"]
        until = sum(row["iteration"] < (bad.fall or 0) for row in rows)
        for good in (r for r in runs if r.kind == "healthy"):
            a, b = max(by_run[bad.name][:until], default=0.0), max(by_run[good.name][:until], default=0.0)
            wins.append(float(a > b) + 0.5 * float(a == b))
    return statistics.mean(wins) if wins else math.nan


WIDTHS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 80, 120)

# ------------------------------------------------------------------------------------------------ rlwatch


def grid() -> dict[str, list[dict[str, Any]]]:
    """Settings of each of rlwatch's detectors that are tried on the tuning runs."""

    def product(**fields: Sequence[Any]) -> list[dict[str, Any]]:
        return [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]

    spikes = product(
        sigma_multiplier=[2, 3, 4, 6, 10, 20], rolling_window=[12, 20, 50, 100], warmup_steps=[10, 20],
        baseline_mode=["rolling", "frozen"],
    )  # fmt: skip
    return {
        "entropy_collapse": product(
            threshold=[1.0, 0.7, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05], consecutive_steps=[1, 3, 6, 10, 20, 50],
            warmup_steps=[5, 20],
        ),
        "kl_explosion": spikes,
        "gradient_norm_spike": spikes,
        "reward_hacking": product(variance_multiplier=[1.1, 1.25, 1.5, 2, 3], warmup_steps=[10, 20, 50]),
        "reward_mean_drift": product(
            consecutive_steps=[3, 4, 5, 6, 8, 10, 20, 50], warmup_steps=[5, 50], min_drift_magnitude=[0.05, 0.1, 0.5]
        ),
        "loss_nan": [{}],
    }  # fmt: skip


Alerts = dict[str, dict[str, dict[str, int | None]]]


def ask(python: str, runs: Sequence[Truth], settings: Mapping[str, Any]) -> dict[str, Alerts]:
    """Setting -> run -> detector -> first step of each level."""
    streams = {
        run.name: [{"step": int(r["iteration"]), **{k: r.get(v) for k, v in FED.items()}} for r in run.rows]
        for run in runs
    }
    work = json.dumps({"streams": streams, "settings": dict(settings)})
    done = subprocess.run([python, str(HERE / "rlwatch_feed.py")], input=work, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"rlwatch: {done.stderr.strip().splitlines()[-1]}")
    answer: dict[str, Alerts] = json.loads(done.stdout)
    return answer


def earliest(alerts: Alerts, chosen: Mapping[str, str], runs: Sequence[Truth]) -> dict[str, int | None]:
    """First alert of each run among the chosen detectors, each from its chosen level on."""
    out: dict[str, int | None] = {}
    for run in runs:
        found = [at for name, level in chosen.items() if (at := alerts[run.name][name][level]) is not None]
        out[run.name] = min(found, default=None)
    return out


def tuned(python: str, runs: Sequence[Truth]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The best setting and level of each detector on the tuning runs, and the detectors that together do best there."""
    numbered = [(name, fields) for name, choices in grid().items() for fields in choices]
    answers = ask(python, runs, {str(i): {name: fields} for i, (name, fields) in enumerate(numbered)})
    best: dict[str, tuple[tuple[float, float], int, str]] = {}
    for i, (name, _) in enumerate(numbered):
        for level in ("critical", "warning"):
            found = score(runs, earliest(answers[str(i)], {name: level}, runs)).worth
            if name not in best or found > best[name][0]:
                best[name] = (found, i, level)
    settings = {name: numbered[i][1] for name, (_, i, _) in best.items()}
    merged = ask(python, runs, {"best": settings})["best"]
    chosen: dict[str, str] = {}
    for name in sorted(best, key=lambda n: best[n][0], reverse=True):  # add a detector while it helps
        more = {**chosen, name: best[name][2]}
        if (
            not chosen
            or score(runs, earliest(merged, more, runs)).worth > score(runs, earliest(merged, chosen, runs)).worth
        ):
            chosen = more
    return settings, chosen


# ------------------------------------------------------------------------------------------------ tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def runs_table(runs: Sequence[Truth], collapse: Mapping[str, int | None]) -> str:
    rows = []
    for r in sorted(runs, key=lambda r: (r.kind, r.name)):
        at = collapse[r.name]
        rows.append([r.name, r.kind, "-" if r.fall is None else str(r.fall), "none" if at is None else str(at)])
    return table(["run", "by the judge", "below 50% from iteration", "collapse alarm at"], rows)


def rollback_table(steered: Sequence[Truth], others: Sequence[Truth]) -> str:
    """What `watch.on_collapse: rollback` made of vanilla, beside vanilla of the same seed."""
    plain = {r.seed: r for r in others if r.arm == "vanilla"}
    rows = []
    for r in sorted(steered, key=lambda r: r.seed):
        by_iteration = [(int(row["iteration"]), float(row.get("kl/coef", 0.0))) for row in r.rows]
        raised = [str(at) for (_, before), (at, now) in itertools.pairwise(by_iteration) if now > before]
        without = [f"{plain[r.seed].end:.1%}", f"{plain[r.seed].last:.1%}"] if r.seed in plain else ["-", "-"]
        rows.append([str(r.seed), *without, f"{r.end:.1%}", f"{r.last:.1%}", ", ".join(raised) or "never"])
    head = [
        "seed",
        "vanilla: end",
        "last evaluation",
        "with rollback: end",
        "last evaluation",
        "first iteration after each",
    ]
    return table(head, rows)


def build(
    python: str | None, tuning: Sequence[Truth], judged: Sequence[Truth], steered: Sequence[Truth] = ()
) -> tuple[str, dict[str, Any]]:
    """The page's tables, and the same numbers as data."""
    head = ["rule", "in time", "lead, iterations", "false alarms"]
    ours = watched(judged)
    scores = {f"ppomax: {rule}": score(judged, alarms) for rule, alarms in ours.items()}
    chosen_settings: dict[str, Any] = {}
    if python:
        defaults, settings = ask(python, judged, {"defaults": {}})["defaults"], {}
        detectors = list(grid())
        scores["rlwatch, defaults: any critical alert"] = score(
            judged, earliest(defaults, dict.fromkeys(detectors, "critical"), judged)
        )
        scores["rlwatch, defaults: any alert"] = score(
            judged, earliest(defaults, dict.fromkeys(detectors, "warning"), judged)
        )
        settings, chosen = tuned(python, tuning)
        best = ask(python, judged, {"best": settings})["best"]
        scores[f"rlwatch, tuned: {' or '.join(chosen)}"] = score(judged, earliest(best, chosen, judged))
        for name in detectors:
            level = chosen.get(name, "warning")
            scores[f"rlwatch, tuned: {name} alone"] = score(judged, earliest(best, {name: level}, judged))
        chosen_settings = {"settings": settings, "levels": chosen}
    metrics: list[list[str]] = []
    for name in METRICS:
        width = max(WIDTHS, key=lambda w: score(tuning, {r.name: crossed(r, name, w) for r in tuning}).worth)
        found = score(judged, {r.name: crossed(r, name, width) for r in judged})
        scores[f"metric: {name}"] = found
        metrics.append([name, str(width), *found.cells(), f"{separation(judged, name):.2f}"])
    counts = {kind: sum(r.kind == kind for r in judged) for kind in ("collapsing", "healthy", "neither")}
    lines = [
        f"Judged: {counts['collapsing']} collapsing, {counts['healthy']} healthy and {counts['neither']} runs that are "
        f"neither (not counted). Tuned on {len(tuning)} others.",
        "### Watch and rlwatch",
        table(head, [[rule, *s.cells()] for rule, s in scores.items() if not rule.startswith("metric: ")]),
        "### Single metrics",
        table(["metric", "width, times its noise", *head[1:], "separation"], metrics),
        "### Runs",
        runs_table(judged, ours["collapse"]),
    ]
    if steered:
        lines += ["### With rollback", rollback_table(steered, [*tuning, *judged])]
    data = {
        "scores": {rule: vars(s) for rule, s in scores.items()}, "rlwatch": chosen_settings,
        "judged": {r.name: {"kind": r.kind, "fall": r.fall, "alarm": ours["collapse"][r.name]} for r in judged},
        "tuning": [r.name for r in tuning],
        "rollback": {r.name: {"end": r.end, "last": r.last} for r in steered},
    }  # fmt: skip
    return "\n\n".join(lines), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", type=Path, nargs="+", default=TUNING, help="files or folders of runs")
    parser.add_argument(
        "--judged", type=Path, nargs="+", help="likewise; left out: lab/results without those for tuning"
    )
    parser.add_argument("--rlwatch", help="a Python that has rlwatch 0.5.1; left out: ours and the metrics alone")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    tuning = load(options.tuning)
    known = {r.name for r in tuning}
    found = load(options.judged) if options.judged else [r for r in load([RESULTS]) if r.name not in known]
    judged, steered = ([r for r in found if (r.kind == "steered") is wanted] for wanted in (False, True))
    both = known & {r.name for r in judged}
    if both or not tuning or not judged:
        raise SystemExit(f"{len(tuning)} runs to tune on, {len(judged)} to judge, {len(both)} of them the same")
    text, data = build(options.rlwatch, tuning, judged, steered)
    page = options.page.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{options.page}: the marks {BEGIN!r} and {END!r} are missing")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    write_atomic(options.page, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    write_atomic(options.page.with_suffix(".json"), json.dumps(data, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
