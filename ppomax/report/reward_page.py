"""Figures and the self-contained page of ``ppomax evaluate``: what reward models get right, and where they are wrong.

What models and data wrote is untrusted: every value goes through jinja's escaping, and the page has no script.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ppomax.evaluate.reward_figures import draw_calibration, draw_gap_histogram
from ppomax.report.budget import MOST_BYTES, MOST_TEXT, fit_pictures, without_pictures
from ppomax.report.figures import COLOURS, Files, save_figure
from ppomax.report.frame import FIGURES, HEAD, HTML, WIDE, embedded
from ppomax.report.markdown import accuracy_cell, number, share
from ppomax.report.text import visible

SHOWN_WRONG = 10
"""confidently wrong pairs on the page, a model; the file has more"""
TEXT_LIMIT = 1200
"""characters of a prompt or an answer on the page"""
MOST_BARS = 40
"""subsets or sources in the figure; the tables have all"""

TEMPLATE = HTML.from_string(
    WIDE
    + HEAD
    + """\
<p>{{ summary }}</p>
<ul>{% for name, model in models %}<li>{{ name }}: {{ model }}</li>
{% endfor %}</ul>
{% for table in tables %}<h2>{{ table.title }}</h2>
{% call wide(table.title, table.head | length - 1) %}
<tr>{% for cell in table.head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}{% endcall %}
{% if table.note %}<p><small>{{ table.note }}</small></p>
{% endif %}
{% endfor %}
"""
    + FIGURES
    + """\
{% for model, rows in wrong %}<h2>Confidently wrong: {{ model }}</h2>
<p>{{ rows | length }} of the pairs that it orders against the label, the widest gap first.</p>
{% for row in rows %}<table>
<tr><th class="who" scope="row">prompt</th><td{{ row.prompt | lang }}>{{ row.prompt }}</td></tr>
<tr><th class="who" scope="row">preferred, {{ row.reward_chosen }}</th><td{{ row.chosen | lang }}>{{ row.chosen }}</td></tr>
<tr><th class="who" scope="row">other, {{ row.reward_rejected }}</th><td{{ row.rejected | lang }}>{{ row.rejected }}</td></tr>
<tr><th class="who" scope="row">from</th><td>{{ row.source }}</td></tr></table>
{% endfor %}
{% endfor %}
<h2>Data and settings</h2><pre>{{ data }}
{{ settings }}</pre>
</main></body></html>
"""
)


def names_of(models: Sequence[str]) -> dict[str, str]:
    """Short names for figures and file names: the run's, with a number where two would be alike."""
    out: dict[str, str] = {}
    for model in models:
        parts = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..", "final")]
        short = re.sub(r"[^\w.-]+", "_", parts[-1] if parts else "model")
        numbered = (f"{short}_{i}" for i in itertools.count(2))
        out[model] = next(name for name in itertools.chain([short], numbered) if name not in out.values())
    return out


# --------------------------------------------------------------------------------------------- figures


def draw_accuracies(result: Mapping[str, Any], file: Files) -> None:
    """Accuracy with 95% intervals of all pairs, of the pairs whose better answer is the longer or the shorter, of sources
    and of subsets: a row each, a colour a model."""
    short = names_of(list(result["models"]))
    parts = {model: _parts(found) for model, found in result["models"].items()}
    rows = list(next(iter(parts.values())))[:MOST_BARS]
    figure = Figure(figsize=(7.5, 1.6 + 0.24 * len(rows) * (1 + 0.4 * (len(parts) - 1))), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for i, (model, found) in enumerate(parts.items()):
        known = [(place, found[row]) for place, row in enumerate(rows) if found[row]["accuracy"] is not None]
        places = [place + (i - (len(parts) - 1) / 2) * 0.8 / len(parts) for place, _ in known]
        values = [cell["accuracy"] for _, cell in known]
        # rounding may put the share a hair outside its interval at 0 and 1
        widths = [[max(0.0, c["accuracy"] - c["interval"][0]) for _, c in known],
                  [max(0.0, c["interval"][1] - c["accuracy"]) for _, c in known]]  # fmt: skip
        axis.errorbar(values, places, xerr=widths, fmt="osDv^"[i % 5], markersize=4, capsize=2, linewidth=1,
                      color=COLOURS[i % len(COLOURS)], label=short[model])  # fmt: skip
    axis.axvline(0.5, color="black", linestyle=":", linewidth=0.8)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of pairs in the right order", title=f"{result['pairs']} pairs, 95% intervals")
    axis.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=min(3, len(parts)))
    save_figure(figure, file)


