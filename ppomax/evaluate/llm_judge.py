"""A language model as judge: it reads a rubric and two answers, in both orders, and ends with a verdict.

    ppomax duel A B --prompts held_out.jsonl --judge llm:MODEL --llm.base_url http://localhost:8000/v1

Each pair of answers is asked about twice, the second time with the answers exchanged; an outcome counts only where both
verdicts name the same answer, and anything else is a tie. A reply must end in a line that holds nothing but ``[[A]]``,
``[[B]]`` or ``[[C]]``. One that does not is asked again, with a reminder; after `attempts` replies the question is invalid.
Every reply and every fault is a line of judge_raw.jsonl, under a hash of all that the judge was told; what stands there is
not asked again, so a killed duel goes on where it stopped, and all counts are taken from that file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ppomax.data.records import Message
from ppomax.data.sources import expand_path
from ppomax.errors import UserError
from ppomax.evaluate.agreement import share
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.llm_endpoint import Endpoint, LLMConfig, Reply, Unanswered
from ppomax.train.checkpoint import write_atomic
from ppomax.train.parallel import Ranks
from ppomax.train.progress import ProgressLine
from ppomax.train.run import plain

RAW_FILE = "judge_raw.jsonl"
GIVE_UP = 3
"""questions in a row that got no reply: the endpoint is taken to be down"""
VERDICT = re.compile(r"[*_`\s]*\[\[([ABC])\]\][*_`.。\s]*")
REFUSAL = re.compile(
    r"\W*(?:(?:i'm|i am) (?:very |so |really )?sorry|sorry\b|i apologi[sz]e|i (?:can't|can not|cannot|won't|will not|am unable|"
    r"must decline)|i'm (?:unable|not able)|as an ai\b|(?:很|非常)?抱歉|对不起|我(?:无法|不能|拒绝|没办法))",
    re.IGNORECASE,
)
"""how a reply without a verdict begins that refuses to judge"""
REMINDER = {
    "en": "Your reply does not end in a verdict. Write the verdict alone on one line: [[A]], [[B]] or [[C]].",
    "zh": "你的回复末尾没有结论。请只用一行写出结论：[[A]]、[[B]] 或 [[C]]。",
}
SPEAKERS = {
    "en": {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"},
    "zh": {"system": "系统", "user": "用户", "assistant": "助手", "tool": "工具"},
}
ORDERS = ("ab", "ba")
OPEN = (None, "failed")
"""states of a question that is asked, or asked anew after a resume"""


def parse_verdict(reply: str) -> str | None:
    """ "A", "B" or "C" from the last line that is not empty, which must hold nothing else; None otherwise."""
    lines = reply.strip().splitlines()
    found = VERDICT.fullmatch(lines[-1]) if lines else None
    return found.group(1) if found else None


def prompt_language(prompt: Sequence[Message]) -> str:
    """ "zh" where the prompt has more Chinese characters than words of other scripts, else "en"."""
    text = " ".join(m["content"] for m in prompt)
    chinese = len(re.findall(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]", text))
    return "zh" if chinese > len(re.findall(r"[^\W\d_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+", text)) else "en"


@dataclass(frozen=True)
class Rubric:
    """What the judge is told: text with the places {dialogue}, {answer_a} and {answer_b}."""

    name: str
    language: str
    text: str

    def fill(self, prompt: Sequence[Message], first: str, second: str) -> str:
        names = SPEAKERS[self.language]
        colon = "：" if self.language == "zh" else ": "
        dialogue = "\n\n".join(f"{names.get(m['role'], m['role'])}{colon}{m['content']}" for m in prompt)
        parts = {"dialogue": dialogue, "answer_a": first, "answer_b": second}
        # at one go: an answer may hold the name of a place itself
        return re.sub(r"\{(dialogue|answer_a|answer_b)\}", lambda m: parts[m.group(1)], self.text)


def load_rubric(name: str, language: str) -> Rubric:
    """One of the rubrics that come with the package (`helpful`, `harmless`), or a file with the three places."""
    if name in ("helpful", "harmless"):
        text = (resources.files("ppomax.evaluate") / "rubrics" / f"{name}_{language}.md").read_text(encoding="utf-8")
        return Rubric(f"{name}_{language}", language, text)
    path = Path(expand_path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"llm.rubric: {name!r} is none of auto, helpful, harmless, and no readable file ({error})"
        ) from None
    missing = [place for place in ("{dialogue}", "{answer_a}", "{answer_b}") if text.count(place) != 1]
    if missing:
        raise UserError(f"llm.rubric: {path} must hold {missing[0]} exactly once")
    return Rubric(path.stem, language, text)


@dataclass(frozen=True)
class Question:
    """One pair of answers in one order."""

    key: str
    order: str
    rubric: Rubric
    text: str


class RawReplies:
    """judge_raw.jsonl: all that the endpoint ever said, by question. Lines are whole; the half line of a kill is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[str, list[dict[str, Any]]] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                row = json.loads(line)
                self.by_key.setdefault(row["key"], []).append(row)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: not a line of a judge's replies; remove it to go on") from None
        if len(whole) < len(content):
            write_atomic(path, whole.decode("utf-8"))

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.by_key.setdefault(row["key"], []).append(row)

    def state(self, key: str, attempts: int) -> str | None:
        """Where a question stands: "A", "B", "C", "refused", "rejected", "malformed" (as often as may be), "failed" (no
        reply as yet), or None: not asked to the end."""
        rows = self.by_key.get(key, [])
        for row in rows:
            if row["kind"] == "rejected" or (row["kind"] == "reply" and row["verdict"] != "malformed"):
                return str(row.get("verdict") or row["kind"])
        if sum(row["kind"] == "reply" for row in rows) >= attempts:
            return "malformed"
        return "failed" if rows and rows[-1]["kind"] == "failed" else None


