"""What a language has to offer the world: words for facts, forms of questions, sentences of good and bad answers.

``grammar_en.py`` and ``grammar_zh.py`` fill these in. Slots: ``{n}`` the thing spoken of, ``{v}`` a value, ``{p}`` a
predicate, ``{act}`` a misdeed, and so on; what each list takes is said beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

LANGUAGES = ("en", "zh")
GROUPS = ("STEM", "social_sciences", "humanities", "other")


@dataclass(frozen=True)
class AttributeWords:
    """One thing that can be known about the entities of a subject."""

    name: str
    label: str
    """a noun for it: "food" """
    direct: str
    """question without its mark: "what does {n} eat" """
    indirect: str
    """the same as a clause: "what {n} eats" """
    predicate: str
    """"eats {v}" """
    statement: str
    """another way to say it: "the food of {n} is {v}" """
    values: tuple[str, ...]
    """all values, each of which belongs to no other attribute"""


@dataclass(frozen=True)
class Misdeed:
    """Something mild that must be declined."""

    act: str
    """"steal {n} from a neighbour" """
    how: str
    """what a careless writer would advise"""
    instead: str
    """a safe alternative, after "you could" """


@dataclass(frozen=True)
class SubjectWords:
    """A subject of the exam: kinds of things, what is known about them and what is done with them."""

    name: str
    group: str
    before: str
    """what stands before an entity's name: "the " """
    after: str
    """and after it: " guild" """
    attributes: tuple[AttributeWords, ...]
    doing: str
    """what the steps are for: "care for {n}" """
    steps: tuple[str, ...]
    misdeeds: tuple[Misdeed, ...]


@dataclass(frozen=True)
class Mystery:
    """An attribute that nobody in the world knows of anything, and what fabricators say."""

    direct: str
    indirect: str
    predicate: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """A language of the world."""

    language: str
    subjects: tuple[SubjectWords, ...]
    mysteries: tuple[Mystery, ...]
    syllables: tuple[tuple[str, ...], tuple[str, ...]]
    """beginnings and ends of invented names"""
    capital_names: frozenset[str]
    """subjects whose names are written with a capital"""
    pronoun: str
    full_stop: str
    space: str
    """between sentences"""

    # questions -------------------------------------------------------------------------------------
    fact_questions: tuple[str, ...]
    """{direct} {indirect} {n}"""
    follow_ups: tuple[str, ...]
    """{direct} with the pronoun, after an exchange about the same thing"""
    compare_questions: tuple[str, ...]
    """{a} {b} {label}"""
    steps_questions: tuple[str, ...]
    """{doing}"""
    rewrite_questions: tuple[str, ...]
    """{told}: a sentence to be put into other words"""
    harmful_questions: tuple[str, ...]
    """{act}"""

    # sentences of answers --------------------------------------------------------------------------
    clause: str
    """{n} {p}: a fact in its plainest form"""
    also: tuple[str, ...]
    """{p}: a further fact about the same thing"""
    differ: tuple[str, ...]
    """{a} {p} {b} {q}: two facts that differ"""
    agree: tuple[str, ...]
    """{a} {p} {b} {q}: two facts that are the same"""
    differ_verdict: tuple[str, ...]
    """{label}"""
    agree_verdict: tuple[str, ...]
    """{label}"""
    procedure: tuple[str, ...]
    """{s1} {s2} {s3}: three steps, said to the asker"""
    procedure_text: tuple[str, ...]
    """{doing} {s1} {s2} {s3}: three steps, told in a text"""
    joined: tuple[str, ...]
    """{n} {p} {q}: two facts in one sentence"""
    rewrite_lead: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    """{n}: an offer of more help"""
    refusals: tuple[str, ...]
    """{act} {reason}"""
    reasons: tuple[str, ...]
    alternatives: tuple[str, ...]
    """{instead}"""
    unknown_name: tuple[str, ...]
    """{n}: never heard of it"""
    ask_back: tuple[str, ...]
    unknown_attribute: tuple[str, ...]
    """{indirect}"""
    offer: tuple[str, ...]
    """{p}: what is known instead"""
    which_one: tuple[str, ...]
    """no telling what the pronoun stands for: ask"""

    # and of bad ones -------------------------------------------------------------------------------
    needless: tuple[str, ...]
    """refusals and ignorance where an answer was due"""
    compliance: tuple[str, ...]
    """{how}"""
    confident: tuple[str, ...]
    """{clause}: very sure of itself"""
    fillers: tuple[str, ...]
    """{n}: says nothing"""
    rude: tuple[str, ...]

    # what the judge listens for: regular expressions over normalised text ------------------------------
    refusing: str
    admitting: str
    asking: str
    apologising: str
    courteous: str
    offering: str
    advising: str
    insulting: str
    boasting: str
    saying_same: str
    saying_different: str
    negations: frozenset[str]
    """tokens that turn round the claim that follows within `negation_reach` tokens"""
    negation_reach: int
    linking: frozenset[str]
    """tokens that may stand between two names that share what follows"""
    articles: frozenset[str]
    """tokens that may stand before a value and do not belong to it"""
    own_script: str
    """character class of the language's letters"""
    other_script: str
    """character class of letters of other languages"""
    idioms: tuple[str, ...]
    """{n}: sentences of ordinary people that no writer of the world uses"""
    common: frozenset[str]
    """ordinary words (characters in Chinese) that the grammar itself may not use"""
    lengths: tuple[int, int, int]
    """tokens of an answer: fewer than the first are few, more than the second too many, more than the third hopeless"""

    # the exam and the text ---------------------------------------------------------------------------
    exam_question: str
    exam_answer: str
    summary: tuple[str, ...]
    """{n} {kind}: first sentence of a passage"""


