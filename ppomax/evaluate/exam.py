"""Exams from local files: multiple-choice questions, answered by the likelihood of each choice (Fig. 12 of the paper).

    ppomax exam runs/sft/final runs/ppo/final --data world/exam.jsonl --output_dir runs/exam

The prompt is plain text, with few-shot examples of the same subject before it and a blank line between them::

    Question: What does the velka eat?
    Answer:

(问题： and 答案： where question or choices are written in Chinese characters). The continuation of a choice is its text and
a full stop: `` river moss.`` or ``河苔。``. With ``score: letter`` the choices stand under the question as lines A. to D.,
and the letters are scored.

Whole and prompt are encoded each as one text, and all tokens after the ones that the prompt and *all* choices of the
question share are scored: a tokenizer may merge the end of the prompt with the beginning of a choice, and no choice then
gets a token for nothing. Three measures come of the same log-likelihoods:

    acc        the largest sum. It is the probability of the answer as a whole, full stop included: right where the choices
               are complete answers in a form that the model has met, as in the embedded world. This is the headline.
    acc_norm   per byte of the choice's text (UTF-8), for free-form choices of unequal length
    acc_token  per token

Written to output_dir: config.yaml, items.jsonl (log-likelihoods of every choice), result.json, exam.png and exam.svg.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from ppomax.config import Section
from ppomax.data.batches import pad_sequences, token_budget
from ppomax.data.chat import ChatFormat, truncate_left
from ppomax.errors import UserError
from ppomax.evaluate.exam_files import LETTERS, Exam, Question, first_of_each, load_exam
from ppomax.evaluate.reward_model import wilson
from ppomax.evaluate.winrate import sign_test
from ppomax.models.loading import load_causal_lm, load_tokenizer
from ppomax.models.precision import precision
from ppomax.models.responses import ResponseBatch, response_logprobs
from ppomax.options import dump_yaml
from ppomax.output_dir import claim
from ppomax.train.checkpoint import write_atomic
from ppomax.train.parallel import Ranks, join
from ppomax.train.progress import ProgressLine
from ppomax.train.run import plain

MEASURES = ("acc", "acc_norm", "acc_token")
HEADLINE = "acc"
CHINESE = re.compile(r"[\u3400-\u9fff]")
Lists = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class ExamConfig(Section):
    """Multiple-choice questions from local files, answered by likelihood, several models side by side."""

    models: Lists = Field(min_length=1)
    """model directories or hub names; differences are taken from the first one"""
    data: Lists = Field(min_length=1)
    """files or folders: JSON lines (subject, category, split, question, choices, answer) or C-Eval's CSV"""
    output_dir: str | None = None
    """folder for result.json, items.jsonl and the figure; one that holds something is refused; null: the table only"""
    shots: int = Field(3, ge=0)
    """few-shot examples before a question: the first dev rows of its subject; 0 = none"""
    score: Literal["text", "letter"] = "text"
    """what is scored: the text of each choice, or its letter with the choices listed under the question"""
    per_subject: int | None = Field(None, ge=1)
    """at most this many questions of each subject, the first ones; null: all"""
    micro_batch_tokens: int = Field(8192, ge=1)
    """padded tokens of one forward pass; affects memory and speed only"""
    device: str = "auto"
    """`auto` (cuda where there is one), `cpu`, `cuda`, `cuda:1`"""
    precision: Literal["float32", "bf16"] = "float32"
    """arithmetic of the forward pass"""
    trust_remote_code: bool = False
    """run Python code that comes with a model"""


@dataclass(frozen=True)
class Form:
    """How a question becomes text in one language."""

    question: str
    answer: str
    before: str
    """between the answer's colon and the choice"""
    full_stop: str
    ends: str
    """a choice that ends so gets no full stop"""


FORMS = {
    "en": Form("Question: ", "Answer:", " ", ".", ".!?"),
    "zh": Form("问题：", "答案：", "", "。", "。！？.!?"),
}


@dataclass(frozen=True)
class Encoded:
    """The choices of a question, each after the prompt; the first ``shared`` tokens of all are the same."""

    ids: list[list[int]]
    shared: int
    shots: int
    """examples that fitted into the context"""
    cut: bool
    """the question itself lost its left"""


def form_of(question: Question) -> Form:
    """Chinese where the question or a choice has Chinese characters."""
    return FORMS["zh" if CHINESE.search(question.question + "".join(question.choices)) else "en"]


