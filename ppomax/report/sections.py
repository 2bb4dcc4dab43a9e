"""The sections of a results page: lists of Markdown blocks, and their figures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ppomax.evaluate.winrate import summarise
from ppomax.report.figures import reward_histogram, training_panel, win_rate_curve
from ppomax.report.markdown import accuracy_cell, estimate, number, share, table
from ppomax.report.stages import Course, Pipeline, Stage, card_lines, flat, parameters, read_lines, seconds
from ppomax.report.verdicts import judge_words


def settings_section(p: Pipeline) -> list[str]:
    rows = []
    for stage in (*p.language, *p.rewards, *p.ppo):
        c = stage.config
        amount = (
            f"{c['iterations']} iterations of {c['rollout_batch']}" if stage in p.ppo else f"{c['epochs']:g} epochs"
        )
        batch = c.get("minibatch") or (
            f"{c['batch_tokens']} tokens" if "batch_tokens" in c else f"{c['batch_size']} rows"
        )
        lr = c["optim"]["lr"] if "optim" in c else f"{c['policy_optim']['lr']:g}, critic {c['critic_optim']['lr']:g}"
        size = parameters(stage.path / "final")
        rows.append([
            f"`{stage.name}`", f"`{c['model']}`", f"{size:,}" if size else "", amount, batch,
            lr if isinstance(lr, str) else f"{lr:g}", c["seed"], c["precision"],
        ])  # fmt: skip
    out = [
        "## Settings",
        table(["stage", "starts from", "parameters", "trained for", "an update", "peak lr", "seed", "precision"], rows),
    ]
    if len(p.ppo) > 1:
        configs = [flat(stage.config) for stage in p.ppo]
        names = [n for n in dict.fromkeys(n for c in configs for n in c) if n != "output_dir"]
        different = [n for n in names if len({json.dumps(c.get(n)) for c in configs}) > 1]
        out += [
            "The PPO runs start from the same models, prompts and seeds unless it says otherwise here:",
            table(
                ["option", *(s.title for s in p.ppo)],
                [[f"`{n}`", *(option(c.get(n)) for c in configs)] for n in different],
            ),
        ]
    shown = p.ppo[0].config if p.ppo else {}
    if shown:
        parts = {name: shown[name] for name in ("kl", "reward_shaping", "gae", "critic", "sampling")}
        lines = yaml.safe_dump(parts, sort_keys=False, default_flow_style=None, width=110).strip()
        out += [
            f"Algorithm and sampling of {p.ppo[0].title} (all of it: `{p.ppo[0].path}/config.yaml`):",
            f"```yaml\n{lines}\n```",
        ]
    return out


def data_section(p: Pipeline) -> list[str]:
    """What the load reports in the model cards say."""
    out = ["## Data"]
    for stage in (*p.language, *p.rewards):
        if lines := card_lines(stage):
            # where the data lie is this machine's business: file names will do
            said = "\n".join(f"- {line}" for line in lines)
            out += [f"`{stage.name}`:", re.sub(r"\(first: [^()]*/", "(first: ", said)]
    for stage in p.ppo:
        prompts = ", ".join(
            f"`{s['path']}`" + (f" ({s['split']})" if s["split"] else "") for s in stage.config["prompts"]
        )
        out.append(f"`{stage.name}`: prompts of {prompts}.")
    return out


def language_section(p: Pipeline) -> list[str]:
    rows = []
    for stage in p.language:
        evaluated = [row for row in stage.metrics if "eval/loss" in row]
        if evaluated:
            first, last = evaluated[0], evaluated[-1]
            rows.append([
                stage.title, last["update"], *(number(row[f"eval/{k}"]) for k in ("loss", "perplexity", "token_accuracy")
                                               for row in (first, last)),
            ])  # fmt: skip
    if not rows:
        return []
    head = ["", "updates", "loss before", "after", "perplexity before", "after", "token accuracy before", "after"]
    return ["## Language model and SFT, held out", table(head, rows)]


def reward_section(p: Pipeline, figures: Path) -> list[str]:
    out = ["## Reward models, held-out pairs"]
    for stage in p.rewards:
        held_out = stage.evaluation.get("held_out")
        if not held_out:
            continue
        rows = [
            [
                name, part["model"]["n"], accuracy_cell(part["model"]), accuracy_cell(part["longer"]),
                accuracy_cell(part.get("bag_of_words")), f"{accuracy_cell(part['length_matched'])} (n {part['length_matched']['n']})",
            ]
            for name, part in [*held_out["sources"].items(), ("all", held_out["overall"])]
        ]  # fmt: skip
        head = ["source", "pairs", "reward model", "longer answer wins", "bag of words", "reward model, equal length"]
        gap, shift = held_out["gap"], stage.evaluation.get("reward_offset")
        out += [
            f"`{stage.name}`: accuracy with 95% intervals.",
            table(head, rows),
            f"Training pairs: {share(stage.evaluation.get('train_accuracy'))} right. Mean gap {number(gap['mean'])} "
            f"(std {number(gap['std'])}), calibration error {number(held_out['calibration']['ece'])}, correlation of the "
            f"reward gap with the length gap {number(held_out['length_correlation'])}, offset {number(shift)}. Pairs with an "
            "answer longer than max_length are not among them: the number dropped stands under Data.",
        ]
        for name, about in (("gap_histogram", "reward gaps"), ("accuracy", "accuracy over updates")):
            source = stage.path / "figures" / f"{name}.png"
            if source.exists():
                shutil.copyfile(source, figures / f"{stage.name}_{name}.png")
                out.append(f"![{stage.name}: {about}]({figures.name}/{stage.name}_{name}.png)")
    return out if len(out) > 1 else []


COURSES = (
    ("reward/mean", "reward"), ("kl/ref", "KL, k1 (nats a token)"), ("kl/ref_k3", "KL, k3 (nats a token)"),
    ("response/length", "length (tokens)"), ("response/truncated", "cut at the limit"), ("policy/entropy", "entropy (nats)"),
    ("policy/perplexity", "perplexity, true"), ("policy/perplexity_moss", "perplexity, released code's"),
    ("value/explained_variance", "explained variance"),
)  # fmt: skip


def training_section(p: Pipeline, figures: Path) -> list[str]:
    if not p.ppo:
        return []
    training_panel({s.title: s.metrics for s in p.ppo}, figures / "training.png")
    rows = []
    for metric, title in COURSES:
        courses = [Course.of(s, metric) for s in p.ppo]
        rows.append(
            [
                f"`{metric}`: {title}",
                *(v for c in courses for v in ((number(c.first), number(c.last)) if c else ("", ""))),
            ]
        )
    head = ["", *(f"{s.title}, {when}" for s in p.ppo for when in ("first tenth", "last tenth"))]
    out = ["## PPO over training", f"![training curves]({figures.name}/training.png)", table(head, rows)]
    sampled = {s.title: s.samples for s in p.ppo if s.samples}
    if sampled:
        reward_histogram(sampled, figures / "rewards.png")
        out.append(f"![distribution of rewards]({figures.name}/rewards.png)")
    return out


def duel_rows(parts: Sequence[tuple[Any, dict[str, Any]]]) -> list[list[Any]]:
    return [
        [name, r["prompts"], r["win"], r["tie"], r["lose"], estimate(r["win_rate"]), estimate(r["length_controlled"]),
         f"{r['sign_test_p']:.2g}", f"{r['mean_length_a']:.0f} / {r['mean_length_b']:.0f}"]
        for name, r in parts
    ]  # fmt: skip


DUEL_HEAD = [
    "prompts",
    "win",
    "tie",
    "lose",
    "win rate, ties half",
    "length-controlled",
    "sign test p",
    "characters, PPO / SFT",
]


def by_kind(duel: Stage, harmless: str) -> dict[str, dict[str, Any]]:
    """Helpful and harmless prompts apart (section 6 of the paper), from the judgements: ``harmless`` matches sources."""
    judged = read_lines(duel.path / "judgements.jsonl")
    words = {"win": 1, "tie": 0, "lose": -1}
    out = {}
    for name in ("helpful", "harmless"):
        rows = [r for r in judged if bool(harmless and re.search(harmless, str(r["source"]))) == (name == "harmless")]
        if rows:
            out[name] = summarise(
                np.array([words[r["outcome"]] for r in rows], dtype=np.int8), [r["length_a"] for r in rows],
                [r["length_b"] for r in rows], seed=duel.result["seed"], resamples=duel.result["resamples"],
            )  # fmt: skip
    return out


MOMENT_HEAD = [
    "updates", "win / tie / lose", "win rate, ties half", "length-controlled", "judge's score", "trained reward",
    "KL (nats a response)", "length (tokens)",
]  # fmt: skip


def moment_row(m: Mapping[str, Any]) -> list[Any]:
    """One time of `duel_over_training`; at the first one both sides are the same answers."""
    r = m["overall"]
    rates = [estimate(r["win_rate"]), estimate(r["length_controlled"])] if m["update"] else ["–", "–"]
    counts = f"{r['win']} / {r['tie']} / {r['lose']}" if m["update"] else f"{r['prompts']} prompts"
    return [
        m["update"], counts, *rates, *(number(m.get(k)) for k in ("mean_score", "trained_score", "kl", "length_tokens"))
    ]  # fmt: skip


def option(value: Any) -> str:
    """As in YAML, but for null, which switches off."""
    return "off" if value is None else json.dumps(value) if isinstance(value, bool) else number(value)


def duel_section(p: Pipeline, figures: Path, harmless: str) -> list[str]:
    out = []
    titles = {d.name: run.title for run, d in matched(p)}
    curves = {titles[d.name]: d.result["over_training"] for d in p.duels if d.result.get("over_training")}
    if curves:
        judges = dict.fromkeys(
            name for d in p.duels if d.result.get("over_training") for name in d.result.get("judge", [])
        )
        judge, _ = judge_words([str(name) for name in judges] or ["unknown"])
        win_rate_curve(curves, figures / "win_rate.png", judge=judge.replace("`", ""))
        out += [
            "## Judged win rate over training",
            "Fixed held-out prompts, answered at intervals with the same random numbers, against the answers before the "
            f"first update (SFT's). The judge: {judge}.",
            f"![win rate over training]({figures.name}/win_rate.png)",
        ]
        for title, moments in curves.items():
            out += [f"{title}:", table(MOMENT_HEAD, [moment_row(m) for m in moments])]
    held = [d for d in p.duels if d.result]
    if held:
        out.append("## Final policies against SFT")
    for duel in held:
        result = duel.result
        sampling = duel.config["sampling"]
        out += [
            f"{titles[duel.name]}, one answer a prompt from either side (top-p {sampling['top_p']:g}, temperature "
            f"{sampling['temperature']:g}, repetition penalty {sampling['repetition_penalty']:g}, at most "
            f"{(result.get('sampled') or sampling)['max_new_tokens']} tokens), judge `{', '.join(map(str, result['judge']))}`; "
            + (
                "it compares, and names ties itself."
                if result["tie_band"] is None
                else f"a difference of scores up to {number(result['tie_band'])} is a tie."
            ),
            table(["", *DUEL_HEAD], duel_rows([*by_kind(duel, harmless).items(), ("**all**", result["overall"])])),
            "By source of the prompts:",
            table(["", *DUEL_HEAD], duel_rows(list(result["by_source"].items()))),
        ]
    if held or curves:
        model = (held or p.duels)[0].result["overall"]["length_controlled"]["model"]
        out.append(f"Intervals: 95%, bootstrap over prompts. Length-controlled: {model}.")
    return out


def matched(p: Pipeline) -> list[tuple[Stage, Stage]]:
    """(PPO run, its duel) where both are there: the duel's first system lies in the run's directory."""
    return [(run, d) for run in p.ppo for d in p.duels if run.path.name in Path(str(d.config["a"])).parts]


def time_section(p: Pipeline, machine: str) -> list[str]:
    rows = []
    for stage in (*p.language, *p.rewards, *p.ppo, *p.duels):
        phases = seconds(stage)
        total = phases.pop("total", None) or sum(phases.values())
        if total:
            rows.append(
                [f"`{stage.name}`", f"{total / 60:.1f}", ", ".join(f"{k} {v / 60:.1f}" for k, v in phases.items())]
            )
    if not rows:
        return []
    every = sum(float(row[1]) for row in rows)
    where = f" on {machine}" if machine else ""
    return [
        "## Time taken",
        f"Minutes{where}, as the stages wrote them down (loading and saving are not counted): {every:.0f} in all.",
        table(["stage", "minutes", "of which"], rows),
    ]
