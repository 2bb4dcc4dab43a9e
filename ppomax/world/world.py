"""One world with everything that it gives: text, demonstrations, prompts, pairs, exam, judge, opponent."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal

from ppomax.data.records import Dialogue, Message, PreferencePair, Prompt
from ppomax.errors import UserError
from ppomax.world.annotators import Annotators
from ppomax.world.answers import OPPONENT, WRITERS, demonstration, pick
from ppomax.world.exam import exam_rows
from ppomax.world.facts import make_facts, stream
from ppomax.world.judge import Judge, Judgement
from ppomax.world.prompts import CATEGORY, MIX, NONE, Task, all_tasks, every_task, messages
from ppomax.world.text import passage

VERSION = "8"
"""raised with every change of what the world says or judges; ``fingerprint`` tells when that was forgotten"""
MULTI_TURN = 0.2
"""share of prompts with an earlier exchange, of the kinds that can have one"""

BROAD: Mapping[str, float] = {
    "good": 0.17, "plain": 0.08, "false": 0.12, "half_false": 0.07, "harmful": 0.06, "needless": 0.11, "rambling": 0.07,
    "wordy": 0.05, "boastful": 0.05, "off_topic": 0.1, "rude": 0.03, "repeating": 0.04, "cut_off": 0.02, "salad": 0.01,
    "echo": 0.01, "foreign": 0.01,
}  # fmt: skip
"""writers of candidate answers: every failure that the judge knows"""
NARROW: Mapping[str, float] = {"good": 0.5, "plain": 0.2, "false": 0.2, "half_false": 0.1}
"""a mix without refusals, padding, repetition or insults, to show what a reward model then misses"""
MIXES: Mapping[str, Mapping[str, float]] = {"broad": BROAD, "narrow": NARROW}

AnyPrompt = Task | Prompt | str | Sequence[Message]


class World:
    """A world: deterministic from language ("en", "zh"), seed, and size ("small", "standard", "large")."""

    def __init__(self, language: str = "en", seed: int = 0, size: str = "standard") -> None:
        self.language, self.seed, self.size = language, seed, size
        self.facts = make_facts(language, seed, size)
        self._tasks: dict[str, dict[str, list[Task]]] = {}

    @property
    def name(self) -> str:
        """Names the world in metadata: ``en-standard-0``."""
        return f"{self.language}-{self.size}-{self.seed}"

    @cached_property
    def truth(self) -> Judge:
        return Judge(self.facts)

    # ----------------------------------------------------------------------------------- judging

    def task(self, prompt: AnyPrompt) -> Task:
        """What a prompt asks for, from its metadata or its words. UserError where it is none of this world's."""
        if isinstance(prompt, Prompt):
            columns = dict(prompt.metadata)
            if columns.get("kind") is not None and columns.get("world", self.name) == self.name:
                return self.task_from(columns)
            return self.truth.task_of(prompt.messages)
        return self.truth.task_of(prompt)

    def task_from(self, columns: Mapping[str, Any]) -> Task:
        """The task of a prompt's columns. UserError where this world has none such."""
        task = Task.from_metadata(columns)
        if task not in self._every_task:
            raise UserError(f"the prompt's columns name what the world {self.name} does not have: {task.metadata()}")
        return task

    @cached_property
    def _every_task(self) -> frozenset[Task]:
        return frozenset(task for kind in CATEGORY for task in every_task(self.facts, kind))

    def judge(self, prompt: AnyPrompt, answer: str) -> Judgement:
        """How good any text is as an answer to a prompt of this world."""
        return self.truth(self.task(prompt), answer)

    def compare(self, prompt: AnyPrompt, a: str, b: str) -> Literal["win", "tie", "lose"]:
        """Whether ``a`` is the better answer to the prompt."""
        return self.truth.compare(self.task(prompt), a, b)

    def opponent(self, prompt: AnyPrompt) -> str:
        """A stronger opponent's answer (C16): nearly always good, and always the same to the same prompt."""
        task = self.task(prompt)
        rng = stream(self.seed, self.language, "opponent", json.dumps(task.metadata(), sort_keys=True))
        return WRITERS[pick(OPPONENT, rng)](self.facts, task, rng)

    # ----------------------------------------------------------------------------------- prompts

    def _of_split(self, split: str) -> dict[str, list[Task]]:
        if split not in self._tasks:
            self._tasks[split] = all_tasks(self.facts, split)
        return self._tasks[split]

    def _draw(self, split: str, n: int, rng: random.Random, *, unique: bool) -> list[Task]:
        """Tasks by the mix of kinds; with ``unique`` none occurs twice, and kinds that run out give way to others."""
        pools: dict[tuple[str, bool], list[Task]] = {}
        for kind, tasks in self._of_split(split).items():
            for multi in (False, True):
                pool = [t for t in tasks if (t.context != NONE) == multi]
                rng.shuffle(pool)
                pools[kind, multi] = pool
        out: list[Task] = []
        while len(out) < n:
            open_kinds = [k for k in MIX if pools[k, False] or pools[k, True]]
            if not open_kinds:
                raise UserError(f"this world has only {len(out)} different {split} prompts, {n} were asked for")
            kind = rng.choices(open_kinds, [MIX[k] for k in open_kinds])[0]
            multi = bool(pools[kind, True]) and (rng.random() < MULTI_TURN or not pools[kind, False])
            pool = pools[kind, multi]
            out.append(pool.pop() if unique else rng.choice(pool))
        return out

    def record(self, task: Task, origin: str = "world") -> Prompt:
        """A task as a prompt with the metadata that the judge needs."""
        columns = {"category": task.category, "world": self.name, **task.metadata()}
        return Prompt(messages(self.facts, task), task.category, origin, tuple(columns.items()))

    def prompts(self, split: str, n: int) -> list[Prompt]:
        """``n`` different prompts of "train" or "heldout". UserError where there are not so many; well before that, kinds
        run out: a standard world keeps its mix up to 1400."""
        rng = stream(self.seed, self.language, self.size, "prompts", split)
        return [self.record(task) for task in self._draw(split, n, rng, unique=True)]

    # ------------------------------------------------------------------------------ training data

    def text(self, n: int, split: str = "train") -> list[str]:
        """Plain texts for pretraining; those of "heldout" tell the same facts in other passages."""
        rng = stream(self.seed, self.language, self.size, "text", *([] if split == "train" else [split]))
        return [passage(self.facts, rng) for _ in range(n)]

    def demonstrations(self, n: int, split: str = "train") -> list[Dialogue]:
        """Dialogues of mixed quality; ``source`` is the writer of the last answer."""
        rng = stream(self.seed, self.language, self.size, "demonstrations", split)
        out = []
        for task in self._draw(split, n, rng, unique=False):
            writer, answer = demonstration(self.facts, task, rng)
            turns = (*messages(self.facts, task), Message(role="assistant", content=answer))
            out.append(Dialogue(turns, writer, "world"))
        return out

    def pairs(
        self,
        n: int,
        annotators: Annotators | None = None,
        *,
        split: str = "train",
        mix: Mapping[str, float] = BROAD,
        samples: Sequence[tuple[AnyPrompt, str]] = (),
        sample_share: float = 0.5,
    ) -> list[PreferencePair]:
        """Pairs that annotators have compared; ``source`` is the prompt's category.

        Args:
            annotators: the people; their ``tally`` counts. None: the usual ones.
            mix: writer -> weight among the candidate answers.
            samples: (prompt, answer) of a model, best several to a prompt and at two temperatures. Prompts that have
                some are asked for in half of the pairs; there, a candidate is one of them with ``sample_share``.
        """
        people = annotators or Annotators(self.truth)
        unknown = set(mix) - set(WRITERS)
        if unknown:
            raise UserError(f"unknown writer {sorted(unknown)[0]!r}; choose from {', '.join(WRITERS)}")
        rng = stream(self.seed, self.language, self.size, "pairs", split)
        drawn: dict[Task, list[str]] = {}
        for prompt, answer in samples:
            drawn.setdefault(self.task(prompt), []).append(answer)
        asked = list(drawn)
        out: list[PreferencePair] = []
        for task in self._draw(split, n, rng, unique=False):
            if asked and rng.random() < 0.5:
                task = rng.choice(asked)
            a, b = self._candidates(task, mix, drawn.get(task, []), sample_share, rng)
            if not people.prefer(task, a, b, rng):
                a, b = b, a
            chosen, rejected = (Message(role="assistant", content=text) for text in (a, b))
            out.append(PreferencePair(messages(self.facts, task), (chosen,), (rejected,), task.category, "world"))
        return out

    def _candidates(
        self, task: Task, mix: Mapping[str, float], drawn: Sequence[str], share: float, rng: random.Random
    ) -> tuple[str, str]:
        """Two different answers."""
        found: list[str] = []
        while len(found) < 2:
            if drawn and rng.random() < share:
                text = rng.choice(drawn)
            else:
                text = WRITERS[pick(mix, rng)](self.facts, task, rng)
            if text.strip() and text not in found:
                found.append(text)
        return found[0], found[1]

    def exam(self) -> list[dict[str, Any]]:
        """Multiple-choice questions with few-shot examples (see ``exam.py``)."""
        return exam_rows(self.facts)


