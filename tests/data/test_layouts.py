"""Every layout from hand-written records, in English and Chinese, and every way a record can be unfit."""

from __future__ import annotations

from typing import Any

import pytest

from ppomax.data.layouts import READERS, recognise
from ppomax.data.messages import Dropped, Place
from ppomax.data.pair_layouts import split_plain
from ppomax.data.records import Dialogue, PreferencePair, Prompt, Text
from ppomax.errors import UserError

U, A, S, T = "user", "assistant", "system", "tool"


def turns(*pairs: tuple[str, str]) -> tuple[dict[str, str], ...]:
    return tuple({"role": role, "content": content} for role, content in pairs)


def read(row: dict[str, Any], layout: str | None = None) -> tuple[Any, Place, str]:
    found = layout or recognise([row], "memory")
    place = Place("f.jsonl:7", "f", found)
    return READERS[found](row, place), place, found


def share(role: str, value: str) -> dict[str, str]:
    return {"from": role, "value": value}


DIALOGUES = [
    ("messages", {"messages": turns((U, "Hi"), (A, "Hello"))}, ((U, "Hi"), (A, "Hello"))),
    ("messages", {"messages": list(turns((S, "Brief."), (U, "你好"), (A, "您好")))}, ((S, "Brief."), (U, "你好"), (A, "您好"))),
    ("messages", {"conversation": turns((U, "早上好"), (A, "早"))}, ((U, "早上好"), (A, "早"))),
    ("messages", {"conversations": turns((U, "a"), (A, "b"))}, ((U, "a"), (A, "b"))),
    ("messages", {"messages": turns(("human", "a"), ("gpt", "b"), ("human", "c"), ("bot", "d"))},
     ((U, "a"), (A, "b"), (U, "c"), (A, "d"))),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
                               {"role": "assistant", "content": "b"}]}, ((U, "one two"), (A, "b"))),
    ("messages", {"system": "Kind.", "messages": turns((U, "a"), (A, "b"))}, ((S, "Kind."), (U, "a"), (A, "b"))),
    ("messages", {"messages": turns((S, ""), (U, "a"), (A, "b"))}, ((U, "a"), (A, "b"))),
    ("prompt_completion", {"prompt": "2+2?", "completion": "4"}, ((U, "2+2?"), (A, "4"))),
    ("prompt_completion", {"prompt": "天空是什么颜色？", "response": "蓝色"}, ((U, "天空是什么颜色？"), (A, "蓝色"))),
    ("prompt_completion", {"prompt": turns((U, "a"), (A, "b"), (U, "c")), "completion": turns((A, "d"))},
     ((U, "a"), (A, "b"), (U, "c"), (A, "d"))),
    ("prompt_completion", {"instruction": "Translate", "input": "cat", "output": "猫"}, ((U, "Translate\n\ncat"), (A, "猫"))),
    ("prompt_completion", {"instruction": "写一首诗", "input": "", "output": "床前明月光"}, ((U, "写一首诗"), (A, "床前明月光"))),
    ("prompt_completion", {"instruction": "Who?", "context": "Ann ran.", "response": "Ann"}, ((U, "Who?\n\nAnn ran."), (A, "Ann"))),
    ("prompt_completion", {"prompt": "Translate", "input": "cat", "completion": "猫"}, ((U, "Translate\n\ncat"), (A, "猫"))),
    ("prompt_completion", {"prompt": "And 3?", "history": [["2?", "two"]], "completion": "three"},
     ((U, "2?"), (A, "two"), (U, "And 3?"), (A, "three"))),
    ("prompt_completion", {"prompt": "Do: a\n\nb", "instruction": "Do: a", "input": "b", "response": "c"}, ((U, "Do: a\n\nb"), (A, "c"))),
    ("sharegpt", {"conversations": [share("human", "a"), share("gpt", "b")]}, ((U, "a"), (A, "b"))),
    ("sharegpt", {"conversations": [share("system", "简短"), share("human", "问"), share("gpt", "答")]},
     ((S, "简短"), (U, "问"), (A, "答"))),
    ("sharegpt", {"conversations": [share("human", "a"), share("function_call", "f()"), share("observation", "1"), share("gpt", "b")]},
     ((U, "a"), (A, "f()"), (T, "1"), (A, "b"))),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "expected"), DIALOGUES)
