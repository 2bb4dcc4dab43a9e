"""Seconds and memory of a PPO iteration as the work grows, ours beside TRL 1.12.0: parameters, lengths, batch, vocabulary.

    python benchmarks/scaling.py run --trl runs/trl/ppo/bin/python     # resumable: finished cases are skipped
    python benchmarks/scaling.py run --trl ... --budget 2400           # what 40 minutes allow
    python benchmarks/scaling.py draw                                  # docs/results/scaling.png and .md's table
    python benchmarks/scaling.py draw --clock cpu_seconds              # the same in processor seconds

One thing grows at a time from a common middle: 5.7M parameters, vocabulary 4096, 32 prompts of 64 tokens, 64 new tokens (fixed
lengths). Settings, contenders, turns, warm-up and medians as in ppo_iteration.py, which see. The middle is measured once for
all series, then the points next to it, and so outwards: a run that is cut short has the part that tells most. With ``--budget``
a point is begun only if it should end in time, judged by the smaller points of its series; what was skipped for that
is told on the page and tried again by the next run. A case that needs more memory than ``--memory`` MiB by one of its
contenders, or longer than ``--limit`` seconds an iteration, is written down as that, and larger ones of the same series are
left out for that contender. Lines of JSON go to docs/results/scaling.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from contest import Contender, about, append_line, run_in_turns, say, summarise
from fixtures import SHAPES, Shape, make_start, parameters
from ppo_iteration import OURS, PHASES, TRL, make_contender

RESULTS = Path(__file__).parent.parent / "docs" / "results"
BEGIN, END = "<!-- begin: drawn by benchmarks/scaling.py -->", "<!-- end -->"
CLOCKS = {"seconds": "seconds", "cpu_seconds": "processor seconds"}
BEND = 0.25
"""change of the exponent from which a curve is said to bend"""
START_UP = 20.0
"""seconds of a point for each contender beside its iterations: imports and loading"""
AXES = {
    "parameters": "parameters of the policy",
    "response": "new tokens of a response",
    "batch": "prompts an iteration",
    "vocabulary": "vocabulary",
}


@dataclass(frozen=True)
class Case:
    """One point of one series."""

    series: str
    value: float
    size: str = "5.7m"
    vocabulary: int = 4096
    batch: int = 32
    prompt: int = 64
    response: int = 64

    @property
    def shape(self) -> Shape:
        return dataclasses.replace(SHAPES[self.size], vocabulary=self.vocabulary)


def cases() -> list[Case]:
    """All points; a series' points in growing order."""
    sizes = ["1m", "5.7m", "27m", "62m", "101m"]
    return [
        *(Case("parameters", parameters(SHAPES[size]), size=size) for size in sizes),
        *(Case("response", n, response=n) for n in (64, 128, 256, 512, 1024)),
        *(Case("batch", n, batch=n) for n in (16, 32, 64, 128, 256)),
        *(Case("vocabulary", n, vocabulary=n) for n in (4096, 16384, 32768, 65536, 131072)),
    ]


def middle_first(found: Sequence[Case]) -> list[Case]:
    """The common middle of all series, then the points beside it, and so outwards; smaller before larger."""

    def steps(case: Case) -> tuple[int, float]:
        values = sorted(c.value for c in found if c.series == case.series)
        middle = next(c.value for c in found if c.series == case.series and work(c) == work(Case("", 0)))
        return abs(values.index(case.value) - values.index(middle)), case.value / middle

    return sorted(found, key=lambda case: (steps(case)[0], steps(case)[1] > 1, list(AXES).index(case.series)))


def work(case: Case | dict[str, Any]) -> dict[str, Any]:
    """What is done at a point, whichever series it belongs to."""
    fields = case if isinstance(case, dict) else dataclasses.asdict(case)
    return {k: v for k, v in fields.items() if k not in ("series", "value")}


def read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def same(record: dict[str, Any], case: Case, contender: str) -> bool:
    return record["case"] == dataclasses.asdict(case) and record["contender"] == contender


