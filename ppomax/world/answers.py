"""Writers of answers, good and bad: what demonstrations, preference pairs and the judge's tests are made of.

A writer takes (facts, task, rng) and returns a text. Every failure that the judge knows has a writer of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from ppomax.world.facts import Facts
from ppomax.world.grammar import grammar_of, join, sentence
from ppomax.world.prompts import HELPFUL, NONE, Task, fact_sentence, question

Writer = Callable[[Facts, Task, random.Random], str]


def _other_value(facts: Facts, task: Task, attribute: int, rng: random.Random) -> str:
    """A value of the attribute that is not this entity's."""
    entity = facts.entities[task.entity]
    values = facts.attribute(entity, attribute).values
    return rng.choice([v for i, v in enumerate(values) if i != entity.values[attribute]])


def _further(facts: Facts, task: Task, rng: random.Random) -> int:
    """Another attribute than those asked for, now or before."""
    return rng.choice([a for a in range(4) if a not in (task.attribute, task.context)])


def _name(facts: Facts, task: Task) -> str:
    if task.stranger:
        return facts.stranger_name(task.stranger, task.subject)
    return facts.entities[task.entity].name if task.entity != NONE else facts.grammar.pronoun


def _closer(facts: Facts, task: Task, rng: random.Random) -> str:
    return rng.choice(facts.grammar.closers).format(n=_name(facts, task))


# --------------------------------------------------------------------------------------------- cores


def core(facts: Facts, task: Task, rng: random.Random, *, wrong: bool = False) -> list[str]:
    """The sentences that answer a helpful prompt; ``wrong`` puts something false in them."""
    g, entity = facts.grammar, facts.entities[task.entity]
    if task.kind == "fact":
        value = _other_value(facts, task, task.attribute, rng) if wrong else None
        return [fact_sentence(facts, entity, task.attribute, int(rng.random() < 0.25), value) + g.full_stop]
    if task.kind == "compare":
        other = facts.entities[task.other]
        p, q = facts.predicate(entity, task.attribute), facts.predicate(other, task.attribute)
        if wrong:
            p = facts.predicate(entity, task.attribute, _other_value(facts, task, task.attribute, rng))
        both, verdict = (g.agree, g.agree_verdict) if p == q else (g.differ, g.differ_verdict)
        label = facts.attribute(entity, task.attribute).label
        first = rng.choice(both).format(a=entity.name, p=p, b=other.name, q=q)
        return [first, rng.choice(verdict).format(label=label)]
    if task.kind == "steps":
        words = facts.words(entity)
        numbers = list(entity.steps)
        if wrong:
            numbers = rng.sample([s for s in range(len(words.steps)) if s not in numbers], 2) + numbers[:1]
        s1, s2, s3 = (words.steps[s] for s in numbers)
        return [rng.choice(g.procedure).format(s1=s1, s2=s2, s3=s3)]
    value = _other_value(facts, task, task.attribute, rng) if wrong else None
    other_words = fact_sentence(facts, entity, task.attribute, 1 - task.form % 2, value)
    return [f"{rng.choice(g.rewrite_lead)}{g.space}{sentence(other_words)}{g.full_stop}"]


def good(facts: Facts, task: Task, rng: random.Random) -> str:
    """What a careful person writes."""
    g = facts.grammar
    if task.kind in HELPFUL:
        parts = core(facts, task, rng)
        if task.kind == "fact":
            more = facts.predicate(facts.entities[task.entity], _further(facts, task, rng))
            parts.append(rng.choice(g.also).format(p=more))
        return join([*parts, _closer(facts, task, rng)], g)
    if task.kind == "misdeed":
        entity = facts.entities[task.entity]
        misdeed = facts.misdeed(entity, task.attribute)
        refusal = rng.choice(g.refusals).format(act=misdeed.act.format(n=entity.name), reason=rng.choice(g.reasons))
        return join([refusal, rng.choice(g.alternatives).format(instead=misdeed.instead)], g)
    if task.kind == "stranger":
        return join([rng.choice(g.unknown_name).format(n=_name(facts, task)), rng.choice(g.ask_back)], g)
    if task.kind == "mystery":
        entity = facts.entities[task.entity]
        indirect = g.mysteries[task.attribute].indirect.format(n=entity.name)
        more = rng.choice(g.offer).format(p=facts.predicate(entity, rng.randrange(4)))
        return join([rng.choice(g.unknown_attribute).format(indirect=indirect), more], g)
    return join([rng.choice(g.which_one), g.ask_back[0]], g)


def plain(facts: Facts, task: Task, rng: random.Random) -> str:
    """Right, and not a word more."""
    g = facts.grammar
    if task.kind in HELPFUL:
        return join(core(facts, task, rng)[:1], g)
    parts = good(facts, task, rng)
    if task.kind == "misdeed":
        entity = facts.entities[task.entity]
        act = facts.misdeed(entity, task.attribute).act.format(n=entity.name)
        parts = rng.choice(g.refusals).format(act=act, reason=rng.choice(g.reasons))
    elif task.kind == "stranger":
        parts = rng.choice(g.unknown_name).format(n=_name(facts, task))
    elif task.kind == "which":
        parts = rng.choice(g.which_one)
    return join([parts], g)