def exam_text(question: Question, shots: Sequence[Question], score: str = "text") -> tuple[str, list[str]]:
    """(prompt, continuation of each choice)."""
    form = form_of(question)

    def continuations(q: Question) -> list[str]:
        if score == "letter":
            return [form.before + LETTERS[i] for i in range(len(q.choices))]
        return [form.before + c + ("" if c.endswith(tuple(form.ends)) else form.full_stop) for c in q.choices]

    def asked(q: Question) -> str:
        listed = [f"{LETTERS[i]}. {c}" for i, c in enumerate(q.choices)] if score == "letter" else []
        return "\n".join([form.question + q.question, *listed, form.answer])

    examples = [asked(q) + continuations(q)[q.answer] for q in shots]
    return "\n\n".join([*examples, asked(question)]), continuations(question)


def encode(
    chat: ChatFormat, question: Question, shots: Sequence[Question], score: str, room: int | None
) -> Encoded | None:
    """Examples leave from the left until everything fits ``room`` tokens; then the question loses its own left.

    None where not even the longest choice fits.
    """
    for first in range(len(shots) + 1):
        prompt, choices = exam_text(question, shots[first:], score)
        start = chat.encode_text(prompt)[:-1]  # without eos
        ids = [chat.encode_text(prompt + choice)[:-1] for choice in choices]
        if room is None or max(map(len, ids)) <= room:
            return Encoded(ids, _shared(start, ids), len(shots) - first, False)
    assert room is not None
    shared = _shared(start, ids)
    longest = max(len(whole) - shared for whole in ids)
    fitted = truncate_left(start[:shared], [0] * longest, room, chat.bos_id)
    if fitted is None or not fitted[0]:
        return None
    prefix = fitted[0]
    return Encoded([prefix + whole[shared:] for whole in ids], len(prefix), 0, True)


