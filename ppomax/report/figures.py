"""Figures of PPO runs from plain rows (dicts read from metrics.jsonl, samples.jsonl and result.json) to PNG or SVG files.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; runs differ in line style and marker as well. The
x axis is the number of policy updates, the 'steps' of the paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppomax.report.text import label

Row = Mapping[str, Any]
Files = str | Path | Sequence[Path]
"""where a figure goes: one file, or one in each of several formats"""
Panel = tuple[str, str, str]
"""(metric, title, y label)"""
Series = Callable[[Sequence[Row], str], tuple[list[int], list[float]]]
"""(rows, metric) -> (x, y)"""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STEPS_LABEL = "policy updates"
PANELS: tuple[Panel, ...] = (
    ("reward/mean", "reward (train)", "score of the reward model"),
    ("kl/ref", "KL to the SFT model", "nats per token (k1)"),
    ("policy/perplexity", "perplexity (true)", "exp(mean NLL)"),
    ("response/length", "response length", "tokens"),
    ("loss/policy", "policy loss", "token mean"),
    ("loss/value", "value loss", "squared error / 2"),
    ("policy/entropy", "entropy", "nats per token"),
    ("policy/perplexity_moss", "perplexity (released code's)", "its own figure"),
)
"""of `training_panel`: what to watch in PPO (section 5.2 and Fig. 4, 9)"""
CRITIC_PANELS: tuple[Panel, ...] = (
    ("value/explained_variance", "critic: explained variance", "1 = perfect; cut at -1"),
    ("policy/clip_fraction", "ratio outside the clip range", "share of tokens"),
    ("grad_norm/policy", "gradient norm of the policy", "before clipping"),
    ("grad_norm/critic", "gradient norm of the critic", "before clipping"),
)
ANSWER_PANELS: tuple[Panel, ...] = (("response/truncated", "cut at the length limit", "share of responses"),)
"""beside which a page draws the KL by place in the answer and the reward by source"""
REWARD_PANELS: tuple[Panel, ...] = (
    ("eval/accuracy", "accuracy, held-out pairs", "share in the right order"),
    ("train/accuracy", "accuracy, pairs of each update", "before the update"),
    ("loss/preference", "preference loss", "-log sigmoid(gap)"),
    ("train/gap", "reward gap, pairs of each update", "r(preferred) - r(other)"),
)
"""of a reward model's training (Fig. 3)"""
ALARMS = {"notice": ("#666666", ":"), "warning": ("#E69F00", "--"), "collapse": ("#D55E00", "-")}
"""level of an alarm -> colour and style of its line on the time axis"""
SMOOTHED_FROM = 30
"""with this many iterations or more, a running mean is drawn over the raw curve"""
MOST_POINTS = 300
"""of longer curves the extremes of so many stretches are drawn: spikes stay, and a page stays small"""
MOST_NAMED = 12
"""runs in the legend of a small figure: more would leave no room for the curves"""
FEWEST_POINTS = 60
"""where many runs share a figure, each gets its part of twice `MOST_POINTS`, but no fewer than these"""


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


def series_of(rows: Sequence[Row], metric: str) -> tuple[list[int], list[float]]:
    """(updates before a row, its values) of the rows that have the metric: stages other than PPO."""
    kept = [row for row in rows if isinstance(row.get(metric), int | float) and math.isfinite(row[metric])]
    return [row["update"] for row in kept], [float(row[metric]) for row in kept]


def running_mean(values: Sequence[float], window: int, at: Sequence[int] | None = None) -> list[float]:
    """Mean over ``window`` values centred on each (odd; fewer at the ends), or on the places ``at``."""
    half = window // 2
    array = np.asarray(values, dtype=np.float64)
    return [float(array[max(0, i - half) : i + half + 1].mean()) for i in (range(len(array)) if at is None else at)]


def extremes(values: Sequence[float], stretches: int = MOST_POINTS) -> list[int]:
    """Places of the lowest and the highest value of each of ``stretches`` parts, in order; all of a short series."""
    if len(values) <= 2 * stretches:
        return list(range(len(values)))
    places = set()
    for part in np.array_split(np.arange(len(values)), stretches):
        inside = np.asarray(values, dtype=np.float64)[part]
        places |= {int(part[inside.argmin()]), int(part[inside.argmax()])}
    return sorted(places | {0, len(values) - 1})


