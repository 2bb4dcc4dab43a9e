"""Accuracy of several models by group of subjects, bars side by side (Fig. 12)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.report.figures import COLOURS, _save

HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")


def exam_bars(result: Mapping[str, Any], path: str | Path) -> None:
    """PNG or SVG of a result.json of ``ppomax exam``: a bar a model and group, 95% intervals, chance dotted."""
    models = result["models"]
    measure = result["headline"]
    groups = list(dict.fromkeys(name for m in models.values() for name in m["by_category"]))
    if len(groups) > 1:
        groups.append("all")
    figure = Figure(figsize=(max(5.0, 1.2 + 0.35 * (len(models) + 1) * len(groups)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    width = 0.8 / len(models)
    for i, (name, found) in enumerate(models.items()):
        places, heights, below, above = [], [], [], []
        for g, group in enumerate(groups):
            part = found["overall"] if group == "all" else found["by_category"].get(group)
            if part is None:
                continue
            value, (low, high) = part[measure]["accuracy"], part[measure]["interval"]
            places.append(g + (i - (len(models) - 1) / 2) * width)
            heights.append(100 * value)
            # rounding may put the share a hair outside its interval at 0 and 1
            below.append(max(0.0, 100 * (value - low)))
            above.append(max(0.0, 100 * (high - value)))
        axis.bar(
            places, heights, width * 0.95, yerr=[below, above], capsize=2, error_kw={"linewidth": 0.8},
            color=COLOURS[i % len(COLOURS)], alpha=0.8, hatch=HATCHES[i % len(HATCHES)], edgecolor="white", label=name,
        )  # fmt: skip
    first = next(iter(models.values()))
    axis.axhline(100 * first["overall"]["chance"], color="black", linestyle=":", linewidth=0.9, label="chance")
    axis.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    axis.set(ylabel="accuracy, %", ylim=(0, 100), title=f"{result['questions']} questions, {result['shots']}-shot")
    axis.grid(alpha=0.25, axis="y")
    figure.legend(loc="outside lower center", ncols=1 if len(models) > 3 else len(models) + 1)
    _save(figure, path)
