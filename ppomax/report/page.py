"""``ppomax report`` and RUN/report.html: one self-contained page of PPO and reward-model runs, from their own files.

A PPO run writes its page at its end with `ppo_page`; `report` makes the same page later, of one run or of several. What
models and data wrote is untrusted: see `frame`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ppomax.errors import UserError
from ppomax.report import ppo_part, reward_part, settings_part
from ppomax.report.frame import FIGURES, HEAD, HTML, SCRIPT, Figures, embedded
from ppomax.report.run_verdict import two_sentences
from ppomax.report.stages import Stage, read_directory
from ppomax.train.progress import ProgressLine

__all__ = ["FIGURES", "HEAD", "HTML", "Report", "embedded", "ppo_page", "report"]

SHOWN_ALARMS = 20
LISTS = """\
{% macro texts(title, about, items) %}
<section data-search><h2>{{ title }}</h2>
{% if about %}<p>{{ about }}</p>
{% endif %}
<p class="search" hidden><label>Search <input type="search"></label> <output aria-live="polite"></output></p>
{% for item in items %}<article>
{% for turn in item.turns %}<p><span class="name">{{ turn.role }}</span> <span class="text" dir="auto">{{ turn.content }}</span></p>
{% endfor %}
<div class="grid">{% for answer in item.answers %}<div><span class="name">{{ answer.title }}</span>
<p class="text" dir="auto">{% if answer.shades %}\
{% for text, shade, about in answer.shades %}{% if shade %}<span class="{{ shade }}" title="{{ about }}">{{ text }}</span>\
{% else %}{{ text }}{% endif %}{% endfor %}{% else %}{{ answer.text }}{% endif %}</p><small>{{ answer.numbers }}</small></div>
{% endfor %}</div>
{% if item.from %}<small>{{ item.from }}</small>
{% endif %}</article>
{% endfor %}</section>
{% endmacro %}
"""
TEMPLATE = HTML.from_string(
    LISTS
    + HEAD
    + """\
<main>
{% for said in verdicts %}<p class="verdict">{% if verdicts | length > 1 %}<b>{{ said.name }}:</b> {% endif %}
{{ said.sentences[:2] | join(" ") | code }}</p>
<p>{{ said.summary }}</p>
{% if said.sentences[2:] %}<ul>{% for sentence in said.sentences[2:] %}<li>{{ sentence | code }}</li>
{% endfor %}</ul>{% endif %}
{% endfor %}
{% for alarm in alarms %}<p class="alarm {{ alarm.level }}">{{ alarm.level }}{{ alarm.of }}, iteration {{ alarm.iteration }}:
{{ alarm.message }}</p>
{% endfor %}
{% if more_alarms %}<p>{{ more_alarms }} more alarms: alarms.jsonl.</p>{% endif %}
{% if numbers %}<div class="wide" style="--columns: {{ ppo | length }}"><table>
<tr><th>number</th>{% for name in ppo %}<th>{% if ppo | length > 1 %}{{ name }}: {% endif %}first iteration to last</th>{% endfor %}</tr>
{% for name, cells in numbers %}<tr><th>{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% for name, table in tables if table %}<h2>Held-out pairs{% if tables | length > 1 %}: {{ name }}{% endif %}</h2>
<div class="wide" style="--columns: {{ table.head | length }}"><table>
<tr><th></th>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for source, cells in table.rows %}<tr><th>{{ source }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p>{% for about, value in table.besides %}{{ about }} {{ value }}{{ ". " if loop.last else "; " }}{% endfor %}
Accuracies with 95% intervals.</p>
{% endfor %}
"""
    + FIGURES
    + """\
{% if dialogues.shown %}{{ texts("Held-out prompts: before and after", dialogues.about, dialogues.shown) }}{% endif %}
{% if wrong %}{{ texts("Confidently wrong pairs", "Held-out pairs that the model orders against the label, the widest gaps \
first (Table 1 of the paper).", wrong) }}{% endif %}
{% if between %}<h2>Settings in which the runs differ</h2><div class="wide" style="--columns: {{ between[0][1] | length }}"><table>
<tr><th>option</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for option, cells in between %}<tr><th>{{ option }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endif %}
{% if details.rows %}<h2>The twelve details</h2><div class="wide" style="--columns: {{ details.head | length }}"><table>
<tr><th>detail</th>{% for name in details.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for number, name, states in details.rows %}<tr><th>{{ number }} {{ name }}</th>
{% for state in states %}<td>{{ state }}</td>{% endfor %}</tr>
{% endfor %}</table></div><p><small>* = part of PPO-max in Fig. 5 of the paper.</small></p>{% endif %}
<h2>Settings, and how to make it again</h2>
{% for run in made %}<h3>{{ run.name }}</h3>
<pre>{{ run.command }}</pre>
{% if run.in_memory %}<p><b>{{ run.in_memory }}</b></p>
{% endif %}
<p>Seed {{ run.seed }}. {{ run.with }}</p>
{% if run.data %}<ul>{% for line in run.data %}<li>{{ line }}</li>
{% endfor %}</ul>
{% endif %}
{% if run.digests %}<p><small>{{ run.digests }}</small></p>
{% endif %}
{% if run.differs %}<details><summary>{{ run.differs | length }} options differ from the preset {{ run.preset }}</summary><table>
<tr><th>option</th><th>preset</th><th>run</th></tr>
{% for option, preset, own in run.differs %}<tr><th>{{ option }}</th><td>{{ preset }}</td><td>{{ own }}</td></tr>
{% endfor %}</table></details>{% endif %}
<details><summary>config.yaml</summary><pre>{{ run.settings }}</pre></details>
{% endfor %}
<p><small>This page was made with {{ versions }}.</small></p>
</main>
<script>{{ script }}</script></body></html>
"""
)


@dataclass(frozen=True)
class Report:
    """A page and the figures in it."""

    html: str
    figures: list[Figures]


def report(paths: Sequence[Path]) -> Report:
    """The page of one or several run directories. UserError where one holds no PPO or reward-model run."""
    ppo: dict[str, Stage] = {}
    reward: dict[str, Stage] = {}
    for name, path in zip(_names(paths), paths, strict=True):
        of_kind = ppo if _kind(path) == "ppo" else reward
        of_kind[name] = read_directory(path, name)
    return _report(ppo, reward, quiet=False)


def ppo_page(run: Path) -> str:
    """The page of a PPO run directory, as HTML."""
    return _report({run.name: read_directory(run, run.name)}, {}).html


def _names(paths: Sequence[Path]) -> list[str]:
    """The directories' names, with as much before them as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"{next(p for i, p in enumerate(paths) if parts[i] in parts[:i])}: given twice")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _kind(path: Path) -> str:
    """``ppo`` or ``reward``, by the settings."""
    file = path / "config.yaml"
    if not file.exists():
        below = sorted(f.parent.name for f in path.glob("*/config.yaml")) if path.is_dir() else []
        hint = f"; give runs below it: {', '.join(below)}" if below else ""
        raise UserError(f"{path}: no run: it has no config.yaml{hint}")
    settings = read_directory(path, path.name).config
    if "rollout_batch" in settings:
        return "ppo"
    if "lm_coef" in settings:
        return "reward"
    raise UserError(f"{file}: neither a PPO nor a reward-model run; a report is made of these")


