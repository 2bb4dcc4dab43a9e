"""Three figures of a reward model: reward gaps (Fig. 2), accuracy over updates (Fig. 3), calibration."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.report.figures import Files, save_figure


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def draw_gap_histogram(evaluation: dict[str, Any], file: Files) -> None:
    """Histogram of r(preferred) - r(other) on held-out pairs, wrongly ordered ones in another colour."""
    data = evaluation["gap"]["histogram"]
    right = evaluation["overall"]["model"]
    figure, axes = _axes(f"{right['n']} held-out pairs, {right['accuracy']:.1%} in the right order",
                         "r(preferred) - r(other)", "pairs")  # fmt: skip
    edges = data["edges"]
    colours = ["tab:red" if (low + high) / 2 < 0 else "tab:blue" for low, high in itertools.pairwise(edges)]
    axes.bar(edges[:-1], data["counts"], width=edges[1] - edges[0], align="edge", color=colours)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(evaluation["gap"]["mean"], color="black", linestyle="--", linewidth=0.8, label="mean")
    axes.legend()
    save_figure(figure, file)


def draw_accuracy(updates: Sequence[int], held_out: Sequence[float], train: Sequence[float], file: Files) -> None:
    """Accuracy on held-out pairs and on a fixed sample of training pairs over updates."""
    figure, axes = _axes("accuracy over training", "update", "pairs in the right order")
    axes.plot(updates, train, marker=".", label="training pairs")
    axes.plot(updates, held_out, marker=".", label="held-out pairs")
    axes.axhline(0.5, color="black", linestyle=":", linewidth=0.8)
    axes.legend()
    save_figure(figure, file)


def draw_calibration(evaluation: dict[str, Any], file: Files) -> None:
    """Reliability curve: predicted probability that the first answer is better against how often it is."""
    data = evaluation["calibration"]
    rows = [row for row in data["bins"] if row["n"]]
    figure, axes = _axes(f"calibration, expected error {data['ece']:.3f}", "sigmoid(r(first) - r(second))",
                         "share in which the first is better")  # fmt: skip
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=0.8)
    axes.plot([row["predicted"] for row in rows], [row["observed"] for row in rows], marker="o")
    for row in rows:
        axes.annotate(str(row["n"]), (row["predicted"], row["observed"]), fontsize=7, xytext=(3, -9),
                      textcoords="offset points")  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))
    save_figure(figure, file)
