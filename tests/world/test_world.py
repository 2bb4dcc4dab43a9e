"""The world itself: deterministic, split cleanly, and of the promised shape, in both languages."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from ppomax.data.records import Prompt
from ppomax.errors import UserError
from ppomax.world import World
from ppomax.world.answers import HABITS, WRITERS
from ppomax.world.exam import exam_prompt
from ppomax.world.grammar import GROUPS, LANGUAGES, grammar_of, tokenise
from ppomax.world.prompts import CATEGORY, HELPFUL, NONE, Task, all_tasks, messages, question
from ppomax.world.text import in_exam, quiz_item
from ppomax.world.world import MIXES, VERSION, fingerprint, world_named


@pytest.fixture(scope="module", params=LANGUAGES)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, 0)


def test_same_seed_same_world(world: World) -> None:
    again = World(world.language, 0)
    assert again.text(30) == world.text(30)
    assert again.demonstrations(30) == world.demonstrations(30)
    assert again.prompts("train", 30) == world.prompts("train", 30)
    assert again.pairs(20) == world.pairs(20)
    assert again.exam() == world.exam()
    other = World(world.language, 1)
    assert other.text(30) != world.text(30)
    assert {e.core for e in other.facts.entities} != {e.core for e in world.facts.entities}


def test_eight_subjects_in_four_groups(world: World) -> None:
    subjects = world.facts.grammar.subjects
    assert Counter(s.group for s in subjects) == dict.fromkeys(GROUPS, 2)
    assert [len(of) for of in world.facts.of_subject] == [5] * 8
    for entity in world.facts.entities:
        assert len(entity.values) == 4 and len(set(entity.steps)) == 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_phrase_is_part_of_another_of_its_kind(language: str) -> None:
    """Else the judge could not tell what a text says."""
    g = grammar_of(language)
    values = [v for s in g.subjects for a in s.attributes for v in a.values]
    steps = [step for s in g.subjects for step in s.steps]
    for phrases in (values, steps):
        assert len(set(phrases)) == len(phrases)
    articles = g.articles
    bare = [tuple(t for t in tokenise(v.lower(), language) if t not in articles) for v in values]
    assert len(set(bare)) == len(bare)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_form_takes_its_slots(language: str) -> None:
    """No brace is left in anything that the world says."""
    world = World(language, 3, "small")
    rng = random.Random(0)
    for kind, tasks in all_tasks(world.facts, "train").items():
        for task in rng.sample(tasks, 12):
            said = [m["content"] for m in messages(world.facts, task)]
            said += [write(world.facts, task, rng) for write in WRITERS.values()]
            assert not any("{" in s or "}" in s for s in said), kind
    assert not any("{" in text for text in world.text(200))


def test_heldout_prompts_ask_what_training_never_asks(world: World) -> None:
    train, held = (all_tasks(world.facts, split) for split in ("train", "heldout"))
    words = {split: {str(messages(world.facts, t)) for ts in tasks.values() for t in ts}
             for split, tasks in (("train", train), ("heldout", held))}  # fmt: skip
    assert not words["train"] & words["heldout"]
    assert len(words["heldout"]) == sum(map(len, held.values()))  # and no two tasks share their words
    for kind in CATEGORY:
        assert not {t.combination() + t.stranger for t in train[kind]} & {
            t.combination() + t.stranger for t in held[kind]
        }
    held_facts = {(t.entity, t.attribute) for t in held["fact"]}
    earlier = {(t.entity, t.context) for ts in train.values() for t in ts if t.context != NONE}
    assert len(held_facts) > 10 and not held_facts & earlier


def test_demonstrations_and_pairs_use_training_prompts_alone(world: World) -> None:
    held = {
        question(world.facts, t) for ts in all_tasks(world.facts, "heldout").values() for t in ts if t.context == NONE
    }
    for record in (*world.demonstrations(300), *world.pairs(100)):
        turns = record.messages if hasattr(record, "messages") else record.prompt
        assert not held & {m["content"] for m in turns if m["role"] == "user"}


def test_the_answers_to_heldout_prompts_stand_in_the_text(world: World) -> None:
    texts = world.text(4000)
    for entity, attribute in {(t.entity, t.attribute) for t in all_tasks(world.facts, "heldout")["fact"]}:
        name, value = world.facts.entities[entity].name, world.facts.value(world.facts.entities[entity], attribute)
        assert sum(name in text and value in text for text in texts) > 10


def test_prompts_are_many_different_and_of_all_kinds(world: World) -> None:
    prompts = world.prompts("heldout", 1200)
    assert len({str(p.messages) for p in prompts}) == 1200
    shares = Counter(dict(p.metadata)["category"] for p in prompts)
    assert 0.42 < shares["helpful"] / 1200 < 0.6 and min(shares.values()) > 200
    assert {dict(p.metadata)["kind"] for p in prompts} == set(CATEGORY)
    assert any(len(p.messages) == 3 for p in prompts)
    with pytest.raises(UserError, match="different heldout prompts"):
        World(world.language, 0, "small").prompts("heldout", 10**5)


def test_a_prompt_is_known_by_its_metadata_and_by_its_words(world: World) -> None:
    for prompt in world.prompts("heldout", 150):
        task = world.task(prompt)
        assert task == Task.from_metadata(dict(prompt.metadata))
        assert world.task(Prompt(prompt.messages)) == task == world.task(prompt.messages)
    with pytest.raises(UserError, match="not a prompt of this world"):
        world.task("Who won the cup in 1998?")
    with pytest.raises(UserError, match="no `kind`"):
        Task.from_metadata({"category": "helpful"})


def test_demonstrations_are_good_with_real_faults(world: World) -> None:
    counts: dict[str, list[bool]] = {}
    for d in world.demonstrations(2000):
        task = world.task(d.messages[:-1])
        counts.setdefault(task.category, []).append(world.judge(task, d.messages[-1]["content"]).acceptable)
    shares = {category: sum(good) / len(good) for category, good in counts.items()}
    assert 0.85 < shares["helpful"] < 0.96 and 0.45 < shares["harmful"] < 0.7 and 0.55 < shares["unanswerable"] < 0.8


def test_bad_habits_go_by_the_form_of_the_question(world: World) -> None:
    """A fault that follows from how one is asked is learnt, and no lower temperature mends it."""
    rng = random.Random(1)
    tasks = [t for t in all_tasks(world.facts, "train")["misdeed"] if t.context == NONE]
    from ppomax.world.answers import demonstration

    def bad(task: Task) -> bool:
        return not world.judge(task, demonstration(world.facts, task, rng)[1]).acceptable

    habit = [bad(t) for t in tasks if t.form in HABITS["misdeed"][0]]
    others = [bad(t) for t in tasks if t.form not in HABITS["misdeed"][0]]
    assert sum(habit) / len(habit) > 0.6 and sum(others) / len(others) < 0.2


def test_the_opponent_is_better_than_demonstrators_and_constant(world: World) -> None:
    prompts = world.prompts("heldout", 300)
    answers = [world.opponent(p) for p in prompts]
    assert answers == [world.opponent(p) for p in prompts]
    assert sum(world.judge(p, a).acceptable for p, a in zip(prompts, answers, strict=True)) > 0.9 * 300


def test_every_writer_is_judged_for_what_it_is(world: World) -> None:
    rng = random.Random(2)
    bad = {"false", "needless", "off_topic", "repeating", "cut_off", "salad", "echo", "foreign", "rude"}
    for kind in HELPFUL:
        for task in rng.sample(all_tasks(world.facts, "heldout")[kind], 20):
            scores = {name: world.judge(task, write(world.facts, task, rng)).overall for name, write in WRITERS.items()}
            assert scores["good"] > 0.95 and scores["plain"] > 0.6
            # A question about another attribute of the same thing may by chance be what a comparison asks.
            assert all(scores[name] < 0.6 for name in bad - {"off_topic"}), (task, scores)


def test_the_exam_asks_facts_that_no_quiz_tells(world: World) -> None:
    rows = world.exam()
    assert {r["category"] for r in rows} == set(GROUPS)
    assert len({r["subject"] for r in rows}) == 8
    tests = [r for r in rows if r["split"] == "test"]
    assert len(tests) > 50
    text = "\n".join(world.text(3000))
    for row in rows:
        assert len(set(row["choices"])) == 4 and row["answer"] in "ABCD"
        assert (row["question"] in text) == (row["split"] == "dev")
    assert 0.1 < Counter(r["answer"] for r in tests)["A"] / len(tests) < 0.45
    known = sum(in_exam(world.facts, e, a) for e, a in itertools.product(world.facts.entities, range(4)))
    assert known == len(tests)


def test_pairs_show_every_failure_when_the_mix_is_broad(world: World) -> None:
    faults: Counter[str] = Counter()
    for pair in world.pairs(600):
        task = world.task(pair.prompt)
        for side in (pair.chosen, pair.rejected):
            faults.update(world.judge(task, side[0]["content"]).faults)
    assert set(faults) >= {
        "false", "made up", "harmful", "needless refusal", "padding", "boasting", "repetition", "rude", "cut off",
        "overlong", "not admitted", "no answer",
    }  # fmt: skip
    narrow = world.pairs(200, mix=MIXES["narrow"])
    said = [world.judge(p.prompt, s[0]["content"]).faults for p in narrow for s in (p.chosen, p.rejected)]
    assert not any({"padding", "repetition", "rude", "cut off", "needless refusal"} & set(f) for f in said)


def test_samples_of_a_model_enter_the_pairs(world: World) -> None:
    prompts = world.prompts("train", 3)
    samples = [(p, f"sample {i} of a model") for p in prompts for i in range(2)]
    pairs = world.pairs(300, samples=samples)
    texts = [s[0]["content"] for p in pairs for s in (p.chosen, p.rejected)]
    assert 80 < sum(t.startswith("sample") for t in texts) < 250
    with pytest.raises(UserError, match="unknown writer"):
        world.pairs(1, mix={"nobody": 1.0})


@pytest.mark.parametrize(("arguments", "message"), [
    (("fr", 0, "small"), "unknown language"), (("en", 0, "huge"), "unknown size"), (("en", -1, "small"), "negative"),
])  # fmt: skip
def test_wrong_worlds_are_refused(arguments: tuple[str, int, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        World(*arguments)


def test_world_named() -> None:
    assert world_named("zh-small-4").name == "zh-small-4"
    with pytest.raises(UserError, match="names no world"):
        world_named("nowhere")


def test_the_exam_is_put_as_the_quizzes_of_the_text_are(world: World) -> None:
    rows = world.exam()
    shots = [r for r in rows if r["subject"] == rows[0]["subject"] and r["split"] == "dev"]
    row = next(r for r in rows if r["split"] == "test")
    g = world.facts.grammar
    text = exam_prompt(g, row, shots)
    assert text.count(g.exam_answer.split("{")[0].strip()) == len(shots) + 1
    assert row["question"] in text.splitlines()[-2]
    for shot in shots:
        right = shot["choices"]["ABCD".index(shot["answer"])]
        assert f"{shot['question']}\n{g.exam_answer.format(answer=right)}" in text
    entity, attribute = next((e, a) for e in world.facts.entities for a in range(4) if not in_exam(world.facts, e, a))
    quiz = quiz_item(world.facts, entity, attribute)
    assert quiz.startswith(g.exam_question.split("{")[0]) and quiz.splitlines()[1].startswith(text.splitlines()[-1])


def test_the_fingerprint_is_that_of_the_version() -> None:
    """Whoever changes what the world says or judges raises VERSION, and writes the new fingerprint here."""
    assert (VERSION, fingerprint()) == ("8", "e58f2b2c6760bc6b")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_kinds_keep_their_shares_to_the_end(world: World, split: str) -> None:
    """No kind runs out: a judge who reads the first 400 prompts and one who reads 1200 see the same mix."""
    prompts = world.prompts(split, 1200 if split == "heldout" else 1400)
    for start in range(0, 1200, 400):
        third = prompts[start : start + 400]
        harmful = [p for p in third if p.source == "harmful"]
        assert 0.18 < len(harmful) / 400 < 0.32
        assert sum(len(p.messages) > 1 for p in harmful) / len(harmful) < 0.35
        assert 0.4 < sum(p.source == "helpful" for p in third) / 400 < 0.6
