"""How early, and how rightly, a collapse is told: the collapse watch, its detectors, the paper's four metrics, and rlwatch.

    python benchmarks/early_warning.py --rlwatch FOLDER/bin/python

Reads finished runs of the lab (`ppomax lab run`), each with the truth: the world's judge on held-out prompts, every eight
iterations. Which runs tune and which are judged: `warning_runs.LOOKED_AT`. Thresholds of rlwatch and of the single metrics are
chosen on the first and counted on the second, those of the watch are what ppomax ships. rlwatch runs in an environment of its own:

    python3 -m venv FOLDER && FOLDER/bin/pip install rlwatch==0.5.1

Writes docs/results/early_warning.json, and what stands between marks in docs/results/early_warning.md: two minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from warning_metrics import FOUR, READINGS, areas_of, crossed, reaches, tightest
from warning_rlwatch import FED, LEVELS, READS, ask, earliest, has_input, scored, tuned
from warning_runs import Truth, split
from warning_scores import Alarms, Floats, Score, between, interval, kinds, paired, part, score

from ppomax.evaluate.winrate import sign_test
from ppomax.lab.results import rounded
from ppomax.train.checkpoint import write_atomic
from ppomax.watch import detectors
from ppomax.watch.collapse import CollapseWatch

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "early_warning.md"
MARK = "<!-- {}: made by benchmarks/early_warning.py -->", "<!-- end of {} -->"
OURS = (*(d.name for d in detectors.DETECTORS), "combined", "not_finite")
"""every detector of the watch"""
WHOLE = "any detector"
WANTED = 20
"""collapsing runs, and healthy ones, before this is a result"""

# ------------------------------------------------------------------------------------------------ the watch


def watched(runs: Sequence[Truth]) -> dict[str, dict[str, dict[str, int | None]]]:
    """Detector -> level -> run -> iteration of its first alarm of that level or a graver one; `any` is the watch as a whole."""
    none: dict[str, int | None] = {run.name: None for run in runs}
    rules = {name: {level: dict(none) for level in detectors.LEVELS} for name in ("any", *OURS)}
    for run in runs:
        watch = CollapseWatch()
        for row in run.rows:
            for alarm in watch.step(row):
                for level in detectors.LEVELS[: detectors.LEVELS.index(alarm.level) + 1]:
                    for name in ("any", alarm.detector):
                        if rules[name][level][run.name] is None:
                            rules[name][level][run.name] = alarm.iteration
    return rules


def telling(by_level: Mapping[str, Alarms]) -> list[tuple[str, Alarms]]:
    """Levels worth a line, the lowest first: one that gives the same alarms as the next graver one is left out, and so are
    graver ones that never came. At least one."""
    levels = list(by_level.items())
    if not any(at is not None for at in levels[0][1].values()):
        return [("any", levels[0][1])]
    kept = []
    for i, (level, alarms) in enumerate(levels):
        came = any(at is not None for at in alarms.values())
        if came and (i + 1 == len(levels) or alarms != levels[i + 1][1]):
            kept.append((level, alarms))
    return kept


# ------------------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class Rule:
    """A line of the table of rules."""

    name: str
    level: str
    alarms: Alarms
    score: Score | None
    """None: no run has what it reads"""
    note: str = ""

    def cells(self) -> list[str]:
        return [self.name, self.level, *(self.score.cells() if self.score else [self.note, "-", "-", "-"])]


RULES_HEAD = ("rule", "level", "in time", "before the peak", "lead, iterations", "false alarms")


def as_data(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    return [
        {"rule": r.name, "level": r.level, **(r.score.as_dict() if r.score else {"no_input": r.note})} for r in rules
    ]


def our_rules(judged: Sequence[Truth]) -> list[Rule]:
    return [
        Rule(f"ppomax: {WHOLE if name == 'any' else name}", level, alarms, score(judged, alarms))
        for name, by_level in watched(judged).items()
        for level, alarms in telling(by_level)
    ]


def lacking(judged: Sequence[Truth], detector: str) -> str:
    """What some or all runs have no input for, in words; empty where all have it."""
    without = sum(not has_input(run, detector) for run in judged)
    metric = FED[READS[detector]]
    if without == len(judged):
        return f"no input: no run has `{metric}`"
    return f"{without} runs have no `{metric}`" if without else ""


def their_rules(python: str, tuning: Sequence[Truth], judged: Sequence[Truth]) -> tuple[list[Rule], dict[str, Any]]:
    """rlwatch's rules, at its defaults and tuned; and its settings."""

    def alone(prefix: str, name: str, level: str, alarms: Alarms) -> Rule:
        note, found = lacking(judged, name), scored(judged, name, alarms)
        more = " (variance alone: no single rewards for its dip test)" if name == "reward_hacking" else ""
        more += f" ({note})" if note and found else ""
        return Rule(f"{prefix}: {name}{more}", level, alarms, found, note)

    defaults = ask(python, judged, {"defaults": {}})["defaults"]
    rules = []
    for name in ("any", *READS):
        of = [name] if name != "any" else list(READS)
        by_level = {level: earliest(defaults, dict.fromkeys(of, level), judged) for level in LEVELS}
        for level, alarms in telling(by_level):
            if name == "any":
                rules.append(Rule(f"rlwatch, defaults: {WHOLE}", level, alarms, score(judged, alarms)))
            else:
                rules.append(alone("rlwatch, defaults", name, level, alarms))
    settings, levels, chosen = tuned(python, tuning)
    best = ask(python, judged, {"best": settings})["best"]
    together = earliest(best, {name: levels[name] for name in chosen}, judged)
    rules.append(Rule(f"rlwatch, tuned together: {' or '.join(chosen)}", "as tuned", together, score(judged, together)))
    for name in READS:
        if name in levels:
            rules.append(alone("rlwatch, tuned", name, levels[name], earliest(best, {name: levels[name]}, judged)))
        else:
            note = f"no tuning run has `{FED[READS[name]]}`"
            rules.append(
                Rule(f"rlwatch, tuned: {name}", "-", dict.fromkeys((r.name for r in judged), None), None, note)
            )
    return rules, {"settings": settings, "levels": levels, "together": chosen}


