"""What is true in the world: invented entities of eight subjects, four facts and a way of three steps for each.

Everything follows from (language, seed, size). Names that nobody in the world bears are drawn as well, for questions
that nobody can answer: one set for training, another one for held-out prompts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from ppomax.errors import UserError
from ppomax.world.grammar import AttributeWords, Grammar, Misdeed, SubjectWords, grammar_of

SIZES = {"small": 3, "standard": 5, "large": 10}
"""entities of each of the eight subjects"""
STRANGERS = {"train": 80, "heldout": 16}
"""invented names without an entity"""


def stream(seed: int, *purpose: object) -> random.Random:
    """A random stream of its own for each purpose, the same on every machine."""
    return random.Random("/".join(map(str, ("ppomax.world", seed, *purpose))))


@dataclass(frozen=True)
class Entity:
    """A thing of the world."""

    index: int
    subject: int
    core: str
    """the invented word"""
    name: str
    """as it stands in a sentence: "the velka guild" """
    values: tuple[int, ...]
    """for each attribute of its subject, which value"""
    steps: tuple[int, ...]
    """the way to deal with it: three of its subject's steps, in order"""


@dataclass(frozen=True)
class Facts:
    """All that is known."""

    language: str
    seed: int
    size: str
    entities: tuple[Entity, ...]
    strangers: dict[str, tuple[tuple[str, int], ...]]
    """split -> (invented word, subject) of things that do not exist"""

    @cached_property
    def grammar(self) -> Grammar:
        return grammar_of(self.language)

    @cached_property
    def by_core(self) -> dict[str, Entity]:
        return {entity.core: entity for entity in self.entities}

    @cached_property
    def of_subject(self) -> tuple[tuple[Entity, ...], ...]:
        subjects = range(len(self.grammar.subjects))
        return tuple(tuple(e for e in self.entities if e.subject == s) for s in subjects)

    def words(self, entity: Entity) -> SubjectWords:
        return self.grammar.subjects[entity.subject]

    def attribute(self, entity: Entity, attribute: int) -> AttributeWords:
        return self.words(entity).attributes[attribute]

    def value(self, entity: Entity, attribute: int) -> str:
        return self.attribute(entity, attribute).values[entity.values[attribute]]

    def predicate(self, entity: Entity, attribute: int, value: str | None = None) -> str:
        """ "eats river moss"; with ``value``, what a mistaken writer says"""
        return self.attribute(entity, attribute).predicate.format(v=value or self.value(entity, attribute))

    def steps(self, entity: Entity) -> tuple[str, ...]:
        return tuple(self.words(entity).steps[s] for s in entity.steps)

    def misdeed(self, entity: Entity, number: int) -> Misdeed:
        return self.words(entity).misdeeds[number]

    def stranger_name(self, core: str, subject: int) -> str:
        return full_name(self.grammar, core, subject)


def full_name(grammar: Grammar, core: str, subject: int) -> str:
    """An invented word as a thing of a subject: "the velka guild", "Tasmo", "岚维兽"."""
    words = grammar.subjects[subject]
    return f"{words.before}{core.capitalize() if words.name in grammar.capital_names else core}{words.after}"


def make_facts(language: str, seed: int, size: str) -> Facts:
    """Draw the world. UserError for an unknown language or size, or a negative seed."""
    grammar = grammar_of(language)
    if size not in SIZES:
        raise UserError(f"unknown size {size!r} of the world; choose from {', '.join(SIZES)}")
    if seed < 0:
        raise UserError(f"seed {seed} of the world must not be negative")
    rng = stream(seed, language, "facts")
    cores = [a + b for a in grammar.syllables[0] for b in grammar.syllables[1]]
    rng.shuffle(cores)
    entities: list[Entity] = []
    for subject, words in enumerate(grammar.subjects):
        each = SIZES[size]
        # Every attribute takes several values, and some value twice, so that comparisons come out both ways.
        columns = []
        for attribute in words.attributes:
            column = [rng.randrange(len(attribute.values)) for _ in range(each)]
            column[1] = column[0] if rng.random() < 0.5 else column[1]
            rng.shuffle(column)
            columns.append(column)
        for i in range(each):
            core = cores.pop()
            entities.append(
                Entity(
                    len(entities), subject, core, full_name(grammar, core, subject),
                    tuple(column[i] for column in columns), tuple(rng.sample(range(len(words.steps)), 3)),
                )
            )  # fmt: skip
    strangers = {
        split: tuple((cores.pop(), i % len(grammar.subjects)) for i in range(n)) for split, n in STRANGERS.items()
    }
    return Facts(language, seed, size, tuple(entities), strangers)