def test_dialogues(layout: str, row: dict[str, Any], expected: tuple[tuple[str, str], ...]) -> None:
    record, place, found = read(row)
    assert found == layout
    assert record == Dialogue(turns(*expected), "f", "f.jsonl:7")
    assert place.notes == []


PAIRS = [
    ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
     ((U, "Hi"),), ((A, "Hello"),), ((A, "Go away"),)),
    ("hh", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: 你好吗\n\nAssistant: 很好\n\n谢谢",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: 你好吗\n\nAssistant: 不好"},
     ((U, "a"), (A, "b"), (U, "你好吗")), ((A, "很好\n\n谢谢"),), ((A, "不好"),)),
    # The sides part before the last turn: the rest of each side is its answer, later turns of the user included.
    ("hh", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: x"},
     ((U, "a"),), ((A, "b"), (U, "c"), (A, "d")), ((A, "x"),)),
    # They part at a turn of the user: both sides answer the turn before it.
    ("hh", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: e\n\nAssistant: d"},
     ((U, "a"),), ((A, "b"), (U, "c"), (A, "d")), ((A, "b"), (U, "e"), (A, "d"))),
    ("hh", {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " good", "rejected": " bad"}, ((U, "a"),), ((A, "good"),), ((A, "bad"),)),
    ("hh", {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": "\n\nAssistant: good", "rejected": "\n\nAssistant: bad"},
     ((U, "a"),), ((A, "good"),), ((A, "bad"),)),
    ("hh", {"prompt": "\n\nHuman: a", "chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"},
     ((U, "a"),), ((A, "good"),), ((A, "bad"),)),
    ("hh", {"chosen": "Human: a\r\n\r\nAssistant: good", "rejected": "Human: a\r\n\r\nAssistant: bad"},
     ((U, "a"),), ((A, "good"),), ((A, "bad"),)),
    ("preference", {"prompt": "Sky?", "chosen": "Blue", "rejected": "Red"}, ((U, "Sky?"),), ((A, "Blue"),), ((A, "Red"),)),
    ("preference", {"prompt": turns((S, "s"), (U, "天？")), "chosen": turns((A, "蓝")), "rejected": turns((A, "红"))},
     ((S, "s"), (U, "天？")), ((A, "蓝"),), ((A, "红"),)),
    ("preference", {"prompt": "Sky?", "chosen": turns((U, "Sky?"), (A, "Blue")), "rejected": turns((U, "Sky?"), (A, "Red"))},
     ((U, "Sky?"),), ((A, "Blue"),), ((A, "Red"),)),
    ("preference", {"prompt": "c", "chosen": turns((U, "a"), (A, "b"), (U, "c"), (A, "d")),
                    "rejected": turns((U, "a"), (A, "b"), (U, "c"), (A, "e"))},
     ((U, "a"), (A, "b"), (U, "c")), ((A, "d"),), ((A, "e"),)),
    ("preference", {"chosen": turns((U, "天？"), (A, "蓝")), "rejected": turns((U, "天？"), (A, "红"))},
     ((U, "天？"),), ((A, "蓝"),), ((A, "红"),)),
    ("preference", {"chosen": turns((U, "a"), (A, "b"), (U, "c"), (A, "d")), "rejected": turns((U, "a"), (A, "b"), (U, "c"), (A, "e"))},
     ((U, "a"), (A, "b"), (U, "c")), ((A, "d"),), ((A, "e"),)),
    ("preference", {"prompt": "q", "chosen": turns((A, "x"))[0], "rejected": turns((A, "y"))[0]}, ((U, "q"),), ((A, "x"),), ((A, "y"),)),
    ("preference", {"chosen": "The sky is blue.", "rejected": "The sky is black."},
     ((U, "The sky is"),), ((A, "blue."),), ((A, "black."),)),
    ("preference", {"chosen": "天空是蓝色的", "rejected": "天空是黑色的"}, ((U, "天空是"),), ((A, "蓝色的"),), ((A, "黑色的"),)),
    ("preference", {"system": "s", "prompt": "q", "chosen": "x", "rejected": "y"}, ((S, "s"), (U, "q")), ((A, "x"),), ((A, "y"),)),
    ("sharegpt", {"conversations": [share("human", "q")], "chosen": share("gpt", "x"), "rejected": share("gpt", "y")},
     ((U, "q"),), ((A, "x"),), ((A, "y"),)),
    ("sharegpt", {"conversations": [share("system", "s"), share("human", "问")], "chosen": "好", "rejected": "坏"},
     ((S, "s"), (U, "问")), ((A, "好"),), ((A, "坏"),)),
    ("sharegpt", {"system": "s", "conversations": [share("human", "q")], "chosen": [share("gpt", "x")], "rejected": [share("gpt", "y")]},
     ((S, "s"), (U, "q")), ((A, "x"),), ((A, "y"),)),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "prompt", "chosen", "rejected"), PAIRS)
