"""Pairs of a preferred and a dispreferred answer, in the layouts `hh` and `preference`."""

from __future__ import annotations

import math
import os.path
from collections.abc import Sequence
from typing import Any

from ppomax.data.messages import (
    HH_START,
    HH_TURN,
    Dropped,
    Place,
    Row,
    answer_turn,
    await_answer,
    parse_content,
    parse_instruction,
    parse_messages,
    parse_prompt,
    parse_transcript,
    starts_with_user,
    system_turn,
    tidy,
)
from ppomax.data.records import Message, PreferencePair, Record

_STRENGTHS = {"slight": 1 / 3, "clear": 1.0}
"""margins for worded strengths of preference, on the usual scale of 0 (none) to 1 (strong)"""
_QUESTIONS = ("prompt", "question", "instruction", "messages", "conversation")
"""where a pair may say what it answers"""


def make_pair(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], row: Row, place: Place
) -> PreferencePair:
    """A pair whose prompt ends with the turn to be answered: what the two sides share beyond or before it moves."""
    if not chosen or not rejected:
        raise Dropped("empty response")
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    prompt = tidy(prompt, place)
    both = tidy([*prompt, *chosen], place), tidy([*prompt, *rejected], place)
    if any(not side or side[-1]["role"] != "assistant" for side in both):
        raise Dropped("does not end with an assistant turn")
    split = len(prompt)
    if not prompt or prompt[-1]["role"] == "assistant" or any(c[0]["role"] != "assistant" for c in (chosen, rejected)):
        split = next(i for i in range(len(both[0]) + 1) if both[0][i : i + 1] != both[1][i : i + 1])
        # Sides that part at a user turn (or where one has stopped) are answers to the user turn before.
        while split and not (
            both[0][split - 1]["role"] in ("user", "tool")
            and all(len(s) > split and s[split]["role"] == "assistant" for s in both)
        ):
            split -= 1
    if not split:
        raise Dropped("no common prompt")
    starts_with_user(both[0][:split])
    return PreferencePair(
        tuple(both[0][:split]), tuple(both[0][split:]), tuple(both[1][split:]),
        place.source, place.origin, _margin(row, place),
    )  # fmt: skip