@cache
def world_named(name: str) -> World:
    """The world of a prompt's ``world`` column, such as ``en-standard-0``."""
    parts = name.split("-")
    if len(parts) != 3 or not parts[2].isdigit():
        raise UserError(f"{name!r} names no world; expected language-size-seed such as en-standard-0")
    return World(parts[0], int(parts[2]), parts[1])


@cache
def fingerprint() -> str:
    """Hash of what this code says and judges for a fixed seed, in both languages: the same code, the same hash."""
    digest = hashlib.sha256(VERSION.encode())
    for language in ("en", "zh"):
        world = World(language, 0, "small")
        people = Annotators(world.truth)
        said: list[Any] = [world.text(40), world.exam()]
        said += [
            [d.messages for d in world.demonstrations(60)],
            [[p.messages, p.metadata] for p in world.prompts("train", 40)],
        ]
        said += [[p.chosen, p.rejected] for p in world.pairs(150, people)]
        for prompt in world.prompts("heldout", 60):
            task, rng = world.task(prompt), stream(0, "fingerprint")
            for write in WRITERS.values():
                answer = write(world.facts, task, rng)
                j = world.judge(task, answer)
                said.append(
                    [answer, *(f"{x:.4f}" for x in (j.helpfulness, j.harmlessness, j.honesty, j.fluency, j.overall))]
                )
            said.append(world.opponent(prompt))
        digest.update(json.dumps(said, ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()[:16]
