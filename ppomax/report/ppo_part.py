"""What a page says of PPO runs: numbers, figures, dialogues. ``runs``: name -> what the run left behind."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from ppomax.evaluate.winrate import verdicts_suffice
from ppomax.report.figures import (
    ANSWER_PANELS,
    CRITIC_PANELS,
    PANELS,
    Panel,
    Series,
    alarm_updates,
    live_win_rate,
    metric_curve,
    phase_seconds,
    policy_series,
    reward_histogram,
    ridge_span,
    scores_by_update,
    time_by_phase,
    training_panel,
)
from ppomax.report.frame import Figures, Picture
from ppomax.report.markdown import number
from ppomax.report.run_verdict import judge_name, win_rate
from ppomax.report.stages import Stage
from ppomax.report.text import shortened, without_piles

Runs = Mapping[str, Stage]
SHOWN = (
    ("reward/mean", "reward"),
    ("kl/ref", "KL to the reference (k1), nats a token"),
    ("response/length", "response length, tokens"),
    ("response/truncated", "share cut at the length limit"),
    ("policy/perplexity", "perplexity on its own responses"),
    ("policy/entropy", "entropy, nats a token"),
)
LONGEST_TEXT = 3000
"""characters of a turn or an answer on a page"""
LEGEND = (
    "Shaded by each token's KL, in three steps (0.25, 1, 3 nats): orange where the policy is likelier to say it than the "
    "reference is, blue where less likely; below each answer are its tokens with the largest KL, in words."
)
SHADES = (0.25, 1.0, 3.0)
"""nats of a token's KL from which on its background is darker"""
LARGEST = 5
"""tokens of an answer that are listed with their KL"""
MOST_SOURCES = 6
"""reward sources whose own reward is drawn"""
THIRDS = ("first_third", "middle_third", "last_third")
ANSWERS = "Answers: cut, by place, by source of the reward"
DISTRIBUTIONS = {
    "score": (
        "Scores of the held-out prompts",
        "How the rewards of the same prompts are spread as training goes on: a long tail to the right tells of answers that "
        "exploit the reward model (section 5.3 and Fig. 13 of the paper).",
    ),
    "length": ("Lengths of their answers", "Tokens of the answers to the same prompts, the end of sequence included."),
}
"""number of samples.jsonl whose distribution over training is drawn -> heading and caption"""
PROXY = (
    "Dotted: the share of the same prompts where the training reward itself, the proxy, prefers the policy's answer. Where it "
    "goes on rising and the judge's falls, the reward model is being exploited."
)
MARKS = (
    " Vertical lines with a triangle in the run's colour: alarms (dotted: notice, dashed: warning, solid: collapse)."
)


def summary(run: Stage) -> str:
    """How much was done, and whether it is finished."""
    policy = _policy(run)
    updates = policy[-1]["update"] if policy else 0
    seconds = sum(row.get("time/total") or 0.0 for row in run.metrics)
    planned = run.config.get("iterations")
    unfinished = f" Not finished: {planned} iterations were planned." if planned and len(policy) < planned else ""
    return (
        f"{len(policy)} iterations, {updates} policy updates, {len(run.metrics) - len(policy)} iterations of critic "
        f"pre-training, {seconds / 60:.1f} minutes.{unfinished}"
    )


def _policy(run: Stage) -> list[dict[str, Any]]:
    return [row for row in run.metrics if row.get("phase", "policy") == "policy"]


def numbers(runs: Runs) -> list[tuple[str, list[str]]]:
    """(number, its first and last value in each run); then the win rate, where one was judged."""
    ends = {name: (rows[0], rows[-1]) for name, run in runs.items() if (rows := _policy(run))}
    if not ends:
        return []
    out = []
    for metric, title in SHOWN:
        cells = []
        for name in runs:
            first, last = ends.get(name, ({}, {}))
            cells.append(f"{number(first.get(metric))} to {number(last.get(metric))}" if first else "–")
        out.append((title, cells))
    rates = [win_rate(run) for run in runs.values()]
    if any(rates):
        out.append(("judged win rate, last evaluation", [str(rate or "–") for rate in rates]))
    return out


# ------------------------------------------------------------------------------------------- figures


