"""Figures of single claims, drawn as the paper draws them: Fig. 3 (C14), Fig. 10 (C15), Fig. 11 (C16), Fig. 12 (C12).

Each is made from finished runs; one whose numbers no run has is left out. Shares are means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.evaluate.duel_figures import Counts, stacked_bars
from ppomax.lab.results import Result, reward_facts
from ppomax.lab.statistics import estimate, known
from ppomax.report.figures import COLOURS, MARKERS, STYLES, save_figure

Arms = Mapping[str, Mapping[int, Result]]
PARTS = ("win", "tie", "lose")
TRUTH, SECOND = "the truth", "second judge"
EXAM_TOTALS = ("all", "chance", "n")
"""of an exam's numbers: those that are no group's"""


class Extra(NamedTuple):
    """A figure of one claim beside its curves."""

    name: str
    """of the file, after the claim's"""
    caption: str
    draw: Callable[[Arms, Path], bool]
    """draws into the file; False where there is nothing to draw"""


# ------------------------------------------------------------------------------------- win, tie, lose


def counted(compared: Sequence[tuple[Mapping[str, Any], int]]) -> Counts:
    """win, tie and lose of several seeds added up; each as (shares and ``prompts``, draws). What is not finite is left out."""
    total = dict.fromkeys(PARTS, 0)
    for part, draws in compared:
        answers = part["prompts"] * draws
        win, tie, lose = (known(part[word]) for word in PARTS)
        if win == win and tie == tie and lose == lose:
            total["win"] += round(win * answers)
            total["tie"] += round(tie * answers)
            total["lose"] += answers - round(win * answers) - round(tie * answers)
    return total


def by_category(forms: Mapping[str, Sequence[tuple[Mapping[str, Any], int]]]) -> dict[str, dict[str, Counts]]:
    """Category (``all`` last) -> bar -> counts, from bar -> (comparison of the last evaluation, draws) of every seed."""
    groups = list(dict.fromkeys(c for compared in forms.values() for part, _ in compared for c in part["by_category"]))
    parts = {
        group: {
            bar: counted(
                [(part["by_category"][group], draws) for part, draws in compared if group in part["by_category"]]
            )
            for bar, compared in forms.items()
        }
        for group in groups
    }
    return {**parts, "all": {bar: counted(compared) for bar, compared in forms.items()}}


def duels_with_sft(arms: Arms) -> dict[str, dict[str, Counts]]:
    """Fig. 10: policy against SFT sampled alike, by category and by both judges (the second one: all prompts only)."""
    truth = {
        f"{arm}: {TRUTH}": [(r.endpoint["same_temperature"], r.endpoint["draws"]) for r in by_seed.values()]
        for arm, by_seed in arms.items()
    }
    groups = by_category(truth)
    for arm, by_seed in arms.items():
        compared = []
        for r in by_seed.values():
            if "second_judge" in r.endpoint:  # it sees the first draw and knows no tie
                won = known(r.endpoint["second_judge"]["win_rate"])
                compared.append(({"win": won, "tie": 0.0, "lose": 1 - won, "prompts": r.endpoint["prompts"]}, 1))
        if compared:
            groups["all"][f"{arm}: {SECOND}"] = counted(compared)
    return groups


def duels_with_opponent(arms: Arms) -> dict[str, dict[str, Counts]]:
    """Fig. 11: policy and SFT against the stronger opponent, by category."""
    forms = {
        (arm if who == "policy" else f"SFT, start of {arm}"): [
            (r.endpoint["opponent"][who], r.endpoint["draws"]) for r in by_seed.values() if "opponent" in r.endpoint
        ]
        for arm, by_seed in arms.items()
        for who in ("sft", "policy")
    }
    return by_category(forms)


def _bars(groups: Mapping[str, Mapping[str, Counts]], path: Path, title: str) -> bool:
    if not any(counts[word] for bars in groups.values() for counts in bars.values() for word in PARTS):
        return False
    words = {"win": "wins", "tie": "tie", "lose": "loses"}
    stacked_bars(groups, path.parent, path.stem, title=title, words=words, suffixes=(path.suffix[1:],))
    return True


def win_tie_lose(arms: Arms, path: Path) -> bool:
    return _bars(duels_with_sft(arms), path, "policy against SFT sampled alike, last evaluation")


def against_opponent(arms: Arms, path: Path) -> bool:
    return _bars(duels_with_opponent(arms), path, "against the world's stronger opponent, last evaluation")


# ----------------------------------------------------------------------------------------------- exam


