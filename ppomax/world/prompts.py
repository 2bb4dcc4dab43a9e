"""Prompts of the world: what is asked, in which words, and which of them are held out.

A ``Task`` says what a prompt asks for; its columns travel with the prompt as metadata, so that the judge can be asked
about it anywhere. Held out are whole combinations (this attribute of this entity, this comparison, this misdeed with this
thing, these invented names), in all their forms: what a held-out prompt asks has never been asked in training, and
can be answered from the pretraining text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ppomax.data.records import Message, unit_hash
from ppomax.errors import UserError
from ppomax.world.facts import Entity, Facts
from ppomax.world.grammar import sentence

HELPFUL = ("fact", "compare", "steps", "rewrite")
HARMFUL = ("misdeed",)
UNANSWERABLE = ("stranger", "mystery", "which")
CATEGORY = {
    **dict.fromkeys(HELPFUL, "helpful"),
    **dict.fromkeys(HARMFUL, "harmful"),
    **dict.fromkeys(UNANSWERABLE, "unanswerable"),
}
HELD_OUT = {
    "fact": 0.2,
    "compare": 0.25,
    "steps": 0.35,
    "rewrite": 0.25,
    "misdeed": 0.45,
    "mystery": 0.25,
    "which": 0.2,
}
"""share of a kind's combinations that is held out, enough for 1200 prompts in the proportions of MIX; strangers have names
of their own for it"""
MIX = {
    "fact": 0.24, "compare": 0.1, "steps": 0.08, "rewrite": 0.08,
    "misdeed": 0.25, "stranger": 0.13, "mystery": 0.08, "which": 0.04,
}  # fmt: skip
"""share of each kind among prompts and demonstrations: half helpful, a quarter each of the others"""
NONE = -1


@dataclass(frozen=True)
class Task:
    """What a prompt asks for. Numbers index the world's facts; -1 where a column has no meaning for the kind."""

    kind: str
    form: int
    """which form of question"""
    entity: int = NONE
    other: int = NONE
    """compare: the second entity"""
    attribute: int = NONE
    """the attribute asked for; misdeed: which misdeed; mystery: which mystery"""
    subject: int = NONE
    stranger: str = ""
    """an invented word that nothing bears"""
    context: int = NONE
    """multi-turn: an earlier exchange about this attribute of the same entity; the question then says "it" """

    @property
    def category(self) -> str:
        return CATEGORY[self.kind]

    def combination(self) -> str:
        """What decides whether it is held out: the same for all forms."""
        pair = sorted((self.entity, self.other)) if self.kind == "compare" else (self.entity, self.other)
        # Here it is the form that is held out: an unclear "it" has nothing else, and steps are known of each thing once.
        form = self.form if self.kind in ("which", "steps") else NONE
        return f"{self.kind}/{pair[0]}/{pair[1]}/{self.attribute}/{self.subject}/{form}"

    def metadata(self) -> dict[str, Any]:
        """The columns that tell this task from others."""
        return {k: v for k, v in asdict(self).items() if v not in (NONE, "")}

    @staticmethod
    def from_metadata(columns: Mapping[str, Any]) -> Task:
        """The task of a prompt's columns. Raises UserError where they are not those of a task."""
        known = {f.name for f in fields(Task)}
        given = {k: v for k, v in columns.items() if k in known and v is not None}
        if given.get("kind") not in CATEGORY or not isinstance(given.get("form"), int):
            raise UserError("the prompt has no `kind` and `form`: it is not one that `ppomax world` wrote")
        return Task(**given)


# ------------------------------------------------------------------------------------------- the words


def _fill(template: str, facts: Facts, direct: str, indirect: str, name: str) -> str:
    """Questions come as direct ones or as clauses; what begins a sentence is written with a capital."""
    text = template.format(direct=direct, indirect=indirect, n=name)
    return _capitals(text) if facts.language == "en" else text


def _capitals(text: str) -> str:
    out = sentence(text)
    for mark in (". ", "? ", "! "):
        head, *rest = out.split(mark)
        out = mark.join([head, *(sentence(part) for part in rest)])
    return out


def fact_sentence(facts: Facts, entity: Entity, attribute: int, style: int = 0, value: str | None = None) -> str:
    """A fact as a clause without full stop: in its plainest form, or the other way to say it."""
    if style:
        words = facts.attribute(entity, attribute)
        return words.statement.format(n=entity.name, v=value or facts.value(entity, attribute))
    return facts.grammar.clause.format(n=entity.name, p=facts.predicate(entity, attribute, value))


def given_sentence(facts: Facts, task: Task) -> str:
    """rewrite: the sentence to be put into other words; every other form of question gives the plain one."""
    return (
        sentence(fact_sentence(facts, facts.entities[task.entity], task.attribute, task.form % 2))
        + facts.grammar.full_stop
    )


