"""The tables of docs/results/speed.md, from the lines that ppo_iteration.py, reward_model.py and roofline.py wrote.

    python benchmarks/ppo_iteration.py --trl runs/trl/ppo/bin/python --out docs/results/speed.jsonl
    PPOMAX_DATA=DIR python benchmarks/reward_model.py --trl runs/trl/reward/bin/python --out docs/results/speed.jsonl
    python benchmarks/roofline.py --out docs/results/speed.jsonl
    python benchmarks/speed_page.py                          # Markdown on standard output

Only lines of kind "summary" are read; of several of one case the last one counts. What is wanted stands beside what was got:
response tokens (or pairs) a second, ours over TRL's; peak memory over that of TRL with float32 weights; the share of the
machine's own matrix rate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_iteration import PHASES, TRL

RESULTS = Path(__file__).parent.parent / "docs" / "results"
FASTER: dict[tuple[str, str], dict[str, float]] = {
    ("5.7m", "fixed"): {"trl_float32": 3.0, "trl_bfloat16": 1.8},
    ("27m", "fixed"): {"trl_float32": 3.0, "trl_bfloat16": 1.3},
    ("5.7m", "real"): {"trl_float32": 4.0, "trl_bfloat16": 2.5},
    ("27m", "real"): {"trl_float32": 4.0, "trl_bfloat16": 2.5},
}
"""times TRL's tokens a second that are wanted of ours_bf16, by (size, lengths)"""
MEMORY = 0.6
"""share of TRL's peak memory, with float32 weights, that ours_bf16 may take"""
PAIRS = 2.0
"""times the pairs a second of the fastest of TRL's contenders that are wanted of ours_bf16"""
SHARES = {"5.7m": 0.4, "27m": 0.5}
"""share of the machine's matrix rate at the same precision that scoring and updating shall reach; float32 is the easier one, and
what counts where the processor has no bf16"""


def newest(records: Sequence[dict[str, Any]], benchmark: str, *keys: str) -> list[dict[str, Any]]:
    """Summaries of one benchmark, the last one of each case; a case is what ``keys`` hold and what `--set` asked for."""
    found = {
        (*(r[k] for k in keys), *r["settings"].get("set", ())): r
        for r in records
        if r.get("kind") == "summary" and r.get("benchmark") == benchmark
    }
    return list(found.values())


def rows(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(r) + " |" for r in lines), ""]


def against(got: float | None, wanted: float | None, *, most: bool = False) -> list[str]:
    """Two cells, wanted and got, and whether it is met; ``most``: what is wanted is an upper bound."""
    if wanted is None or got is None:
        return ["", "" if got is None else f"{got:.2f}", ""]
    met = got <= wanted if most else got >= wanted
    return [f"{'at most ' if most else ''}{wanted:g}", f"{got:.2f}", "yes" if met else "no"]


def origin(record: dict[str, Any], versions: dict[str, dict[str, str] | None]) -> str:
    """One line: machine, load, rounds, and who ran with what."""
    machine, settings = record["machine"], record["settings"]
    words = [
        f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores, load {machine['load']:.1f}"
    ]
    words.append(f"{settings['iterations']} rounds after {settings['warmup']}")
    told: dict[str, list[str]] = {}
    for name, found in versions.items():
        told.setdefault(", ".join(f"{k} {v}" for k, v in (found or {}).items()), []).append(name)
    words += [f"{' and '.join(names)}: {text}" if text else " and ".join(names) for text, names in told.items()]
    return "; ".join(words) + "."


def contenders(record: dict[str, Any], phases: Sequence[str], unit: str) -> list[str]:
    """A row a contender: medians by the clock, the range of the whole, and what else was measured."""
    head = [
        "",
        *(f"{p}, s" for p in phases),
        "whole, s",
        "fastest to slowest",
        "processor, s",
        f"{unit}/s",
        "peak, MiB",
    ]
    lines = []
    for name, row in record["summary"].items():
        cells = [f"{row['seconds'][p]:.2f}" for p in (*phases, "total")]
        cells += [f"{row['fastest']:.2f} to {row['slowest']:.2f}", f"{row['cpu_seconds']['total']:.2f}"]
        lines.append([name, *cells, f"{row['units_per_s']:.1f}", f"{row['peak_mib']:.0f}"])
    return rows(head, lines)


