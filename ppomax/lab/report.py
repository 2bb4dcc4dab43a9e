"""docs/results/claims.md: every claim with its verdict, numbers, figure and rule, made from finished runs alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppomax.lab.claims import COLDEST, HOTTEST, Claim
from ppomax.lab.figures import claim_figure, over_optimisation
from ppomax.lab.paper_figures import EXTRAS
from ppomax.lab.plan import Planner, world_code
from ppomax.lab.results import Result, cached, not_finite, other_start, read_results
from ppomax.lab.statistics import FIRST, curve, estimate, known, onset, turn
from ppomax.lab.verdicts import UNRUN, Verdict, verdict
from ppomax.report.markdown import number
from ppomax.train.checkpoint import write_atomic
from ppomax.train.progress import ProgressLine

Found = dict[str, dict[int, Result]]
MONITORS: Mapping[str, tuple[str, ...]] = {
    "reward distribution": ("reward/mean", "reward/std"),
    "KL": ("kl/ref_k3",),
    "perplexity": ("policy/perplexity",),
    "length": ("response/length",),
}
"""section 5.2's four; a monitor of two numbers turns with the first of them"""
FALL = 0.05
"""the win rate has fallen once it stays so far below its smoothed best"""
OVER = ("C1", "C1b", "C4")
"""claims whose arms are drawn over sqrt(KL)"""


def write_report(
    planner: Planner, claims: Mapping[str, Claim], chosen: Sequence[str], results_dir: Path, page: Path, *,
    apart: str = "", seeds: Sequence[int] | None = None, notes: Path | None = None,
) -> list[str]:  # fmt: skip
    """Write the page and its figures (in a folder of the page's name); returns what was done, in lines.

    ``apart``: "fast" or "dev", whose runs are not counted. ``notes``: text for the end of the page.
    """
    results = read_results(results_dir)
    found = gather(planner, claims, chosen, results, apart=apart, seeds=seeds)
    verdicts = {name: verdict(claims[name], found[name], apart=apart) for name in chosen}
    used = {r.key for arms in found.values() for by_seed in arms.values() for r in by_seed.values()}
    kept = [r for r in results.values() if r.key in used]
    figures = page.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    blocks = [
        "# The paper's claims, tested in the embedded world",
        intro(kept, len(results) - len(kept), apart),
        table(claims, chosen, verdicts),
    ]
    with ProgressLine("report", len(chosen) + 1) as bar:
        for name in chosen:
            blocks += section(name, claims[name], verdicts[name], found[name], figures, apart)
            bar.step(figure=name)
        blocks += beyond(found, figures)
        bar.step(figure="beyond the paper")
    if notes is not None and notes.is_file():
        blocks.append(notes.read_text(encoding="utf-8").strip())
    write_atomic(page, "\n\n".join(b for b in blocks if b) + "\n")
    counts = Counter(v.outcome for v in verdicts.values())
    return [f"{page}: {len(chosen)} claims: {', '.join(f'{n} {what}' for what, n in counts.most_common())}"]


def gather(
    planner: Planner, claims: Mapping[str, Claim], chosen: Sequence[str], results: Mapping[str, Result], *,
    apart: str = "", seeds: Sequence[int] | None = None,
) -> dict[str, Found]:  # fmt: skip
    """Claim -> arm -> seed -> its finished run; arms without one are left out."""
    wanted = list(seeds if seeds is not None else planner.common.seeds)
    if apart == "dev" and seeds is None:
        wanted = sorted({r.seed for r in results.values()}) or [101]
    runs = planner.runs(claims, chosen, wanted)
    found: dict[str, Found] = {name: {} for name in chosen}
    for name in chosen:
        for arm, by_seed in runs.get(name, {}).items():
            here = {seed: r for seed, run in by_seed.items() if (r := cached(run, results)) is not None}
            if here:
                found[name][arm] = here
    return found


def intro(kept: Sequence[Result], unused: int, apart: str) -> str:
    """What the page rests on."""
    worlds = sorted({str(r.header["world"]) for r in kept if r.header["world"]})
    lines = [
        "Made by `ppomax lab report` from the files in the results folder. The rules were written before the runs; "
        "intervals are 95% over seeds (Student's t, paired by seed where arms are compared)."
    ]
    if apart:
        lines.append(f"**These are {apart} runs: a look, not counted.**")
    if worlds:
        lines.append(f"World version and hash: {', '.join(f'`{w}`' for w in worlds)}. Finished runs: {len(kept)}.")
    elif kept:
        lines.append(f"From a start that was given, in no world of ours. Finished runs: {len(kept)}.")
    else:
        lines.append(
            f"No run of the present settings is finished. The world's version and hash are now `{world_code()}`."
        )
    if people := learnt_from(kept):
        lines.append(people)
    if unused:
        lines.append(f"{unused} further result files are of other settings, claims or worlds and do not count.")
    return " ".join(lines)


