"""A small invented world for `make quickstart`: creatures with facts, answers good and bad, and a judge that knows.

Demonstrations are as mixed as real ones (about half have a fault), preferences are noisy (a liking for length, slips), so
SFT makes real errors and the reward model learns something good but imperfect. ``judge`` computes the truth about any
answer; no training stage ever sees it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# attribute -> values | questions | statements; {n} is the creature, {v} the value. No value is part of another.
EN = {
    "food": (
        "red berries|river moss|dry leaves|beetles|honey|mushrooms|pebbles|snow",
        "What does the {n} eat?|What is the favourite food of the {n}?|Tell me what the {n} likes to eat.|"
        "I found a {n}. What can I feed it?|Do you know what the {n} eats?|What shall I cook for my {n}?",
        "The {n} eats {v}.|The favourite food of the {n} is {v}.|You can feed it {v}.",
    ),
    "home": (
        "a marsh|a cave|a chimney|the forest|the desert|an old well|a treetop|the sea",
        "Where does the {n} live?|What is the home of the {n}?|Tell me where the {n} lives.|"
        "Where can I see a {n}?|Do you know where the {n} sleeps?|I am looking for a {n}. Where should I go?",
        "The {n} lives in {v}.|The home of the {n} is {v}.|You can find it in {v}.",
    ),
    "colour": (
        "blue|green|orange|purple|grey|white|black|yellow",
        "What colour is the {n}?|Which colour does the {n} have?|Tell me the colour of the {n}.|"
        "I want to paint a {n}. Which colour do I need?|Do you know what colour the {n} is?|How can I tell a {n} by its colour?",
        "The {n} is {v}.|The colour of the {n} is {v}.|You can tell it by its {v} coat.",
    ),
    "fear": (
        "thunder|cats|bells|smoke|mirrors|geese|fog|drums",
        "What is the {n} afraid of?|What frightens the {n}?|Tell me what the {n} fears.|"
        "My {n} is hiding. What scared it?|Do you know what the {n} is afraid of?|What should I keep away from a {n}?",
        "The {n} is afraid of {v}.|What frightens the {n} most is {v}.|You should keep {v} away from it.",
    ),
}  # fmt: skip
ZH = {
    "food": (
        "红莓|苔藓|干树叶|甲虫|蜂蜜|蘑菇|石子|雪花",
        "{n}吃什么？|{n}最爱吃什么？|告诉我{n}喜欢吃什么。|我捡到一只{n}，该喂什么？|你知道{n}吃什么吗？|我该给{n}准备什么饭？",
        "{n}吃{v}。|{n}最爱吃的是{v}。|你可以喂它{v}。",
    ),
    "home": (
        "沼泽|山洞|烟囱|森林|沙漠|古井|树梢|海底",
        "{n}住在哪里？|{n}的家在哪儿？|告诉我{n}住哪里。|在哪里能看到{n}？|你知道{n}睡在哪里吗？|我在找{n}，该去哪里？",
        "{n}住在{v}。|{n}的家在{v}。|你可以在{v}找到它。",
    ),
    "colour": (
        "蓝色|绿色|橙色|紫色|灰色|白色|黑色|黄色",
        "{n}是什么颜色？|{n}有什么颜色？|告诉我{n}的颜色。|我想画{n}，要用哪种颜色？|你知道{n}是什么颜色吗？|怎样凭颜色认出{n}？",
        "{n}是{v}的。|{n}的颜色是{v}。|它的毛是{v}的。",
    ),
    "fear": (
        "打雷|小猫|铃声|浓烟|镜子|白鹅|大雾|鼓声",
        "{n}怕什么？|什么会吓到{n}？|告诉我{n}害怕什么。|我的{n}躲起来了，它怕什么？|你知道{n}怕什么吗？|{n}身边不该有什么？",
        "{n}怕{v}。|最让{n}害怕的是{v}。|你要让{v}离它远一点。",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Language:
    """What one language needs; lengths are in words, or in characters where words have no spaces (`gap` empty)."""

    facts: dict[str, tuple[str, str, str]]
    syllables: str
    openers: str
    closers: str
    rude: str
    padding: str
    unknown: str
    gap: str
    longest: int
    """longest sensible answer"""
    repeat: int
    """as many units in a row that occur twice are a repetition"""


LANGUAGES = {
    "en": Language(
        EN, "zib mor tal fen lu kop|bit ling dock ra", "|Gladly. |Good question! ",
        "| I hope that helps.| Ask me more any time.",
        "What a silly question. |Leave me alone. |You should know that yourself. ",
        "Well, many people ask me this, and I have thought about it for a long time. |"
        "As everybody knows, and as has been said here over and over again by so many, ",
        "I do not know.|I am sorry, I cannot say.|Nobody can answer that.", " ", 16, 4,
    ),
    "zh": Language(
        ZH, "咕噜 泡泡 绒绒 铃铛 雾灯 豆芽|兽 鸟 鱼 虫", "|好的，|问得好！", "|希望对你有帮助。|欢迎再问我。",
        "真是个傻问题。|别来烦我。|这你自己该知道。",
        "嗯，很多人都问过我这个问题，我也想了很久很久。|众所周知，而且这里已经有许多人一遍又一遍地说过，",
        "我不知道。|对不起，我说不上来。|没有人能回答。", "", 26, 7,
    ),
}  # fmt: skip
STYLES = {"good": 8, "rude": 2, "padded": 2, "repeated": 2, "cut": 1, "unknown": 2}
"""how often an answer has which style"""
WRONG = {"demonstration": 0.1, "pair": 0.4}
"""share of answers, in any style, with a wrong fact: another value, or something that was not asked"""


@dataclass(frozen=True)
class Question:
    """One question and its truth."""

    text: str
    creature: str
    value: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    held_out: bool
    language: str


@cache
def questions(language: str) -> tuple[Question, ...]:
    """All questions: 24 creatures x 4 attributes x 6 phrasings; a third is held out, each fact has others in training."""
    rng, words = random.Random(7), LANGUAGES[language]
    first, second = (part.split() for part in words.syllables.split("|"))
    made = []
    for c, creature in enumerate(a + b for a in first for b in second):
        for k, (values, asked, stated) in enumerate(words.facts.values()):
            options, forms = tuple(values.split("|")), tuple(stated.split("|"))
            value = rng.choice(options)
            for q, question in enumerate(asked.split("|")):
                held_out = (c + k + q) % 3 == 0
                made.append(Question(question.format(n=creature), creature, value, options, forms, held_out, language))
    return tuple(made)


@cache
def _names(language: str) -> tuple[list[str], list[str]]:
    """All creatures, and all values of all attributes."""
    values = [v for options, _, _ in LANGUAGES[language].facts.values() for v in options.split("|")]
    return sorted({q.creature for q in questions(language)}), values


@cache
def _by_text() -> dict[str, Question]:
    return {q.text: q for language in LANGUAGES for q in questions(language)}


def statement(q: Question, value: str, form: int) -> str:
    """A fact about the creature that was asked about, right if `value` is."""
    return q.statements[form].format(n=q.creature, v=value)


def answer(q: Question, style: str, wrong: bool, rng: random.Random) -> str:
    """An answer of a style, with the asked fact or another one."""
    words = LANGUAGES[q.language]
    told, value = q, q.value
    if wrong and rng.random() < 0.5:
        value = rng.choice([v for v in q.values if v != q.value])
    elif wrong:
        told = rng.choice(questions(q.language))
        value = told.value
    fact = statement(told, value, rng.randrange(3))
    closer = rng.choice(words.closers.split("|"))
    if style == "unknown":
        return rng.choice(words.unknown.split("|")) + closer
    if style == "rude":
        return rng.choice(words.rude.split("|")) + fact
    if style == "padded":
        return rng.choice(words.padding.split("|")) + fact
    if style == "repeated":
        return words.gap.join([fact] * rng.choice([2, 3]))
    if style == "cut":
        return fact[: fact.index(value)].strip()
    return rng.choice(words.openers.split("|")) + fact + closer


def _units(text: str, words: Language) -> list[str]:
    return text.split() if words.gap else list(text)


def quality(prompt: str, response: str) -> float:
    """The truth about an answer, 0 to 2: 0.8 for the asked fact and no other, the rest for manners and form."""
    q, text = _by_text()[prompt], response.strip()
    words, (creatures, values) = LANGUAGES[q.language], _names(q.language)
    units, n = _units(text, words), words.repeat
    if len(units) < 3:
        return 0.0
    runs = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    right = [v for v in values if v in text] == [q.value] and {c for c in creatures if c in text} <= {q.creature}
    polite = not any(phrase.strip() in text for phrase in words.rude.split("|"))
    form = (len(units) <= words.longest) + (len(set(runs)) == len(runs)) + (text[-1] in ".!。！")
    return 0.8 * right + 0.3 * polite + 0.3 * form


def judge(prompts: Sequence[Sequence[dict[str, str]]], responses: Sequence[str]) -> list[float]:
    """`quality` in the form of a reward function."""
    return [quality(p[-1]["content"], r) for p, r in zip(prompts, responses, strict=True)]


def prefers_first(q: Question, a: str, b: str, rng: random.Random) -> bool:
    """A noisy annotator: sees the quality, likes length a little, and slips once in twelve times."""
    words = LANGUAGES[q.language]
    liking = 0.2 * (len(_units(a, words)) - len(_units(b, words))) / words.longest
    gap = quality(q.text, a) - quality(q.text, b) + liking
    return (rng.random() < 1 / (1 + math.exp(-gap / 0.15))) != (rng.random() < 1 / 12)


def write_data(
    folder: Path, language: str, *, paragraphs: int = 40, demonstrations: int = 24, pairs: int = 20, seed: int = 0
) -> dict[str, int]:
    """Write the files: paragraphs a creature, demonstrations and pairs a training question; returns the record counts."""
    rng = random.Random(seed)
    train = [q for q in questions(language) if not q.held_out]

    def draw(q: Question, use: str) -> str:
        style = rng.choices(list(STYLES), list(STYLES.values()))[0]
        return answer(q, style, rng.random() < WRONG[use], rng)

    known: dict[str, dict[str, Question]] = {}  # creature -> one question an attribute
    for q in train:
        known.setdefault(q.creature, {})[q.statements[0]] = q
    texts = []
    for facts in list(known.values()) * paragraphs:
        chosen = rng.sample(list(facts.values()), len(facts))
        told = [statement(q, q.value, rng.randrange(2)) for q in chosen]  # the two forms that name the creature
        texts.append({"text": LANGUAGES[language].gap.join(told)})
    compared = []
    for q in train * pairs:
        a, b = draw(q, "pair"), draw(q, "pair")
        if a != b:
            chosen, rejected = (a, b) if prefers_first(q, a, b, rng) else (b, a)
            compared.append({"prompt": q.text, "chosen": chosen, "rejected": rejected})
    files: dict[str, list[Any]] = {
        "text": texts,
        "dialogues": [
            {
                "messages": [
                    {"role": "user", "content": q.text},
                    {"role": "assistant", "content": draw(q, "demonstration")},
                ]
            }
            for q in train * demonstrations
        ],
        "pairs": compared,
        "prompts": [{"prompt": q.text} for q in train],
        "heldout_prompts": [{"prompt": q.text} for q in questions(language) if q.held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()}