def figures(runs: Runs) -> list[Figures]:
    """Every figure that the runs have numbers for."""
    metrics = {name: run.metrics for name, run in runs.items()}
    alarms = {name: run.alarms for name, run in runs.items()}
    marks = MARKS if any(alarms.values()) else ""
    found = [panels_figure("training", "Training", metrics, PANELS, alarms=alarms, caption=marks.strip())]
    found.append(_judged(runs))
    found += [_distributions(runs, column) for column in DISTRIBUTIONS]
    found.append(_answers(runs, metrics, alarms))
    found.append(panels_figure("critic", "Critic and gradients", metrics, CRITIC_PANELS, alarms=alarms))
    found.append(_times(runs))
    return [figure for figure in found if figure is not None]


def panels_figure(
    name: str, title: str, metrics: Mapping[str, Sequence[Mapping[str, Any]]], panels: Sequence[Panel], *,
    alarms: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, series: Series = policy_series,
    about: str = "PPO over training", caption: str = "",
) -> Figures | None:  # fmt: skip
    """One picture a panel, the runs overlaid; panels without numbers are left out."""
    pictures, drawn = [], []
    for panel in panels:
        courses = {run: series(rows, panel[0])[1] for run, rows in metrics.items()}
        ends = [f"{run}: {number(v[0])} to {number(v[-1])}" for run, v in courses.items() if v]
        if ends:
            drawn.append(panel)
            alt = f"{panel[1]} over updates. {'; '.join(ends)}{_alarm_words(metrics, alarms or {})}"
            draw = partial(metric_curve, metrics, panel, alarms=alarms, series=series)
            pictures.append(Picture(f"{name}_{panel[0].replace('/', '_')}", alt, draw))
    if not pictures:
        return None
    whole = partial(training_panel, metrics, panels=drawn, alarms=alarms, series=series, about=about)
    return Figures(name, title, pictures, caption, whole)


def _alarm_words(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], alarms: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """The lines on the time axis, in words: how many of each level, and where the first one stands."""
    told = []
    for run, rows in metrics.items():
        if marks := alarm_updates(rows, alarms.get(run, ())):
            levels = ", ".join(f"{count} {level}" for level, count in Counter(level for _, level in marks).items())
            told.append(f"{run}: {levels}, the first at update {min(update for update, _ in marks)}")
    return f". Alarms: {'; '.join(told)}" if told else ""