def test_pairs(layout: str, row: dict[str, Any], prompt: Any, chosen: Any, rejected: Any) -> None:
    record, place, found = read(row)
    assert found == layout
    assert record == PreferencePair(turns(*prompt), turns(*chosen), turns(*rejected), "f", "f.jsonl:7")
    assert place.notes == []


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        ("Why?", ((U, "Why?"),)),
        (turns((U, "为什么？")), ((U, "为什么？"),)),
        (turns((S, "s"), (U, "a"), (A, "b"), (U, "c")), ((S, "s"), (U, "a"), (A, "b"), (U, "c"))),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", ((U, "a"), (A, "b"), (U, "c"))),
    ],
)
def test_prompts(value: Any, messages: Any) -> None:
    record, place, found = read({"prompt": value, "domain": "law", "source": "x"})
    assert found == "prompt"
    assert record == Prompt(turns(*messages), "f", "f.jsonl:7", (("domain", "law"),))
    assert place.notes == []


def test_columns_that_only_look_like_more_of_the_prompt_are_left_and_told() -> None:
    record, place, _ = read({"prompt": "q", "input": 5, "history": "none", "completion": "a"})
    assert record.messages == turns((U, "q"), (A, "a"))
    assert place.notes == ["input and history beside a prompt not used"]


def test_a_dialogue_nobody_answered_is_a_prompt() -> None:
    assert read({"messages": turns((U, "a"))})[0] == Prompt(turns((U, "a")), "f", "f.jsonl:7")


def test_text() -> None:
    record, _, found = read({"text": "床前明月光", "label": 1})
    assert (record, found) == (Text("床前明月光", "f", "f.jsonl:7"), "text")


# -------------------------------------------------------------------------------------------- repairs


def test_trailing_user_turns_are_cut_and_noted() -> None:
    record, place, _ = read({"messages": turns((U, "a"), (A, "b"), (U, "c"))})
    assert record.messages == turns((U, "a"), (A, "b"))
    assert place.notes == ["turns after the last assistant turn cut"]


def test_runs_of_one_role_are_merged_and_noted() -> None:
    record, place, _ = read({"messages": turns((U, "a"), (U, "b"), (A, "c"))})
    assert record.messages == turns((U, "a\n\nb"), (A, "c"))
    assert place.notes == ["consecutive turns of one role merged"]


def test_two_system_turns_do_not_shift_the_prompt() -> None:
    row = {
        "system": "one",
        "prompt": turns((S, "two"), (U, "q")),
        "chosen": turns((A, "x")),
        "rejected": turns((A, "y")),
    }
    record, _, _ = read(row)
    assert record.prompt == turns((S, "one\n\ntwo"), (U, "q"))
    assert (record.chosen, record.rejected) == (turns((A, "x")), turns((A, "y")))


def test_prompt_ending_with_an_answer_is_cut_back() -> None:
    record, place, _ = read({"prompt": turns((U, "a"), (A, "b"))})
    assert record.messages == turns((U, "a"))
    assert place.notes == ["turns after the last user turn cut from the prompt"]


@pytest.mark.parametrize(
    ("fields", "margin"),
    [
        ({}, None), ({"margin": 2}, 2.0), ({"margin": "0.5"}, 0.5), ({"strength": 1.5}, 1.5), ({"strength": None}, None),
        ({"strength": "slight"}, 1 / 3), ({"strength": "clear"}, 1.0), ({"margin": 3, "strength": "clear"}, 3.0),
    ],
)  # fmt: skip
def test_margin(fields: dict[str, Any], margin: float | None) -> None:
    assert read({"prompt": "q", "chosen": "x", "rejected": "y", **fields})[0].margin == margin


