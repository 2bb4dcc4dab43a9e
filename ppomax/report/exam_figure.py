"""Accuracy of several models by group of subjects, bars side by side (Fig. 12), and their loss on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.report.figures import COLOURS, Files, save_figure

HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")


def exam_bars(result: Mapping[str, Any], path: Files) -> None:
    """PNG or SVG of a result.json of ``ppomax exam``: a bar a model and group, 95% intervals, chance dotted.

    Where text was read, its loss stands beside: a bar a model, with its interval.
    """
    models = result["models"]
    asked, read = bool(result["questions"]), "text" in result
    groups = list(dict.fromkeys(name for m in models.values() for name in m["by_category"])) if asked else []
    if len(groups) > 1:
        groups.append("all")
    wide = [max(5.0, 1.2 + 0.35 * (len(models) + 1) * len(groups))] * asked + [1.6 + 0.5 * len(models)] * read
    figure = Figure(figsize=(max(5.0, sum(wide)), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(wide), squeeze=False, width_ratios=wide)[0]
    if asked:
        _accuracies(axes[0], result, groups)
    if read:
        _losses(axes[-1], result["text"], labelled=not asked)
    figure.legend(loc="outside lower center", ncols=1 if len(models) > 3 else len(models) + asked)
    save_figure(figure, path)


def _bar(axis: Axes, i: int, places: list[float], found: list[dict[str, Any]], width: float, label: str | None) -> None:
    """Bars of model ``i``; each of ``found`` has a value and its interval."""
    # rounding may put a share a hair outside its interval at 0 and 1
    below = [max(0.0, part["value"] - part["interval"][0]) for part in found]
    above = [max(0.0, part["interval"][1] - part["value"]) for part in found]
    axis.bar(
        places, [part["value"] for part in found], width, yerr=[below, above], capsize=2, error_kw={"linewidth": 0.8},
        color=COLOURS[i % len(COLOURS)], alpha=0.8, hatch=HATCHES[i % len(HATCHES)], edgecolor="white", label=label,
    )  # fmt: skip


def _accuracies(axis: Axes, result: Mapping[str, Any], groups: list[str]) -> None:
    models, measure = result["models"], result["headline"]
    width = 0.8 / len(models)
    for i, (name, found) in enumerate(models.items()):
        parts = [found["overall"] if group == "all" else found["by_category"].get(group) for group in groups]
        places = [g + (i - (len(models) - 1) / 2) * width for g, part in enumerate(parts) if part is not None]
        shown = [
            {"value": 100 * part[measure]["accuracy"], "interval": [100 * v for v in part[measure]["interval"]]}
            for part in parts
            if part is not None
        ]
        _bar(axis, i, places, shown, width * 0.95, name)
    first = next(iter(models.values()))
    axis.axhline(100 * first["overall"]["chance"], color="black", linestyle=":", linewidth=0.9, label="chance")
    axis.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    axis.set(ylabel="accuracy, %", ylim=(0, 100), title=f"{result['questions']} questions, {result['shots']}-shot")
    axis.grid(alpha=0.25, axis="y")


def _losses(axis: Axes, text: Mapping[str, Any], *, labelled: bool) -> None:
    models = text["models"]
    same = all(gap["loss"] is not None for gap in text["against_first"].values())
    for i, (name, found) in enumerate(models.items()):
        _bar(axis, i, [float(i)], [found["loss" if same else "bits_per_byte"]], 0.8, name if labelled else None)
    axis.set_xticks([])
    axis.set(ylabel="nats a token" if same else "bits a byte", title=f"loss on {text['texts']} texts")
    axis.grid(alpha=0.25, axis="y")
