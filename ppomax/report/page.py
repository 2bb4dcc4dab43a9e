"""RUN/report.html: one self-contained page of a PPO run, made from the run's own files, readable without a network.

What models and data wrote is untrusted: every value goes through jinja's escaping, and the page has no script.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment

from ppomax.report.figures import live_win_rate, reward_histogram, training_panel
from ppomax.report.markdown import number
from ppomax.report.stages import read_lines

Row = Mapping[str, Any]
SHOWN = (
    ("reward/mean", "reward"),
    ("kl/ref", "KL to the reference, nats a token"),
    ("response/length", "response length, tokens"),
    ("response/truncated", "share cut at the length limit"),
    ("policy/perplexity", "perplexity on its own responses"),
    ("policy/entropy", "entropy, nats a token"),
)
DIALOGUES = 12

HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
HEAD = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
td, th { border: 1px solid #8886; padding: .4rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { hyphens: auto; }
.who { width: 6.5rem; }
td { white-space: pre-wrap; }
img { max-width: 100%; background: #fff; }
pre { overflow-x: auto; background: #8882; padding: .6rem; }
.alarm { border-left: .4rem solid #d55e00; padding-left: .6rem; }
</style></head><body>
<h1>{{ title }}</h1>
"""
"""beginning of every page; needs ``title``"""
FIGURES = """\
{% for name, caption, source in figures %}<h2>{{ name }}</h2><img alt="{{ name }}" src="{{ source }}">
{% if caption %}<p>{{ caption }}</p>
{% endif %}
{% endfor %}
"""
"""needs ``figures``, made by `embedded`"""

TEMPLATE = HTML.from_string(
    HEAD
    + """\
<p>{{ summary }}</p>
{% for alarm in alarms %}<p class="alarm">{{ alarm.level }}, iteration {{ alarm.iteration }}: {{ alarm.message }}</p>
{% endfor %}
<table><tr><th>number</th><th>first iteration of the policy</th><th>last</th></tr>
{% for name, first, last in numbers %}<tr><th>{{ name }}</th><td>{{ first }}</td><td>{{ last }}</td></tr>
{% endfor %}</table>
"""
    + FIGURES
    + """\
{% if dialogues %}<h2>Held-out prompts: before and after</h2>
<table><tr><th>prompt</th><th>update {{ before }}</th><th>update {{ after }}</th></tr>
{% for d in dialogues %}<tr><td>{{ d.prompt }}</td><td>{{ d.first }}
<small>score {{ d.first_score }}</small></td><td>{{ d.last }}
<small>score {{ d.last_score }}, KL {{ d.kl }} nats</small></td></tr>
{% endfor %}</table>{% endif %}
<h2>Settings</h2><pre>{{ settings }}</pre>
</body></html>
"""
)


def embedded(name: str, draw: Callable[[Path], None], caption: str = "") -> tuple[str, str, str]:
    """(name, caption, data URL of what ``draw`` puts into a file): a figure within the page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figure.png"
        draw(file)
        return name, caption, "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _dialogues(samples: Sequence[Row]) -> dict[str, Any]:
    """The fixed prompts' first and last answers, side by side."""
    if not samples:
        return {"dialogues": []}
    first, last = samples[0]["iteration"], samples[-1]["iteration"]
    before = [s for s in samples if s["iteration"] == first][:DIALOGUES]
    after = [s for s in samples if s["iteration"] == last][:DIALOGUES]
    return {
        "before": before[0]["update"],
        "after": after[0]["update"],
        "dialogues": [
            {
                "prompt": "\n".join(f"{m['role']}: {m['content']}" for m in b["prompt"]),
                "first": b["response"], "last": a["response"], "kl": number(a["kl"]),
                "first_score": number(b["score"]), "last_score": number(a["score"]),
            }
            for b, a in zip(before, after, strict=True)
        ],
    }  # fmt: skip


def _judged(run: Path, rows: Sequence[Row]) -> tuple[str, str, str]:
    """The win rate over training, and against what it is."""
    watch = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["watch"]
    judge = " + ".join(str(s["name"] or s["function"] or s["model"] or s["url"]) for s in watch["judge"])
    words = {"sampled": "answers drawn as the policy draws its own", "greedy": "greedy answers"}
    against = {words[b]: (rows, f"eval/win_rate_{b}") for b in dict.fromkeys(watch["baselines"])}
    caption = (
        f"Judged by {judge} on {rows[-1]['eval/prompts']} fixed held-out prompts, against the reference model's "
        f"{' and its '.join(against)}; a difference of scores up to {watch['tie_band']:g} is a tie and counts half. "
    )
    best = max(rows, key=lambda row: row["eval/win_rate"])
    if watch["keep_best"]:
        caption += f"Best: {100 * best['eval/win_rate']:.1f}% at iteration {best['iteration']}, kept in best/."
    return embedded(
        "Judged win rate over training",
        lambda file: live_win_rate({f"against the reference's {k}": v for k, v in against.items()}, file, judge=judge),
        caption,
    )


def ppo_page(run: Path) -> str:
    """The page of a PPO run directory, as HTML."""
    metrics, samples = read_lines(run / "metrics.jsonl"), read_lines(run / "samples.jsonl")
    policy = [row for row in metrics if row.get("phase") == "policy"]
    figures = []
    if policy:
        figures.append(embedded("Training", lambda file: training_panel({run.name: metrics}, file)))
    if evaluations := read_lines(run / "evaluations.jsonl"):
        figures.append(_judged(run, evaluations))
    if samples:
        figures.append(
            embedded("Scores of the held-out prompts", lambda file: reward_histogram({run.name: samples}, file))
        )
    updates = policy[-1]["update"] if policy else 0
    seconds = sum(row.get("time/total", 0.0) for row in metrics)
    return TEMPLATE.render(
        title=f"PPO run {run.name}",
        summary=f"{len(policy)} iterations, {updates} policy updates, {len(metrics) - len(policy)} iterations of critic "
        f"pre-training, {seconds / 60:.1f} minutes.",
        alarms=read_lines(run / "alarms.jsonl"),
        numbers=[(name, number(policy[0].get(key)), number(policy[-1].get(key))) for key, name in SHOWN if policy],
        figures=figures,
        settings=(run / "config.yaml").read_text(encoding="utf-8"),
        **_dialogues(samples),
    )