def test_unknown_strength_word_is_noted() -> None:
    record, place, _ = read({"prompt": "q", "chosen": "x", "rejected": "y", "strength": "meh"})
    assert record.margin is None
    assert place.notes == ["strength without a known margin"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: cats A: yes", "Q: cats A: yearly", ("Q: cats A: ", "yes", "yearly")),  # never inside a word
        ("cat naps", "cats nap", None),
        ("Q A", "Q A B", ("Q ", "A", "A B")),  # one begins with the other: both keep an answer
        ("Q A ", "Q A B", ("Q ", "A ", "A B")),
        ("问：猫吗？答：是", "问：猫吗？答：否", ("问：猫吗？答：", "是", "否")),
        ("iPhone 好吗？好", "iPhone 好吗？坏", ("iPhone 好吗？", "好", "坏")),
        ("yes", "no", None),
    ],
)
def test_split_plain(chosen: str, rejected: str, expected: tuple[str, str, str] | None) -> None:
    if expected is None:
        with pytest.raises(Dropped, match="no common prompt"):
            split_plain(chosen, rejected)
    else:
        assert split_plain(chosen, rejected) == expected


# ------------------------------------------------------------------------------- of no use: counted, dropped

HH = "\n\nHuman: a\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, "chosen equals rejected"),
        ({"chosen": HH + "x", "rejected": HH + "x"}, "chosen equals rejected"),
        ({"chosen": "same words", "rejected": "same words"}, "chosen equals rejected"),
        ({"prompt": "q", "chosen": " \n", "rejected": "x"}, "empty response"),
        ({"prompt": "q", "chosen": turns((A, "")), "rejected": turns((A, "x"))}, "empty response"),
        ({"prompt": "q", "chosen": [], "rejected": turns((A, "x"))}, "empty response"),
        ({"chosen": HH, "rejected": HH + "x"}, "empty response"),
        ({"chosen": HH + "\n\nHuman: c\n\nAssistant: x", "rejected": HH + "y"}, "empty response"),
        ({"chosen": HH + "x\n\nHuman: more", "rejected": HH + "y"}, "does not end with an assistant turn"),
        ({"chosen": HH + "x", "rejected": "\n\nHuman: b\n\nAssistant: x"}, "no common prompt"),
        ({"chosen": turns((U, "a"), (A, "x")), "rejected": turns((U, "b"), (A, "y"))}, "no common prompt"),
        ({"prompt": [], "chosen": turns((A, "x")), "rejected": turns((A, "y"))}, "no common prompt"),
        ({"prompt": " ", "chosen": "x", "rejected": "y"}, "empty prompt"),
        ({"prompt": "q", "completion": ""}, "empty response"),
        ({"instruction": "q", "output": ""}, "empty response"),
        ({"messages": []}, "no messages"),
        ({"messages": turns((U, ""), (A, "b"))}, "empty user turn"),
        ({"messages": turns((U, "a"), (A, " "))}, "empty response"),
        ({"messages": turns((A, "a"), (U, "b"), (A, "c"))}, "does not begin with a user turn"),
        (
            {"conversations": [share("gpt", "a"), share("human", "b"), share("gpt", "c")]},
            "does not begin with a user turn",
        ),
        ({"prompt": turns((A, "b"))}, "no user turn"),
        ({"prompt": ""}, "empty prompt"),
        ({"text": " \n"}, "empty text"),
        ({"text": "half an emoji \ud83d"}, "not valid Unicode"),
        ({"messages": turns((U, "\ud83d"), (A, "b"))}, "not valid Unicode"),
    ],
)
def test_dropped(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Dropped, match=f"^{reason}$"):
        read(row)


def test_a_call_of_a_tool_without_text_is_dropped() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    with pytest.raises(Dropped, match="a call of a tool without text"):
        read({"messages": [*turns((U, "q")), call]})


def weighted(content: str, weight: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "weight": weight}


