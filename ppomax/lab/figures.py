"""Figures of the lab: arms over training (mean and band over seeds), and scores over the square root of KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.lab.results import Result, other_start
from ppomax.lab.statistics import curve, known
from ppomax.report.figures import COLOURS, MARKERS, STEPS_LABEL, STYLES, save_figure

TITLES = {
    "eval/win_rate": ("true win rate against SFT", "ties as half"),
    "eval/win_rate_greedy": ("true win rate against greedy SFT", "ties as half"),
    "eval/judge": ("the judge's score", "0 to 1"),
    "eval/reward": ("proxy reward", "reward model's score"),
    "eval/kl": ("KL to SFT (k1)", "nats a response"),
    "eval/kl_k3": ("KL to SFT (k3)", "nats a response"),
    "eval/length": ("response length", "tokens"),
    "eval/perplexity": ("perplexity on own responses", "exp(mean NLL)"),
    "eval/entropy": ("entropy", "nats a token"),
    "eval/truncated": ("cut at the length limit", "share"),
    "eval/distinct": ("different answers", "share"),
    "loss/policy": ("policy loss", ""),
    "loss/value": ("value loss", "squared error / 2"),
    "loss/ptx": ("ptx loss", "nats a token"),
    "grad_norm/policy": ("gradient norm of the policy", "before its clip"),
    "policy/clip_fraction": ("clipped ratios", "share of tokens"),
    "policy/entropy": ("entropy (train)", "nats a token"),
    "value/explained_variance": ("critic: explained variance", "1 = perfect"),
    "reward/p5": ("reward (train), 5th percentile", "reward model's score"),
    "reward/p50": ("reward (train), median", "reward model's score"),
    "reward/p95": ("reward (train), 95th percentile", "reward model's score"),
    "reward/skewness": ("reward (train), skewness", "below 0: a long tail of low rewards"),
}
"""metric -> (title, y label)"""
SCORES = ("kl", "reward", "reward_sampled", "reward_sampled_std", "judge", "judge_sampled")
"""numbers of the live judge that `over_optimisation` reads"""
NEAR = 2.5
"""square root of KL up to which its lower panels go"""
Arms = Mapping[str, Mapping[int, Result]]


def claim_figure(arms: Arms, metrics: Sequence[str], path: Path) -> None:
    """A panel a metric: each arm's mean over seeds, with the smallest and largest seed as a band."""
    columns = 2
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(11, 3.1 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for i, (name, by_seed) in enumerate(arms.items()):
            x, y = together([curve(r, metric) for r in by_seed.values()])
            if not len(x):
                continue
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
            marker = MARKERS[i % len(MARKERS)] if len(x) <= 40 else None
            label = shown(name, by_seed)
            axis.plot(x, y.mean(axis=0), linewidth=1.7, marker=marker, markersize=3, label=label, **look)
            if len(y) > 1:
                axis.fill_between(x, y.min(axis=0), y.max(axis=0), color=look["color"], alpha=0.13, linewidth=0)
        title, label = TITLES.get(metric, (metric, ""))
        axis.set(title=title, xlabel=STEPS_LABEL, ylabel=label)
        if "win_rate" in metric:
            axis.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        drawn = np.concatenate([line.get_ydata() for line in axis.get_lines()] or [np.ones(1)]).astype(float)
        if drawn.min() > 0 and drawn.max() > 50 * drawn.min():
            axis.set_yscale("log")
        elif "kl" in metric and drawn.max() > 50:  # from 0 on; arms that hold would all lie on one line
            axis.set_yscale("symlog", linthresh=1.0)
        axis.grid(alpha=0.25)
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_visible(False)
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=min(4, len(handles)),
            title="line: mean over seeds; band: smallest to largest",
        )  # fmt: skip
    save_figure(figure, path)


def shown(name: str, by_seed: Mapping[int, Result]) -> str:
    """An arm in a legend; one that starts from no SFT model is compared with its own start."""
    own = any(other_start(r) for r in by_seed.values())
    return f"{name} (n = {len(by_seed)}{', against its own start' if own else ''})"


def together(curves: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[list[int], np.ndarray]:
    """(updates that all curves have, values (curves, updates))."""
    filled = [dict(zip(x, y, strict=True)) for x, y in curves if x]
    if not filled:
        return [], np.zeros((0, 0))
    shared = sorted(set.intersection(*(set(f) for f in filled)))
    return shared, np.asarray([[f[u] for u in shared] for f in filled]).reshape(len(filled), len(shared))


def over_optimisation(arms: Arms, path: Path) -> None:
    """Proxy (in standard deviations of SFT's rewards) and true score over sqrt(KL); every seed a line.

    The upper panels show everything, the lower ones the part near SFT, where arms that hold stay.
    """
    figure = Figure(figsize=(11, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for i, (name, by_seed) in enumerate(arms.items()):
        look: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)], "linewidth": 1.2,
            "alpha": 0.8, "marker": MARKERS[i % len(MARKERS)], "markersize": 2.5,
        }  # fmt: skip
        for k, result in enumerate(by_seed.values()):
            for column, points in enumerate(scores_over_kl(result)):
                for axis in axes[:, column]:
                    axis.plot(*points, label=name if k == 0 and axis is axes[0, 0] else None, **look)
    label = "square root of KL to SFT (k1, nats a response)"
    for row, where in zip(axes, ("", ", near SFT"), strict=True):
        row[0].set(title=f"proxy reward{where}", xlabel=label, ylabel="above SFT, standard deviations of SFT's rewards")
        row[1].set(title=f"true score{where}", xlabel=label, ylabel="the judge's score, above SFT's")
    for axis in axes.flat:
        axis.axhline(0, color="black", linewidth=0.6)
        axis.grid(alpha=0.25)
    for axis in axes[1]:
        zoom(axis, NEAR)
    if arms:
        figure.legend(loc="outside upper center", ncols=min(5, len(arms)), title="over-optimisation: a line a seed")
    save_figure(figure, path)


def scores_over_kl(result: Result) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """(sqrt(KL), proxy reward above SFT's) and (sqrt(KL), judge's score above SFT's) of the evaluations.

    Points that are not finite are left out, and all true scores where the judge compares and gives none.
    """
    proxy: tuple[list[float], list[float]] = ([], [])
    truth: tuple[list[float], list[float]] = ([], [])
    for row in result.evaluations:
        value = {name: known(row.get(f"eval/{name}")) for name in SCORES}
        x = math.sqrt(max(0.0, value["kl"])) if value["kl"] == value["kl"] else math.nan  # k1 can be negative near 0
        rise = (value["reward"] - value["reward_sampled"]) / (value["reward_sampled_std"] or math.nan)
        for points, y in ((proxy, rise), (truth, value["judge"] - value["judge_sampled"])):
            if math.isfinite(x) and math.isfinite(y):
                points[0].append(x)
                points[1].append(y)
    return proxy, truth


def zoom(axis: Any, right: float) -> None:
    """Show x up to ``right``, and the y of what lies there."""
    inside = [
        y for line in axis.get_lines() for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True) if x <= right
    ]
    axis.set_xlim(-0.02 * right, right)
    if inside:
        margin = 0.05 * (max(inside) - min(inside)) or 0.1
        axis.set_ylim(min(inside) - margin, max(inside) + margin)