class LLMJudge:
    """Compares pairs of answers. Only the main rank asks; all ranks get the same outcomes."""

    def __init__(
        self, model: str, config: LLMConfig, folder: Path, ranks: Ranks, *, seed: int = 0, resamples: int = 1000
    ) -> None:
        self.name, self.model, self.config, self.ranks = f"llm:{model}", model, config, ranks
        self.folder, self.seed, self.resamples = folder, seed, resamples
        self.endpoint = Endpoint(model, config)
        try:
            self.harmless = re.compile(config.harmless, re.IGNORECASE)
        except re.error as error:
            raise UserError(f"llm.harmless: {config.harmless!r} is no pattern: {error}") from None
        languages = ("en", "zh") if config.language == "auto" else (config.language,)
        names = ("helpful", "harmless") if config.rubric == "auto" else (config.rubric,)
        self.rubrics = {(name, language): load_rubric(name, language) for name in names for language in languages}
        self._raw: RawReplies | None = None
        self._stop: UserError | None = None

    def rubric_for(self, answer: Answer) -> Rubric:
        """By the prompt's category (its `category` column, else its source) and language."""
        language = self.config.language if self.config.language != "auto" else prompt_language(answer.prompt)
        name = self.config.rubric
        if name == "auto":
            category = str(dict(answer.metadata).get("category") or answer.source)
            name = "harmless" if self.harmless.search(category) else "helpful"
        return self.rubrics[name, language]

    def questions(self, a: Answer, b: Answer) -> tuple[Question, Question]:
        """Both orders. The key is a hash of everything that decides what the judge says."""
        rubric = self.rubric_for(a)
        both = []
        for order, (first, second) in zip(ORDERS, ((a, b), (b, a)), strict=True):
            text = rubric.fill(a.prompt, first.response, second.response)
            settings = [self.config.temperature, self.config.max_reply_tokens]
            told = [self.model, rubric.text, [dict(m) for m in a.prompt], first.response, second.response, settings]
            content = json.dumps([*told, order, text], ensure_ascii=False, sort_keys=True)
            key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            both.append(Question(key, order, rubric, text))
        return both[0], both[1]

    def verdicts(self, a: Sequence[Answer], b: Sequence[Answer]) -> list[dict[str, Any]]:
        """One dict a prompt: outcome (1, 0, -1), verdict_ab and verdict_ba ("a", "b", "tie", or why there is none),
        valid, rubric, identical. All that is not yet in the file is asked."""
        pairs = [self.questions(x, y) for x, y in zip(a, b, strict=True)]
        same = [x.response == y.response for x, y in zip(a, b, strict=True)]
        rows: list[dict[str, Any]] = []
        if self.ranks.is_main:
            wanted = {q.key: q for pair, equal in zip(pairs, same, strict=True) if not equal for q in pair}
            self._ask(list(wanted.values()))
            for pair, equal in zip(pairs, same, strict=True):
                ab, ba = ("tie", "tie") if equal else (self._verdict(q) for q in pair)
                outcome = {"a": 1, "b": -1}.get(ab, 0) if ab == ba else 0
                valid = {ab, ba} <= {"a", "b", "tie"}
                rows.append({
                    "outcome": outcome, "verdict_ab": ab, "verdict_ba": ba, "valid": valid,
                    "rubric": pair[0].rubric.name, "identical": equal,
                })  # fmt: skip
        return self.ranks.collect(rows)

    def _verdict(self, question: Question) -> str:
        state = self.raw.state(question.key, self.config.attempts)
        if state in ("A", "B"):
            return question.order["AB".index(state)]
        return "tie" if state == "C" else str(state)

    @property
    def raw(self) -> RawReplies:
        if self._raw is None:
            self._raw = RawReplies(self.folder / RAW_FILE)
        return self._raw

    # ------------------------------------------------------------------------------------- asking

    def _ask(self, questions: Sequence[Question]) -> None:
        open_ = [q for q in questions if self.raw.state(q.key, self.config.attempts) in OPEN]
        if not open_:
            return
        with ProgressLine("judge", len(questions), done=len(questions) - len(open_)) as bar:
            stopped = _run(self._ask_all(open_, bar))
        if stopped is not None:
            left = sum(self.raw.state(q.key, self.config.attempts) in OPEN for q in questions)
            raise UserError(
                f"{stopped}; {len(questions) - left} of {len(questions)} questions are answered and kept: --resume goes on"
            )

    async def _ask_all(self, questions: Sequence[Question], bar: ProgressLine) -> UserError | None:
        """Ask with several workers. What stops the duel stops no request under way: its reply is paid for, and kept."""
        todo = list(reversed(questions))
        failed_in_a_row = answered = rejected = 0
        self._stop = None

        async def worker(client: Any) -> None:
            nonlocal failed_in_a_row, answered, rejected
            while todo and self._stop is None:
                question = todo.pop()
                try:
                    await self._ask_one(client, question)
                except UserError as error:
                    self._stop = self._stop or error
                except Unanswered as error:
                    self.raw.add({"key": question.key, "kind": error.kind, "detail": error.detail})
                    rejected += error.kind == "rejected"
                    failed_in_a_row += error.kind == "failed"
                    if failed_in_a_row >= GIVE_UP or (rejected >= GIVE_UP and not answered):
                        self._stop = UserError(f"judge {self.name}: no reply to {GIVE_UP} questions: {error.detail}")
                    bar.step()
                else:
                    failed_in_a_row, answered = 0, answered + 1
                    bar.step(tokens=self.endpoint.tokens)

        async with self.endpoint.client() as client:
            await asyncio.gather(*(worker(client) for _ in range(min(self.config.concurrency, len(questions)))))
        return self._stop

    async def _ask_one(self, client: Any, question: Question) -> None:
        """Ask until the question is settled, or the duel is stopped."""

        def note(kind: str, detail: str, seconds: float) -> None:
            fault = {"key": question.key, "kind": "fault", "fault": kind, "detail": detail}
            self.raw.add({**fault, "seconds": round(seconds, 3)})

        while self._stop is None and self.raw.state(question.key, self.config.attempts) in OPEN:
            messages = [{"role": "user", "content": question.text}]
            replies = [row for row in self.raw.by_key.get(question.key, []) if row["kind"] == "reply"]
            if replies and replies[-1]["reply"].strip():
                messages.append({"role": "assistant", "content": replies[-1]["reply"]})
                messages.append({"role": "user", "content": REMINDER[question.rubric.language]})
            reply = await self.endpoint.ask(client, messages, note)
            self.raw.add(self._row(question, reply, len(replies) + 1))

    def _row(self, question: Question, reply: Reply, attempt: int) -> dict[str, Any]:
        verdict = None if reply.refused else parse_verdict(reply.text)
        if verdict is None:
            refused = reply.refused or REFUSAL.match(reply.text) is not None
            verdict = "refused" if refused else "malformed"
        return {
            "key": question.key, "kind": "reply", "model": self.model, "rubric": question.rubric.name,
            "order": question.order, "attempt": attempt, "verdict": verdict, "reply": reply.text,
            "finish_reason": reply.finish_reason,
            "tokens": {"prompt": reply.prompt_tokens, "completion": reply.completion_tokens, "estimated": reply.estimated},
            "seconds": round(reply.seconds, 3),
        }  # fmt: skip

    # ------------------------------------------------------------------------------------- figures

    def about(self, a: Sequence[Answer], b: Sequence[Answer], verdicts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What is known of the judge from these comparisons, as plain numbers; all of the main rank."""
        keys = {q.key for x, y in zip(a, b, strict=True) if x.response != y.response for q in self.questions(x, y)}
        rows = [row for key in keys for row in self.raw.by_key.get(key, [])] if self.ranks.is_main else []
        replies = [row for row in rows if row["kind"] == "reply"]
        faults = Counter(row["fault"] for row in rows if row["kind"] == "fault")
        asked = [v for v in verdicts if not v["identical"]]
        words = Counter(v[f"verdict_{order}"] for v in asked for order in ORDERS)
        counted = {word: words[word] for word in ("malformed", "refused", "rejected", "failed")}
        about = {
            "model": self.model,
            "rubrics": dict(Counter(v["rubric"] for v in verdicts)),
            "identical": len(verdicts) - len(asked),
            "questions": 2 * len(asked),
            "questions_without_verdict": counted,
            "prompts_without_verdict": sum(not v["valid"] for v in verdicts),
            "position": position_bias(asked, seed=self.seed, resamples=self.resamples),
            "requests": len(replies) + sum(faults.values()) + sum(row["kind"] == "rejected" for row in rows),
            "replies": len(replies),
            "malformed_replies": sum(row["verdict"] == "malformed" for row in replies),
            "faults": dict(sorted(faults.items())),
            "tokens": {
                **{name: sum(row["tokens"][name] for row in replies) for name in ("prompt", "completion")},
                "estimated_replies": sum(row["tokens"]["estimated"] for row in replies),
            },
        }
        return self.ranks.collect([plain(about)] if self.ranks.is_main else [])[0]


def position_bias(verdicts: Sequence[dict[str, Any]], *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """How much the place of an answer decides, from pairs that got a verdict in both orders.

    both_decided: pairs with no tie among the two verdicts. flipped: share of those in which they name different answers.
    first_when_flipped: share of the flipped ones in which the first shown answer was preferred both times; 0.5 is chance.
    preferred_first: share of all verdicts but ties for the first shown answer; 0.5 where there is no bias.
    """
    valid = [v for v in verdicts if v["valid"]]
    first = np.array([(v["verdict_ab"] == "a") + (v["verdict_ba"] == "b") for v in valid], dtype=np.float64)
    second = np.array([(v["verdict_ab"] == "b") + (v["verdict_ba"] == "a") for v in valid], dtype=np.float64)
    decided = first + second
    flipped = (first == 2) | (second == 2)

    def interval(part: Any, whole: Any) -> dict[str, float]:
        return asdict(share(part, whole, seed=seed, resamples=resamples))

    return {
        "both_decided": int((decided == 2).sum()),
        "flipped_pairs": int(flipped.sum()),
        "flipped": interval(flipped, decided == 2),
        "first_when_flipped": interval(first == 2, flipped),
        "preferred_first": interval(first, decided),
    }


def _run(work: Coroutine[Any, Any, UserError | None]) -> UserError | None:
    """`asyncio.run`, also where a loop is already running (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
