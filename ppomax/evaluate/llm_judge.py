"""A language model as judge: it reads a rubric and two answers, in both orders, and ends with a verdict.

    ppomax duel A B --prompts held_out.jsonl --judge llm:MODEL --llm.base_url http://localhost:8000/v1

Each pair of answers is asked about twice, the second time with the answers exchanged; an outcome counts only where both
verdicts name the same answer, and anything else is a tie. A reply must end in a line that holds nothing but ``[[A]]``,
``[[B]]`` or ``[[C]]``. One that does not is asked again, with a reminder; after `attempts` replies the question is invalid.
Every reply and every fault is a line of judge_raw.jsonl, under a hash of all that the judge was told; what stands there is
not asked again, so a killed duel goes on where it stopped, and all counts are taken from that file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ppomax.config import LLMConfig
from ppomax.data.records import Message
from ppomax.errors import UserError
from ppomax.evaluate.agreement import share
from ppomax.evaluate.answers import Answer
from ppomax.evaluate.categories import check_pattern, prompt_category, prompt_language
from ppomax.evaluate.llm_endpoint import Crew, Endpoint, Reply, ReplyFile, Unanswered, content_key
from ppomax.regular_file import expand_path
from ppomax.train.parallel import Ranks
from ppomax.train.progress import ProgressLine
from ppomax.train.run import plain

RAW_FILE = "judge_raw.jsonl"
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


def state(rows: Sequence[dict[str, Any]], attempts: int) -> str | None:
    """Where a question stands: "A", "B", "C", "refused", "rejected", "malformed" (as often as may be), "failed" (no
    reply as yet), or None: not asked to the end."""
    for row in rows:
        if row["kind"] == "rejected" or (row["kind"] == "reply" and row["verdict"] != "malformed"):
            return str(row.get("verdict") or row["kind"])
    if sum(row["kind"] == "reply" for row in rows) >= attempts:
        return "malformed"
    return "failed" if rows and rows[-1]["kind"] == "failed" else None


class Unfinished(UserError):
    """Not every question could be asked. ``reason``: what stopped it, without what is to be done about it in a duel."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LLMJudge:
    """Compares pairs of answers. Only the main rank asks; all ranks get the same outcomes.

    ``section``: where ``config`` stands in the options, for messages; ``quiet``: no progress is shown.
    """

    def __init__(
        self, model: str, config: LLMConfig, folder: Path, ranks: Ranks, *, seed: int = 0, resamples: int = 1000,
        section: str = "llm", quiet: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.model, self.config, self.ranks = f"llm:{model}", model, config, ranks
        self.folder, self.seed, self.resamples, self.quiet = folder, seed, resamples, quiet
        options: dict[str, Any] = {config.reply_limit_name: config.max_reply_tokens}
        if config.temperature is not None:
            options["temperature"] = config.temperature
        self.endpoint = Endpoint(model, config, section=section, title=f"judge {self.name}", options=options)
        self.crew = Crew(self.endpoint)
        check_pattern(config.harmless)
        languages = ("en", "zh") if config.language == "auto" else (config.language,)
        names = ("helpful", "harmless") if config.rubric == "auto" else (config.rubric,)
        self.rubrics = {(name, language): load_rubric(name, language) for name in names for language in languages}
        self._raw: ReplyFile | None = None

    def rubric_for(self, answer: Answer) -> Rubric:
        """By the prompt's category (its `category` column, else its source) and language."""
        language = self.config.language if self.config.language != "auto" else prompt_language(answer.prompt)
        name = self.config.rubric
        if name == "auto":
            name = prompt_category(answer.source, dict(answer.metadata), self.config.harmless)
        return self.rubrics[name, language]

    def questions(self, a: Answer, b: Answer) -> tuple[Question, Question]:
        """Both orders. The key is a hash of everything that decides what the judge says."""
        rubric = self.rubric_for(a)
        both = []
        for order, (first, second) in zip(ORDERS, ((a, b), (b, a)), strict=True):
            text = rubric.fill(a.prompt, first.response, second.response)
            settings = [self.config.temperature, self.config.max_reply_tokens]
            told = [self.model, rubric.text, [dict(m) for m in a.prompt], first.response, second.response, settings]
            both.append(Question(content_key(*told, order, text), order, rubric, text))
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
        stands = self._state(question)
        if stands in ("A", "B"):
            return question.order["AB".index(stands)]
        return "tie" if stands == "C" else str(stands)

    @property
    def raw(self) -> ReplyFile:
        if self._raw is None:
            self._raw = ReplyFile(self.folder / RAW_FILE)
        return self._raw

    def _state(self, question: Question) -> str | None:
        return state(self.raw.by_key.get(question.key, []), self.config.attempts)

    # ------------------------------------------------------------------------------------- asking

    def _ask(self, questions: Sequence[Question]) -> None:
        open_ = [q for q in questions if self._state(q) in OPEN]
        if not open_:
            return

        def unanswered(question: Question, error: Unanswered) -> None:
            self.raw.add({"key": question.key, "kind": error.kind, "detail": error.detail})

        with ProgressLine("judge", len(questions), done=len(questions) - len(open_), quiet=self.quiet) as bar:
            stopped = self.crew.work(
                open_, self._ask_one, unanswered, lambda: bar.step(tokens=self.endpoint.tokens)
            )  # fmt: skip
        if stopped is not None:
            left = sum(self._state(q) in OPEN for q in questions)
            raise Unfinished(
                str(stopped),
                f"{stopped}; {len(questions) - left} of {len(questions)} questions are answered and kept: --resume goes on",
            )

    async def _ask_one(self, client: Any, question: Question) -> None:
        """Ask until the question is settled, or the duel is stopped."""

        def note(kind: str, detail: str, seconds: float) -> None:
            self.raw.add_fault(question.key, kind, detail, seconds)

        while self.crew.stopped is None and self._state(question) in OPEN:
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