def learnt_from(kept: Sequence[Result]) -> str:
    """Annotators and reward models of the ordinary starts, as the paper reports them: ranges over seeds."""
    starts = {r.seed: r.header["start"] for r in kept if r.header["arm"] in ("vanilla", "ppo_max")}
    ranges = []
    for what, kind, number_of in (
        ("annotators' accuracy", "pairs", lambda facts: facts["annotators"]["accuracy"]),
        ("their agreement with one another", "pairs", lambda facts: facts["annotators"]["agreement"]),
        ("the reward models' accuracy on held-out pairs", "reward", lambda facts: facts["accuracy"]),
    ):
        asked = [
            known(number_of(facts))
            for start in starts.values()
            for name, facts in start.items()
            if re.fullmatch(rf"{kind}-[0-9a-f]{{8}}", name)
        ]
        if found := [value for value in asked if value == value]:
            told = "" if len(found) == len(asked) else f" ({len(found)} of {len(asked)} finite)"
            ranges.append(f"{what} {min(found):.1%} to {max(found):.1%}{told}")
    return f"Over the starts of vanilla and ppo_max: {', '.join(ranges)}." if ranges else ""


def table(claims: Mapping[str, Claim], chosen: Sequence[str], verdicts: Mapping[str, Verdict]) -> str:
    lines = ["| | claim | verdict | in numbers | seeds | command |", "|---|---|---|---|---|---|"]
    for name in chosen:
        v = verdicts[name]
        why = v.why.replace("|", "/") or "-"
        lines.append(
            f"| [{name}](#{name.lower()}) | {_line(claims[name].claim)} | **{v.outcome}** | {why} | "
            f"{len(v.seeds)} of {claims[name].rule.seeds} | `ppomax lab run {name}` |"
        )
    return "\n".join(lines)


def section(name: str, claim: Claim, v: Verdict, arms: Found, figures: Path, apart: str) -> list[str]:
    """One claim."""
    blocks = [
        f"## {name}",
        f"{_line(claim.claim)} (Figure {claim.figure})".replace("Figure contribution", "contribution"),
    ]
    blocks.append(f"**{v.outcome}**" + (f": {v.why}." if v.why else "."))
    if arms:
        file = figures / f"{name}.png"
        claim_figure(arms, claim.metrics, file)
        blocks.append(f"![{name}: arms over training]({figures.name}/{file.name})")
        extra = EXTRAS.get(claim.rule.function)
        if extra is not None and extra.draw(arms, file := figures / f"{name}_{extra.name}.png"):
            blocks.append(f"{extra.caption}\n\n![{name}: {extra.name}]({figures.name}/{file.name})")
    blocks.append(f"Rule: {_line(claim.rule.words)}")
    if v.numbers:
        lines = ["| number | mean over seeds [95% interval] |", "|---|---|"]
        blocks.append("\n".join([*lines, *(f"| {what} | {value} |" for what, value in v.numbers)]))
    if arms:
        blocks.append(endpoints(arms))
    else:
        words = ", ".join(f"`{arm}`" for arm in claim.arms)
        blocks.append(
            f"Arms: {words}. {UNRUN.capitalize()}: `ppomax lab run {name}{' --fast' if apart == 'fast' else ''}`."
        )
    if claim.notes:
        blocks.append(_line(claim.notes))
    return blocks