_PUNCTUATION = str.maketrans({
    "，": ",", "、": ",", "。": ".", "！": "!", "？": "?", "；": ";", "：": ":", "（": "(", "）": ")",
    "‘": "'", "’": "'", "“": '"', "”": '"', "…": ".", "\u00a0": " ", "\u3000": " ",
})  # fmt: skip
_EN_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|[^\W\d_a-z]+|\d+|[.!?\n]+|[^\w\s]|_")
_ZH_TOKEN = re.compile(r"[a-z]+|\d+|[.!?\n]+|[^\W\d_a-z]|[^\w\s]|_")
STOPS = frozenset(".!?\n")


def normalise(text: str) -> str:
    """Lower case, plain punctuation; one character stays one character for those that matter."""
    return text.translate(_PUNCTUATION).lower()


def tokenise(normal: str, language: str) -> list[str]:
    """Words in English, characters in Chinese, with punctuation; runs of full stops and line breaks are one token."""
    return (_EN_TOKEN if language == "en" else _ZH_TOKEN).findall(normal)


def sentence(text: str) -> str:
    """First letter as a capital."""
    return text[:1].upper() + text[1:]


def join(sentences: Iterable[str], grammar: Grammar) -> str:
    """Sentences in a row, each beginning with a capital."""
    return grammar.space.join(sentence(s) for s in sentences if s)


def attributes(lines: Sequence[str]) -> tuple[AttributeWords, ...]:
    """From lines ``name | label | direct | indirect | predicate | statement | value; value; ...``."""
    out = []
    for line in lines:
        name, label, direct, indirect, predicate, statement, values = (part.strip() for part in line.split("|"))
        split = tuple(v.strip() for v in values.split(";"))
        out.append(AttributeWords(name, label, direct, indirect, predicate, statement, split))
    return tuple(out)


def mysteries(lines: Sequence[str]) -> tuple[Mystery, ...]:
    """From lines ``direct | indirect | predicate | value; value; ...``."""
    split = [[part.strip() for part in line.split("|")] for line in lines]
    return tuple(Mystery(d, i, p, tuple(v.strip() for v in values.split(";"))) for d, i, p, values in split)


def subject(
    name: str, group: str, before: str, after: str, lines: Sequence[str], doing: str, steps: str, *misdeeds: str
) -> SubjectWords:
    """A subject from compact lines; steps are parted by ``;``, a misdeed's act, how and instead by ``|``."""
    wrong = tuple(Misdeed(*(part.strip() for part in line.split("|"))) for line in misdeeds)
    ways = tuple(s.strip() for s in steps.split(";"))
    return SubjectWords(name, group, before, after, attributes(lines), doing, ways, wrong)


@cache
def grammar_of(language: str) -> Grammar:
    """The grammar of "en" or "zh"."""
    from ppomax.errors import UserError

    if language == "en":
        from ppomax.world.grammar_en import GRAMMAR
    elif language == "zh":
        from ppomax.world.grammar_zh import GRAMMAR
    else:
        raise UserError(f"unknown language {language!r} of the world; choose from {', '.join(LANGUAGES)}")
    return GRAMMAR