def left_out(records: Sequence[dict[str, Any]], case: Case, contender: str) -> str | None:
    """Why this point is not to be measured (again): done, or a smaller one of its series was already too much."""
    for record in records:
        if "skipped" in record:
            continue
        if same(record, case, contender):
            return "done"
        smaller = record["case"]["series"] == case.series and record["case"]["value"] < case.value
        if smaller and record["contender"] == contender and record.get("too_much"):
            return f"{record['too_much']} at {record['case']['value']:g}"
    return None


def twin(records: Sequence[dict[str, Any]], case: Case, contender: str) -> dict[str, Any] | None:
    """The measured point of another series at which the same is done."""
    for record in records:
        if record["contender"] == contender and "seconds" in record and work(record["case"]) == work(case):
            return record
    return None


def expected(records: Sequence[dict[str, Any]], case: Case, contender: str) -> float | None:
    """Seconds of an iteration, carried on from the largest smaller point of the series: with the last exponent and room for
    a bend, in proportion where there is one point only; or as many as the next larger point takes. None: nothing is known."""
    points = series_of(records, case.series, contender, "total")
    smaller = [p for p in points if p[0] < case.value]
    if smaller:
        slopes = exponent(smaller)
        power = slopes[-1] + BEND if slopes else 1.0
        return smaller[-1][1] * (case.value / smaller[-1][0]) ** power
    return points[0][1] if points else None


def measure(case: Case, names: Sequence[str], options: argparse.Namespace) -> None:
    """All contenders of one case in turns; one line each."""
    overrides = {path: yaml.safe_load(value) for path, _, value in (s.partition("=") for s in options.set)}
    with tempfile.TemporaryDirectory(prefix="scaling.") as place:
        folder = Path(place)
        start = make_start(
            folder / "start", case.shape, prompts=case.batch, prompt_length=case.prompt, response_length=case.response,
            mean_length=case.response,
        )  # fmt: skip
        contenders: list[Contender] = [
            make_contender(
                name, start, folder, options.trl, overrides, batch=case.batch, minibatches=4, response=case.response,
                iterations=options.warmup + options.iterations + 2,
            )
            for name in names
        ]  # fmt: skip
        # Large cases: one contender at a time in memory, since all together might not fit.
        groups = [contenders] if not options.apart else [[c] for c in contenders]
        for group in groups:
            try:
                records = run_in_turns(
                    group, warmup=options.warmup, iterations=options.iterations, threads=options.threads, folder=folder,
                    keep=lambda record: None,
                )  # fmt: skip
            except SystemExit as error:  # killed for memory, most likely
                say(str(error))
                for contender in group:
                    failed = {
                        "case": dataclasses.asdict(case),
                        "contender": contender.name,
                        "too_much": "it ended early",
                    }
                    append_line(options.out, {**failed, "message": str(error).splitlines()[0]})
                continue
            for name, row in summarise(records).items():
                line = {
                    "case": dataclasses.asdict(case), "contender": name, "parameters": start.parameters,
                    **about("scaling", options), **row,
                }  # fmt: skip
                if row["peak_mib"] > options.memory:
                    line["too_much"] = f"more than {options.memory} MiB"
                elif row["seconds"]["total"] > options.limit:
                    line["too_much"] = f"more than {options.limit:g} s"
                append_line(options.out, line)


def run(options: argparse.Namespace) -> None:
    end = time.monotonic() + options.budget if options.budget else math.inf
    rounds = options.warmup + options.iterations
    for case in middle_first([case for case in cases() if case.series in options.series]):
        done = read(options.out)
        for name in options.contenders:
            known = twin(done, case, name)
            if known and left_out(done, case, name) is None:
                append_line(options.out, {**known, "case": dataclasses.asdict(case)})
        done = read(options.out)
        reasons = {name: left_out(done, case, name) for name in options.contenders}
        say(f"{case.series} {case.value:g}: " + ", ".join(f"{n} ({r or 'to do'})" for n, r in reasons.items()))
        names = [name for name, reason in reasons.items() if reason is None]
        if not names:
            continue
        needed = sum(START_UP + rounds * (expected(done, case, name) or 0.0) for name in names)
        left = end - time.monotonic()
        if needed > left:
            reason = f"about {needed:.0f} s needed, {max(0.0, left):.0f} s left of {options.budget:g}"
            say(f"  skipped: {reason}")
            for name in names:
                line = {"case": dataclasses.asdict(case), "contender": name, "skipped": reason}
                append_line(options.out, line)
            continue
        measure(case, names, options)


