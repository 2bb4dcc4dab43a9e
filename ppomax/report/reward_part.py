"""What a page says of reward-model runs (section 4 of the paper). ``runs``: name -> what the run left behind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

from ppomax.evaluate.reward_figures import draw_calibration, draw_gap_histogram
from ppomax.evaluate.reward_model import accuracy_rows
from ppomax.report.figures import REWARD_PANELS, series_of
from ppomax.report.frame import Figures, Picture
from ppomax.report.markdown import number, share
from ppomax.report.ppo_part import LONGEST_TEXT, panels_figure
from ppomax.report.stages import Stage, read_lines
from ppomax.report.text import shortened
from ppomax.report.verdicts import Verdicts, judge_reward_model

Runs = Mapping[str, Stage]
MOST_WRONG = 100
"""confidently wrong pairs on a page at most, over all runs; disagreements.jsonl has more"""


def verdict(run: Stage) -> list[str]:
    """How right it is beside its baselines, and whether that is more than length; then what stands out by source."""
    verdicts = Verdicts()
    judge_reward_model(run, verdicts)
    if not verdicts.said:
        return ["No held-out pairs were evaluated yet."]
    first, *rest = verdicts.said
    return [first, *rest[-1:], *rest[:-1]]


def summary(run: Stage) -> str:
    """How much was done."""
    seconds = sum((row.get("time/update") or 0.0) + (row.get("time/eval") or 0.0) for row in run.metrics)
    last = run.metrics[-1] if run.metrics else {}
    unfinished = "" if run.evaluation else " Not finished."
    return (
        f"{last.get('update', 0)} updates, {number(last.get('epoch'))} epochs, {seconds / 60:.1f} minutes.{unfinished}"
    )


def tables(run: Stage) -> dict[str, Any]:
    """``head`` and ``rows`` of the accuracies, and ``besides`` [(number, value)]."""
    held_out = run.evaluation.get("held_out")
    if not held_out:
        return {}
    accuracies = accuracy_rows(held_out)
    gap = held_out["gap"]
    besides = [
        ("mean gap (std)", f"{number(gap['mean'])} ({number(gap['std'])})"),
        ("calibration error", number(held_out["calibration"]["ece"])),
        ("correlation of reward gap and length gap", number(held_out["length_correlation"])),
        ("training pairs in the right order", share(run.evaluation.get("train_accuracy"))),
        ("offset", number(run.evaluation.get("reward_offset"))),
    ]
    head = list(accuracies["overall"])
    rows = [(name, [row.get(column, "–") for column in head]) for name, row in accuracies.items()]
    return {"head": head, "rows": rows, "besides": besides}


def figures(runs: Runs) -> list[Figures]:
    """Accuracy over updates (Fig. 3), gaps (Fig. 2), calibration."""
    metrics = {name: run.metrics for name, run in runs.items()}
    found = [
        panels_figure("reward_training", "Reward model: training", metrics, REWARD_PANELS, series=series_of,
                      about="reward model over training")
    ]  # fmt: skip
    evaluated = {name: run.evaluation["held_out"] for name, run in runs.items() if run.evaluation.get("held_out")}
    pictures = []
    for name, held_out in evaluated.items():
        of = f", {name}" if len(runs) > 1 else ""
        tail = f"_{name}" if len(runs) > 1 else ""
        pictures += [
            Picture(f"gap_histogram{tail}", f"histogram of reward gaps{of}: mean {number(held_out['gap']['mean'])}",
                    partial(draw_gap_histogram, held_out)),
            Picture(f"calibration{tail}", f"calibration{of}: expected error {number(held_out['calibration']['ece'])}",
                    partial(draw_calibration, held_out)),
        ]  # fmt: skip
    if pictures:
        order = f" Left to right, top to bottom: {', '.join(evaluated)}." if len(evaluated) > 1 else ""
        caption = f"Held-out pairs: gaps (Fig. 2 of the paper; wrongly ordered pairs in red), and calibration.{order}"
        found.append(Figures("gaps", "Reward model: gaps and calibration", pictures, caption))
    return [figure for figure in found if figure is not None]


def confidently_wrong(runs: Runs) -> list[dict[str, Any]]:
    """Pairs that a model orders against the label (Table 1): each model's widest gap, then each one's second, ..."""
    lists = [
        [_pair(row, name if len(runs) > 1 else "") for row in read_lines(run.path / "disagreements.jsonl")]
        for name, run in runs.items()
    ]
    return [pair for rank in itertools.zip_longest(*lists) for pair in rank if pair is not None]


def _pair(row: Mapping[str, Any], by: str) -> dict[str, Any]:
    sides = (("preferred", row["chosen"], row["reward_chosen"]), ("other", row["rejected"], row["reward_rejected"]))
    return {
        "turns": [{"role": t["role"], "content": shortened(t["content"], LONGEST_TEXT)} for t in row["prompt"]],
        "answers": [
            {"title": title, "text": shortened(text, LONGEST_TEXT), "numbers": f"reward {number(reward)}"}
            for title, text, reward in sides
        ],
        "from": f"gap {number(row['gap'])}, {row['source']}" + (f", by {by}" if by else ""),
    }
