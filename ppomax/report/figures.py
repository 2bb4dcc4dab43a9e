"""Figures of PPO runs from plain rows (dicts read from metrics.jsonl, samples.jsonl and result.json) to PNG or SVG files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; runs differ in line style and marker as well. The
x axis is the number of policy updates, the 'steps' of the paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Row = Mapping[str, Any]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STEPS_LABEL = "policy updates"
PANELS = (
    ("reward/mean", "reward (train)", "score of the reward model"),
    ("kl/ref", "KL to the SFT model", "nats per token (k1)"),
    ("response/length", "response length", "tokens"),
    ("policy/entropy", "entropy", "nats per token"),
    ("policy/perplexity", "perplexity (true)", "exp(mean NLL)"),
    ("policy/perplexity_moss", "perplexity (released code's)", "its own figure"),
    ("loss/value", "value loss", "squared error / 2"),
    ("value/explained_variance", "critic: explained variance", "1 = perfect; not drawn below -1"),
)
"""(metric, title, y label) of `training_panel`"""
SMOOTHED_FROM = 30
"""with this many iterations or more, a running mean is drawn over the raw curve"""


def policy_series(rows: Sequence[Row], metric: str) -> tuple[list[int], list[float]]:
    """(policy updates when the samples were drawn, values) of the iterations that train the policy.

    Critic pre-training and iterations without the metric are left out.
    """
    steps, values, before = [], [], 0
    for row in rows:
        if row.get("phase", "policy") != "policy":
            continue
        value = row.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(before)
            values.append(float(value))
        before = row["update"]
    return steps, values


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over ``window`` values centred on each (odd; fewer at the ends)."""
    half = window // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def training_panel(runs: Mapping[str, Sequence[Row]], path: str | Path) -> None:
    """Eight panels over policy updates, the runs overlaid: what to watch in PPO (section 5.2 and Fig. 4, 9).

    ``runs``: name -> rows of metrics.jsonl. The thin line is each iteration, the thick one a running mean.
    """
    figure = Figure(figsize=(11, 11.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, 2)
    window = 1
    for (metric, title, label), axis in zip(PANELS, axes.flat, strict=True):
        for i, (name, rows) in enumerate(runs.items()):
            steps, values = policy_series(rows, metric)
            if not steps:
                continue
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
            if len(steps) >= SMOOTHED_FROM:
                window = max(window, len(steps) // 20 | 1)
                axis.plot(steps, values, color=look["color"], linewidth=0.7, alpha=0.35)
                axis.plot(steps, running_mean(values, len(steps) // 20 | 1), linewidth=2, label=name, **look)
            else:
                axis.plot(
                    steps, values, linewidth=1.6, marker=MARKERS[i % len(MARKERS)], markersize=3, label=name, **look
                )
        axis.set(title=title, xlabel=STEPS_LABEL, ylabel=label)
        if metric in ("kl/ref", "value/explained_variance"):
            axis.axhline(0, color="black", linewidth=0.6)
        if metric == "value/explained_variance":
            axis.set_ylim(bottom=max(axis.get_ylim()[0], -1.0), top=1.0)
        if _spread(axis) > 50:
            axis.set_yscale("log")
        axis.grid(alpha=0.25)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    note = f" (thick: running mean over up to {window} iterations)" if window > 1 else ""
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title="PPO over training" + note)
    _save(figure, path)


def _spread(axis: Any) -> float:
    """Largest over smallest drawn value where all are positive, otherwise 1."""
    values = np.concatenate([line.get_ydata() for line in axis.get_lines()] or [np.ones(1)])
    return float(values.max() / values.min()) if len(values) and values.min() > 0 else 1.0


def win_rate_curve(curves: Mapping[str, Sequence[Row]], path: str | Path, *, judge: str = "the judge") -> None:
    """Judged win rate against the first answers over training (the red line of Fig. 4), with 95% intervals.

    ``curves``: name -> the dicts of `duel_over_training`. Solid: ties as half; dashed: length-controlled.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for i, (name, moments) in enumerate(curves.items()):
        later = list(moments[1:])  # against itself the first one would always tie
        if not later:
            continue
        steps = [m["update"] for m in later]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        for key, style, label in (
            ("win_rate", "-", name),
            ("length_controlled", "--", f"{name}, length-controlled"),
        ):
            rates = [m["overall"][key] for m in later]
            values = [100 * r["value"] for r in rates]
            axis.plot(steps, values, color=colour, linestyle=style, marker=marker, markersize=4, label=label)
            if key == "win_rate":
                low, high = [100 * r["low"] for r in rates], [100 * r["high"] for r in rates]
                axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axis.set(
        title="win rate against the SFT model over training", xlabel=STEPS_LABEL,
        ylabel=f"win rate by {judge}, % (ties half)", ylim=(0, 100),
    )  # fmt: skip
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(title="band: 95% interval over prompts")
    _save(figure, path)


def live_win_rate(
    curves: Mapping[str, tuple[Sequence[Row], str]], path: str | Path, *, judge: str = "the judge"
) -> None:
    """Win rate that a run judged while it trained (the red line of Fig. 4), with a band of 2 standard errors.

    ``curves``: name -> (rows of evaluations.jsonl, metric such as eval/win_rate, whose standard error is METRIC_se).
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for i, (name, (rows, metric)) in enumerate(curves.items()):
        steps = [row["update"] for row in rows]
        rates = np.array([100 * row[metric] for row in rows])
        band = np.array([200 * row[f"{metric}_se"] for row in rows])
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        axis.plot(
            steps, rates, color=colour, linestyle=style, marker=MARKERS[i % len(MARKERS)], markersize=3, label=name
        )
        axis.fill_between(steps, rates - band, rates + band, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel=STEPS_LABEL, ylabel=f"win rate by {judge}, % (ties half)", ylim=(0, 100))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.legend(title="band: 2 standard errors over prompts")
    _save(figure, path)


def reward_histogram(runs: Mapping[str, Sequence[Row]], path: str | Path, *, ridges: int = 8) -> None:
    """Distribution of the training reward over fixed held-out prompts as training goes on (Fig. 13), a column a run.

    ``runs``: name -> rows of samples.jsonl. At most ``ridges`` times, the first and the last among them; a tick under
    each density marks its median.
    """
    figure = Figure(figsize=(max(5.5, 4.5 * len(runs)), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(1, len(runs)), sharex=True, squeeze=False)[0]
    by_run = {name: scores_by_update(rows) for name, rows in runs.items()}
    shown_of = {name: _spread_out(sorted(by_update), ridges) for name, by_update in by_run.items()}
    drawn = [score for name, by_update in by_run.items() for u in shown_of[name] for score in by_update[u]] or [0.0]
    margin = 0.2 * max(max(drawn) - min(drawn), 1e-6)
    grid = np.linspace(min(drawn) - margin, max(drawn) + margin, 400)
    for i, (axis, (name, by_update)) in enumerate(zip(axes, by_run.items(), strict=False)):
        if not by_update:
            axis.set_title(f"{name}: no samples")
            continue
        shown = shown_of[name]
        densities = [density(np.asarray(by_update[u]), grid) for u in shown]
        height = 1.6 / max(float(d.max()) for d in densities)
        for level, (update, curve) in enumerate(zip(shown, densities, strict=True)):
            base = len(shown) - 1 - level  # time runs downwards
            colour = COLOURS[i % len(COLOURS)]
            axis.fill_between(
                grid, base, base + height * curve, color=colour, alpha=0.35, linewidth=0, zorder=2 * level
            )
            axis.plot(grid, base + height * curve, color=colour, linewidth=1.2, zorder=2 * level + 1)
            median = float(np.median(by_update[update]))
            axis.plot([median, median], [base, base + 0.22], color="black", linewidth=1.6, zorder=2 * level + 1)
        axis.set_yticks(range(len(shown)), [str(u) for u in reversed(shown)])
        axis.set(title=name, xlabel="score of the reward model", ylabel=STEPS_LABEL)
        axis.grid(alpha=0.25, axis="x")
    figure.suptitle(f"reward over {_prompt_count(runs)} fixed held-out prompts (black tick: median)")
    _save(figure, path)


def scores_by_update(rows: Sequence[Row]) -> dict[int, list[float]]:
    """Finite scores of samples.jsonl, by the number of policy updates."""
    out: dict[int, list[float]] = {}
    for row in rows:
        if isinstance(row.get("score"), int | float) and math.isfinite(row["score"]):
            out.setdefault(row["update"], []).append(row["score"])
    return out


def _spread_out(values: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly over the list, the first and the last among them."""
    return [values[k] for k in sorted({round(x) for x in np.linspace(0, len(values) - 1, count)})] if values else []


def _prompt_count(runs: Mapping[str, Sequence[Row]]) -> str:
    counts = set()
    for rows in runs.values():
        updates = [row["update"] for row in rows]
        counts |= {updates.count(updates[0])} if updates else set()
    return "/".join(map(str, sorted(counts))) or "no"


def density(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian kernel density (len(grid),) of ``values`` (n,), bandwidth by Silverman's rule (not below a grid step)."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    bandwidth = max(1.06 * spread * len(values) ** -0.2, float(grid[1] - grid[0]))
    z = (grid[:, None] - values[None, :]) / bandwidth
    kernel: NDArray[np.float64] = np.exp(-0.5 * z * z).sum(axis=1)
    return kernel / (len(values) * bandwidth * math.sqrt(2 * math.pi))


def _save(figure: Figure, path: str | Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Date": None} if str(path).endswith(".svg") else {"Software": None})