def exam_scores(arms: Arms) -> dict[str, dict[str, list[float]]]:
    """Bar (SFT, then the arms) -> group of the exam (``all`` last) -> accuracy of every seed."""
    taken = {
        arm: [r.endpoint["exam"] for r in by_seed.values() if "exam" in r.endpoint] for arm, by_seed in arms.items()
    }
    sitters = {arm: [exam["policy"] for exam in exams] for arm, exams in taken.items() if exams}
    most = max(taken.values(), key=len, default=[])  # arms of one seed have one SFT
    return {
        bar: {group: [known(score[group]) for score in scores] for group in _groups(scores)}
        for bar, scores in {"SFT": [exam["sft"] for exam in most], **sitters}.items()
        if scores
    }


def _groups(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    return [*(name for name in scores[0] if name not in EXAM_TOTALS), "all"]


def exam_by_group(arms: Arms, path: Path) -> bool:
    """Fig. 12: bars are means over seeds, dots single seeds."""
    scores = exam_scores(arms)
    if not scores:
        return False
    groups = list(next(iter(scores.values())))
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(scores)
    for i, (bar, by_group) in enumerate(scores.items()):
        at = np.arange(len(groups)) + (i - (len(scores) - 1) / 2) * width
        colour = COLOURS[i % len(COLOURS)]
        means = [100 * estimate(by_group[group]).mean for group in groups]
        count = len(by_group["all"])
        axis.bar(at, means, width=0.92 * width, color=colour, alpha=0.6, label=f"{bar} (n = {count})")
        for x, mean, group in zip(at, means, groups, strict=True):
            seeds = [100 * value for value in by_group[group]]
            axis.plot(
                np.full(len(seeds), x), seeds, "o", color=colour, markersize=3.5, markeredgecolor="black", mew=0.4
            )
            axis.text(x, 2, f"{mean:.0f}", ha="center", va="bottom", fontsize=8)
    chance = estimate(
        [r.endpoint["exam"]["sft"].get("chance") for a in arms.values() for r in a.values() if "exam" in r.endpoint]
    )
    if chance.n:
        axis.axhline(100 * chance.mean, color="black", linewidth=0.8, linestyle=":", label="chance")
    axis.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    axis.set(ylabel="% of the questions right", ylim=(0, 104))
    axis.grid(alpha=0.25, axis="y")
    figure.legend(loc="outside upper center", ncols=4, title="exam by group; bar: mean over seeds, dot: a seed")
    save_figure(figure, path)
    return True


# --------------------------------------------------------------------------------------- reward models


def reward_accuracy(arms: Arms, path: Path) -> bool:
    """Fig. 3: accuracy of the arms' reward models over their training, from what `work.start_facts` keeps.

    A line a seed: pairs of each update before they are trained on, which in the first epoch have never been seen. The
    marker at its end: held-out pairs. Results of older versions have these alone: dotted, right across.
    """
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    courses = 0
    for i, (arm, by_seed) in enumerate(arms.items()):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        name: str | None = arm
        for result in by_seed.values():
            try:
                facts = reward_facts(result)
            except KeyError:
                continue
            if "curve" not in facts:
                held_out = None if name is None else f"{arm}, held-out pairs at its end"
                axis.axhline(known(facts["accuracy"]), color=colour, linestyle=":", linewidth=1, label=held_out)
                name = None
                continue
            courses += 1
            updates, values = facts["curve"]["update"], [known(v) for v in facts["curve"]["accuracy"]]
            axis.plot(updates, values, color=colour, linestyle=style, linewidth=1.3, alpha=0.8, label=name)
            axis.plot(updates[-1:], [known(facts["accuracy"])], MARKERS[i % len(MARKERS)], color=colour, markersize=7)
            name = None
    if not courses:
        return False
    axis.set(
        xlabel="updates of the reward model", ylabel="pairs in the right order", title="accuracy of the reward models"
    )
    axis.grid(alpha=0.25)
    axis.legend(title="line: pairs of each update; marker: held-out pairs at the end")
    save_figure(figure, path)
    return True


EXTRAS: Mapping[str, Extra] = {
    "early_model": Extra(
        "accuracy", "Accuracy of the reward models over their training, as in Figure 3.", reward_accuracy
    ),
    "beats": Extra(
        "win_tie_lose",
        "Win, tie and lose against SFT sampled alike, by category and judge, as in Figure 10. The second judge saw one answer "
        "to each prompt, and has no ties.",
        win_tie_lose,
    ),
    "loses_less": Extra(
        "opponent", "Win, tie and lose against the stronger opponent, by category, as in Figure 11.", against_opponent
    ),
    "tax": Extra("exam", "The exam by group, as in Figure 12.", exam_by_group),
}
"""by the rule's function"""