# -------------------------------------------------------------------------------------------------------- drawing


def exponent(points: Sequence[tuple[float, float]]) -> list[float]:
    """Slopes of log seconds over log value between neighbours: 1 = in proportion."""
    return [math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in pairwise(points)]


def bend(points: Sequence[tuple[float, float]]) -> str:
    """In words: where the exponent changes by `BEND` or more from one interval to the next, and how."""
    slopes = exponent(points)
    if not slopes:
        return "one point only"
    turns = [
        f"at {short(point[0])} {'upwards' if after > before else 'downwards'}, from {before:.2f} to {after:.2f}"
        for point, before, after in zip(points[1:], slopes, slopes[1:], strict=False)
        if abs(after - before) >= BEND
    ]
    if not turns:
        return "no bend, exponent " + (
            f"{slopes[0]:.2f}" if len(slopes) == 1 else f"{min(slopes):.2f} to {max(slopes):.2f}"
        )
    return "bends " + " and ".join(turns)


def series_of(
    records: Sequence[dict[str, Any]], series: str, contender: str, key: str, clock: str = "seconds"
) -> list[tuple[float, float]]:
    """(value, seconds or MiB) in growing order; the newest of equal points."""
    found = {}
    for r in records:
        if r["case"]["series"] == series and r["contender"] == contender and "seconds" in r:
            found[r["case"]["value"]] = r["peak_mib"] if key == "peak_mib" else r[clock][key]
    return sorted(found.items())


def contenders_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """Ours first, then TRL's: the order in which they ran alternates."""
    known = [*OURS, *TRL]
    return sorted(
        {r["contender"] for r in records}, key=lambda name: known.index(name) if name in known else len(known)
    )


def short(value: float) -> str:
    """1315968 -> 1.3M, 27402752 -> 27M; what is below a million in full."""
    if value < 1e6:
        return f"{value:g}"
    return f"{value / 1e6:.1f}M" if value < 1e7 else f"{value / 1e6:.0f}M"