def compared(judged: Sequence[Truth], rules: Sequence[Rule]) -> tuple[str, dict[str, Any]]:
    """Our collapse alarm beside rlwatch's rules on the same runs; where it is not ahead is said in words."""
    alarms = watched(judged)["any"]["collapse"]
    ours = score(judged, alarms)
    lines, data, tied = [], {}, []
    for rule in rules:
        if not rule.name.startswith((f"rlwatch, defaults: {WHOLE}", "rlwatch, tuned together")):
            continue
        found = paired(judged, alarms, rule.alarms)
        title = f"{rule.name}, {rule.level}"
        lines.append([title, *found.cells()])
        data[title] = vars(found)
        assert rule.score is not None
        ahead = ours.in_time - rule.score.in_time
        p = sign_test(found.in_time[1], found.in_time[2])
        if ahead <= 0 or p > 0.05:
            how = "Not ahead" if ahead <= 0 else f"Ahead, but by no more than chance may give (p = {p:.2g}),"
            tied.append(
                f"**{how} in recall of {title}**: it is in time in {rule.score.in_time} of {rule.score.collapsing} (the watch "
                f"{ours.in_time}), with false alarms on {rule.score.false} of {rule.score.healthy} healthy runs (the watch "
                f"{ours.false})."
            )
    head = [
        "the watch's collapse alarm against", "in time: both", "only the watch", "only rlwatch", "neither", "sign test p",
        "iterations earlier, both in time", "false: both", "only the watch", "only rlwatch", "neither",
    ]  # fmt: skip
    return "\n\n".join([table(head, lines), *map(prose, tied), by_dips(judged, rules)]), data


def by_dips(judged: Sequence[Truth], rules: Sequence[Rule]) -> str:
    """The counts once more, by the strictest reading of 'before the win rate falls below 50%'."""
    collapsing, _ = kinds(judged)
    back = sum(run.dip != run.fall for run in collapsing)
    strict = [replace(run, fall=run.dip) for run in judged]
    told = []
    for rule in rules:
        if (rule.name, rule.level) == (f"ppomax: {WHOLE}", "collapse") or rule.name.startswith(
            "rlwatch, tuned together"
        ):
            found = score(strict, rule.alarms)
            told.append(
                f"{rule.name}, {rule.level}: {part(found.in_time, found.collapsing)} in time, lead {found.lead:.0f}"
            )
    return prose(
        f"All of this is before the fall for good. In {back} of the {len(collapsing)} collapsing runs an earlier evaluation was "
        "below 50% too, and the win rate, which begins at 50% and is measured to one or two points, came back above it. Before "
        f"the first evaluation below 50% of all: {'; '.join(told)}."
    )


