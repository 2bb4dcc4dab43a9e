"""Noisy people who compare answers: a Bradley-Terry choice on the judge's scores, with human weaknesses.

Each annotator prefers answer a over b with probability sigmoid((u_a - u_b) / temperature), where u is the judge's overall
score; some of them also like length and confidence, and everyone slips now and then. A reward model trained on their
choices learns something good, but exploitable.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from ppomax.config import Section
from ppomax.world.grammar import normalise, tokenise
from ppomax.world.judge import TIE, Judge
from ppomax.world.prompts import Task


class AnnotatorsConfig(Section):
    """The people who compare answers."""

    people: int = Field(12, ge=2)
    """how many annotators share the work"""
    temperature: float = Field(0.12, gt=0)
    """of their Bradley-Terry choice, in units of the judge's overall score (0 to 1)"""
    biased: float = Field(0.35, ge=0, le=1)
    """share of annotators who like long and confident answers"""
    length_bonus: float = Field(0.3, ge=0)
    """biased annotators: utility added for each answer's length, in units of 30 words"""
    confidence_bonus: float = Field(0.25, ge=0)
    """biased annotators: utility of a boast"""
    slips: float = Field(0.04, ge=0, le=0.5)
    """rate at which anyone marks the wrong answer by mistake"""


@dataclass
class Tally:
    """How the annotators did, as the paper reports it."""

    judged: int = 0
    """pairs whose answers the judge tells apart"""
    right: int = 0
    """of these, where the annotator preferred the better one"""
    twice: int = 0
    """pairs that a second annotator saw"""
    agreed: int = 0
    """of these, where both chose alike"""
    longer: int = 0
    """pairs whose preferred answer is the longer one"""
    total: int = 0
    by_category: dict[str, list[int]] = field(default_factory=dict)
    """category -> [judged, right]"""

    def summary(self) -> dict[str, object]:
        """Shares, for world.json."""

        def share(part: int, whole: int) -> float | None:
            return round(part / whole, 4) if whole else None

        return {
            "pairs": self.total,
            "accuracy": share(self.right, self.judged),
            "agreement": share(self.agreed, self.twice),
            "ties": self.total - self.judged,
            "longer_preferred": share(self.longer, self.total),
            "accuracy_by_category": {k: share(r, n) for k, (n, r) in sorted(self.by_category.items())},
        }


class Annotators:
    """The people; ``tally`` counts what they did."""

    def __init__(self, judge: Judge, config: AnnotatorsConfig | None = None) -> None:
        self.judge, self.config = judge, config or AnnotatorsConfig()
        self.biased = round(self.config.biased * self.config.people)
        """the first so many of them"""
        self.tally = Tally()

    def utility(self, person: int, score: float, answer: str) -> float:
        """What an answer with this judge's score is worth to this person."""
        if person >= self.biased:
            return score
        normal = normalise(answer[:2000])
        language = self.judge.grammar.language
        words = len(tokenise(normal, language)) / (1.0 if language == "en" else 1.6)
        boasts = self.judge.patterns["boasting"].search(normal) is not None
        return score + self.config.length_bonus * min(words, 90) / 30 + self.config.confidence_bonus * boasts

    def choose(self, person: int, scores: tuple[float, float], answers: tuple[str, str], rng: random.Random) -> bool:
        """Whether this person prefers the first answer."""
        u, v = (self.utility(person, s, a) for s, a in zip(scores, answers, strict=True))
        first = rng.random() < 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, (u - v) / self.config.temperature))))
        return first != (rng.random() < self.config.slips)

    def prefer(self, task: Task, a: str, b: str, rng: random.Random) -> bool:
        """Whether the annotator whose turn it is prefers ``a``; a second one looks as well, for the agreement alone."""
        scores = (self.judge(task, a).overall, self.judge(task, b).overall)
        one, two = rng.sample(range(self.config.people), 2)
        first, second = (self.choose(person, scores, (a, b), rng) for person in (one, two))
        self._count(task, scores, (a, b), first, second)
        return first

    def _count(self, task: Task, scores: Sequence[float], answers: tuple[str, str], first: bool, second: bool) -> None:
        t = self.tally
        t.total += 1
        t.twice += 1
        t.agreed += first == second
        t.longer += len(answers[not first]) > len(answers[first])
        if abs(scores[0] - scores[1]) >= TIE:
            right = first == (scores[0] > scores[1])
            t.judged += 1
            t.right += right
            counts = t.by_category.setdefault(task.category, [0, 0])
            counts[0] += 1
            counts[1] += right