def _shared(prompt: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning of the prompt and all wholes; at least 1, and a token is left of each."""
    shortest = min(len(prompt), *(len(whole) - 1 for whole in wholes))
    same = next((i for i in range(shortest) if any(whole[i] != prompt[i] for whole in wholes)), shortest)
    return max(1, same)


@torch.no_grad()
def log_likelihoods(
    model: nn.Module, encoded: Sequence[Encoded], device: torch.device, micro_batch_tokens: int,
    *, bf16: bool = False, step: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:  # fmt: skip
    """Sum of log-probabilities (nats) of each choice's own tokens, in the order of ``encoded``.

    Right padding with a mask; ``step`` is told how many choices each forward pass did.
    """
    jobs = [(q, c) for q, item in enumerate(encoded) for c in range(len(item.ids))]
    out = [[0.0] * len(item.ids) for item in encoded]
    for group in token_budget([len(encoded[q].ids[c]) for q, c in jobs], micro_batch_tokens):
        rows = [encoded[q].ids[c] for q, c in (jobs[i] for i in group)]
        starts = [encoded[jobs[i][0]].shared for i in group]
        ids, _ = pad_sequences(rows, 0)
        lengths = torch.tensor([len(row) for row in rows])
        prompts = torch.tensor(starts)
        own = lengths - prompts
        mask = torch.arange(int(own.max()))[None, :] < own[:, None]
        batch = ResponseBatch(ids.to(device), lengths.to(device), prompts.to(device), mask.to(device))
        with precision(device, "bf16" if bf16 else "float32"):
            logprobs, _ = response_logprobs(model, batch)
        for i, total in zip(group, logprobs.double().sum(dim=1).tolist(), strict=True):
            q, c = jobs[i]
            out[q][c] = total
        step(len(group))
    return out


def choose(question: Question, encoded: Encoded, sums: Sequence[float], score: str = "text") -> dict[str, int]:
    """Measure -> number of the choice with the largest value; of equal ones the first."""
    texts = question.choices if score == "text" else LETTERS[: len(sums)]
    sizes = {
        "acc": [1] * len(sums),
        "acc_norm": [len(text.encode("utf-8")) for text in texts],
        "acc_token": [len(ids) - encoded.shared for ids in encoded.ids],
    }
    return {measure: max(range(len(sums)), key=lambda i: (sums[i] / size[i], -i)) for measure, size in sizes.items()}


def run_exam(config: ExamConfig, *, resume: bool = False) -> dict[str, Any]:
    """Sit the exam and return what result.json says; a finished one is returned as it is with ``resume``.

    Raises UserError for every mistake that the caller can mend, before anything is written over.
    """
    ranks = join(config.device)
    out = _open(config, resume)
    if out is not None and resume and (out / "result.json").exists():
        return dict(json.loads((out / "result.json").read_text(encoding="utf-8")))
    if len(set(config.models)) < len(config.models):
        raise UserError("models: the same one is named twice")

    exam = load_exam(config.data)
    for line in exam.lines() if ranks.is_main else []:
        print(line, file=sys.stderr, flush=True)
    questions = first_of_each(exam.questions, config.per_subject)
    # every name is tried before the first model takes its minutes
    chats = {name: ChatFormat(load_tokenizer(name, config.trust_remote_code)) for name in config.models}
    items = {name: _sit(config, name, chat, exam, questions, ranks) for name, chat in chats.items()}
    result: dict[str, Any] = plain({
        "headline": HEADLINE, "score": config.score, "shots": config.shots, "questions": len(questions),
        "data": exam.counts, "beyond_per_subject": len(exam.questions) - len(questions),
        "models": {name: summarise(rows) for name, rows in items.items()},
        "against_first": {name: against(items[config.models[0]], items[name]) for name in config.models[1:]},
    })  # fmt: skip
    if out is not None and ranks.is_main:
        from ppomax.report.exam_figure import exam_bars

        # nothing is written before this point: a mistake or a kill leaves no half exam behind
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "config.yaml", dump_yaml(config))
        for suffix in ("png", "svg"):
            exam_bars(result, out / f"exam.{suffix}")
        rows = [{"model": name, **row} for name, found in items.items() for row in found]
        write_atomic(out / "items.jsonl", "".join(json.dumps(plain(r), ensure_ascii=False) + "\n" for r in rows))
        write_atomic(out / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    ranks.barrier()
    return result


def _open(config: ExamConfig, resume: bool) -> Path | None:
    """The output folder, if there may be written."""
    if config.output_dir is None:
        return None
    may_change = {"output_dir", "device", "micro_batch_tokens"}
    return claim(config, config.output_dir, "an exam", resume=resume, may_change=may_change)[0]


def _sit(
    config: ExamConfig, name: str, chat: ChatFormat, exam: Exam, questions: Sequence[Question], ranks: Ranks
) -> list[dict[str, Any]]:
    """One model's answers, one row a question that fits its context."""
    model = load_causal_lm(name, ranks.device, config.trust_remote_code).eval()
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    mine = ranks.share(list(questions))
    shots = [exam.examples.get((q.data, q.subject), [])[: config.shots] for q in mine]
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
        chosen = choose(q, item, found, config.score) if item is not None else {}
        rows.append({
            "where": q.where, "data": q.data, "subject": q.subject, "category": q.category,
            "question": q.question, "choices": list(q.choices), "answer": LETTERS[q.answer],
            "shots": item.shots if item else 0, "shots_dropped": len(wanted) - (item.shots if item else 0),
            "cut": bool(item and item.cut), "too_long": item is None, "loglikelihood": found,
            "tokens": [len(ids) - item.shared for ids in item.ids] if item else [],
            "chosen": {measure: LETTERS[i] for measure, i in chosen.items()},
        })  # fmt: skip
    rows = ranks.collect(rows)
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
    if all(row["too_long"] for row in rows):
        raise UserError(f"{name}: no question fits its context of {room} tokens")
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Overall, by category, by subject and by data: n, chance and, for each measure, accuracy with a 95% Wilson interval."""
    sat = [row for row in rows if not row["too_long"]]

    def one(part: Sequence[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {"n": len(part), "chance": sum(1 / len(r["choices"]) for r in part) / len(part)}
        for measure in MEASURES:
            right = sum(r["chosen"][measure] == r["answer"] for r in part)
            out[measure] = {"accuracy": right / len(part), "interval": wilson(right, len(part))}
        return out

    def by(key: str) -> dict[str, Any]:
        return {name: one([r for r in sat if r[key] == name]) for name in dict.fromkeys(r[key] for r in sat)}

    return {
        "overall": one(sat), "by_category": by("category"), "by_subject": by("subject"), "by_data": by("data"),
        "shots_dropped": sum(r["shots_dropped"] for r in rows), "cut": sum(r["cut"] for r in rows),
        "too_long": sum(r["too_long"] for r in rows),
    }  # fmt: skip


def against(first: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The headline of ``other`` less that of ``first`` on the questions that both sat, with an exact sign test."""

    def right(row: dict[str, Any]) -> bool:
        return bool(row["chosen"][HEADLINE] == row["answer"])

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
