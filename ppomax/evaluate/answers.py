"""Answers to be compared: read from files, or drawn from a model and kept as they come."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppomax.config import SamplingConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.records import Message, Prompt
from ppomax.errors import UserError
from ppomax.regular_file import expand_path
from ppomax.rollout.engine import sample_seed
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train.checkpoint import write_atomic
from ppomax.train.progress import ProgressLine
from ppomax.train.run import RunDirectory

PromptKey = tuple[tuple[str, str], ...]
CHUNK = 4
"""batches between two writes"""


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt. ``finished`` False: cut at the length limit."""

    prompt: tuple[Message, ...]
    response: str
    finished: bool = True
    source: str = "memory"
    metadata: tuple[tuple[str, Any], ...] = ()
    """the prompt record's other columns, for judges that are functions"""

    @property
    def key(self) -> PromptKey:
        return prompt_key(self.prompt)


@dataclass(frozen=True)
class Sampled:
    """All answers that a training run gave to its fixed held-out prompts at one time."""

    iteration: int
    update: int
    answers: dict[PromptKey, Answer]
    rows: list[dict[str, Any]]
    """as written: score (of the training reward), kl (nats a response), length (tokens), ..."""


def prompt_key(messages: Sequence[Message]) -> PromptKey:
    """Identity of a prompt: its whole text."""
    return tuple((m["role"], m["content"]) for m in messages)


def is_answer_file(place: str) -> bool:
    """A file of answers, as opposed to a model directory or hub name."""
    return place.endswith((".jsonl", ".jsonl.gz", ".json")) or Path(expand_path(place)).is_file()


def bare_key(messages: Sequence[Message]) -> PromptKey:
    """`prompt_key` without blanks around a single question: AlpacaEval's layout knows of a prompt nothing but its text."""
    key = prompt_key(messages)
    return ((key[0][0], key[0][1].strip()),) if len(key) == 1 else key


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of JSON lines, gzip or not."""
    if path.suffix in (".csv", ".parquet"):
        raise UserError(f"{path}: answers are read from .jsonl (prompt, response) or from AlpacaEval's .json")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{where}: malformed JSON: {error}") from None
                if not isinstance(record, dict):
                    raise UserError(f"{where}: an object with prompt and response is expected")
                yield where, record
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _answer(record: dict[str, Any], where: str, stem: str) -> Answer:
    """``prompt`` is text or messages, ``response`` is text."""
    if "prompt" not in record and "response" not in record:
        found = ", ".join(sorted(record)) or "nothing"
        raise UserError(f"{where}: a record needs prompt and response, this one has {found}")
    prompt, response = record.get("prompt"), record.get("response")
    if isinstance(prompt, str) and prompt:
        prompt = [{"role": "user", "content": prompt}]
    good = isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
    )
    if not good or not prompt:
        raise UserError(f"{where}: prompt: text or a list of messages with role and content is expected")
    if not isinstance(response, str):
        raise UserError(f"{where}: response: text is expected, not {type(response).__name__}")
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in prompt)
    source = record.get("source")
    return Answer(messages, response, record.get("finished") is not False, source if isinstance(source, str) else stem)


def read_samples(place: str) -> list[Sampled]:
    """Answers over training from a PPO run's samples.jsonl, in the order of training."""
    path = Path(expand_path(place))
    times: dict[int, Sampled] = {}
    for where, record in _rows(path):
        iteration, update = record.get("iteration"), record.get("update")
        if not isinstance(iteration, int) or not isinstance(update, int):
            raise UserError(f"{where}: no iteration and update: a samples.jsonl of a PPO run is expected")
        answer = _answer(record, where, path.stem)
        moment = times.setdefault(iteration, Sampled(iteration, update, {}, []))
        moment.answers[answer.key] = answer
        moment.rows.append(record)
    if not times:
        raise UserError(f"{path}: no samples in it")
    return [times[i] for i in sorted(times)]


def read_answers(place: str, iteration: int | None = None) -> tuple[dict[PromptKey, Answer], int]:
    """(answers by prompt, further answers left out) of a file; one answer a prompt counts, the first.

    In a samples.jsonl ``iteration`` chooses whose answers are read: default, the last.
    """
    path = Path(expand_path(place))
    if path.suffix == ".json":
        if iteration is not None:
            raise UserError(f"{path}: its answers have no iteration; leave a_iteration and b_iteration out")
        return read_outputs(path)
    first = next(_rows(path), None)
    if first is None:
        raise UserError(f"{path}: no answers in it")
    if "iteration" in first[1]:
        moments = read_samples(place)
        if iteration is None:
            return moments[-1].answers, 0
        for moment in moments:
            if moment.iteration == iteration:
                return moment.answers, 0
        known = ", ".join(str(m.iteration) for m in moments)
        raise UserError(f"{path}: no answers at iteration {iteration}: choose from {known}")
    if iteration is not None:
        raise UserError(f"{path}: its answers have no iteration; leave a_iteration and b_iteration out")
    answers: dict[PromptKey, Answer] = {}
    further = 0
    for where, record in _rows(path):
        answer = _answer(record, where, path.stem)
        further += answer.key in answers
        answers.setdefault(answer.key, answer)
    return answers, further


