"""Where the question of a pair stands, and what of it the answers repeat: from hand-written records."""

from __future__ import annotations

from typing import Any

import pytest

from ppomax.data.layouts import READERS, recognise
from ppomax.data.messages import Dropped, Place
from ppomax.data.records import PreferencePair
from ppomax.errors import UserError

U, A, S = "user", "assistant", "system"
ASK = "\n\nHuman: write a dialogue\n\nAssistant:"


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def read(row: dict[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    """(prompt, chosen, rejected, notes)"""
    found = recognise([row], "memory")
    place = Place("f.jsonl:7", "f", found)
    pair = READERS[found](row, place)
    assert isinstance(pair, PreferencePair)
    sides = ([(m["role"], m["content"]) for m in side] for side in (pair.prompt, pair.chosen, pair.rejected))
    prompt, chosen, rejected = sides
    return prompt, chosen, rejected, place.notes


ANSWERS = {"chosen": "The answer is 4.", "rejected": "The answer is 5."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "What is 2+2?"}, [(U, "What is 2+2?")]),
        ({"system": "Be brief", "question": "What is 2+2?"}, [(S, "Be brief"), (U, "What is 2+2?")]),
        ({"instruction": "Add.", "input": "2, 2"}, [(U, "Add.\n\n2, 2")]),
        ({"instruction": "Add.", "input": ""}, [(U, "Add.")]),
        ({"instruction": "And 2+2?", "history": [["1+1?", "2"]]}, [(U, "1+1?"), (A, "2"), (U, "And 2+2?")]),
        ({"messages": turns((S, "Brief."), (U, "二加二？"))}, [(S, "Brief."), (U, "二加二？")]),
        ({"conversation": turns((U, "1+1?"), (A, "2"), (U, "2+2?"))}, [(U, "1+1?"), (A, "2"), (U, "2+2?")]),
        ({"prompt": None, "question": "What is 2+2?"}, [(U, "What is 2+2?")]),
        ({"prompt": "What is 2+2?", "question": "of another kind"}, [(U, "What is 2+2?")]),
    ],
)
def test_the_question_is_found_under_its_usual_names(row: dict[str, Any], prompt: list[tuple[str, str]]) -> None:
    assert read(row | ANSWERS) == (prompt, [(A, "The answer is 4.")], [(A, "The answer is 5.")], [])


@pytest.mark.parametrize("row", [{"prompt": None}, {"question": None}, {"prompt": " "}, {"instruction": None}])
def test_what_both_answers_begin_with_is_no_question(row: dict[str, Any]) -> None:
    with pytest.raises(Dropped, match="empty prompt"):
        read(row | ANSWERS)


def test_messages_that_hold_one_side_whole_are_not_the_question() -> None:
    chosen, rejected = turns((U, "q"), (A, "good")), turns((U, "q"), (A, "bad"))
    row = {"messages": chosen, "chosen": chosen, "rejected": rejected}
    assert read(row) == ([(U, "q")], [(A, "good")], [(A, "bad")], [])


def test_sides_that_say_what_they_answer_need_no_question() -> None:
    row = {"question": "q", "chosen": turns((U, "Q: q"), (A, "good")), "rejected": turns((U, "Q: q"), (A, "bad"))}
    assert read(row) == ([(U, "Q: q")], [(A, "good")], [(A, "bad")], [])
    with pytest.raises(UserError, match="not the prompt's"):
        read(row | {"prompt": "q"})


@pytest.mark.parametrize(
    "before",
    [[], [(S, "Be kind.")], [(U, "u1"), (A, "a1")], [(S, "Be kind."), (U, "u1"), (A, "a1")]],
)
def test_context_before_a_repeated_last_turn_stays(before: list[tuple[str, str]]) -> None:
    row = {
        "prompt": turns(*before, (U, "q")),
        "chosen": turns((U, "q"), (A, "good")),
        "rejected": turns((U, " q\n"), (A, "bad")),
    }
    assert read(row)[:3] == ([*before, (U, "q")], [(A, "good")], [(A, "bad")])


def test_sides_that_hold_more_than_the_prompt_keep_it() -> None:
    whole = ((U, "u1"), (A, "a1"), (U, "q"))
    row = {
        "prompt": turns((S, "Be kind."), (U, "q")),
        "chosen": turns(*whole, (A, "good")),
        "rejected": turns(*whole, (A, "bad")),
    }
    assert read(row)[:3] == ([(S, "Be kind."), *whole], [(A, "good")], [(A, "bad")])


def test_a_repeated_prompt_is_no_part_of_the_answers() -> None:
    row = {"prompt": "What is 2+2?", "chosen": "What is 2+2? 4", "rejected": "What is 2+2?\n5"}
    assert read(row) == (
        [(U, "What is 2+2?")], [(A, "4")], [(A, "5")], ["prompt cut from the beginning of both answers"],
    )  # fmt: skip
    greeting = {"prompt": "Hello", "chosen": "Hello there", "rejected": "Hello you"}
    assert read(greeting)[1:] == ([(A, "Hello there")], [(A, "Hello you")], [])
    alone = {"prompt": "What is 2+2?", "chosen": "What is 2+2? 4", "rejected": "5"}
    assert read(alone)[1:] == ([(A, "What is 2+2? 4")], [(A, "5")], [])


def test_whole_transcripts_beside_a_plain_prompt() -> None:
    row = {
        "prompt": "What is 2+2?",
        "chosen": "\n\nHuman: What is 2+2?\n\nAssistant: 4",
        "rejected": "\n\nHuman: What is 2+2?\n\nAssistant: 5",
    }
    assert read(row) == ([(U, "What is 2+2?")], [(A, "4")], [(A, "5")], [])
    pair = READERS["hh"](row, Place("f.jsonl:7", "f", "hh"))  # the layout may be given
    assert isinstance(pair, PreferencePair) and [m["content"] for m in pair.prompt] == ["What is 2+2?"]


@pytest.mark.parametrize(
    "answer",
    ["Here:\n\nHuman: hi\n\nAssistant: hello", "Here:\n\nHuman: hi", "Human: it is a human"],
)
def test_an_hh_answer_that_is_given_apart_is_one_turn_whatever_it_contains(answer: str) -> None:
    row = {"prompt": ASK, "chosen": f" {answer}", "rejected": " no"}
    assert read(row)[:3] == ([(U, "write a dialogue")], [(A, answer)], [(A, "no")])


@pytest.mark.parametrize(
    "side",
    ["{}", "Assistant: {}", ASK + " {}", "\n\nHuman: write a dialogue \n\nAssistant: {}"],
)
def test_an_hh_side_may_repeat_its_prompt(side: str) -> None:
    row = {"prompt": ASK, "chosen": side.format("yes"), "rejected": side.format("no")}
    assert read(row)[:3] == ([(U, "write a dialogue")], [(A, "yes")], [(A, "no")])


def test_an_hh_side_may_repeat_the_last_turn_alone() -> None:
    row = {
        "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
        "chosen": "\n\nHuman: c\n\nAssistant: yes",
        "rejected": "no",
    }
    assert read(row)[:3] == ([(U, "a"), (A, "b"), (U, "c")], [(A, "yes")], [(A, "no")])


def test_null_answers_are_dropped() -> None:
    with pytest.raises(Dropped, match="empty response"):
        read({"prompt": "q", "chosen": "x", "rejected": None})