def on_later_runs(python: str, tuning: Sequence[Truth], judged: Sequence[Truth]) -> tuple[str, dict[str, Any]]:
    """The watch and rlwatch on the judged runs in whose sight no rule of the watch was changed; rlwatch tunes on all others."""
    later, seen = [r for r in judged if not r.seen], [r for r in judged if r.seen]
    text = prose(
        f"{len(seen)} of the judged runs were in sight when the watch's rules were last changed, so on them its counts are no test. "
        f"On the {len(later)} that came later (`SEEN` in `benchmarks/warning_runs.py`) they are; "
        "rlwatch is tuned on all runs that came before, here."
    )
    if not all(kinds(later)):
        return f"{text}\n\n{counts([*tuning, *seen], later)}", {}
    theirs, settings = their_rules(python, [*tuning, *seen], later)
    rules = [r for r in [*our_rules(later), *theirs] if WHOLE in r.name or "tuned together" in r.name]
    comparison, data = compared(later, rules)
    lines = [text, counts([*tuning, *seen], later), table(RULES_HEAD, [r.cells() for r in rules]), comparison]
    return "\n\n".join(lines), {"rules": as_data(rules), "paired": data, "rlwatch": settings}


# ------------------------------------------------------------------------------------------------ single metrics


@dataclass(frozen=True)
class Reading:
    """A metric in one unit, on the judged runs."""

    metric: str
    unit: str
    tuning_area: float
    area: Floats
    """over all widths: `areas`"""
    separation: Floats
    """likewise, against healthy runs of the same length"""
    width: float
    """the most sensitive one without a false alarm on the tuning runs"""
    score: Score
    """at that width"""
    hindsight: tuple[Score, Score]
    """at the most sensitive width without a false alarm on the judged runs, and with one in ten"""

    @property
    def title(self) -> str:
        return f"{self.metric}, by its {self.unit}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "tuning_area": self.tuning_area, "area": self.area[0], "area_interval": interval(self.area),
            "separation": self.separation[0], "separation_interval": interval(self.separation), "width": self.width,
            "at_that_width": self.score.as_dict(), "no_false_alarm_in_hindsight": self.hindsight[0].as_dict(),
            "one_in_ten_in_hindsight": self.hindsight[1].as_dict(),
        }  # fmt: skip


