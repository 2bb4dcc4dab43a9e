"""The people: Bradley-Terry on the judge's scores, with a taste for length and confidence in some, and slips."""

from __future__ import annotations

import math
import random

import pytest

from ppomax.world import World
from ppomax.world.annotators import Annotators, AnnotatorsConfig


@pytest.fixture(scope="module")
def world() -> World:
    return World("en", 0)


def rate(
    people: Annotators, person: int, scores: tuple[float, float], answers: tuple[str, str], n: int = 20000
) -> float:
    rng = random.Random(0)
    return sum(people.choose(person, scores, answers, rng) for _ in range(n)) / n


def test_choice_follows_bradley_terry(world: World) -> None:
    people = Annotators(world.truth, AnnotatorsConfig(temperature=0.2, biased=0, slips=0.05))
    p = 1 / (1 + math.exp(-0.3 / 0.2))
    expected = p * 0.95 + (1 - p) * 0.05  # a slip turns the choice round
    assert rate(people, 0, (0.8, 0.5), ("a", "b")) == pytest.approx(expected, abs=0.01)
    assert rate(people, 0, (0.5, 0.5), ("a", "b")) == pytest.approx(0.5, abs=0.015)


def test_some_like_length_and_confidence(world: World) -> None:
    people = Annotators(world.truth, AnnotatorsConfig(people=10, biased=0.3, length_bonus=0.3, confidence_bonus=0.25))
    assert people.biased == 3
    thirty = " ".join(["word"] * 30)
    assert people.utility(0, 0.5, thirty) == pytest.approx(0.5 + 0.3)
    assert people.utility(0, 0.5, "Absolutely") == pytest.approx(0.5 + 0.01 + 0.25)
    assert people.utility(3, 0.5, thirty) == 0.5
    assert people.utility(0, 0.5, thirty * 1000) <= 0.5 + 0.9 + 1e-9


def test_without_bias_longer_answers_gain_nothing(world: World) -> None:
    fair, biased = (Annotators(world.truth, AnnotatorsConfig(biased=share)) for share in (0.0, 0.35))
    for people in (fair, biased):
        world.pairs(1500, people)
    longer = [people.tally.longer / people.tally.total for people in (fair, biased)]
    assert longer[1] > longer[0] + 0.02
    assert fair.tally.right / fair.tally.judged > biased.tally.right / biased.tally.judged


def test_accuracy_and_agreement_are_reported(world: World) -> None:
    people = Annotators(world.truth)
    pairs = world.pairs(1500, people)
    summary = people.tally.summary()
    assert summary["pairs"] == len(pairs) == 1500
    assert 0.8 < summary["accuracy"] < 0.93 and 0.7 < summary["agreement"] < 0.88  # type: ignore[operator]
    assert set(summary["accuracy_by_category"]) == {"helpful", "harmful", "unanswerable"}  # type: ignore[call-overload]
    right = [world.compare(p.prompt, p.chosen[0]["content"], p.rejected[0]["content"]) for p in pairs]
    told_apart = [r for r in right if r != "tie"]
    assert right.count("win") / len(told_apart) == pytest.approx(summary["accuracy"], abs=1e-3)


def test_perfect_people_are_always_right(world: World) -> None:
    people = Annotators(world.truth, AnnotatorsConfig(temperature=1e-4, biased=0, slips=0))
    world.pairs(300, people)
    assert people.tally.right == people.tally.judged and people.tally.agreed > 0.9 * people.tally.twice