def read_outputs(path: Path) -> tuple[dict[PromptKey, Answer], int]:
    """(answers by prompt, further answers left out) of AlpacaEval's layout: one list of records with instruction, output,
    generator and, as it may be, dataset, which becomes the answer's source. All must come from one generator."""
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: malformed JSON: {error}") from None
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: a list of records with instruction and output is expected (AlpacaEval's layout)")
    answers: dict[PromptKey, Answer] = {}
    generators: dict[str, int] = {}
    further = 0
    for number, record in enumerate(records):
        where = f"{path}: record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where}: an object with instruction and output is expected")
        for name in ("instruction", "output"):
            if not isinstance(record.get(name), str):
                raise UserError(f"{where}: {name}: text is expected, not {type(record.get(name)).__name__}")
        if not record["instruction"].strip():
            raise UserError(f"{where}: instruction: is empty")
        generators.setdefault(str(record.get("generator")), number)
        dataset = record.get("dataset")
        answer = Answer(
            (Message(role="user", content=record["instruction"].strip()),), record["output"],
            source=dataset if isinstance(dataset, str) and dataset else path.stem,
        )  # fmt: skip
        further += answer.key in answers
        answers.setdefault(answer.key, answer)
    if len(generators) > 1:
        one, other, *_ = generators
        raise UserError(
            f"{path}: record {generators[other]}: generator {other!r}, while record 0 is of {one!r}; one file, one generator"
        )
    return answers, further


class Sampler:
    """Draws one answer a prompt from a model and keeps each batch in ``file`` of the run, so that a kill loses little."""

    def __init__(self, model: Any, chat_format: ChatFormat, sampling: SamplingConfig, *, bf16: bool = False) -> None:
        self.format, self.sampling = chat_format, sampling
        self.engine = TransformersEngine(model, chat_format, sampling, bf16=bf16)

    def answer(self, prompts: Sequence[Prompt], run: RunDirectory, file: str, *, seed: int, side: int) -> list[Answer]:
        """Answers in the order of ``prompts``; those already in the file are not drawn again."""
        ranks = run.ranks
        done = kept_answers(run.path / file, prompts)
        ranks.barrier()  # all ranks have read before the main one writes
        if ranks.is_main and done:  # without the half line of a kill
            write_atomic(run.path / file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in done))
        chunk = CHUNK * self.sampling.batch_size
        with ProgressLine(Path(file).stem, len(prompts), done=len(done), quiet=not ranks.is_main) as bar:
            for start in range(len(done), len(prompts), chunk):
                part = list(enumerate(prompts))[start : start + chunk]
                mine = ranks.share(part)
                seeds = [sample_seed(seed, side, i) for i, _ in mine]
                drawn = self.engine.generate([self.format.encode_prompt(p.messages) for _, p in mine], seeds)
                rows = [
                    {
                        "prompt": [dict(m) for m in prompt.messages],
                        "response": self.format.decode(completion.response_ids),
                        "finished": completion.finished,
                        "tokens": len(completion.response_ids),
                        "source": prompt.source,
                        "seed": own,
                    }
                    for (_, prompt), own, completion in zip(mine, seeds, drawn, strict=True)
                ]
                for row in ranks.collect(rows):
                    done.append(row)
                    run.log(row, file)
                bar.step(len(part))
        return [
            Answer(tuple(p.messages), row["response"], row["finished"], p.source, p.metadata)
            for p, row in zip(prompts, done, strict=True)
        ]


def kept_answers(path: Path, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Whole lines of an answer file that a stopped run left; they must answer these prompts in this order."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line break is a half line or nothing
        try:
            row = json.loads(line)
            same = prompt_key(row["prompt"]) == prompt_key(prompts[len(rows)].messages)
        except (ValueError, KeyError, TypeError, IndexError):
            same = False
        if not same:
            raise UserError(
                f"{path}:{len(rows) + 1}: does not answer prompt {len(rows) + 1}; the prompts have changed: "
                "use another output_dir"
            )
        rows.append(row)
    return rows