def draw_agreement(row: Mapping[str, Any], a: np.ndarray, b: np.ndarray, file: Files) -> None:
    """Gaps of one reward model against those of another, a point a pair; the quarters in which they disagree are shaded."""
    short = names_of([row["a"], row["b"]])
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    reach = [1.05 * float(np.abs(side).max()) or 1.0 for side in (a, b)]
    for left, low in ((-reach[0], 0.0), (0.0, -reach[1])):
        axis.fill_between([left, left + reach[0]], low, low + reach[1], color=COLOURS[1], alpha=0.12, linewidth=0)
    axis.scatter(a, b, s=6, alpha=0.4, color=COLOURS[0], linewidths=0)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set(
        xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]), xlabel=f"gap by {short[row['a']]}",
        ylabel=f"gap by {short[row['b']]}", title=f"{share(row['alike'])} of {row['n']} pairs ranked alike",
    )  # fmt: skip
    axis.grid(alpha=0.3)
    save_figure(figure, file)


def _figures(result: Mapping[str, Any], gaps: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, Any]]:
    """(file name, title, function that draws to a path)."""
    yield "accuracy", "Accuracy", partial(draw_accuracies, result)
    short = names_of(list(result["models"]))
    for model, found in result["models"].items():
        yield f"gap_histogram_{short[model]}", f"Reward gaps: {short[model]}", partial(draw_gap_histogram, found)
        yield f"calibration_{short[model]}", f"Calibration: {short[model]}", partial(draw_calibration, found)
    for row in result["agreement"]:
        name = f"agreement_{short[row['a']]}_{short[row['b']]}"
        yield (
            name,
            f"{short[row['a']]} against {short[row['b']]}",
            partial(draw_agreement, row, gaps[row["a"]], gaps[row["b"]]),
        )


def draw_all(result: Mapping[str, Any], gaps: Mapping[str, np.ndarray], folder: Path) -> None:
    """Every figure as PNG and SVG."""
    for name, _, draw in _figures(result, gaps):
        for suffix in ("png", "svg"):
            draw(folder / f"{name}.{suffix}")


# ---------------------------------------------------------------------------------------------- tables


def _parts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Row -> accuracy cell of one model, in the order of the tables."""
    rows = {"all pairs": found["overall"]["model"]}
    rows |= {
        "better is the longer": found["better_is_longer"],
        "better is the shorter": found["better_is_shorter"],
        "equal length": found["overall"]["length_matched"],
    }
    if len(found["sources"]) > 1:
        rows |= {f"source {name}": part["model"] for name, part in found["sources"].items()}
    if found["subsets"]:
        rows |= {f"subset {name}": part for name, part in found["subsets"]["by_subset"].items()}
        rows["mean over subsets"] = found["subsets"]["mean"]
        rows |= {f"RewardBench {name}": part for name, part in found["subsets"].get("sections", {}).items()}
        if "score" in found["subsets"]:
            rows["RewardBench, mean of sections"] = found["subsets"]["score"]
    return rows


def tables_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables {title, head, rows, note} of plain cells, for the page and the terminal."""
    short = names_of(list(result["models"]))
    models = {short[model]: found for model, found in result["models"].items()}
    first = next(iter(models.values()))
    parts = {model: _parts(found) for model, found in models.items()}
    rows: list[list[str]] = []
    for name, cell in parts[next(iter(models))].items():
        rows.append([name, str(cell["n"]), *(accuracy_cell(parts[model][name]) for model in models)])
    rows.insert(1, ["longer answer wins", str(first["overall"]["longer"]["n"]),
                    *(accuracy_cell(found["overall"]["longer"]) for found in models.values())])  # fmt: skip
    without = first["subsets"]["without"] if first["subsets"] else 0
    note = "Share of pairs in the right order, ties half, with 95% Wilson intervals; equal length: within 10%."
    note += f" {without} pairs name no subset." if without else ""
    measures = (
        ("mean gap", lambda m: number(m["gap"]["mean"])),
        ("std of the gaps", lambda m: number(m["gap"]["std"])),
        ("loss, -log sigmoid(gap)", lambda m: number(m["gap"]["loss"])),
        ("expected calibration error", lambda m: number(m["calibration"]["ece"])),
        ("correlation of gap and length gap", lambda m: number(m["length_correlation"])),
        ("correlation of reward and length", lambda m: number(m["score_length_correlation"])),
        ("rank correlation of reward and length", lambda m: number(m["score_length_rank_correlation"])),
        ("mean reward", lambda m: number(m["reward"]["mean"])),
        ("std of the rewards", lambda m: number(m["reward"]["std"])),
        ("dialogues cut to the context", lambda m: str(m["truncated"])),
    )
    tables = [
        {"title": "Accuracy", "head": ["pairs", "n", *models], "rows": rows, "note": note},
        {"title": "Gaps, calibration, length", "head": ["measure", *models], "note": "Lengths are in characters.",
         "rows": [[name, *(of(m) for m in models.values())] for name, of in measures]},
    ]  # fmt: skip
    if result["agreement"]:
        tables.append({
            "title": "Agreement",
            "head": ["models", "ranked alike", "if independent", "kappa", "gaps: r", "gaps: rank r", "first better",
                     "second better", "sign test p"],
            "rows": [
                [f"{short[r['a']]}, {short[r['b']]}", f"{share(r['alike'])} [{share(r['interval'][0])}, {share(r['interval'][1])}]",
                 share(r["expected"]), number(r["kappa"]), number(r["gap_correlation"]), number(r["gap_rank_correlation"]),
                 str(r["a_only"]), str(r["b_only"]), f"{r['sign_test_p']:.2g}"]
                for r in result["agreement"]
            ],
            "note": "If independent: the share to expect from the two accuracies alone. Sign test: of equal accuracy.",
        })  # fmt: skip
    return tables


