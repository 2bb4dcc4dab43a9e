"""The world's exam: multiple-choice questions about facts, with few-shot examples, by subject and group.

It is scored by the text of the choices: which one does the model find likeliest after the question? Letters would test a
skill that small models do not have. The form is that of the quizzes in the pretraining text::

    Question: What does the velka eat?
    Answer: river moss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppomax.world.facts import Facts, stream
from ppomax.world.grammar import Grammar
from ppomax.world.text import exam_question, in_exam

LETTERS = "ABCD"
SHOTS = 3
"""few-shot examples of each subject"""


def exam_rows(facts: Facts) -> list[dict[str, Any]]:
    """Questions in the layout of multiple-choice files: subject, category, split (dev, test), question, choices, answer."""
    rng = stream(facts.seed, facts.language, facts.size, "exam")
    rows: list[dict[str, Any]] = []
    for entities, words in zip(facts.of_subject, facts.grammar.subjects, strict=True):
        known = [(e, a) for e in entities for a in range(4)]
        examples = [pair for pair in known if not in_exam(facts, *pair)]
        tests = [pair for pair in known if in_exam(facts, *pair)]
        for split, chosen in (("dev", rng.sample(examples, min(SHOTS, len(examples)))), ("test", tests)):
            for entity, attribute in chosen:
                right = facts.value(entity, attribute)
                others = [v for v in facts.attribute(entity, attribute).values if v != right]
                choices = [*rng.sample(others, len(LETTERS) - 1), right]
                rng.shuffle(choices)
                rows.append(
                    {
                        "subject": words.name, "category": words.group, "split": split,
                        "question": exam_question(facts, entity, attribute) + ("?" if facts.language == "en" else "？"),
                        "choices": choices, "answer": LETTERS[choices.index(right)], "source": "world",
                    }
                )  # fmt: skip
    return rows


def exam_prompt(grammar: Grammar, row: Mapping[str, Any], shots: Sequence[Mapping[str, Any]]) -> str:
    """Few-shot text up to the answer; each choice, followed by a full stop, is a possible continuation."""

    def one(item: Mapping[str, Any], answer: str) -> str:
        asked = grammar.exam_question.format(question=str(item["question"]).rstrip("?？"))
        return f"{asked}\n{grammar.exam_answer.format(answer=answer)}"

    examples = [one(shot, shot["choices"][LETTERS.index(shot["answer"])]) for shot in shots]
    open_end = one(row, "").rstrip().removesuffix(grammar.full_stop).rstrip()
    return "\n\n".join([*examples, open_end])