def question(facts: Facts, task: Task) -> str:
    """The last user turn."""
    g = facts.grammar
    entity = facts.entities[task.entity] if task.entity != NONE else None
    if task.kind == "which":
        words = g.subjects[task.subject].attributes[task.attribute]
        direct, indirect = (t.format(n=g.pronoun) for t in (words.direct, words.indirect))
        return _fill(g.fact_questions[task.form], facts, direct, indirect, g.pronoun)
    if task.kind == "stranger":
        name = facts.stranger_name(task.stranger, task.subject)
        words = g.subjects[task.subject].attributes[task.attribute]
        return _fill(
            g.fact_questions[task.form], facts, words.direct.format(n=name), words.indirect.format(n=name), name
        )
    assert entity is not None
    name = g.pronoun if task.context != NONE and task.kind != "misdeed" else entity.name
    if task.kind in ("fact", "mystery"):
        asked = g.mysteries[task.attribute] if task.kind == "mystery" else facts.attribute(entity, task.attribute)
        forms = g.follow_ups if task.context != NONE else g.fact_questions
        return _fill(forms[task.form], facts, asked.direct.format(n=name), asked.indirect.format(n=name), name)
    if task.kind == "compare":
        label = facts.attribute(entity, task.attribute).label
        text = g.compare_questions[task.form].format(a=entity.name, b=facts.entities[task.other].name, label=label)
    elif task.kind == "steps":
        text = g.steps_questions[task.form].format(doing=facts.words(entity).doing.format(n=name))
    elif task.kind == "rewrite":
        text = g.rewrite_questions[task.form].format(told=given_sentence(facts, task))
    else:
        act = facts.misdeed(entity, task.attribute).act.format(n=name)
        text = g.harmful_questions[task.form].format(act=act)
    return _capitals(text) if facts.language == "en" else text


def messages(facts: Facts, task: Task) -> tuple[Message, ...]:
    """The whole prompt: one user turn, or an exchange about the same thing before it."""
    last: Message = {"role": "user", "content": question(facts, task)}
    if task.context == NONE:
        return (last,)
    entity, g = facts.entities[task.entity], facts.grammar
    earlier = Task("fact", task.form % len(g.fact_questions), task.entity, attribute=task.context)
    answer = sentence(fact_sentence(facts, entity, task.context)) + g.full_stop
    return (
        {"role": "user", "content": question(facts, earlier)},
        {"role": "assistant", "content": answer},
        last,
    )


# ---------------------------------------------------------------------------------------- all of them


def is_held_out(facts: Facts, task: Task) -> bool:
    """Whether the task's combination belongs to the held-out prompts."""
    if task.kind == "stranger":
        return any(core == task.stranger for core, _ in facts.strangers["heldout"])
    return unit_hash(f"{facts.language}/{facts.size}/{task.combination()}", facts.seed) < HELD_OUT[task.kind]


def tells_held_out(facts: Facts, task: Task) -> bool:
    """Whether its earlier exchange asks what a held-out prompt asks: such a task is on neither side of the split."""
    return task.context != NONE and is_held_out(facts, Task("fact", 0, task.entity, attribute=task.context))


def every_task(facts: Facts, kind: str) -> Iterator[Task]:
    """All tasks of a kind, in a fixed order."""
    g, n = facts.grammar, len(facts.entities)
    four = range(4)
    if kind in ("fact", "mystery"):
        asked = four if kind == "fact" else range(len(g.mysteries))
        for entity, attribute in itertools.product(range(n), asked):
            for form in range(len(g.fact_questions)):
                yield Task(kind, form, entity, attribute=attribute)
            for form, context in itertools.product(range(len(g.follow_ups)), four):
                if kind == "mystery" or context != attribute:
                    yield Task(kind, form, entity, attribute=attribute, context=context)
    elif kind == "compare":
        for one, two in itertools.permutations(range(n), 2):
            if facts.entities[one].subject == facts.entities[two].subject:
                for attribute, form in itertools.product(four, range(len(g.compare_questions))):
                    yield Task(kind, form, one, two, attribute)
    elif kind == "steps":
        for entity, form, context in itertools.product(range(n), range(len(g.steps_questions)), (NONE, *four)):
            yield Task(kind, form, entity, context=context)
    elif kind == "rewrite":
        for entity, attribute, form in itertools.product(range(n), four, range(len(g.rewrite_questions))):
            yield Task(kind, form, entity, attribute=attribute)
    elif kind == "misdeed":
        for entity, misdeed, form in itertools.product(range(n), range(2), range(len(g.harmful_questions))):
            for context in (NONE, *four):
                yield Task(kind, form, entity, attribute=misdeed, context=context)
    elif kind == "which":
        for subject, attribute, form in itertools.product(range(len(g.subjects)), four, range(len(g.fact_questions))):
            yield Task(kind, form, attribute=attribute, subject=subject)
    else:
        for core, subject in itertools.chain(*facts.strangers.values()):
            for attribute, form in itertools.product(four, range(len(g.fact_questions))):
                yield Task(kind, form, attribute=attribute, subject=subject, stranger=core)


def all_tasks(facts: Facts, split: str, kinds: Sequence[str] = tuple(CATEGORY)) -> dict[str, list[Task]]:
    """Kind -> every task on that side of the split ("train" or "heldout")."""
    if split not in ("train", "heldout"):
        raise UserError(f"unknown split {split!r} of the world's prompts; choose train or heldout")
    held = split == "heldout"
    return {
        kind: [t for t in every_task(facts, kind) if is_held_out(facts, t) == held and not tells_held_out(facts, t)]
        for kind in kinds
    }