def _report(ppo: Mapping[str, Stage], reward: Mapping[str, Stage], *, quiet: bool = True) -> Report:
    every = {**ppo, **reward}
    names = list(every)
    said = [{"name": n, "sentences": two_sentences(r), "summary": ppo_part.summary(r)} for n, r in ppo.items()]
    said += [
        {"name": n, "sentences": reward_part.verdict(r), "summary": reward_part.summary(r)} for n, r in reward.items()
    ]
    alarms = [
        {**alarm, "of": f" in {name}" if len(every) > 1 else ""} for name, run in ppo.items() for alarm in run.alarms
    ]
    if len(every) > 1:
        title = f"{len(every)} runs: {', '.join(names)}"
    else:
        title = f"{'PPO' if ppo else 'Reward-model'} run {names[0]}"
    figures = [*ppo_part.figures(ppo), *reward_part.figures(reward)]
    pictures = [picture for figure in figures for picture in figure.pictures]
    with ProgressLine("figures", len(pictures), quiet=quiet) as bar:
        for picture in pictures:
            _ = picture.source  # drawn here, and kept
            bar.step()
    dialogues = ppo_part.dialogues(ppo)
    about = []
    if any(answer["shades"] for item in dialogues["shown"] for answer in item["answers"]):
        about.append(ppo_part.LEGEND)
    if dialogues["left_out"]:
        about.append(f"{dialogues['left_out']} more are in samples.jsonl: the page has room for so much.")
    dialogues["about"] = " ".join(about)
    kinds = [kind for kind in (ppo, reward) if len(kind) > 1]
    html = TEMPLATE.render(
        title=title, verdicts=said, alarms=alarms[:SHOWN_ALARMS], more_alarms=max(0, len(alarms) - SHOWN_ALARMS),
        ppo=list(ppo), numbers=ppo_part.numbers(ppo), tables=[(n, reward_part.tables(r)) for n, r in reward.items()],
        figures=figures, dialogues=dialogues, wrong=reward_part.confidently_wrong(reward) if reward else [],
        between=settings_part.between(kinds[0]) if kinds else [], names=list(kinds[0]) if kinds else [],
        details=settings_part.details(ppo), made=[_made(n, r, "ppo" if n in ppo else "reward") for n, r in every.items()],
        versions=settings_part.page_versions(), script=Markup(SCRIPT),  # our own text, and its hash is in the page's policy

    )  # fmt: skip
    return Report(html, figures)


def _made(name: str, run: Stage, verb: str) -> dict[str, object]:
    """Settings of one run, and how to repeat it."""
    return {
        **settings_part.made(run, verb), "name": name, "seed": run.config.get("seed"), "preset": run.config.get("preset"),
        "differs": settings_part.from_preset(run) if verb == "ppo" else None,
        "settings": (run.path / "config.yaml").read_text(encoding="utf-8"),
    }  # fmt: skip