def endpoints(arms: Found) -> str:
    """The last evaluation of every arm."""
    forms = {
        "same_temperature": "SFT sampled alike", "matched_entropy": "SFT as sharp", "against_greedy": "SFT greedy",
        "both_greedy": "both greedy",
    }  # fmt: skip
    head = ["arm", "seeds", *forms.values(), "entropy, SFT's", "temperature as sharp", "hours"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, by_seed in arms.items():
        rows = [r.endpoint for r in by_seed.values()]
        cells = [str(estimate([row[form]["win_rate"] for row in rows])) for form in forms]
        own, sft, matched = (
            estimate([row["entropy"][what] for row in rows]).mean for what in ("policy", "sft", "matched_temperature")
        )
        temperature = f"{matched:.3g}"
        if at_bound := sum(not COLDEST < known(row["entropy"]["matched_temperature"]) < HOTTEST for row in rows):
            temperature += f" ({at_bound} of {len(rows)} at the search's bound)"
        spent = sum(sum(r.header["seconds"][k] for k in ("training", "endpoint")) for r in by_seed.values()) / 3600
        seeds = ", ".join(map(str, by_seed))
        start = next((s for r in by_seed.values() if (s := other_start(r))), None)
        shown = f"{name}, against its own start (`{start}`)" if start else name
        lines.append(
            f"| {shown} | {seeds} | {' | '.join(cells)} | {own:.3g}, {sft:.3g} | {temperature} | {spent:.2g} |"
        )
    told = []
    if any("at the search's bound" in line for line in lines):
        told.append(
            f"At the search's bound: the temperature is sought between {COLDEST} and {HOTTEST:.0f}, and at that bound SFT is "
            "not yet as sharp (or as blunt) as the policy."
        )
    if any("against its own start" in line for line in lines):
        told.append(
            "Against its own start: for this arm, every column says of its start what it says of SFT for the others."
        )
    told += [
        f"{name}, seed {seed}, diverged ({r.header['diverged']['told']}) and counts as it was after "
        f"{r.header['diverged']['policy_iterations']} iterations."
        for name, by_seed in arms.items()
        for seed, r in by_seed.items()
        if "diverged" in r.header
    ]
    told += [
        f"{name}, seed {seed}: no finite number, so left out of means and curves: {', '.join(missing)}."
        for name, by_seed in arms.items()
        for seed, r in by_seed.items()
        if (missing := not_finite(r))
    ]
    return "\n\n".join(["Win rates of the last evaluation:", "\n".join(lines), *told])


# ------------------------------------------------------------------------------------ beyond the paper


def turns(result: Result) -> dict[str, int | None]:
    """Monitor -> the update at which it turns, from the training metrics."""
    out: dict[str, int | None] = {}
    for name, metrics in MONITORS.items():
        at = [t for metric in metrics if (t := turn(*curve(result, metric))) is not None]
        out[name] = min(at) if at else None
    return out


def fall(result: Result) -> int | None:
    """The update from which the win rate stays `FALL` below its smoothed best; None where it does not fall."""
    updates, values = curve(result, "eval/win_rate")
    at = onset(updates, values, FALL)
    return at if updates and at < updates[-1] else None


def beyond(found: Mapping[str, Found], figures: Path) -> list[str]:
    """Over-optimisation, and which monitor turns first."""
    arms: Found = {arm: by_seed for name in OVER for arm, by_seed in found.get(name, {}).items()}
    everything: Found = {arm: by_seed for claim in found.values() for arm, by_seed in claim.items()}
    if not everything:
        return []
    blocks = ["## Beyond the paper"]
    if arms:
        over_optimisation(arms, figures / "over_optimisation.png")
        blocks += [
            "Proxy and true score over the square root of KL to SFT: where the first goes on and the second turns, the "
            "reward model is over-optimised. The lower panels show the part near SFT.",
            f"![Over-optimisation]({figures.name}/over_optimisation.png)",
        ]
    return [*blocks, monitor_table(everything)]


def monitor_table(arms: Found) -> str:
    """Which of the four monitors turns first, and how long before the win rate falls."""
    words = (
        "Which monitor turns first? A monitor (means over a few iterations of training) turns where it leaves, in two "
        f"successive values, the band around a line through its first {FIRST} values (Theil and Sen; 3 robust standard "
        f"deviations, at least 5% of the level). The win rate falls where it stays {100 * FALL:.0f} points below its smoothed best, seen "
        "in evaluations that lie further apart. Numbers are policy updates, means over the seeds in which both happen; "
        "positive: the monitor turns before the win rate falls. First to turn: over all seeds, those that never fall too."
    )
    head = ["arm", "seeds that fall", "falls at", *(f"{name}: lead" for name in MONITORS), "first to turn"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, by_seed in arms.items():
        falls = {seed: fall(r) for seed, r in by_seed.items()}
        turned = {seed: turns(r) for seed, r in by_seed.items()}
        fallen = [seed for seed, at in falls.items() if at is not None]
        firsts: Counter[str] = Counter()
        for by_monitor in turned.values():
            known = {m: at for m, at in by_monitor.items() if at is not None}
            if known:
                firsts.update(m for m, at in known.items() if at == min(known.values()))
        cells = [name, f"{len(fallen)} of {len(by_seed)}"]
        cells.append(number(estimate([float(falls[s] or 0) for s in fallen]).mean) if fallen else "-")
        for monitor in MONITORS:
            leads: list[Any] = [falls[s] - t for s in fallen if (t := turned[s][monitor]) is not None]  # type: ignore[operator]
            cells.append(f"{estimate(leads).mean:+.0f} (n = {len(leads)})" if leads else "-")
        cells.append(", ".join(f"{m} {n}" for m, n in firsts.most_common()) or "none")
        lines.append(f"| {' | '.join(cells)} |")
    return f"{words}\n\n" + "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())