# ------------------------------------------------------------------------------------------------ page


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT].rstrip() + " […]"


def verdict(result: Mapping[str, Any]) -> str:
    """What the numbers say, in a sentence for each model."""
    out = [f"{result['pairs']} pairs of {result['prompts']} prompts."]
    short = names_of(list(result["models"]))
    for model, found in result["models"].items():
        right, longer = found["overall"]["model"], found["overall"]["longer"]
        low, high = right["interval"]
        text = f"{short[model]} puts {share(right['accuracy'])} [{share(low)}, {share(high)}] in the right order"
        if high < 0.5:
            text += ", worse than chance"
        elif low <= 0.5:
            text += ", which chance may do as well"
        if high < longer["accuracy"]:
            text += f", worse than preferring the longer answer ({share(longer['accuracy'])})"
        elif 0.5 < low <= longer["accuracy"]:
            text += f", no clear gain over preferring the longer answer ({share(longer['accuracy'])})"
        by_length = [found[f"better_is_{word}"] for word in ("longer", "shorter")]
        if all(cell["n"] for cell in by_length):
            text += "; {} where the better answer is the longer and {} where it is the shorter".format(
                *(share(cell["accuracy"]) for cell in by_length)
            )
        out.append(text + f"; calibration error {found['calibration']['ece']:.3f}.")
    return " ".join(out)


def reward_page(
    result: Mapping[str, Any], gaps: Mapping[str, np.ndarray], wrong: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: str,
) -> str:  # fmt: skip
    """The page as HTML. ``wrong``: what `most_confidently_wrong` gives, by model; ``settings``: YAML."""
    room = MOST_TEXT // max(1, len(wrong))
    page = partial(
        TEMPLATE.render,
        title="Reward models on held-out pairs" if len(result["models"]) > 1 else "Reward model on held-out pairs",
        summary=verdict(result),
        models=[(short, model) for model, short in names_of(list(result["models"])).items()],
        tables=tables_of(result),
        wrong=[(model, _shown_wrong(rows, room)) for model, rows in wrong.items()],
        data="\n".join(result["data"]),
        settings=settings,
    )
    figures = [embedded(title, draw) for _, title, draw in _figures(result, gaps)]
    room = MOST_BYTES - len(page(figures=without_pictures(figures)).encode())
    return page(figures=fit_pictures(figures, room))


def _shown_wrong(rows: Sequence[Mapping[str, Any]], room: int) -> list[dict[str, Any]]:
    """The first pairs, as many as fit in ``room`` bytes."""
    shown: list[dict[str, Any]] = []
    for row in rows[:SHOWN_WRONG]:
        texts = {
            "prompt": _cut("\n".join(f"{m['role']}: {m['content']}" for m in row["prompt"])),
            "chosen": _cut(row["chosen"]),
            "rejected": _cut(row["rejected"]),
        }
        room -= sum(len(str(escape(visible(text))).encode()) for text in texts.values())
        if room < 0:
            break
        rewards = {name: number(row[name]) for name in ("reward_chosen", "reward_rejected")}
        shown.append({**row, **texts, **rewards})
    return shown