def round_values(low: float, high: float) -> list[float]:
    """Marks of a logarithmic axis from 1, 2, 5 in every ten, with those around the data."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first, last = max(m for m in marks if m <= low), min(m for m in marks if m >= high)
    return [m for m in marks if first <= m <= last]


def draw(records: Sequence[dict[str, Any]], file: Path, clock: str) -> None:
    """Two rows of panels, seconds above memory, a column for each series; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    shown = [s for s in AXES if any(r["case"]["series"] == s and "seconds" in r for r in records)]
    names = contenders_of(records)
    figure, axes = pyplot.subplots(2, len(shown), figsize=(3.6 * len(shown), 6.4), squeeze=False, layout="constrained")
    for column, series in enumerate(shown):
        for row, (key, label) in enumerate(
            (("total", f"{CLOCKS[clock]} an iteration"), ("peak_mib", "peak memory, MiB"))
        ):
            panel = axes[row][column]
            drawn = {name: series_of(records, series, name, key, clock) for name in names}
            for name, points in drawn.items():
                if points:
                    style = "-" if name in OURS else "--"
                    panel.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=name)
            panel.set(xscale="log", yscale="log", xlabel=AXES[series], ylabel=label if column == 0 else None)
            values, costs = zip(*(point for points in drawn.values() for point in points), strict=True)
            for axis, marks in ((panel.xaxis, sorted({*values})), (panel.yaxis, round_values(min(costs), max(costs)))):
                axis.set_ticks(marks, [short(mark) for mark in marks])
                axis.set_minor_locator(NullLocator())
            panel.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def bends(records: Sequence[dict[str, Any]], clock: str = "seconds") -> str:
    """Markdown: by series and contender the points, where the curves bend, and what was too much or not measured."""
    measured = [r for r in records if clock in r]
    rounds = sorted({r["iterations"] for r in measured if "iterations" in r})
    places = sorted(
        {f"{m['processor']}, {m['threads']} of {m['cores']} cores" for r in measured if (m := r.get("machine"))}
    )
    lines = [
        f"Measured on: {'; '.join(places) or 'not said'}. "
        f"Times are {CLOCKS[clock]}, medians of {' or '.join(map(str, rounds))} rounds. A curve is said to bend where its "
        f"exponent changes by {BEND:g} or more from one interval to the next.",
        "",
    ]
    for series, label in AXES.items():
        rows = [r for r in records if r["case"]["series"] == series]
        if not rows:
            continue
        names = contenders_of(rows)
        newest = {(names.index(r["contender"]), r["case"]["value"]): r for r in rows if clock in r}
        lines += [f"### {label[0].upper()}{label[1:]}", ""]
        lines += ["| | value | total, s | " + ", s | ".join(PHASES) + ", s | peak, MiB |", "|---" * 7 + "|"]
        for (_, value), r in sorted(newest.items()):
            cells = " | ".join(f"{r[clock][p]:.2f}" for p in ("total", *PHASES))
            lines.append(f"| {r['contender']} | {short(value)} | {cells} | {r['peak_mib']:.0f} |")
        lines.append("")
        for name in names:
            time_, memory = (series_of(records, series, name, key, clock) for key in ("total", "peak_mib"))
            if time_:
                lines.append(f"- {name}: time {bend(time_)}; memory {bend(memory)}")
        for name in names:
            missing: dict[float, str] = {}
            for r in rows:
                if r["contender"] == name and ("too_much" in r or "skipped" in r):
                    word = f"too much, {r['too_much']}" if "too_much" in r else f"not measured, {r['skipped']}"
                    missing[r["case"]["value"]] = word
                elif r["contender"] == name:
                    missing.pop(r["case"]["value"], None)
            lines += [f"- {name} at {short(value)}: {word}" for value, word in sorted(missing.items())]
        lines.append("")
    return "\n".join(lines)


def write_page(page: Path, text: str) -> None:
    """Put ``text`` between the marks of ``page``; what stands around them is kept."""
    old = page.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise SystemExit(f"{page}: lacks the lines {BEGIN} and {END} between which the results go")
    before, after = old.split(BEGIN)[0], old.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "draw", "list"])
    parser.add_argument("--trl", help="Python of TRL's environment; without it only ours run")
    parser.add_argument("--series", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--contenders", nargs="+", choices=[*OURS, *TRL], default=None)
    parser.add_argument("--iterations", type=int, default=5, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--apart", action="store_true", help="one contender in memory at a time, not in turns")
    parser.add_argument("--memory", type=int, default=9000, help="MiB of one process above which a series stops")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds of an iteration above which a series stops")
    parser.add_argument(
        "--budget", type=float, help="seconds of the whole run; points that would take longer are skipped"
    )
    parser.add_argument("--clock", choices=list(CLOCKS), default="seconds", help="what to draw")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of ours")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.jsonl")
    parser.add_argument("--page", type=Path, default=RESULTS / "scaling.md")
    options = parser.parse_args(words)
    if options.contenders is None:
        options.contenders = ["ours_bf16", *(["trl_float32", "trl_bfloat16"] if options.trl else [])]
    if options.action == "list":
        for case in middle_first(cases()):
            print(f"{case.series} {case.value:g}: {case}")
    elif options.action == "run":
        run(options)
    else:
        records = read(options.out)
        if not records:
            sys.exit(f"{options.out}: nothing measured yet; first: python benchmarks/scaling.py run")
        draw(records, options.page.with_suffix(".png"), options.clock)
        write_page(options.page, f"![cost of an iteration]({options.page.stem}.png)\n\n{bends(records, options.clock)}")
        print(f"{options.page} and {options.page.with_suffix('.png')}")


if __name__ == "__main__":
    main()