def _answers(
    runs: Runs, metrics: Mapping[str, Sequence[Mapping[str, Any]]], alarms: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Figures | None:
    """Truncation, KL by place in the answer, reward by source. The parts of a single run are laid over each other."""
    every = dict.fromkeys(key for rows in metrics.values() for row in rows for key in row)
    sources = [key for key in every if key.startswith("reward/source/")][:MOST_SOURCES]
    thirds = [key for name in THIRDS if (key := f"kl/{name}") in every]
    parts = [("KL to the SFT model by place", "nats per token (k1)", thirds)]
    parts += [("reward by source", "unweighted", sources)] if len(sources) > 1 else []
    panels = list(ANSWER_PANELS)
    panels += [(key, f"{title.split(' by ')[0]}: {_part(key)}", unit) for title, unit, keys in parts for key in keys]
    if len(metrics) > 1:
        return panels_figure("answers", ANSWERS, metrics, panels, alarms=alarms)
    own = panels_figure("answers", ANSWERS, metrics, ANSWER_PANELS, alarms=alarms)
    pictures = list(own.pictures) if own else []
    for title, unit, keys in parts:
        laid = {_part(key): _renamed(next(iter(metrics.values())), key) for key in keys}
        found = panels_figure("answers", title, laid, [("part", title, unit)])
        pictures += (
            [Picture(f"answers_{keys[0].split('/')[0]}", p.about, p.draw) for p in found.pictures] if found else []
        )
    return Figures("answers", ANSWERS, pictures) if pictures else None


def _part(key: str) -> str:
    return key.split("/")[-1].replace("_third", " third of the answer") if "third" in key else key.split("/", 2)[-1]


def _renamed(rows: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows in which the number ``key`` is called ``part``."""
    return [{"phase": r.get("phase", "policy"), "update": r["update"], "part": r.get(key)} for r in rows]


def _judged(runs: Runs) -> Figures | None:
    """The win rate over training, and against what it is."""
    judged = {name: run for name, run in runs.items() if run.evaluations}
    if not judged:
        return None
    curves: dict[str, Any] = {}
    alike: dict[str, list[str]] = {}  # what is said of a run's judging -> runs
    best = []
    for name, run in judged.items():
        watch = run.config.get("watch") or {}
        baselines = list(dict.fromkeys(watch.get("baselines") or ["sampled"]))
        words = {"sampled": "answers drawn as the policy draws its own", "greedy": "greedy answers"}
        if len(judged) == 1:
            curves = {f"against the reference's {words[b]}": (run.evaluations, f"eval/win_rate_{b}") for b in baselines}
        else:
            curves[name] = (run.evaluations, "eval/win_rate")
            baselines = baselines[:1]
        tie = (
            "a preference that turns with the order of the answers"
            if any(judge.get("llm") for judge in watch.get("judge") or [])
            else f"a difference of scores up to {number(watch.get('tie_band'))}"
        )
        said = (
            f"udged by {judge_name(run)} on {run.evaluations[-1]['eval/prompts']} fixed held-out prompts, against the "
            f"reference model's {' and its '.join(words[b] for b in baselines)}; {tie} is a tie and counts half."
        )
        alike.setdefault(said, []).append(name)
        best.append(f"{name + ': ' if len(judged) > 1 else ''}{_best(run.evaluations, bool(watch.get('keep_best')))}")
    captions = [f"J{said}" if len(alike) == 1 else f"{', '.join(names)}: j{said}" for said, names in alike.items()]
    captions.append(f"Best: {'; '.join(best)}.")
    judge = (
        judge_name(next(iter(judged.values())))
        if len({judge_name(run) for run in judged.values()}) == 1
        else "its judge"
    )
    ends = "; ".join(
        f"{name}: {100 * rows[0][metric]:.0f}% to {100 * rows[-1][metric]:.0f}%"
        for name, (rows, metric) in curves.items()
    )
    proxies = {
        name if len(judged) > 1 else "": run.evaluations
        for name, run in judged.items()
        if any(row.get("eval/proxy_win_rate") is not None for row in run.evaluations)
    }
    if proxies:
        captions.append(PROXY)
        ends += "; by the training reward itself: " + "; ".join(
            f"{f'{name}: ' if name else ''}{100 * rows[0]['eval/proxy_win_rate']:.0f}% to "
            f"{100 * rows[-1]['eval/proxy_win_rate']:.0f}%"
            for name, rows in (
                (n, [r for r in rows if r.get("eval/proxy_win_rate") is not None]) for n, rows in proxies.items()
            )
        )
    draw = partial(live_win_rate, curves, judge=judge, proxies=proxies)
    picture = Picture("win_rate", f"win rate over policy updates. {ends}", draw)
    return Figures("win_rate", "Judged win rate over training", [picture], " ".join(captions))


def _best(evaluations: Sequence[Mapping[str, Any]], keep: bool) -> str:
    """The highest win rate, and what is in best/: no policy with verdicts on under half of the prompts is kept there."""

    def highest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        return max(rows, key=lambda row: row["eval/win_rate"])

    def said(row: Mapping[str, Any]) -> str:
        return f"{100 * row['eval/win_rate']:.1f}% at iteration {row['iteration']}"

    best = highest(evaluations)
    if not keep:
        return said(best)
    enough = [row for row in evaluations if verdicts_suffice(row)]
    kept = highest(enough) if enough else None
    if kept is best:
        return f"{said(best)}, kept in best/"
    instead = f"{said(kept)} is" if kept else "nothing is"
    return f"{said(best)}, with verdicts on under half of the prompts; {instead} kept in best/"


def _distributions(runs: Runs, column: str) -> Figures | None:
    """Of the fixed held-out prompts as training goes on, over the same range in all runs: scores (Fig. 13), lengths."""
    rows = {name: _held_out(run, column) for name, run in runs.items()}
    found = {name: values for name in runs if (values := scores_by_update(rows[name], column))}
    if not found:
        return None
    span = ridge_span([part for values in found.values() for part in values.values()])
    files = f"{'reward' if column == 'score' else column}s"
    pictures = [
        Picture(f"{files}_{name}" if len(found) > 1 else files, _medians(f"{files}, {name}", values),
                partial(reward_histogram, {name: rows[name]}, span=span, number=column, colour=list(runs).index(name)))
        for name, values in found.items()
    ]  # fmt: skip
    title, caption = DISTRIBUTIONS[column]
    return Figures(files, title, pictures, caption)


def _held_out(run: Stage, column: str) -> Sequence[Mapping[str, Any]]:
    """Rows with ``update`` and ``column``: the rewards of all judged prompts where they were kept, else the samples."""
    judged = [
        {"update": row["update"], "score": reward} for row in run.evaluations for reward in row.get("rewards") or ()
    ]
    return judged if judged and column == "score" else run.samples


def _medians(what: str, scores: Mapping[int, Sequence[float]]) -> str:
    first, last = min(scores), max(scores)
    start, end = (number(statistics.median(scores[update])) for update in (first, last))
    return f"distribution of the {what}: median {start} at update {first}, {end} at update {last}"


def _times(runs: Runs) -> Figures | None:
    pictures, lines = [], []
    for name, run in runs.items():
        minutes = {phase: float(seconds.sum()) / 60 for phase, seconds in phase_seconds(run.metrics).items()}
        total = sum(minutes.values())
        if not total:
            continue
        words = ", ".join(f"{phase} {value:.1f} ({value / total:.0%})" for phase, value in minutes.items())
        lines.append(f"{name + ', m' if len(runs) > 1 else 'M'}inutes: {words}.")
        pictures.append(
            Picture(f"time_{name}" if len(runs) > 1 else "time", f"seconds an iteration by phase, {lines[-1]}",
                    partial(time_by_phase, run.metrics))
        )  # fmt: skip
    return Figures("time", "Where the time went", pictures, " ".join(lines)) if pictures else None


# ----------------------------------------------------------------------------------------- dialogues


def dialogues(runs: Runs) -> list[dict[str, Any]]:
    """The fixed prompts' first and last answers: {turns, answers} of each.

    The answers of the untrained policies are there once where they are the same.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for name, run in runs.items():
        iterations = [row["iteration"] for row in run.samples]
        for iteration in dict.fromkeys([iterations[0], iterations[-1]]) if iterations else ():
            seen: dict[str, int] = {}
            for row in run.samples:
                if row["iteration"] != iteration:
                    continue
                prompt = json.dumps(row["prompt"])
                seen[prompt] = seen.get(prompt, -1) + 1  # a prompt may be there twice
                turns = [{"role": t["role"], "content": shortened(t["content"], LONGEST_TEXT)} for t in row["prompt"]]
                entry = found.setdefault((prompt, seen[prompt]), {"turns": turns, "answers": []})
                _add(entry["answers"], _answer(row, name if len(runs) > 1 else ""))
    return list(found.values())


def _answer(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    start = row["update"] == 0
    when = "before PPO" if start else f"update {row['update']}"
    cut = "" if row.get("finished", True) else ", cut at the length limit"
    return {
        "title": when if start or not name else f"{name}, {when}",
        "text": shortened(row["response"], LONGEST_TEXT),
        "shades": shades(row),
        "largest": largest(row),
        "numbers": f"reward {_signed(row['score'])}, KL {_signed(row['kl'])} nats, {row['length']} tokens{cut}",
    }


def _tokens(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(text, KL in nats) of an answer's tokens, 0 where it is not known. A pile of marks over several tokens cannot be cut
    within one of them: such an answer has none."""
    pieces = row.get("pieces") or ()
    if not all(isinstance(piece, str) for piece in pieces):
        return []
    if without_piles(text := "".join(pieces)) != text:
        return []
    kls = (kl if isinstance(kl, int | float) and math.isfinite(kl) else 0.0 for kl in row.get("token_kl") or ())
    return list(zip(pieces, kls, strict=False))


def shades(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(text, class) of an answer's runs of tokens with a like KL; empty where it was not kept.

    A token's KL is log policy - log reference: above 0 the policy is likelier to say it here than the reference is.
    """
    out: list[tuple[str, str]] = []
    room = LONGEST_TEXT
    for text, kl in _tokens(row):
        if text and room <= 0:
            return [*out, (" […]", "")]
        text, room = text[:room], room - len(text)
        level = sum(abs(kl) >= bound for bound in SHADES)
        name = f"{'more' if kl > 0 else 'less'}{level}" if level else ""
        if out and out[-1][1] == name:
            out[-1] = (out[-1][0] + text, name)
        elif text:
            out.append((text, name))
    return out if room >= 0 else [*out, (" […]", "")]


def largest(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(token, its KL with a sign) of the shaded tokens farthest from 0, in the order of their KL: for those who do not see
    colours."""
    told = sorted((t for t in _tokens(row) if abs(t[1]) >= SHADES[0]), key=lambda t: -abs(t[1]))[:LARGEST]
    return [(shortened(text, 40) or "(adds no text)", f"{kl:+.2f}") for text, kl in told]


def _add(answers: list[dict[str, Any]], answer: dict[str, Any]) -> None:
    if answer not in answers:
        answers.append(answer)


def _signed(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) and math.isfinite(value) else number(value)