def _margin(row: Row, place: Place) -> float | None:
    name = "margin" if row.get("margin") is not None else "strength"
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        if value.strip().lower() in _STRENGTHS:
            return _STRENGTHS[value.strip().lower()]
        try:
            value = float(value)
        except ValueError:
            if name == "strength":  # a worded scale of its own: the pair is fine without
                place.notes.append("strength without a known margin")
                return None
            raise place.error(f"margin must be a number, not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise place.error(f"{name} must be a number of at least 0, not {value!r}")
    return float(value)


def sides_of(row: Row, place: Place) -> tuple[Any, Any]:
    for name in ("chosen", "rejected"):
        if name not in row:
            raise place.missing("`chosen` and `rejected`", row)
        if row[name] is None:  # such as an empty cell
            raise Dropped("empty response")
    return row["chosen"], row["rejected"]


def _after(prompt: str, text: str, place: Place) -> list[Message]:
    """All turns, from a text that may hold all of them, the last ones, or the bare answer, whatever that contains."""
    start = HH_START.match(text)
    if start is not None and start.group().strip() == "Assistant:":
        return parse_transcript(f"{prompt}\n\n{text.strip()}", place)
    asked = parse_transcript(prompt, place)
    if start is not None:
        turns = parse_transcript(text, place)
        rest = _unrepeated(asked, turns)
        if rest is not None:
            return [*asked, *rest]
        if any(m in turns for m in asked if m["role"] == "user"):
            return turns  # more of the dialogue than the prompt has
    return [*asked, {"role": "assistant", "content": text.strip()}]


def _unrepeated(prompt: Sequence[Message], side: list[Message]) -> list[Message] | None:
    """What ``side`` adds to ``prompt``, whose last turns it repeats first; None where it repeats none."""
    for start in range(len(prompt)):
        again = side[: len(prompt) - start]
        if [(m["role"], m["content"].strip()) for m in prompt[start:]] == [
            (m["role"], m["content"].strip()) for m in again
        ]:
            return side[len(again) :]
    return None


def read_hh(row: Row, place: Place) -> Record:
    """HH-RLHF transcripts, whole or as ``prompt`` and answers."""
    sides = sides_of(row, place)
    texts = [parse_content(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True)]
    if row.get("prompt") is not None:
        prompt = await_answer(parse_content(row["prompt"], "prompt", place))
        if HH_START.match(prompt):
            chosen, rejected = (_after(prompt, t, place) for t in texts)
            return make_pair([], chosen, rejected, row, place)
        texts = [t if HH_START.match(t) else f"{prompt}\n\nAssistant: {t}" for t in texts]
    for name, text in zip(("chosen", "rejected"), texts, strict=True):
        if not HH_TURN.search(text):
            raise place.error(f"{name} has no `Human:` / `Assistant:` turns, which layout `hh` needs")
    chosen, rejected = (parse_transcript(t, place) for t in texts)
    return make_pair([], chosen, rejected, row, place)


def read_preference(row: Row, place: Place) -> Record:
    """``chosen`` and ``rejected`` as text or messages, with ``prompt`` or with a shared beginning."""
    sides = sides_of(row, place)
    plain = [isinstance(s, str) for s in sides]
    if (prompt := _asked(row, place)) is not None:
        return _answers_to(prompt, sides, row, place)
    if all(plain) and not all(HH_START.match(s) for s in sides) and any(name in row for name in _QUESTIONS):
        raise Dropped("empty prompt")  # what both answers begin with is not what was asked
    if all(plain):
        shared, chosen_text, rejected_text = split_plain(*sides)
        user: Message = {"role": "user", "content": shared.strip()}
        chosen, rejected = (answer_turn(t.strip(), "answer", place) for t in (chosen_text, rejected_text))
        return make_pair([*system_turn(row), user], chosen, rejected, row, place)
    if any(plain):
        raise place.error("chosen and rejected must both be text or both be messages")
    chosen, rejected = (parse_messages(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True))
    return make_pair(system_turn(row), chosen, rejected, row, place)


def _answers_to(prompt: list[Message], sides: tuple[Any, Any], row: Row, place: Place) -> Record:
    """A pair whose prompt is told. Some data repeat the dialogue, or the end of it, in front of both answers."""
    if all(isinstance(s, str) for s in sides):
        sides = _bare(prompt, *sides, place)
    chosen, rejected = (answer_turn(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True))
    if not any(side and side[0]["role"] in ("user", "system") for side in (chosen, rejected)):
        return make_pair(prompt, chosen, rejected, row, place)
    more, less = _unrepeated(prompt, chosen), _unrepeated(prompt, rejected)
    if more is not None and less is not None:
        return make_pair(prompt, more, less, row, place)
    asked = {m["content"].strip() for m in prompt if m["role"] == "user"}
    if not all(asked & {m["content"].strip() for m in side} for side in (chosen, rejected)):
        if row.get("prompt") is None:  # the sides say themselves what they answer
            return make_pair(system_turn(row), chosen, rejected, row, place)
        raise place.error("chosen or rejected begins with a user turn that is not the prompt's")
    # they hold all of it, and the prompt but a part
    told = any(side[0]["role"] == "system" for side in (chosen, rejected))
    return make_pair([] if told else [m for m in prompt if m["role"] == "system"], chosen, rejected, row, place)


def _asked(row: Row, place: Place) -> list[Message] | None:
    """What a pair answers, under any of `_QUESTIONS`, with its system turn; None where the row has no such field."""
    for name in _QUESTIONS:
        value = row.get(name)
        if value is None or value == []:
            continue
        if name == "instruction":
            asked = parse_instruction(row, name, place)
        elif name in ("messages", "conversation"):
            asked = parse_messages(value, name, place)
            if asked and asked[-1]["role"] == "assistant":  # the whole of one side, as some data keep it
                continue
        else:
            asked = parse_prompt(value, name, place)
        return [*system_turn(row), *asked]
    return None


def _bare(prompt: list[Message], chosen: str, rejected: str, place: Place) -> tuple[Any, Any]:
    """Both answers without the prompt that stands in front of them: as a transcript, or word for word."""
    asked = prompt[-1]["content"].strip()
    if all(HH_TURN.match(side) and HH_TURN.findall(side)[:2] == ["Human", "Assistant"] for side in (chosen, rejected)):
        turns = [parse_transcript(side, place) for side in (chosen, rejected)]
        if all(any(m["content"].strip() == asked for m in side) for side in turns):
            return turns[0], turns[1]
    long_enough = len(asked.split()) >= 3 or len(asked) >= 10  # an answer to "Hello" may well begin with "Hello"
    if long_enough and all(s.startswith(asked) and s[len(asked) :][:1].isspace() for s in (chosen, rejected)):
        place.notes.append("prompt cut from the beginning of both answers")
        return chosen[len(asked) :].lstrip(), rejected[len(asked) :].lstrip()
    return chosen, rejected


def split_plain(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Longest common beginning, and the two rests; never cut inside a word.

    A word ends at white space; a character of a script without spaces (Chinese, Japanese) is a word of its own.
    """
    if chosen == rejected:
        raise Dropped("chosen equals rejected")
    cut = len(os.path.commonprefix([chosen, rejected]))  # noqa: RUF071 (characters are meant)
    while cut > 0 and not (
        all(text[cut:].strip() for text in (chosen, rejected))  # else one answer begins with the whole other
        and (_stands_alone(chosen[cut - 1]) or all(_stands_alone(text[cut]) for text in (chosen, rejected)))
    ):
        cut -= 1
    if not chosen[:cut].strip():
        raise Dropped("no common prompt")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _stands_alone(char: str) -> bool:
    return char.isspace() or "\u2e80" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or char > "\uff00"