def read(tuning: Sequence[Truth], judged: Sequence[Truth]) -> list[Reading]:
    readings = []
    for metric, unit in READINGS:
        before, now = reaches(tuning, metric, unit), reaches(judged, metric, unit)
        width = tightest(tuning, before)
        allowed = (0, len(kinds(judged)[1]) // 10)
        hindsight = [score(judged, crossed(judged, now, tightest(judged, now, n))) for n in allowed]
        readings.append(
            Reading(
                metric, unit, float(areas_of(tuning, before, as_long=False)[0]), areas_of(judged, now, as_long=False),
                areas_of(judged, now, as_long=True), width, score(judged, crossed(judged, now, width)),
                (hindsight[0], hindsight[1]),
            )
        )  # fmt: skip
    return readings


def four(readings: Sequence[Reading]) -> list[Reading]:
    """The paper's four, each in the unit that does better on the tuning runs; the best on the judged runs first."""
    best = {m: max((r for r in readings if r.metric == m), key=lambda r: r.tuning_area) for m in FOUR}
    return sorted(best.values(), key=lambda r: (r.area[0], r.score.in_time), reverse=True)


def answer(readings: Sequence[Reading], judged: Sequence[Truth], ours: Score) -> str:
    """Which of the four is the best early warning, in a sentence, and what stands behind it."""
    ranked = four(readings)
    best, second = ranked[:2]
    gap = best.area - second.area
    low, high = interval(gap)
    sure = low > 0
    most = max(ranked, key=lambda r: (r.score.in_time, -r.score.false))
    agrees = "the same one" if most is best else f"**not the same one**, but {most.metric}"
    lines = [
        f"**Of the paper's four metrics, {best.metric} is the best early warning"
        f"{'' if sure else f' so far, but {second.metric} may be as good'}.**",
        f"Over all widths it has an area of {best.area[0]:.2f}{between(*interval(best.area), '.2f')} (.5 says nothing), against "
        f"{second.area[0]:.2f}{between(*interval(second.area), '.2f')} for the next, {second.metric}; the difference, "
        f"{gap[0]:.2f}{between(low, high, '.2f')}, {'leaves' if sure else 'does not leave'} 0 out. {penalties(judged)}",
        f"At equal false alarms (the most sensitive width without one on the tuning runs) the most collapses are told in time by "
        f"{agrees}:",
    ]
    told_each = [f"- {r.metric}, in units of its {r.unit}: {told(r.score)}" for r in ranked]
    seen = sum(r.seen for r in judged)
    told_each.append(
        f"- the watch, which reads all four and more: {told(ours)}; but {seen} of these {len(judged)} runs were in sight when its "
        "rules were last changed"
    )
    return "\n".join([prose(" ".join(lines)), "", *map(prose, told_each)])


def penalties(judged: Sequence[Truth]) -> str:
    """Who is held back by a KL penalty: where those are the healthy runs, KL may tell the penalty and not the collapse."""
    bad, good = ((sum(r.penalised for r in found), len(found)) for found in kinds(judged))
    apart = bad[0] == 0 and good[0] == good[1]
    text = f"{good[0]} of the {good[1]} healthy runs have a KL penalty, and {bad[0]} of the {bad[1]} collapsing ones"
    return f"But {text}: what tells the two kinds apart may be the penalty." if apart else f"{text}."


def told(found: Score) -> str:
    lead = f", {found.lead:.0f} iterations before the fall in the median" if math.isfinite(found.lead) else ""
    return f"{part(found.in_time, found.collapsing)} in time{lead}, {part(found.false, found.healthy)} false"


def metric_tables(readings: Sequence[Reading]) -> list[str]:
    best = four(readings)
    first = best[0]
    rows = []
    for r in sorted(readings, key=lambda r: -r.area[0]):
        gap = first.area - r.area
        behind = "-" if r is first else f"{gap[0]:.2f}{between(*interval(gap), '.2f')}"
        rows.append([
            f"**{r.metric}**" if r in best else r.metric, r.unit, f"{r.tuning_area:.2f}",
            f"{r.area[0]:.2f}{between(*interval(r.area), '.2f')}",
            f"{r.separation[0]:.2f}{between(*interval(r.separation), '.2f')}", behind,
        ])  # fmt: skip
    widths = [
        [r.metric, r.unit, f"{r.width:.3g}", *r.score.cells(), *(f"{s.in_time} of {s.collapsing}" for s in r.hindsight)]
        for r in readings
    ]
    return [
        "### Single metrics: over all widths",
        table(["metric", "unit", "area, tuning runs", "area", "separation", f"behind {first.metric}"], rows),
        "### Single metrics: at equal false alarms",
        table(
            ["metric", "unit", "width", "in time", "before the peak", "lead, iterations", "false alarms",
             "in time, no false alarm (hindsight)", "in time, one in ten (hindsight)"], widths,
        ),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ page


def prose(text: str) -> str:
    """Wrapped; what follows the first line of a list's item is indented."""
    return textwrap.fill(
        text,
        120,
        subsequent_indent="  " if text.startswith("- ") else "",
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def runs_table(runs: Sequence[Truth], collapse: Alarms) -> str:
    """Every run with its alarm, and how the win rate stood: an alarm before the peak would have ended a run that was improving."""
    rows = []
    for r in sorted(runs, key=lambda r: (r.kind, r.name)):
        at = collapse[r.name]
        then = later = rising = "-"
        if at is not None:
            seen, ahead = ([p[1] for p in r.curve if (p[0] <= at) is past] for past in (True, False))
            then, later = (f"{seen[-1]:.0%}" if seen else "-"), (f"{max(ahead):.0%}" if ahead else "-")
            rising = "**yes**" if r.rising(at) else "no"
        fall = "-" if r.fall is None else str(r.fall)
        rows.append([r.name, r.kind, fall, "none" if at is None else str(at), then, later, rising])
    head = ["run", "by the judge", "below 50% from iteration", "collapse alarm at", "smoothed win rate then", "highest afterwards",
            "win rate still rising"]  # fmt: skip
    return table(head, rows)


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
        "seed", "vanilla: end", "last evaluation", "with rollback: end", "last evaluation", "first iteration after each",
    ]  # fmt: skip
    return table(head, rows)


def counts(tuning: Sequence[Truth], judged: Sequence[Truth]) -> str:
    def said(runs: Sequence[Truth], names: Sequence[str]) -> str:
        return ", ".join(f"{sum(r.kind == name for r in runs)} {name}" for name in names)

    collapsing, healthy = (len(found) for found in kinds(judged))
    short = [f"{WANTED - n} {name}" for n, name in ((collapsing, "collapsing"), (healthy, "healthy")) if n < WANTED]
    missing = f" {' and '.join(short)} runs are missing yet." if short else ""
    return prose(
        f"Judged: {said(judged, ('collapsing', 'healthy'))}; not counted, {said(judged, ('neither', 'diverged'))}. "
        f"Wanted: {WANTED} collapsing and {WANTED} healthy.{missing} Tuned on others: "
        f"{said(tuning, ('collapsing', 'healthy', 'neither', 'diverged', 'steered'))}."
    )


def build(
    python: str | None, tuning: Sequence[Truth], judged: Sequence[Truth], steered: Sequence[Truth] = ()
) -> tuple[dict[str, str], dict[str, Any]]:
    """The page's parts by mark, and the same numbers as data."""
    rules = our_rules(judged)
    collapse = watched(judged)["any"]["collapse"]
    settings: dict[str, Any] = {}
    readings = read(tuning, judged)
    parts = []
    comparison: dict[str, Any] = {}
    later: dict[str, Any] = {}
    if python:
        theirs, settings = their_rules(python, tuning, judged)
        rules += theirs
        text, comparison = compared(judged, rules)
        since, later = on_later_runs(python, tuning, judged)
        parts = ["### The watch and rlwatch, run by run", text, "### The same on later runs", since]
    lines = [
        counts(tuning, judged), "### Watch and rlwatch, detector by detector", table(RULES_HEAD, [r.cells() for r in rules]), *parts,
        *metric_tables(readings), "### Runs", runs_table(judged, collapse),
    ]  # fmt: skip
    if steered:
        lines += ["### With rollback", rollback_table(steered, [*tuning, *judged])]
    data = {
        "rules": as_data(rules),
        "paired": comparison,
        "rlwatch": settings,
        "later": later,
        "metrics": {r.title: r.as_dict() for r in readings},
        "judged": {r.name: {"kind": r.kind, "fall": r.fall, "peak": r.peak, "alarm": collapse[r.name]} for r in judged},
        "tuning": {r.name: r.kind for r in tuning},
        "rollback": {r.name: {"end": r.end, "last": r.last} for r in steered},
    }
    return {"answer": answer(readings, judged, score(judged, collapse)), "tables": "\n\n".join(lines)}, data


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with what stands between marks made anew."""
    for name, text in parts.items():
        begin, end = (mark.format(name) for mark in MARK)
        if begin not in page or end not in page:
            raise SystemExit(f"the marks {begin!r} and {end!r} are missing")
        page = f"{page.split(begin)[0]}{begin}\n\n{text}\n\n{end}{page.split(end)[1]}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--development", type=Path, default=ROOT / "lab" / "development", help="runs that tune")
    parser.add_argument("--results", type=Path, default=ROOT / "lab" / "results", help="counted runs; most are judged")
    parser.add_argument(
        "--rlwatch", help="a Python that has rlwatch 0.5.1; left out: nothing of it, and nothing is written"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    tuning, judged, steered = split(options.development, options.results)
    if not all((*kinds(tuning), *kinds(judged))):
        raise SystemExit("both the runs that tune and those that are judged need a collapsing and a healthy one")
    page = options.page.read_text(encoding="utf-8")
    parts, data = build(options.rlwatch, tuning, judged, steered)
    if options.rlwatch:
        write_atomic(options.page, filled(page, parts))
        text = json.dumps(rounded(data), indent=1, allow_nan=False)  # NaN is no JSON: null
        write_atomic(options.page.with_suffix(".json"), text + "\n")
    print("\n\n".join(parts.values()))


if __name__ == "__main__":
    main()