def training_panel(
    runs: Mapping[str, Sequence[Row]], path: Files, *, panels: Sequence[Panel] = PANELS,
    alarms: Mapping[str, Sequence[Row]] | None = None, series: Series = policy_series, about: str = "PPO over training",
) -> None:  # fmt: skip
    """Panels over policy updates, the runs overlaid, two in a row.

    ``runs``: name -> rows of metrics.jsonl; ``alarms``: name -> rows of alarms.jsonl, marked on the time axis. The thin
    line is each iteration, the thick one a running mean.
    """
    height = 2.9 * math.ceil(len(panels) / 2)
    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(math.ceil(len(panels) / 2), 2, squeeze=False)
    window = max(draw_metric(axis, runs, panel, alarms, series) for panel, axis in zip(panels, axes.flat, strict=False))
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    found = {name: handle for axis in axes.flat for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    note = f" (thick: running mean over up to {window} iterations)" if window > 1 else ""
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside upper center", ncols=min(4, len(found)), title=about + note
        )
    save_figure(figure, path)


def metric_curve(
    runs: Mapping[str, Sequence[Row]], panel: Panel, path: Files, *,
    alarms: Mapping[str, Sequence[Row]] | None = None, series: Series = policy_series,
) -> None:  # fmt: skip
    """One panel of `training_panel` by itself, in a size that is still legible on a phone."""
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    draw_metric(axis, runs, panel, alarms, series)
    handles, names = axis.get_legend_handles_labels()
    if len(runs) > 1 and names:
        axis.legend(handles[:MOST_NAMED], names[:MOST_NAMED], fontsize="small", ncols=1 + (len(names) > 6))
    save_figure(figure, path)


def draw_metric(
    axis: Any, runs: Mapping[str, Sequence[Row]], panel: Panel, alarms: Mapping[str, Sequence[Row]] | None, series: Series
) -> int:  # fmt: skip
    """Draw one metric of all runs; gives the widest window of a running mean, 1 where none was drawn."""
    metric, title, unit = panel
    window = 1
    points = max(FEWEST_POINTS, 2 * MOST_POINTS // max(2, len(runs)))
    for i, (name, rows) in enumerate(runs.items()):
        steps, values = series(rows, metric)
        if not steps:
            continue
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)], "label": label(name)}
        if len(steps) >= SMOOTHED_FROM:
            own = len(steps) // 20 | 1
            window = max(window, own)
            raw = extremes(values, points)
            axis.plot([steps[k] for k in raw], [values[k] for k in raw], color=look["color"], linewidth=0.7, alpha=0.35)
            shown = sorted({round(k) for k in np.linspace(0, len(steps) - 1, min(len(steps), points))})
            axis.plot([steps[k] for k in shown], running_mean(values, own, shown), linewidth=2, **look)
        else:
            axis.plot(steps, values, linewidth=1.6, marker=MARKERS[i % len(MARKERS)], markersize=3, **look)
    axis.set(title=title, xlabel=STEPS_LABEL if series is policy_series else "updates", ylabel=unit)
    if metric in ("kl/ref", "value/explained_variance"):
        axis.axhline(0, color="black", linewidth=0.6)
    if metric == "value/explained_variance":
        axis.set_ylim(bottom=max(axis.get_ylim()[0], -1.0), top=1.0)
    if _spread(axis) > 50:
        axis.set_yscale("log")
    for i, name in enumerate(runs):
        _mark_alarms(axis, runs[name], (alarms or {}).get(name, ()), COLOURS[i % len(COLOURS)])
    axis.grid(alpha=0.25)
    return window


def alarm_updates(rows: Sequence[Row], alarms: Sequence[Row]) -> list[tuple[int, str]]:
    """(policy updates when its iteration's samples were drawn, level) of every alarm; those of no known iteration are
    put at the last update (a run that stops on an alarm writes no line for its iteration)."""
    before: dict[Any, int] = {}
    update = 0
    for row in rows:
        before[row.get("iteration")] = update
        update = row["update"]
    return [(before.get(alarm.get("iteration"), update), str(alarm.get("level"))) for alarm in alarms]


def _mark_alarms(axis: Any, rows: Sequence[Row], alarms: Sequence[Row], run_colour: str) -> None:
    """A line for each update and level, with a triangle in the run's colour at the top."""
    for update, level in dict.fromkeys(alarm_updates(rows, alarms)):
        colour, style = ALARMS.get(level, ALARMS["warning"])
        axis.axvline(update, color=colour, linestyle=style, linewidth=1.1, zorder=1)
        axis.plot([update], [1.0], marker="v", markersize=6, color=run_colour, transform=axis.get_xaxis_transform(),
                  clip_on=False)  # fmt: skip


