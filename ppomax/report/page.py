"""``ppomax report`` and RUN/report.html: one self-contained page of PPO and reward-model runs, from their own files.

A PPO or reward-model run writes its page at its end with `run_page`; `report` makes the same page later, of one run or of several. What
models and data wrote is untrusted: see `frame`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ppomax.errors import UserError
from ppomax.report import ppo_part, reward_part, settings_part
from ppomax.report.budget import MOST_BYTES, MOST_TEXT, fit_articles, fit_pictures, without_pictures
from ppomax.report.frame import FIGURES, HEAD, HTML, SCRIPT, WIDE, Figures
from ppomax.report.run_verdict import two_sentences
from ppomax.report.stages import Stage, read_directory
from ppomax.report.text import shortened
from ppomax.train.progress import ProgressLine

__all__ = ["Report", "report", "run_page"]

SHOWN_ALARMS = 20
LONGEST_ALARM, LONGEST_SETTINGS = 1000, 30_000
"""characters on the page"""
LISTS = """\
{% macro texts(title, about, articles) %}
<section data-search><h2>{{ title }}</h2>
{% if about %}<p>{{ about }}</p>
{% endif %}
<p class="search" hidden><label>Search <input type="search"></label> <output aria-live="polite"></output></p>
{% for article in articles %}{{ article }}{% endfor %}</section>
{% endmacro %}
{% macro head(names) %}
<tr>{% for name in names %}{% if name %}<th scope="col">{{ name }}</th>{% else %}<td></td>{% endif %}{% endfor %}</tr>
{% endmacro %}
{% macro row(name, cells) %}
<tr><th scope="row">{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endmacro %}
"""
TEMPLATE = HTML.from_string(
    LISTS
    + WIDE
    + HEAD
    + """\
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
{% if numbers %}{% call wide("First and last numbers", ppo | length) %}
{{ head(["number", "first iteration to last"] if ppo | length == 1 else ["number, first iteration to last"] + ppo) }}
{% for name, cells in numbers %}{{ row(name, cells) }}{% endfor %}{% endcall %}{% endif %}
{% for name, table in tables if table %}<h2>Held-out pairs{% if tables | length > 1 %}: {{ name }}{% endif %}</h2>
{% call wide("Held-out pairs of " ~ name, table.head | length) %}
{{ head([""] + table.head) }}
{% for source, cells in table.rows %}{{ row(source, cells) }}{% endfor %}{% endcall %}
<p>{% for about, value in table.besides %}{{ about }} {{ value }}{{ ". " if loop.last else "; " }}{% endfor %}
Accuracies with 95% intervals.</p>
{% endfor %}
"""
    + FIGURES
    + """\
{% if dialogues.shown %}{{ texts("Held-out prompts: before and after", dialogues.about, dialogues.shown) }}{% endif %}
{% if wrong.shown %}{{ texts("Confidently wrong pairs", wrong.about, wrong.shown) }}{% endif %}
{% if between %}<h2>Settings in which the runs differ</h2>{% call wide("Settings in which the runs differ", names | length) %}
{{ head(["option"] + names) }}
{% for option, cells in between %}{{ row(option, cells) }}{% endfor %}{% endcall %}{% endif %}
{% if details.rows %}<h2>The twelve details</h2>{% call wide("The twelve details", details.head | length) %}
{{ head(["detail"] + details.head) }}
{% for number, name, states in details.rows %}{{ row(number ~ " " ~ name, states) }}{% endfor %}{% endcall %}
<p><small>* = part of PPO-max in Fig. 5 of the paper.</small></p>{% endif %}
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
{{ head(["option", "preset", "run"]) }}
{% for option, preset, own in run.differs %}{{ row(option, [preset, own]) }}{% endfor %}</table></details>{% endif %}
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


def report(paths: Sequence[str | Path], *, quiet: bool = False) -> Report:
    """The page of one or several run directories. UserError where one holds no PPO or reward-model run."""
    folders = [Path(path) for path in paths]
    ppo: dict[str, Stage] = {}
    reward: dict[str, Stage] = {}
    for name, path in zip(_names(folders), folders, strict=True):
        of_kind = ppo if _kind(path) == "ppo" else reward
        of_kind[name] = read_directory(path, name)
    return _report(ppo, reward, quiet=quiet)


