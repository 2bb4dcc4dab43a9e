"""Win, tie and lose as stacked bars, as in Fig. 10 (by category and judge) and Fig. 11 (against a stronger system)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.report.figures import save_figure
from ppomax.report.text import label

Counts = Mapping[str, Any]
"""win, tie and lose"""
Groups = Mapping[str, Mapping[str, Counts]]
"""group of bars (a category) -> bar (a judge, a system) -> counts"""
PARTS = (("win", "#0072B2", "white"), ("tie", "#D9D9D9", "black"), ("lose", "#D55E00", "white"))
"""part, its colour, colour of its number; Okabe and Ito's, which colour-blind readers can tell apart"""
SUFFIXES = ("png", "svg")


def stacked_bars(
    groups: Groups, folder: Path, stem: str, *, title: str, words: Mapping[str, str], suffixes: Sequence[str] = SUFFIXES
) -> None:  # fmt: skip
    """``folder/stem.png`` and ``.svg`` (``suffixes``): one horizontal bar of 100% for each entry, with the numbers in it.

    ``words``: what win, tie and lose are called in the legend.
    """
    known = told_apart({name for entries in groups.values() for name in entries})
    bars = [(group, known[name], counts) for group, entries in groups.items() for name, counts in entries.items()]
    height = 0.36 * len(bars) + 0.3 * len(groups) + 1.3
    figure = Figure(figsize=(7.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    places: list[float] = []
    names: list[str] = []
    y, last = 0.0, None
    for group, name, counts in bars:
        if group != last:
            y += 0.35 if last is None else 0.85
            axis.text(0, y - 0.62, label(group), fontsize=9, fontweight="bold", ha="left", va="center")
            last = group
        total = sum(counts[part] for part, _, _ in PARTS)
        start = 0.0
        for part, colour, ink in PARTS:
            share = 100 * counts[part] / total if total else 0.0
            axis.barh(y, share, left=start, height=0.72, color=colour, label=words[part] if not places else None)
            if share >= 4:
                axis.text(start + share / 2, y, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
            start += share
        places.append(y)
        names.append(f"{_short(label(name))}  (n = {total})")
        y += 1.0
    axis.set_yticks(places, names, fontsize=8)
    axis.set(xlim=(0, 100), ylim=(y - 0.4, -0.6), xlabel="% of prompts")
    for edge in ("top", "right", "left"):
        axis.spines[edge].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, [folder / f"{stem}.{suffix}" for suffix in suffixes])


def draw_duel(result: Mapping[str, Any], folder: Path) -> None:
    """win_tie_lose (Fig. 10: A against B by category) and, of more than two systems, against_strongest (Fig. 11)."""
    judge = ", ".join(map(str, result["judge"]))
    rows = {**result["by_category"], "all": result["overall"]}
    stacked_bars(
        {name: {judge: part} for name, part in rows.items()}, folder, "win_tie_lose",
        title=_against(str(result["a"]), str(result["b"])),
        words={"win": "A wins", "tie": "tie", "lose": "A loses"},
    )  # fmt: skip
    if "ratings" not in result:
        return
    strongest = result["against_strongest"]["opponent"]
    against = {
        letter: counts for letter in result["systems"] if (counts := against_one(result["pairs"], letter, strongest))
    }
    categories = [*result["by_category"], "all"]
    known = told_apart(set(result["systems"].values()))
    names = {x: f"{x.upper()}: {known[system]}" for x, system in result["systems"].items()}
    stacked_bars(
        {name: {names[x]: parts[name] for x, parts in against.items()} for name in categories}, folder,
        "against_strongest", title=f"against the strongest by rating, {_short(label(names[strongest]))}; {judge}",
        words={"win": "wins", "tie": "tie", "lose": "loses"},
    )  # fmt: skip


def draw_judges(report: Mapping[str, Any], folder: Path) -> None:
    """win_tie_lose of several judges side by side (Fig. 10), from what `duel_report.report_duels` gives."""
    stacked_bars(
        report["by_category"], folder, "win_tie_lose",
        title=_against(str(report["a"]), str(report["b"])),
        words={"win": "A wins", "tie": "tie", "lose": "A loses"},
    )  # fmt: skip


def against_one(pairs: Sequence[Mapping[str, Any]], system: str, opponent: str) -> dict[str, Counts]:
    """Category (and "all") -> win, tie, lose of ``system`` against ``opponent``; empty where they are one."""
    for pair in pairs:
        parts = {**pair["by_category"], "all": pair["overall"]}
        if (pair["one"], pair["other"]) == (system, opponent):
            return {name: {word: part[word] for word in ("win", "tie", "lose")} for name, part in parts.items()}
        if (pair["one"], pair["other"]) == (opponent, system):
            return {
                name: {"win": part["lose"], "tie": part["tie"], "lose": part["win"]} for name, part in parts.items()
            }
    return {}


def told_apart(names: Collection[str]) -> dict[str, str]:
    """Names without the folders that all paths among them begin or end with: runs/a/final, runs/b/final -> a, b."""
    paths = {name: name.rstrip("/").split("/") for name in names if "/" in name and "://" not in name}
    parts = list(paths.values())
    for end in (0, -1):
        while len(parts) > 1 and all(len(p) > 1 for p in parts) and len({p[end] for p in parts}) == 1:
            for p in parts:
                del p[end]
    return {name: "/".join(paths.get(name, [name])) for name in names}


def _against(a: str, b: str) -> str:
    known = told_apart({a, b})
    return f"{_short(label(known[a]))} against {_short(label(known[b]))}"


def _short(name: str, most: int = 38) -> str:
    """The end of a long name, which tells paths apart."""
    return name if len(name) <= most else "..." + name[3 - most :]
