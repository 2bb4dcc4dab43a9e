"""Figures of the lab: arms over training (mean and band over seeds), and scores over the square root of KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.lab.results import Result
from ppomax.lab.statistics import curve
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
}
"""metric -> (title, y label)"""
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
            label = f"{name} (n = {len(by_seed)})"
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


def together(curves: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[list[int], np.ndarray]:
    """(updates that all curves have, values (curves, updates))."""
    filled = [dict(zip(x, y, strict=True)) for x, y in curves if x]
    if not filled:
        return [], np.zeros((0, 0))
    shared = sorted(set.intersection(*(set(f) for f in filled)))
    return shared, np.asarray([[f[u] for u in shared] for f in filled]).reshape(len(filled), len(shared))


def over_optimisation(arms: Arms, path: Path) -> None:
    """Proxy (in standard deviations of SFT's rewards) and true score over sqrt(KL); every seed a line."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    proxy, truth = figure.subplots(1, 2)
    for i, (name, by_seed) in enumerate(arms.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
        for k, result in enumerate(by_seed.values()):
            rows = result.evaluations
            x = [math.sqrt(max(0.0, r["eval/kl"])) for r in rows]  # k1 of few samples can be negative near 0
            y = [(r["eval/reward"] - r["eval/reward_sampled"]) / r["eval/reward_sampled_std"] for r in rows]
            label = name if k == 0 else None
            proxy.plot(
                x, y, linewidth=1.2, alpha=0.8, marker=MARKERS[i % len(MARKERS)], markersize=2.5, label=label, **look
            )
            if any("eval/judge" not in r for r in rows):  # a judge that compares gives no score
                continue
            truth.plot(
                x, [r["eval/judge"] - r["eval/judge_sampled"] for r in rows], linewidth=1.2, alpha=0.8,
                marker=MARKERS[i % len(MARKERS)], markersize=2.5, **look,
            )  # fmt: skip
    label = "square root of KL to SFT (k1, nats a response)"
    proxy.set(title="proxy reward", xlabel=label, ylabel="above SFT, standard deviations of SFT's rewards")
    truth.set(title="true score", xlabel=label, ylabel="the judge's score, above SFT's")
    for axis in (proxy, truth):
        axis.axhline(0, color="black", linewidth=0.6)
        axis.grid(alpha=0.25)
    if arms:
        figure.legend(loc="outside upper center", ncols=min(5, len(arms)), title="over-optimisation: a line a seed")
    save_figure(figure, path)