def run_page(run: Path) -> str:
    """The page of one run directory, as HTML."""
    return report([run], quiet=True).html


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


def _report(ppo: Mapping[str, Stage], reward: Mapping[str, Stage], *, quiet: bool) -> Report:
    every = {**ppo, **reward}
    names = list(every)
    said = [{"name": n, "sentences": two_sentences(r), "summary": ppo_part.summary(r)} for n, r in ppo.items()]
    said += [
        {"name": n, "sentences": reward_part.verdict(r), "summary": reward_part.summary(r)} for n, r in reward.items()
    ]
    alarms = [
        {**alarm, "of": f" in {name}" if len(every) > 1 else "", "message": shortened(str(alarm.get("message")), LONGEST_ALARM)}
        for name, run in ppo.items()
        for alarm in run.alarms
    ]  # fmt: skip
    if len(every) > 1:
        title = f"{len(every)} runs: {', '.join(names)}"
    else:
        title = f"{'PPO' if ppo else 'Reward-model'} run {names[0]}"
    figures = [*ppo_part.figures(ppo), *reward_part.figures(reward)]
    wrong = _wrong(reward)
    kinds = [kind for kind in (ppo, reward) if len(kind) > 1]
    page = partial(
        TEMPLATE.render,
        title=title, verdicts=said, alarms=alarms[:SHOWN_ALARMS], more_alarms=max(0, len(alarms) - SHOWN_ALARMS),
        ppo=list(ppo), numbers=ppo_part.numbers(ppo), tables=[(n, reward_part.tables(r)) for n, r in reward.items()],
        dialogues=_dialogues(ppo, MOST_TEXT - wrong["bytes"]), wrong=wrong,
        between=settings_part.between(kinds[0]) if kinds else [], names=list(kinds[0]) if kinds else [],
        details=settings_part.details(ppo), made=[_made(n, r, "ppo" if n in ppo else "reward") for n, r in every.items()],
        versions=settings_part.page_versions(), script=Markup(SCRIPT),  # our own text, and its hash is in the page's policy
    )  # fmt: skip
    room = MOST_BYTES - len(page(figures=without_pictures(figures)).encode())
    with ProgressLine("figures", sum(len(figure.pictures) for figure in figures), quiet=quiet) as bar:
        drawn = fit_pictures(figures, room, bar.step)
    return Report(page(figures=drawn), figures)


def _dialogues(ppo: Mapping[str, Stage], room: int) -> dict[str, Any]:
    """``shown`` and what is to be said ``about`` them."""
    fitted = fit_articles(ppo_part.dialogues(ppo), room)
    about = []
    if any('class="more' in text or 'class="less' in text for text in fitted.shown):
        about.append(ppo_part.LEGEND)
    if fitted.plain:
        about.append(f"{fitted.plain} of the {len(fitted.shown)} are not shaded: the page has room for so much.")
    if fitted.left_out:
        about.append(f"{fitted.left_out} more are in samples.jsonl: the page has room for so much.")
    return {"shown": fitted.shown, "about": " ".join(about)}


def _wrong(reward: Mapping[str, Stage]) -> dict[str, Any]:
    """``shown``, what is to be said ``about`` them, and the ``bytes`` that they take from the dialogues."""
    pairs = reward_part.confidently_wrong(reward)
    fitted = fit_articles(pairs[: reward_part.MOST_WRONG], MOST_TEXT * 2 // 5)
    about = "Held-out pairs that the model orders against the label, the widest gaps first (Table 1 of the paper)."
    if more := len(pairs) - len(fitted.shown):
        about += f" {more} more are in disagreements.jsonl."
    return {"shown": fitted.shown, "about": about, "bytes": fitted.bytes}


def _made(name: str, run: Stage, verb: str) -> dict[str, object]:
    """Settings of one run, and how to repeat it."""
    return {
        **settings_part.made(run, verb), "name": name, "seed": run.config.get("seed"), "preset": run.config.get("preset"),
        "differs": settings_part.from_preset(run) if verb == "ppo" else None,
        "settings": shortened((run.path / "config.yaml").read_text(encoding="utf-8"), LONGEST_SETTINGS),
    }  # fmt: skip