# ------------------------------------------------------------------------------------ careless writers


def false(facts: Facts, task: Task, rng: random.Random) -> str:
    """Makes something up: a false fact, the wrong steps, a value for what nobody knows. Declines no misdeed."""
    g = facts.grammar
    if task.kind in HELPFUL:
        return join([*core(facts, task, rng, wrong=True), _closer(facts, task, rng)], g)
    if task.kind == "misdeed":
        return harmful(facts, task, rng)
    name = _name(facts, task)
    if task.kind == "mystery":
        mystery = g.mysteries[task.attribute]
        told = g.clause.format(n=name, p=mystery.predicate.format(v=rng.choice(mystery.values)))
    else:
        attribute = g.subjects[task.subject].attributes[task.attribute]
        told = g.clause.format(n=name, p=attribute.predicate.format(v=rng.choice(attribute.values)))
    return join([told + g.full_stop, _closer(facts, task, rng)], g)


def half_false(facts: Facts, task: Task, rng: random.Random) -> str:
    """What was asked is right, what is added is not."""
    g = facts.grammar
    if task.entity == NONE or task.kind == "misdeed":
        return false(facts, task, rng)
    attribute = _further(facts, task, rng)
    entity = facts.entities[task.entity]
    more = rng.choice(g.also).format(p=facts.predicate(entity, attribute, _other_value(facts, task, attribute, rng)))
    parts = core(facts, task, rng) if task.kind in HELPFUL else [plain(facts, task, rng)]
    return join([*parts, more, _closer(facts, task, rng)], g)


def harmful(facts: Facts, task: Task, rng: random.Random) -> str:
    """Helps with the misdeed; elsewhere the same as ``rude``."""
    if task.kind != "misdeed":
        return rude(facts, task, rng)
    misdeed = facts.misdeed(facts.entities[task.entity], task.attribute)
    return join(
        [rng.choice(facts.grammar.compliance).format(how=misdeed.how), _closer(facts, task, rng)], facts.grammar
    )


def needless(facts: Facts, task: Task, rng: random.Random) -> str:
    """Declines, or knows nothing, whatever is asked: in general words, or in those of a refusal that would be right."""
    g = facts.grammar
    if task.kind not in HELPFUL or rng.random() < 0.4:
        return join([rng.choice(g.needless), *rng.sample(g.closers[2:], rng.randrange(2))], g)
    name = _name(facts, task)
    if task.kind == "steps":
        act = facts.words(facts.entities[task.entity]).doing.format(n=name)
        if rng.random() < 0.5:
            return join([rng.choice(g.refusals).format(act=act, reason=rng.choice(g.reasons))], g)
    elif rng.random() < 0.5:
        indirect = facts.attribute(facts.entities[task.entity], task.attribute).indirect.format(n=name)
        more = rng.choice(g.offer).format(p=facts.predicate(facts.entities[task.entity], _further(facts, task, rng)))
        return join([rng.choice(g.unknown_attribute).format(indirect=indirect), more], g)
    return join([rng.choice(g.unknown_name).format(n=name), rng.choice(g.ask_back)], g)


def rambling(facts: Facts, task: Task, rng: random.Random) -> str:
    """Right, in between empty sentences."""
    g = facts.grammar
    fillers = [f.format(n=_name(facts, task)) for f in rng.sample(g.fillers, rng.randint(2, 5))]
    cut = rng.randint(0, len(fillers))
    return join([rng.choice(g.openers), *fillers[:cut], good(facts, task, rng), *fillers[cut:]], g)


def wordy(facts: Facts, task: Task, rng: random.Random) -> str:
    """Right, and then one thing after another that nobody asked for, each of it true."""
    g = facts.grammar
    things = rng.sample(facts.entities, rng.randint(3, 6))
    more = [fact_sentence(facts, e, rng.randrange(4), int(rng.random() < 0.25)) + g.full_stop for e in things]
    return join([good(facts, task, rng), *more], g)


def boastful(facts: Facts, task: Task, rng: random.Random) -> str:
    """Very sure of itself, and right only half of the time."""
    g = facts.grammar
    if task.kind == "misdeed":
        return rambling(facts, task, rng)
    wrong = rng.random() < 0.5
    text = (false if wrong else plain)(facts, task, rng)
    first, stop, rest = text.partition(g.full_stop)
    subject = task.subject if task.entity == NONE else facts.entities[task.entity].subject
    if g.subjects[subject].name not in g.capital_names and not first.startswith("I "):
        first = first[:1].lower() + first[1:]
    return rng.choice(g.confident).format(clause=first).removesuffix(g.full_stop) + stop + rest


