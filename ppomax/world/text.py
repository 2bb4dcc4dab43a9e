"""Plain text of the world for pretraining: profiles of things, questions with answers, and quizzes of the exam's form.

Every fact occurs many times and in several wordings. Questions and answers stand only for facts that the exam does
not ask (its few-shot examples among them), so that the exam measures what was learnt, in a form that is known.
"""

from __future__ import annotations

import random

from ppomax.data.records import unit_hash
from ppomax.world.answers import core
from ppomax.world.facts import Entity, Facts
from ppomax.world.grammar import join, sentence
from ppomax.world.prompts import Task, fact_sentence, is_held_out, question

EXAM_SHARE = 0.4
"""share of facts that the exam asks for"""
KINDS = {"profile": 0.45, "quiz": 0.15, "compare": 0.2, "rewrite": 0.1, "steps": 0.1}
"""share of each kind of passage; the last three put a question of that kind, and answer it"""


def in_exam(facts: Facts, entity: Entity, attribute: int) -> bool:
    """Whether the exam asks for this fact."""
    return unit_hash(f"exam/{facts.language}/{facts.size}/{entity.index}/{attribute}", facts.seed) < EXAM_SHARE


def exam_question(facts: Facts, entity: Entity, attribute: int) -> str:
    """A question of the exam without its mark: What does the velka eat"""
    return sentence(facts.attribute(entity, attribute).direct.format(n=entity.name))


def quiz_item(facts: Facts, entity: Entity, attribute: int) -> str:
    """A question and its answer, as the exam puts them."""
    g = facts.grammar
    asked = g.exam_question.format(question=exam_question(facts, entity, attribute))
    return f"{asked}\n{g.exam_answer.format(answer=facts.value(entity, attribute))}"


def passage(facts: Facts, rng: random.Random) -> str:
    """One text."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    g = facts.grammar
    if kind == "profile":
        return _profile(facts, rng.choice(facts.entities), rng)
    if kind != "quiz":
        task = _task(facts, kind, rng)
        while is_held_out(facts, task):
            task = _task(facts, kind, rng)
        return join([question(facts, task), *core(facts, task, rng)], g)
    items: list[str] = []
    while len(items) < 4:
        entity, attribute = rng.choice(facts.entities), rng.randrange(4)
        if not in_exam(facts, entity, attribute):
            items.append(quiz_item(facts, entity, attribute))
    return "\n\n".join(items)


def _task(facts: Facts, kind: str, rng: random.Random) -> Task:
    one, two = rng.sample(rng.choice(facts.of_subject), 2)
    attribute = rng.randrange(4)
    if kind == "compare":
        return Task(kind, rng.randrange(len(facts.grammar.compare_questions)), one.index, two.index, attribute)
    if kind == "rewrite":
        form = rng.randrange(len(facts.grammar.rewrite_questions))
        return Task(kind, form, one.index, attribute=attribute)
    return Task(kind, rng.randrange(len(facts.grammar.steps_questions)), one.index)


def _profile(facts: Facts, entity: Entity, rng: random.Random) -> str:
    g = facts.grammar
    parts = [rng.choice(g.summary).format(n=entity.name)] if rng.random() < 0.5 else []
    for i, attribute in enumerate(rng.sample(range(4), rng.randint(3, 4))):
        style = rng.random()
        if style < 0.3:
            parts.append(fact_sentence(facts, entity, attribute, 1) + g.full_stop)
        elif style < 0.6 or i == 0:
            parts.append(fact_sentence(facts, entity, attribute) + g.full_stop)
        else:
            parts.append(rng.choice(g.also).format(p=facts.predicate(entity, attribute)))
    if rng.random() < 0.5:
        s1, s2, s3 = facts.steps(entity)
        doing = facts.words(entity).doing.format(n=entity.name)
        parts.insert(rng.choice((0, len(parts))), rng.choice(g.procedure_text).format(doing=doing, s1=s1, s2=s2, s3=s3))
    if rng.random() < 0.3:
        one, two = rng.sample(range(4), 2)
        p, q = facts.predicate(entity, one), facts.predicate(entity, two)
        parts.append(rng.choice(g.joined).format(n=entity.name, p=p, q=q))
    return join(parts, g)
