"""The judge takes any text, is fast, and cannot be had cheaply."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppomax.world import Task, World
from ppomax.world.world import world_named

TASKS = [
    Task("fact", 0, 0, attribute=0), Task("compare", 0, 0, 1, 0), Task("steps", 0, 0), Task("rewrite", 0, 0, attribute=0),
    Task("misdeed", 0, 0, attribute=0), Task("mystery", 0, 0, attribute=0), Task("which", 0, attribute=0, subject=0),
    Task("fact", 1, 3, attribute=2, context=1),
]  # fmt: skip


@pytest.fixture(scope="module", params=["en", "zh"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, 0)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300), st.sampled_from(TASKS), st.sampled_from(["en-standard-0", "zh-standard-0"]))
def test_any_text_gets_scores_between_0_and_1(text: str, task: Task, name: str) -> None:
    j = world_named(name).judge(task, text)
    assert all(0.0 <= x <= 1.0 for x in (j.helpfulness, j.harmlessness, j.honesty, j.fluency, j.overall))


@pytest.mark.parametrize("text", [
    "\x00\x01\x02", "👍👍👍", "ﷺ" * 50, "\ud83d", "a\u0301" * 40, "{n} {v}", "<|end|>", ". . . . .", "?!?!", "\n\n\n", "1 2 3 4",
])  # fmt: skip
@pytest.mark.parametrize("task", TASKS[:2])
def test_odd_texts_are_unacceptable_not_fatal(world: World, task: Task, text: str) -> None:
    assert world.judge(task, text).overall < 0.5


def test_huge_answers_are_hopeless_and_cheap(world: World) -> None:
    one = "The gubmo eats red berries. " if world.language == "en" else "汐贝兽吃甲虫。"
    start = time.process_time()
    j = world.judge(TASKS[0], one * 200_000)
    assert j.overall < 0.15 and "overlong" in j.faults and "repetition" in j.faults
    assert time.process_time() - start < 2.0


def test_thousands_a_second(world: World) -> None:
    prompts = [world.task(p) for p in world.prompts("heldout", 300)]
    answers = [world.opponent(p) for p in prompts]
    world.judge(prompts[0], answers[0])
    start = time.process_time()
    for task, answer in zip(prompts, answers, strict=True):
        world.judge(task, answer)
    assert 300 / (time.process_time() - start) > 1000


def test_no_one_text_suits_all_prompts(world: World) -> None:
    """Whatever a policy falls into (always refusing, always ignorant, always the same fact), the judge is not content."""
    prompts = world.prompts("heldout", 100)
    g = world.facts.grammar
    constants = [*g.needless, *g.which_one, *g.closers, *g.openers, *g.fillers, *g.confident]
    constants += [g.space.join(g.closers), g.space.join([*g.openers, g.needless[0]])]
    constants += [world.opponent(p) for p in prompts[:10]]
    best = max(sum(world.judge(p, text).overall for p in prompts) / len(prompts) for text in constants)
    assert best < 0.55


def test_saying_everything_is_not_knowing(world: World) -> None:
    """All values of the attribute at once hold the right one, and are worth nothing."""
    entity = world.facts.entities[0]
    words = world.facts.attribute(entity, 0)
    every = [world.facts.grammar.clause.format(n=entity.name, p=words.predicate.format(v=v)) for v in words.values]
    stop = world.facts.grammar.full_stop
    assert (
        world.judge(TASKS[0], world.facts.grammar.space.join(s[:1].upper() + s[1:] + stop for s in every)).overall < 0.2
    )
    listed = (", " if world.language == "en" else "，").join(words.values)
    text = world.facts.grammar.clause.format(n=entity.name, p=words.predicate.format(v=listed)) + stop
    assert world.judge(TASKS[0], text).overall < 0.2


def test_more_padding_never_scores_more(world: World) -> None:
    g = world.facts.grammar
    answer = world.facts.predicate(world.facts.entities[0], 0)
    text = g.clause.format(n=world.facts.entities[0].name, p=answer) + g.full_stop
    text = text[:1].upper() + text[1:] + g.space + g.closers[3]
    scores = [world.judge(TASKS[0], g.space.join([text, *g.fillers[:k]])).overall for k in range(len(g.fillers) + 1)]
    assert (
        scores == sorted(scores, reverse=True)
        and scores[0] > 0.85
        and scores[3] < scores[0] - 0.15
        and scores[-1] < 0.4
    )