def _spread(axis: Any) -> float:
    """Largest over smallest drawn value where all are positive, otherwise 1."""
    values = np.concatenate([np.asarray(line.get_ydata()) for line in axis.get_lines()] or [np.ones(1)])
    return float(values.max() / values.min()) if len(values) and values.min() > 0 else 1.0


def win_rate_curve(curves: Mapping[str, Sequence[Row]], path: Files, *, judge: str = "the judge") -> None:
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
        for key, style, text in (
            ("win_rate", "-", label(name)),
            ("length_controlled", "--", f"{label(name)}, length-controlled"),
        ):
            rates = [m["overall"][key] for m in later]
            values = [100 * r["value"] for r in rates]
            axis.plot(steps, values, color=colour, linestyle=style, marker=marker, markersize=4, label=text)
            if key == "win_rate":
                low, high = [100 * r["low"] for r in rates], [100 * r["high"] for r in rates]
                axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axis.set(
        title="win rate against the SFT model over training", xlabel=STEPS_LABEL,
        ylabel=f"win rate by {label(judge)}, % (ties half)", ylim=(0, 100),
    )  # fmt: skip
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(title="band: 95% interval over prompts")
    save_figure(figure, path)


def live_win_rate(
    curves: Mapping[str, tuple[Sequence[Row], str]], path: Files, *, judge: str = "the judge",
    proxies: Mapping[str, Sequence[Row]] | None = None,
) -> None:  # fmt: skip
    """Win rate that a run judged while it trained (the red line of Fig. 4), with a band of 2 standard errors.

    ``curves``: name -> (rows of evaluations.jsonl, metric such as eval/win_rate, whose standard error is METRIC_se).
    ``proxies``: name of a run, or nothing -> rows with eval/proxy_win_rate, what the training reward itself prefers (dotted).
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for i, (name, (rows, metric)) in enumerate(curves.items()):
        steps = [row["update"] for row in rows]
        rates = np.array([100 * row[metric] for row in rows])
        band = np.array([200 * row[f"{metric}_se"] for row in rows])
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        axis.plot(
            steps, rates, color=colour, linestyle=style, marker=MARKERS[i % len(MARKERS)], markersize=3, label=label(name),
        )  # fmt: skip
        axis.fill_between(steps, rates - band, rates + band, color=colour, alpha=0.15, linewidth=0)
    for i, (name, rows) in enumerate((proxies or {}).items()):
        known = [row for row in rows if isinstance(row.get("eval/proxy_win_rate"), int | float)]
        place = list(curves).index(name) if name in curves else i
        axis.plot(
            [row["update"] for row in known], [100 * row["eval/proxy_win_rate"] for row in known],
            color=COLOURS[place % len(COLOURS)], linestyle=":", linewidth=1.2,
            label="dotted: by the training reward itself" if i == 0 else None,
        )  # fmt: skip
    axis.axhline(50, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel=STEPS_LABEL, ylabel=f"win rate by {label(judge)}, % (ties half)", ylim=(0, 100))
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    handles, names = axis.get_legend_handles_labels()  # beside the axes: it would hide some run's curve
    columns = 2 if len(names) > 3 else 1
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, title="band: 2 standard errors over prompts"
    )
    save_figure(figure, path)


def reward_histogram(
    runs: Mapping[str, Sequence[Row]], path: Files, *, ridges: int = 8, span: tuple[float, float] | None = None,
    number: str = "score", colour: int = 0,
) -> None:  # fmt: skip
    """Distribution of the training reward over fixed held-out prompts as training goes on (Fig. 13), a column a run.

    ``runs``: name -> rows of samples.jsonl. At most ``ridges`` times, the first and the last among them; a tick under
    each density marks its median. ``span``: ends of the axis (`ridge_span`), where several figures are to have one range.
    ``number``: ``score``, or ``length`` for the lengths of the same answers; ``colour``: the first run's place among all.
    """
    title, unit = {"score": ("reward", "score of the reward model"), "length": ("length", "tokens of the answer")}[
        number
    ]
    figure = Figure(figsize=(max(5.5, 4.5 * len(runs)), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(1, len(runs)), sharex=True, squeeze=False)[0]
    by_run = {name: scores_by_update(rows, number) for name, rows in runs.items()}
    shown_of = {name: _spread_out(sorted(by_update), ridges) for name, by_update in by_run.items()}
    drawn = [by_update[u] for name, by_update in by_run.items() for u in shown_of[name]]
    grid = np.linspace(*(span or ridge_span(drawn)), 400)
    for i, (axis, (name, by_update)) in enumerate(zip(axes, by_run.items(), strict=False)):
        if not by_update:
            axis.set_title(f"{label(name)}: no samples")
            continue
        shown = shown_of[name]
        densities = [density(np.asarray(by_update[u]), grid) for u in shown]
        height = 1.6 / max(float(d.max()) for d in densities)
        for level, (update, curve) in enumerate(zip(shown, densities, strict=True)):
            base = len(shown) - 1 - level  # time runs downwards
            own = COLOURS[(colour + i) % len(COLOURS)]
            axis.fill_between(grid, base, base + height * curve, color=own, alpha=0.35, linewidth=0, zorder=2 * level)
            axis.plot(grid, base + height * curve, color=own, linewidth=1.2, zorder=2 * level + 1)
            median = float(np.median(by_update[update]))
            axis.plot([median, median], [base, base + 0.22], color="black", linewidth=1.6, zorder=2 * level + 1)
        axis.set_yticks(range(len(shown)), [str(u) for u in reversed(shown)])
        axis.set(title=label(name), xlabel=unit, ylabel=STEPS_LABEL)
        axis.grid(alpha=0.25, axis="x")
    figure.suptitle(f"{title} over {_prompt_count(runs)} fixed held-out prompts (tick: median)")
    save_figure(figure, path)


def ridge_span(parts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Ends of an axis on which the densities of all ``parts`` run out: 3 bandwidths beyond the scores, a fifth at least."""
    every = [score for part in parts for score in part] or [0.0]
    low, high = min(every), max(every)
    margin = max([0.2 * max(high - low, 1e-6), *(3 * _silverman(np.asarray(part)) for part in parts)])
    return low - margin, high + margin