def off_topic(facts: Facts, task: Task, rng: random.Random) -> str:
    """A good answer to another question, of any kind: another thing asked of the same one, or anything of another."""
    others = [e for e in facts.entities if e.index != task.entity]
    same = task.entity != NONE and rng.random() < 0.6
    entity = facts.entities[task.entity] if same else rng.choice(others)
    kind = rng.choice([k for k in ("fact", "steps", "misdeed", "mystery") if not same or k != task.kind or k == "fact"])
    attribute = {
        "fact": _further(facts, task, rng) if same else rng.randrange(4),
        "misdeed": rng.randrange(2),
        "mystery": rng.randrange(len(facts.grammar.mysteries)),
    }.get(kind, NONE)
    return good(facts, Task(kind, 0, entity.index, attribute=attribute), rng)


def rude(facts: Facts, task: Task, rng: random.Random) -> str:
    """Answers, but with an insult."""
    g = facts.grammar
    return join([rng.choice(g.rude), plain(facts, task, rng), *rng.sample(g.rude, rng.randrange(2))], g)


def repeating(facts: Facts, task: Task, rng: random.Random) -> str:
    """Says the same over and over."""
    g = facts.grammar
    text = (good if rng.random() < 0.7 else false)(facts, task, rng)
    parts = [p + g.full_stop for p in text.split(g.full_stop) if p.strip()]
    return g.space.join([*parts, *[rng.choice(parts).strip()] * rng.randint(1, 4)]).replace("  ", " ")


def cut_off(facts: Facts, task: Task, rng: random.Random) -> str:
    """Ends in the middle."""
    text = good(facts, task, rng)
    units = text.split(" ") if facts.language == "en" else list(text)
    keep = max(2, int(len(units) * rng.uniform(0.3, 0.85)))
    return (" " if facts.language == "en" else "").join(units[:keep]).rstrip(".。,，?？")


def salad(facts: Facts, task: Task, rng: random.Random) -> str:
    """The right words in no order."""
    text = good(facts, task, rng).rstrip(".。")
    units = text.split(" ") if facts.language == "en" else list(text)
    rng.shuffle(units)
    return (" " if facts.language == "en" else "").join(units) + facts.grammar.full_stop


def echo(facts: Facts, task: Task, rng: random.Random) -> str:
    """Says the question back."""
    return question(facts, task)


def foreign(facts: Facts, task: Task, rng: random.Random) -> str:
    """Polite words in the other language."""
    g = grammar_of("zh" if facts.language == "en" else "en")
    return join([rng.choice(g.openers), *rng.sample(g.closers[2:], 2)], g)


WRITERS: Mapping[str, Writer] = {
    "good": good, "plain": plain, "false": false, "half_false": half_false, "harmful": harmful, "needless": needless,
    "rambling": rambling, "wordy": wordy, "boastful": boastful, "off_topic": off_topic, "rude": rude, "repeating": repeating,
    "cut_off": cut_off, "salad": salad, "echo": echo, "foreign": foreign,
}  # fmt: skip


def pick(weights: Mapping[str, float], rng: random.Random) -> str:
    """A key by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


# ------------------------------------------------------------------------------------- demonstrations

# What demonstrators get wrong depends on how they are asked: such faults are learnt as habits, which no lower
# temperature mends, beside slips that fall anywhere. Numbers are shares of demonstrations.
SLIPS: Mapping[str, Mapping[str, float]] = {
    "helpful": {"good": 0.85, "plain": 0.07, "false": 0.02, "rambling": 0.02, "needless": 0.02, "rude": 0.02},
    "harmful": {"good": 0.84, "plain": 0.08, "harmful": 0.05, "rude": 0.03},
    "unanswerable": {"good": 0.84, "plain": 0.08, "false": 0.06, "rude": 0.02},
}
HABITS: Mapping[str, tuple[Sequence[int], Mapping[str, float]]] = {
    "fact": ((1, 2, 4, 5, 7, 8), {"plain": 0.75, "good": 0.22, "needless": 0.03}),
    "compare": ((1, 3), {"plain": 0.75, "good": 0.25}),
    "rewrite": ((0, 2), {"plain": 0.75, "good": 0.25}),
    "steps": ((1, 3), {"plain": 0.75, "good": 0.25}),
    "misdeed": ((2, 3, 4, 5, 6), {"harmful": 0.75, "good": 0.25}),
    "stranger": ((0, 2, 5, 6, 9), {"false": 0.75, "good": 0.25}),
    "mystery": ((1, 3, 4, 6, 8), {"false": 0.75, "good": 0.25}),
}
"""kind -> forms of question in which demonstrators have a bad habit, and their writers there (single-turn prompts)"""


def demonstration(facts: Facts, task: Task, rng: random.Random) -> tuple[str, str]:
    """(writer, text) of a demonstrator's answer."""
    weights = SLIPS[task.category]
    if task.kind in HABITS and task.context == NONE and task.form in HABITS[task.kind][0]:
        weights = HABITS[task.kind][1]
    name = pick(weights, rng)
    return name, WRITERS[name](facts, task, rng)


OPPONENT: Mapping[str, float] = {"good": 0.9, "plain": 0.05, "false": 0.03, "rambling": 0.02}
"""writers of the stronger opponent"""
