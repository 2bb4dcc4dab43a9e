"""Seconds and memory of a PPO iteration as the work grows, ours beside TRL 1.12.0: parameters, lengths, batch, vocabulary.

    python benchmarks/scaling.py run --trl runs/trl/ppo/bin/python     # resumable: finished cases are skipped
    python benchmarks/scaling.py draw                                  # docs/results/scaling.png and .md's table

One thing grows at a time from a common middle: 5.7M parameters, vocabulary 4096, 32 prompts of 64 tokens, 64 new tokens (fixed
lengths). Settings, contenders, turns and medians as in ppo_iteration.py, which see. A case that needs more memory than
``--memory`` MiB by one of its contenders, or longer than ``--limit`` seconds an iteration, is written down as that, and larger
ones of the same series are left out for that contender. Lines of JSON go to docs/results/scaling.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from contest import Contender, append_line, machine, run_in_turns, say, summarise
from fixtures import SHAPES, Shape, make_start, parameters
from ppo_iteration import OURS, PHASES, TRL, make_contender

RESULTS = Path(__file__).parent.parent / "docs" / "results"
BEGIN, END = "<!-- begin: drawn by benchmarks/scaling.py -->", "<!-- end -->"
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


def read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def same(record: dict[str, Any], case: Case, contender: str) -> bool:
    return record["case"] == dataclasses.asdict(case) and record["contender"] == contender


def left_out(records: Sequence[dict[str, Any]], case: Case, contender: str) -> str | None:
    """Why this point is not to be measured (again): done, or a smaller one of its series was already too much."""
    for record in records:
        if same(record, case, contender):
            return "done"
        smaller = record["case"]["series"] == case.series and record["case"]["value"] < case.value
        if smaller and record["contender"] == contender and record.get("too_much"):
            return f"{record['too_much']} at {record['case']['value']:g}"
    return None


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
                    "machine": machine(options.threads), **row,
                }  # fmt: skip
                if row["peak_mib"] > options.memory:
                    line["too_much"] = f"more than {options.memory} MiB"
                elif row["seconds"]["total"] > options.limit:
                    line["too_much"] = f"more than {options.limit:g} s"
                append_line(options.out, line)


def run(options: argparse.Namespace) -> None:
    wanted = [case for case in cases() if case.series in options.series]
    for case in wanted:
        done = read(options.out)
        reasons = {name: left_out(done, case, name) for name in options.contenders}
        say(f"{case.series} {case.value:g}: " + ", ".join(f"{n} ({r or 'to do'})" for n, r in reasons.items()))
        names = [name for name, reason in reasons.items() if reason is None]
        if names:
            measure(case, names, options)


# -------------------------------------------------------------------------------------------------------- drawing


def exponent(points: Sequence[tuple[float, float]]) -> list[float]:
    """Slopes of log seconds over log value between neighbours: 1 = in proportion."""
    return [math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in pairwise(points) if b[0] != a[0]]


def series_of(records: Sequence[dict[str, Any]], series: str, contender: str, key: str) -> list[tuple[float, float]]:
    """(value, seconds or MiB) in growing order; the newest of equal points."""
    found = {}
    for r in records:
        if r["case"]["series"] == series and r["contender"] == contender and "seconds" in r:
            found[r["case"]["value"]] = r["peak_mib"] if key == "peak_mib" else r["seconds"][key]
    return sorted(found.items())


def draw(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Two rows of panels, seconds above memory, a column for each series; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [s for s in AXES if any(r["case"]["series"] == s for r in records)]
    names = list(dict.fromkeys(r["contender"] for r in records))
    figure, axes = pyplot.subplots(2, len(shown), figsize=(3.6 * len(shown), 6.4), squeeze=False, layout="constrained")
    for column, series in enumerate(shown):
        for row, (key, label) in enumerate((("total", "seconds an iteration"), ("peak_mib", "peak memory, MiB"))):
            panel = axes[row][column]
            for name in names:
                points = series_of(records, series, name, key)
                if points:
                    style = "-" if name in OURS else "--"
                    panel.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=name)
            panel.set(xscale="log", yscale="log", xlabel=AXES[series], ylabel=label if column == 0 else None)
            panel.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def bends(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: by series and contender the points and the exponents between them, and what was too much."""
    lines: list[str] = []
    for series, label in AXES.items():
        rows = [r for r in records if r["case"]["series"] == series]
        if not rows:
            continue
        lines += [
            f"### {label[0].upper()}{label[1:]}",
            "",
            "| | value | total, s | " + ", s | ".join(PHASES) + ", s | peak, MiB |",
        ]
        lines += ["|---" * 7 + "|"]
        for r in sorted((r for r in rows if "seconds" in r), key=lambda r: (r["contender"], r["case"]["value"])):
            cells = " | ".join(f"{r['seconds'][p]:.2f}" for p in ("total", *PHASES))
            lines.append(f"| {r['contender']} | {r['case']['value']:g} | {cells} | {r['peak_mib']:.0f} |")
        lines.append("")
        for name in dict.fromkeys(r["contender"] for r in rows):
            slopes = {key: exponent(series_of(records, series, name, key)) for key in ("total", "peak_mib")}
            if slopes["total"]:
                seconds = ", ".join(f"{x:.2f}" for x in slopes["total"])
                memory = ", ".join(f"{x:.2f}" for x in slopes["peak_mib"])
                lines.append(f"- {name}: exponents between neighbours, seconds {seconds}; memory {memory}")
        for r in rows:
            if r.get("too_much"):
                lines.append(f"- {r['contender']} stopped at {r['case']['value']:g}: {r['too_much']}")
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
    parser.add_argument("--iterations", type=int, default=3, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--apart", action="store_true", help="one contender in memory at a time, not in turns")
    parser.add_argument("--memory", type=int, default=9000, help="MiB of one process above which a series stops")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds of an iteration above which a series stops")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="further settings of ours")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.jsonl")
    parser.add_argument("--page", type=Path, default=RESULTS / "scaling.md")
    options = parser.parse_args(words)
    if options.contenders is None:
        options.contenders = ["ours_bf16", *(["trl_float32", "trl_bfloat16"] if options.trl else [])]
    if options.action == "list":
        for case in cases():
            print(f"{case.series} {case.value:g}: {case}")
    elif options.action == "run":
        run(options)
    else:
        records = read(options.out)
        if not records:
            sys.exit(f"{options.out}: nothing measured yet; first: python benchmarks/scaling.py run")
        draw(records, options.page.with_suffix(".png"))
        write_page(options.page, f"![cost of an iteration]({options.page.stem}.png)\n\n{bends(records)}")
        print(f"{options.page} and {options.page.with_suffix('.png')}")


if __name__ == "__main__":
    main()