def scores_by_update(rows: Sequence[Row], number: str = "score") -> dict[int, list[float]]:
    """Finite scores (or another ``number``) of samples.jsonl, by the number of policy updates."""
    out: dict[int, list[float]] = {}
    for row in rows:
        if isinstance(row.get(number), int | float) and math.isfinite(row[number]):
            out.setdefault(row["update"], []).append(row[number])
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
    bandwidth = max(_silverman(values), float(grid[1] - grid[0]))
    z = (grid[:, None] - values[None, :]) / bandwidth
    kernel: NDArray[np.float64] = np.exp(-0.5 * z * z).sum(axis=1)
    return kernel / (len(values) * bandwidth * math.sqrt(2 * math.pi))


def _silverman(values: NDArray[np.float64]) -> float:
    """Bandwidth for a density of ``values`` (n,)."""
    return 1.06 * float(values.std(ddof=1)) * len(values) ** -0.2 if len(values) > 1 else 0.0


def time_by_phase(rows: Sequence[Row], path: Files) -> None:
    """Seconds of each iteration, stacked by phase; what no phase accounts for is ``other``. All iterations are shown,
    the critic's pre-training too, so that the x axis counts iterations."""
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    phases = phase_seconds(rows)
    if phases:
        parts = np.array_split(np.arange(len(rows)), min(len(rows), MOST_POINTS))  # means of stretches
        iterations = [float(rows[int(part[0])].get("iteration", part[0])) for part in parts]
        means = [[float(np.mean(seconds[part])) for part in parts] for seconds in phases.values()]
        edges = [*iterations, iterations[-1] + 1]
        base = np.zeros(len(parts) + 1)
        for i, (name, heights) in enumerate(zip(phases, means, strict=True)):
            top = base + np.array([*heights, heights[-1]])
            axis.fill_between(
                edges,
                base,
                top,
                step="post",
                color=COLOURS[i % len(COLOURS)],
                alpha=0.75,
                linewidth=0,
                label=label(name),
            )
            base = top
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set(title="where the time went", xlabel="iteration", ylabel="seconds an iteration")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    save_figure(figure, path)


def phase_seconds(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Phase -> seconds of each iteration (len(rows),), ``other`` last where the phases do not make up ``time/total``."""
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("time/")))
    found = {
        name.removeprefix("time/"): np.array([float(row.get(name) or 0.0) for row in rows], dtype=np.float64)
        for name in names
    }
    total = found.pop("total", None)
    if total is not None:
        other = np.maximum(total - sum(found.values(), np.zeros(len(rows))), 0.0)
        if other.sum() > 0.005 * total.sum():
            found["other"] = other
    return found


def save_figure(figure: Figure, path: Files) -> None:
    """Write one file, or several of one figure, which is then laid out once."""
    for file in [path] if isinstance(path, str | Path) else path:
        figure.savefig(file, dpi=110, metadata={"Date": None} if str(file).endswith(".svg") else {"Software": None})
        figure.set_layout_engine("none")  # where things lie now they stay
