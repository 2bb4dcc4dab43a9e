"""Exams: multiple-choice questions, answered by the likelihood of each choice (Fig. 12 of the paper), and held-out text.

    ppomax exam runs/sft/final runs/ppo/final --data world/exam.jsonl --text held_out.jsonl --output_dir runs/exam
    ppomax exam runs/sft/final runs/ppo/final --tasks ceval-valid mmlu --shots 5 --output_dir runs/exam

Questions from files (``--data``) are scored here, so that an exam needs no further package and no network; those of
lm-evaluation-harness (``--tasks``) are asked and scored by it (``exam_tasks.py``). On the same questions in the same form both
give the same log-likelihoods, to rounding. How a question becomes text is told in ``exam_form.py``, what is scored in
``exam_scoring.py``, the loss on text in ``text_loss.py``. Three measures, by lm-eval's names, come of the same sums:

    acc         the largest sum. It is the probability of the answer as a whole, full stop included: right where the choices
                are complete answers in a form that the model has met, as in the embedded world. This is the headline.
    acc_norm    per character of the choice, for free-form choices of unequal length
    acc_bytes   per byte (UTF-8)

Written to output_dir: config.yaml, items.jsonl (log-likelihoods of every choice), texts.jsonl (loss of every text),
result.json, exam.png and exam.svg.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ppomax.config import Mixture, Section
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Text
from ppomax.data.sources import load_mixture
from ppomax.errors import UserError
from ppomax.evaluate.exam_files import LETTERS, Exam, Question, first_of_each, load_exam
from ppomax.evaluate.exam_form import HEADLINE, MEASURES, best_choice, choice_texts
from ppomax.evaluate.exam_scoring import encode, log_likelihoods
from ppomax.evaluate.reward_model import wilson
from ppomax.evaluate.subsets import mean_over
from ppomax.evaluate.text_loss import summarise_losses, text_losses, text_windows
from ppomax.evaluate.winrate import sign_test
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.options import dump_yaml
from ppomax.output_dir import claim
from ppomax.train.checkpoint import write_atomic
from ppomax.train.parallel import Ranks, join
from ppomax.train.progress import ProgressLine
from ppomax.train.run import plain

Lists = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class ExamConfig(Section):
    """Multiple-choice questions, from local files or lm-eval's tasks, answered by likelihood, several models side by side."""

    models: Lists = Field(min_length=1)
    """model directories or hub names; differences are taken from the first one"""
    data: Lists = Field([])
    """files or folders: JSON lines (subject, category, split, question, choices, answer) or C-Eval's CSV"""
    tasks: Lists = Field([])
    """tasks, groups or tags by lm-eval's names (ceval-valid, mmlu, ...); needs ppomax[lm-eval], and mostly the hub"""
    task_folder: str | None = None
    """folder of further task files (YAML) of lm-eval's layout, whose names `tasks` may then use"""
    text: Mixture = Field([])
    """held-out plain text (`text` layout), on which the language-modelling loss is measured"""
    output_dir: str | None = None
    """folder for result.json, items.jsonl and the figure; one that holds something is refused; null: the table only"""
    shots: int = Field(3, ge=0)
    """few-shot examples before a question: the first dev rows of its subject, or as lm-eval's task chooses; 0 = none"""
    score: Literal["text", "letter"] = "text"
    """of `data`: whether the text of each choice is scored, or its letter with the choices listed under the question"""
    per_subject: int | None = Field(None, ge=1)
    """at most this many questions of each subject or task, the first ones; null: all"""
    split_seed: int = 0
    """seed of hash splits of `text`"""
    micro_batch_tokens: int = Field(8192, ge=1)
    """padded tokens of one forward pass; affects memory and speed only"""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`"""
    precision: Literal["float32", "bf16"] = "float32"
    """arithmetic of the forward pass"""
    trust_remote_code: bool = False
    """run Python code that comes with a model"""


@dataclass
class Paper:
    """What every model is asked."""

    exam: Exam = field(default_factory=Exam)
    questions: list[Question] = field(default_factory=list)
    tasks: Any = None
    """`exam_tasks.Tasks`, or None"""
    texts: list[str] = field(default_factory=list)
    text_lines: list[str] = field(default_factory=list)


@dataclass
class Sat:
    """What one model made of it."""

    rows: list[dict[str, Any]]
    losses: list[tuple[float, int]]
    """(nats, tokens) of each text"""
    lm_eval: dict[str, Any] | None
    """lm-eval's own figures"""


def run_exam(config: ExamConfig, *, resume: bool = False) -> dict[str, Any]:
    """Sit the exam and return what result.json says; a finished one is returned as it is with ``resume``.

    Raises UserError for every mistake that the caller can mend, before anything is written over.
    """
    if not (config.data or config.tasks or config.text):
        raise UserError("missing data: give --data FILES, --tasks NAMES or --text FILES")
    ranks = join(config.device)
    if config.tasks and ranks.size > 1:
        raise UserError("tasks: lm-eval runs in one process here; start without torchrun")
    out = None
    if config.output_dir is not None:
        may_change = {"output_dir", "device", "micro_batch_tokens"}
        out, _ = claim(config, config.output_dir, "an exam", resume=resume, may_change=may_change)
    if out is not None and resume and (out / "result.json").exists():
        return dict(json.loads((out / "result.json").read_text(encoding="utf-8")))
    if len(set(config.models)) < len(config.models):
        raise UserError("models: the same one is named twice")

    paper = _paper(config, ranks)
    # every name is tried before the first model takes its minutes
    tokenizers = {name: load_tokenizer(name, config.trust_remote_code) for name in config.models}
    sat = {name: _sit(config, name, tokenizer, paper, ranks) for name, tokenizer in tokenizers.items()}
    result = _result(config, paper, sat)
    if out is not None and ranks.is_main:
        _write(config, out, result, paper, sat)
    ranks.barrier()
    return result


def _paper(config: ExamConfig, ranks: Ranks) -> Paper:
    """Everything that is asked, read before any model is."""
    paper = Paper(exam=load_exam(config.data))
    paper.questions = first_of_each(paper.exam.questions, config.per_subject)
    lines = paper.exam.lines()
    if config.text:
        records, report = load_mixture(config.text, "text", split_seed=config.split_seed)
        paper.texts = [r.text for r in records if isinstance(r, Text)]
        paper.text_lines = report.lines()
        lines += paper.text_lines
    if config.tasks:
        from ppomax.evaluate.exam_tasks import load_tasks

        paper.tasks = load_tasks(config.tasks, config.task_folder, config.shots)
        lines += paper.tasks.lines()
    elif config.task_folder is not None:
        raise UserError("task_folder: acts with tasks only: name those that shall be sat, --tasks NAME")
    if (fewer := _fewer_examples(paper, config.shots)) is not None:
        lines.append(fewer)
    for line in lines if ranks.is_main else []:
        print(line, file=sys.stderr, flush=True)
    return paper


def _fewer_examples(paper: Paper, shots: int) -> str | None:
    """What to say of questions of files whose subject has fewer examples than ``shots``; None where there are none."""
    held = [len(paper.exam.examples.get((q.data, q.subject), [])) for q in paper.questions]
    fewer = [n for n in held if n < shots]
    if not fewer:
        return None
    return (
        f"{len(fewer)} of {len(held)} questions have fewer than {shots} examples of their subject "
        f"(the least: {min(fewer)}), and get those alone"
    )


def _result(config: ExamConfig, paper: Paper, sat: dict[str, Sat]) -> dict[str, Any]:
    first = sat[config.models[0]]
    asked = len(first.rows)
    there = len(paper.exam.questions) + (paper.tasks.questions if paper.tasks is not None else 0)
    result: dict[str, Any] = {
        "headline": HEADLINE, "score": config.score, "shots": config.shots, "questions": asked,
        "data": paper.exam.counts, "beyond_per_subject": there - asked,
        "models": {name: summarise(own.rows) if asked else {} for name, own in sat.items()},
        "against_first": {name: against(first.rows, sat[name].rows) for name in config.models[1:]} if asked else {},
    }  # fmt: skip
    if paper.tasks is not None:
        result["tasks"] = paper.tasks.counts()
        result["lm_eval"] = {name: own.lm_eval for name, own in sat.items()}
    if paper.texts:
        sizes = [len(text.encode("utf-8")) for text in paper.texts]
        losses = {name: own.losses for name, own in sat.items()}
        result["text"] = {"data": paper.text_lines, **summarise_losses(losses, sizes)}
    return dict(plain(result))


def _write(config: ExamConfig, out: Path, result: dict[str, Any], paper: Paper, sat: dict[str, Sat]) -> None:
    from ppomax.report.exam_figure import exam_bars

    # nothing is written before this point: a mistake or a kill leaves no half exam behind
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "config.yaml", dump_yaml(config))
    for suffix in ("png", "svg"):
        exam_bars(result, out / f"exam.{suffix}")
    if result["questions"]:
        write_atomic(out / "items.jsonl", _lines([{"model": m, **row} for m, own in sat.items() for row in own.rows]))
    if paper.texts:
        rows = [
            {"text": text, "bytes": len(text.encode("utf-8")),
             "models": {m: {"nats": own.losses[i][0], "tokens": own.losses[i][1]} for m, own in sat.items()}}
            for i, text in enumerate(paper.texts)
        ]  # fmt: skip
        write_atomic(out / "texts.jsonl", _lines(rows))
    write_atomic(out / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)


def _sit(config: ExamConfig, name: str, tokenizer: Any, paper: Paper, ranks: Ranks) -> Sat:
    """One model: the questions of files, lm-eval's tasks, the texts."""
    model = load_causal_lm(name, ranks.device, config.trust_remote_code).eval()
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # plain text is all that is encoded: any template will do, and a pretrained model has none
    chat = ChatFormat(tokenizer, "human_assistant_en")
    bf16 = config.precision == "bf16"
    sat = Sat(_answer(config, name, model, chat, room, paper, ranks) if paper.questions else [], [], None)
    if paper.tasks is not None:
        from ppomax.evaluate.exam_tasks import sit_tasks

        size = max(1, config.micro_batch_tokens // (room or config.micro_batch_tokens))
        rows, sat.lm_eval = sit_tasks(
            model, tokenizer, paper.tasks, per_task=config.per_subject, batch_size=size, bf16=bf16
        )
        sat.rows += rows
    _check(name, sat.rows, room, ranks)
    if paper.texts:
        windows = [text_windows(chat, text, room) for text in ranks.share(paper.texts)]
        with ProgressLine(f"text {name}", sum(map(len, windows)), quiet=not ranks.is_main) as bar:
            mine = text_losses(model, windows, ranks.device, config.micro_batch_tokens, bf16=bf16, step=bar.step)
        sat.losses = ranks.collect(mine)
        broken = next((i for i, (nats, _) in enumerate(sat.losses) if math.isnan(nats)), None)
        if broken is not None:
            raise UserError(f"{name}: the loss is not a number at text {broken + 1}: the model is broken")
    return sat


def _answer(
    config: ExamConfig, name: str, model: Any, chat: ChatFormat, room: int | None, paper: Paper, ranks: Ranks
) -> list[dict[str, Any]]:
    """A row for each question of files."""
    mine = ranks.share(paper.questions)
    shots = [paper.exam.examples.get((q.data, q.subject), [])[: config.shots] for q in mine]
    encoded = [encode(chat, q, s, config.score, room) for q, s in zip(mine, shots, strict=True)]
    fitting = [item for item in encoded if item is not None]
    with ProgressLine(f"exam {name}", sum(len(item.ids) for item in fitting), quiet=not ranks.is_main) as bar:
        sums = iter(
            log_likelihoods(
                model, fitting, ranks.device, config.micro_batch_tokens, bf16=config.precision == "bf16", step=bar.step
            )
        )
    rows: list[dict[str, Any]] = []
    for q, wanted, item in zip(mine, shots, encoded, strict=True):
        found = next(sums) if item is not None else []
        chosen = best_choice(found, choice_texts(q, config.score)) if item is not None else {}
        rows.append({
            "where": q.where, "data": q.data, "subject": q.subject, "category": q.category,
            "question": q.question, "choices": list(q.choices), "answer": LETTERS[q.answer],
            "shots": item.shots if item else 0, "shots_dropped": len(wanted) - (item.shots if item else 0),
            "cut": bool(item and item.cut), "too_long": item is None, "loglikelihood": found,
            "tokens": [len(ids) - item.shared for ids in item.ids] if item else [],
            "chosen": {measure: LETTERS[i] for measure, i in chosen.items()},
        })  # fmt: skip
    return ranks.collect(rows)


def _check(name: str, rows: Sequence[dict[str, Any]], room: int | None, ranks: Ranks) -> None:
    """Say what did not fit; UserError where the model is broken, or nothing fits."""
    broken = next((row for row in rows if any(math.isnan(value) for value in row["loglikelihood"])), None)
    if broken is not None:  # asked after the exchange, so that all ranks stop together
        raise UserError(f"{name}: a log-likelihood is not a number at {broken['where']}: the model is broken")
    for key, told in (
        ("shots_dropped", "few-shot examples did not fit the context of {room} tokens and were dropped"),
        ("cut", "questions were longer than the context of {room} tokens and lost their left"),
        ("too_long", "questions have a choice longer than the context of {room} tokens and were left out"),
    ):
        count = sum(int(row[key]) for row in rows)
        if count and ranks.is_main:
            print(f"{name}: {count} {told.format(room=room)}", file=sys.stderr, flush=True)
    if rows and all(row["too_long"] for row in rows):
        raise UserError(f"{name}: no question fits its context of {room} tokens")


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Overall, by category, by subject and by data: n, chance and, for each measure, accuracy with a 95% Wilson interval.

    Subjects of the same name in several exams are several; by_subject then has "data: subject".

    There every question counts alike. mean_over_subjects: overall and by category with every subject counting alike (C-Eval's
    own averages), n: subjects.
    """
    sat = [row for row in rows if not row["too_long"]]

    def one(part: Sequence[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {
            "n": len(part),
            "chance": sum(len(set(r["answer"])) / len(r["choices"]) for r in part) / len(part),
        }
        for measure in MEASURES:
            right = sum(r["chosen"][measure] in r["answer"] for r in part)
            out[measure] = {"accuracy": right / len(part), "interval": wilson(right, len(part))}
        return out

    def by(key: Callable[[dict[str, Any]], Any], part: Sequence[dict[str, Any]] = sat) -> dict[Any, Any]:
        groups: dict[Any, list[dict[str, Any]]] = {}
        for row in part:
            groups.setdefault(key(row), []).append(row)
        return {name: one(rows) for name, rows in groups.items()}

    exams = Counter(subject for _, subject in {(r["data"], r["subject"]) for r in sat})

    def subject(row: dict[str, Any]) -> str:
        return row["subject"] if exams[row["subject"]] == 1 else f"{row['data']}: {row['subject']}"

    def over_subjects(part: Sequence[dict[str, Any]]) -> dict[str, Any]:
        subjects = list(by(subject, part).values())
        return {measure: mean_over([found[measure] for found in subjects]) for measure in MEASURES}

    categories = {name: [r for r in sat if r["category"] == name] for name in dict.fromkeys(r["category"] for r in sat)}
    return {
        "overall": one(sat), "by_category": by(itemgetter("category")), "by_subject": by(subject),
        "by_data": by(itemgetter("data")),
        "mean_over_subjects": {
            "overall": over_subjects(sat),
            "by_category": {name: over_subjects(part) for name, part in categories.items()},
        },
        "shots_dropped": sum(r["shots_dropped"] for r in rows), "cut": sum(r["cut"] for r in rows),
        "too_long": sum(r["too_long"] for r in rows),
    }  # fmt: skip


def against(first: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The headline of ``other`` less that of ``first`` on the questions that both sat, with an exact sign test."""

    def right(row: dict[str, Any]) -> bool:
        return bool(row["chosen"][HEADLINE] in row["answer"])

    both = [(right(a), right(b)) for a, b in zip(first, other, strict=True) if not (a["too_long"] or b["too_long"])]
    gained, lost = sum(b and not a for a, b in both), sum(a and not b for a, b in both)
    difference = (gained - lost) / len(both) if both else None
    return {
        "n": len(both),
        "gained": gained,
        "lost": lost,
        "difference": difference,
        "sign_test_p": sign_test(gained, lost),
    }