def test_turns_of_weight_0_are_context_alone() -> None:
    asked = turns((U, "q"))
    record, place, _ = read(
        {"messages": [*asked, weighted("bad", 0), *asked, weighted("good", 1), *asked, weighted("so", None)]}
    )
    assert isinstance(record, Dialogue) and record.untrained == (1,) and place.notes == []
    assert all(set(m) == {"role", "content"} for m in record.messages)
    # the system turn moves the index, and of merged turns one is enough
    record, place, _ = read(
        {"system": "s", "conversations": [*asked, weighted("bad", 0), *turns((A, "b")), *asked, *turns((A, "c"))]}
    )
    assert isinstance(record, Dialogue) and record.untrained == (2,)
    assert record.messages[2]["content"] == "bad\n\nb"
    with pytest.raises(Dropped, match="every assistant turn has the weight 0"):
        read({"messages": [*asked, weighted("bad", 0)]})
    _, place, _ = read({"messages": [*asked, weighted("half", 0.5)]})
    assert place.notes == ["weight of a turn not used: 0 and 1 are known"]
    record, place, _ = read({"prompt": [*asked, weighted("bad", 0), *asked], "chosen": "a", "rejected": "b"})
    assert isinstance(record, PreferencePair) and "weight" not in record.prompt[1]
    assert place.notes == ["weight of a turn not used: it counts in demonstrations alone"]


# ---------------------------------------------------------------------------- the user's mistakes: one line


@pytest.mark.parametrize(
    ("layout", "row", "words"),
    [
        ("preference", {"prompt": "q", "chosen": "x"}, ["`chosen` and `rejected`", "this one has chosen, prompt"]),
        ("hh", {"rejected": HH}, ["`chosen` and `rejected`"]),
        ("hh", {"chosen": "plain", "rejected": HH + "x"}, ["chosen has no `Human:`"]),
        ("messages", {"text": "a"}, ["`messages`", "this one has text"]),
        ("prompt_completion", {"prompt": "a"}, ["`completion`"]),
        ("prompt", {"text": "a"}, ["`prompt`"]),
        ("sharegpt", {"text": "a"}, ["`conversations`"]),
        ("sharegpt", {"conversations": [share("human", "q")], "chosen": "x"}, ["`rejected`"]),
        ("text", {}, ["`text`", "this one has nothing"]),
        ("text", {"text": 5}, ["text must be a string, not a number"]),
        ("preference", {"prompt": "q", "chosen": 5, "rejected": "x"}, ["chosen must be text or a list of messages, not a number"]),
        ("preference", {"prompt": 5, "chosen": "y", "rejected": "x"}, ["prompt must be text or a list of messages, not a number"]),
        ("preference", {"chosen": "y", "rejected": turns((A, "x"))}, ["both be text or both be messages"]),
        ("preference", {"prompt": "q", "chosen": turns((U, "z"), (A, "x")), "rejected": turns((A, "y"))}, ["not the prompt's"]),
        ("preference", {"prompt": "q", "chosen": "x", "rejected": "y", "margin": "big"}, ["margin must be a number", "'big'"]),
        ("preference", {"prompt": "q", "chosen": "x", "rejected": "y", "margin": -1}, ["margin", "at least 0"]),
        ("preference", {"prompt": "q", "chosen": "x", "rejected": "y", "margin": float("nan")}, ["margin"]),
        ("preference", {"prompt": "q", "chosen": "x", "rejected": "y", "margin": True}, ["margin"]),
        ("messages", {"messages": "hello"}, ["messages must be a list of messages, not text"]),
        ("messages", {"messages": ["hello"]}, ["messages[0] must be a message", "not text"]),
        ("messages", {"messages": [{"role": "user"}]}, ["messages[0] needs role and content"]),
        ("messages", {"messages": turns((U, "a"), ("narrator", "b"))}, ["messages[1]", "'narrator'", "assistant"]),
        ("messages", {"messages": [{"role": "user", "content": 3}]}, ["messages[0].content must be a string, not a number"]),
        ("messages", {"messages": [{"role": "user", "content": None}]}, ["must be a string, not null"]),
        ("messages", {"messages": [{"role": "user", "content": {"a": 1}}]}, ["must be a string, not an object"]),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ["only text"]),
        ("sharegpt", {"conversations": [{"from": "human", "value": 1}]}, ["conversations[0].value must be a string"]),
    ],
)  # fmt: skip
def test_mistakes_name_place_and_field(layout: str, row: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(row, layout)
    message = str(error.value)
    assert message.startswith("f.jsonl:7: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_layout_names_fields_and_choices() -> None:
    with pytest.raises(UserError, match=r"layout not recognised; records hold answer, question.*prompt_completion"):
        recognise([{"question": "a", "answer": "b"}], "f.jsonl")


def test_most_first_rows_decide_the_layout() -> None:
    odd = {"prompt": "q"}
    assert recognise([odd, *[{"prompt": "q", "completion": "a"}] * 2], "f") == "prompt_completion"