def ratio_rows(record: dict[str, Any], wanted: dict[str, float], memory: float | None) -> list[str]:
    """A row for each of ours beside each of TRL's, speed and memory; ``wanted`` by TRL's contender, of ours_bf16 only."""
    head = ["", "wanted", "got", "met", "by round", "by processor time", "peak memory", "wanted", "met"]
    lines = []
    for name, found in record["ratios"].items():
        ours, theirs = name.split(" / ")
        aim = wanted.get(theirs) if ours == "ours_bf16" else None
        speed = against(found["ratio"], aim)
        share = record["summary"][ours]["peak_mib"] / record["summary"][theirs]["peak_mib"]
        bound = memory if aim is not None and theirs == "trl_float32" else None
        room, _, kept = against(share, bound, most=True)
        cpu = found["cpu_seconds"]["total"] if isinstance(found["cpu_seconds"], dict) else found["cpu_seconds"]
        by_round = f"{found['lowest']:.2f} to {found['highest']:.2f}"
        lines.append([f"{ours} over {theirs}", *speed, by_round, f"{cpu:.2f}", f"{share:.2f}", room, kept])
    return rows(head, lines)


def versions_of(record: dict[str, Any]) -> dict[str, dict[str, str] | None]:
    return {name: row.get("versions") for name, row in record["summary"].items()}


def ppo_tables(records: Sequence[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for record in newest(records, "ppo_iteration", "size", "lengths"):
        title = f"PPO, {record['size']} ({record['parameters'] / 1e6:.1f}M parameters), {record['lengths']} lengths"
        title = ", ".join([title, *record["settings"].get("set", ())])
        wanted = FASTER.get((record["size"], record["lengths"]), {})
        lines += [f"### {title}", "", origin(record, versions_of(record)), "", *contenders(record, PHASES, "tokens")]
        updates = {row["updates"] for row in record["summary"].values()}
        if len(updates) > 1:
            lines += [f"NOT COMPARABLE: {updates} updates an iteration", ""]
        lines += ratio_rows(record, wanted, MEMORY) if record["ratios"] else []
    return lines


def reward_tables(records: Sequence[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for record in newest(records, "reward_model"):
        speeds = {n: r["units_per_s"] for n, r in record["summary"].items() if n in TRL}
        wanted = {max(speeds, key=lambda n: speeds[n]): PAIRS} if speeds else {}
        title = f"Reward model, {record['parameters'] / 1e6:.1f}M parameters, {record['pairs']} pairs a pass"
        lines += [f"### {title}", "", origin(record, versions_of(record)), "", *contenders(record, (), "pairs")]
        lines += ratio_rows(record, wanted, None) if record["ratios"] else []
    return lines


def share_tables(records: Sequence[dict[str, Any]]) -> list[str]:
    found = newest(records, "roofline", "size", "precision")
    head = [
        "",
        "seconds",
        "at 100%, s",
        "wanted",
        "got",
        "met",
        "matrix products",
        "attention",
        "elementwise, copies, casts",
    ]
    lines: list[str] = []
    for record in found:
        table = []
        for phase in PHASES:
            got = record["at_100"][phase] / record["seconds"][phase]
            aim = SHARES.get(record["size"]) if phase != "sample" else None
            groups = record["groups"][phase]
            parts = [groups.get("matrix products", 0.0), groups.get("attention", 0.0), elementwise(groups)]
            cells = [f"{record['seconds'][phase]:.2f}", f"{record['at_100'][phase]:.2f}", *against(got, aim)]
            table.append([phase, *cells, *(f"{x:.0%}" for x in parts)])
        whole = sum(record["seconds"].values()), sum(record["at_100"].values())
        table.append(["whole", f"{whole[0]:.2f}", f"{whole[1]:.2f}", "", f"{whole[1] / whole[0]:.2f}", "", "", "", ""])
        lines += [f"### Share of the matrix rate, {record['size']}, {record['precision']}", ""]
        lines += [origin(record, {"ours": record["versions"]}), "", *rows(head, table)]
    return lines


def elementwise(groups: dict[str, float]) -> float:
    return groups.get("elementwise", 0.0) + groups.get("copies and casts", 0.0)


def page(records: Sequence[dict[str, Any]]) -> str:
    return "\n".join([*ppo_tables(records), *reward_tables(records), *share_tables(records)]).rstrip() + "\n"


def main(words: Sequence[str] | None = None) -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="?", type=Path, default=RESULTS / "speed.jsonl")
    options = parser.parse_args(words)
    if not options.records.exists():
        raise SystemExit(f"{options.records}: nothing measured yet; see the head of this file for the commands")
    lines = options.records.read_text(encoding="utf-8").splitlines()
    print(page([json.loads(line) for line in lines if line]), end="")


if __name__ == "__main__":
    main()
