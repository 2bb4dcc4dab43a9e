"""One self-contained page of several PPO runs from one start: table, what happened, curves, dialogues.

What models wrote is untrusted: every value goes through jinja's escaping, and the page has no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppomax.report.comparison import RULE, Compared
from ppomax.report.figures import PANELS, live_win_rate
from ppomax.report.frame import FIGURES, HEAD, HTML, embedded
from ppomax.report.markdown import number
from ppomax.report.ppo_part import panels_figure

NOTE = (
    "Reward: of the reward model that PPO was trained on. KL to SFT: nats a response. Length: tokens. These and the "
    "perplexity on own answers: on {watched} held-out prompts. Wins: share of {judged} held-out prompts on which the judge "
    "prefers the answer to SFT's, ties as half, with 95% intervals; helpful: questions about facts, harmless: requests to "
    "decline, honest: questions that nobody can answer. Exam: multiple-choice questions, chance {chance:.0%}."
)
TEMPLATE = HTML.from_string(
    HEAD
    + """\
<p>{{ about }}</p>
<table><tr><td></td>{% for row in rows %}<th scope="col">{{ row.title }}</th>{% endfor %}</tr>
{% for name, cells in measures %}<tr><th scope="row">{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p><small>{{ note }}</small></p>
<h2>What happened</h2>
<ul>{% for sentence in sentences %}<li>{{ sentence }}</li>
{% endfor %}</ul>
"""
    + FIGURES
    + """\
<h2>Before and after</h2>
<p>{{ rule }}; the judge's score, 0 to 1, in brackets.</p>
{% for d in dialogues %}<h3>{{ d.category }}</h3>
<table>{% for turn in d.turns %}<tr><th class="who" scope="row">{{ turn.role }}</th>
<td{{ turn.content | lang }}>{{ turn.content }}</td></tr>
{% endfor %}
{% for a in d.answers %}<tr><th class="who" scope="row">{{ a.title }}</th><td{{ a.text | lang }}>{{ a.text }}
{%- if a.score is not none %} <small>({{ "%.2f" | format(a.score) }})</small>{% endif %}</td></tr>
{% endfor %}</table>
{% endfor %}
<p>A page for each run:{% for row in rows[1:] %} <a href="{{ row.name }}/report.html">{{ row.title }}</a>{% endfor %}</p>
</main></body></html>
"""
)


def note(rows: Sequence[Compared], chance: float) -> str:
    """What the table's numbers are."""
    run = rows[1]
    return NOTE.format(watched=run.evaluations[-1]["eval/prompts"], judged=run.wins["overall"].n, chance=chance)


def table(rows: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """(measure, a cell a model); a dash where a number has no meaning."""
    out = [
        (title, [number(round(row.measures[key], 2) + 0.0) for row in rows])  # + 0.0: no -0
        for key, title in (("reward", "reward"), ("kl", "KL"), ("length", "length"), ("perplexity", "perplexity"))
    ]
    for aspect in rows[1].wins:
        title = "wins" if aspect == "overall" else f"wins, {aspect}"
        out.append((title, [str(row.wins.get(aspect, "–")) for row in rows]))
    return [*out, ("exam", [str(row.exam) for row in rows])]


def comparison_page(
    title: str, about: str, rows: Sequence[Compared], said: Sequence[str], shown: Sequence[Mapping[str, Any]], chance: float
) -> str:  # fmt: skip
    """HTML. ``rows``: of `compare_runs`; ``said``: sentences; ``shown``: of `dialogues`."""
    runs = rows[1:]
    rule = RULE.format(title=runs[0].title)
    curves = {run.title: (run.evaluations, "eval/win_rate") for run in runs}
    metrics = {run.title: run.metrics for run in runs}
    prompts = runs[0].evaluations[-1]["eval/prompts"]
    figures = [
        embedded(
            "True win rate over training",
            lambda file: live_win_rate(curves, file),
            f"Answers to the same {prompts} held-out prompts each time, against SFT's drawn in the same way. The judge knows "
            "the truth, and nothing is trained on it.",
        ),
        panels_figure("training", "Training", metrics, PANELS),
    ]
    return TEMPLATE.render(
        title=title,
        about=about,
        rows=rows,
        measures=[(name, [cell.replace(", ", ",\N{NO-BREAK SPACE}") for cell in cells]) for name, cells in table(rows)],
        note=note(rows, chance),
        sentences=said,
        figures=[figure for figure in figures if figure is not None],
        rule=rule[0].upper() + rule[1:],
        dialogues=shown,
    )
