"""One reader a layout: a decoded row (a dict) becomes a record.

A row that lacks what its layout needs is the user's mistake (``UserError`` with the place); a row that is well formed
but useless, such as an empty answer, raises ``Dropped`` and is counted; small repairs are noted and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ppomax.data.messages import (
    HH_START,
    Dropped,
    Place,
    Row,
    answer_turn,
    check_unicode,
    is_history,
    parse_content,
    parse_instruction,
    parse_messages,
    parse_prompt,
    starts_with_user,
    system_turn,
    tidy,
)
from ppomax.data.pair_layouts import make_pair, read_hh, read_preference, sides_of
from ppomax.data.records import Dialogue, Message, Prompt, Record, Text
from ppomax.errors import UserError


def _dialogue(messages: list[Message], place: Place) -> Record:
    """A dialogue up to its last assistant turn; without one it can only serve as a prompt."""
    if not messages:
        raise Dropped("no messages")
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        return _as_prompt(messages, place, ())
    if last + 1 < len(messages):
        place.notes.append("turns after the last assistant turn cut")
    starts_with_user(messages)
    turns = [i for i, m in enumerate(messages[: last + 1]) if m["role"] == "assistant"]
    untrained = tuple(i for i in turns if messages[i].get("weight") == 0)
    if len(untrained) == len(turns):
        raise Dropped("every assistant turn has the weight 0")
    plain: list[Message] = [{"role": m["role"], "content": m["content"]} for m in messages[: last + 1]]
    return Dialogue(tuple(plain), place.source, place.origin, untrained)


def _as_prompt(messages: list[Message], place: Place, metadata: tuple[tuple[str, Any], ...]) -> Prompt:
    kept = list(messages)
    while kept and kept[-1]["role"] not in ("user", "tool"):
        kept.pop()
    if not kept:
        raise Dropped("no user turn")
    if len(kept) < len(messages):
        place.notes.append("turns after the last user turn cut from the prompt")
    starts_with_user(kept)
    return Prompt(tuple(kept), place.source, place.origin, metadata)


def read_messages(row: Row, place: Place) -> Record:
    """A list under ``messages`` or ``conversation``."""
    name = next((n for n in ("messages", "conversation", "conversations") if row.get(n) is not None), None)
    if name is None:
        raise place.missing("`messages` (or `conversation`)", row)
    return _dialogue(tidy([*system_turn(row), *parse_messages(row[name], name, place, weights=True)], place), place)


def read_sharegpt(row: Row, place: Place) -> Record:
    """``conversations`` of from/value: a dialogue, or with ``chosen`` and ``rejected`` a pair."""
    if row.get("conversations") is None:
        raise place.missing("`conversations`", row)
    alone = row.get("chosen") is None and row.get("rejected") is None
    turns = parse_messages(row["conversations"], "conversations", place, weights=alone)
    messages = tidy([*system_turn(row), *turns], place)
    if alone:
        return _dialogue(messages, place)
    sides = sides_of(row, place)
    chosen, rejected = (answer_turn(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True))
    return make_pair(messages, chosen, rejected, row, place)


def read_prompt_completion(row: Row, place: Place) -> Record:
    """prompt + completion or response, or instruction (+ input) + output."""
    fields = ("prompt", "instruction"), ("completion", "response", "output")
    asked, answered = (next((n for n in names if row.get(n) is not None), None) for names in fields)
    for name, names, reason in ((asked, fields[0], "empty prompt"), (answered, fields[1], "empty response")):
        if name is None and any(n in row for n in names):  # such as an empty cell
            raise Dropped(reason)
    if asked is None or answered is None:
        raise place.missing("`prompt` and `completion` (or `response`), or `instruction` and `output`", row)
    more = [name for name in ("input", "history") if row.get(name)]
    if asked == "instruction":
        prompt = parse_instruction(row, asked, place)
    elif not more or row.get("instruction") is not None:  # such a prompt has been made of instruction and input
        prompt = parse_prompt(row[asked], asked, place)
    elif isinstance(row.get("input") or "", str) and is_history(row.get("history") or []):
        prompt = parse_instruction({**row, "context": None}, asked, place)
    else:
        place.notes.append(f"{' and '.join(more)} beside a prompt not used")
        prompt = parse_prompt(row[asked], asked, place)
    messages = [*system_turn(row), *prompt, *answer_turn(row[answered], answered, place)]
    return _dialogue(tidy(messages, place), place)


def read_prompt(row: Row, place: Place) -> Record:
    """``prompt`` alone; what else the row holds becomes metadata."""
    if row.get("prompt") is None:
        raise place.missing("`prompt`", row)
    metadata = tuple((k, v) for k, v in row.items() if k not in ("prompt", "source", "system"))
    messages = tidy([*system_turn(row), *parse_prompt(row["prompt"], "prompt", place)], place)
    return _as_prompt(messages, place, metadata)


def read_text(row: Row, place: Place) -> Record:
    """``text`` alone."""
    if row.get("text") is None:
        raise place.missing("`text`", row)
    text = parse_content(row["text"], "text", place)
    if not text.strip():
        raise Dropped("empty text")
    check_unicode(text)
    return Text(text, place.source, place.origin)


OF_PROMPT = {
    "prompt", "instruction", "question", "input", "context", "history", "messages", "conversation", "conversations", "system",
    "source", "chosen", "rejected",
}  # fmt: skip


def columns(row: Row) -> tuple[tuple[str, Any], ...]:
    """What a row holds besides the prompt that is made of it: a prompt's metadata."""
    return tuple((name, value) for name, value in row.items() if name not in OF_PROMPT and value is not None)


READERS: dict[str, Callable[[Row, Place], Record]] = {
    "hh": read_hh,
    "preference": read_preference,
    "messages": read_messages,
    "prompt_completion": read_prompt_completion,
    "prompt": read_prompt,
    "sharegpt": read_sharegpt,
    "text": read_text,
}


def recognise(rows: Sequence[Row], name: str) -> str:
    """The layout of most of ``rows``, the first ones of a file. Raises UserError when none fits."""
    found = Counter(layout for layout in map(_layout_of, rows) if layout is not None)
    if found["prompt_completion"]:  # rows whose answer is null are no file of prompts
        found["prompt_completion"] += found.pop("prompt", 0)
    if not found:
        keys = ", ".join(sorted({str(k) for row in rows for k in row})) or "nothing"
        raise UserError(
            f"{name}: layout not recognised; records hold {keys}. Give `layout`: one of {', '.join(READERS)}, "
            "or rename the fields"
        )
    return found.most_common(1)[0][0]


def _layout_of(row: Row) -> str | None:
    has = {k for k, v in row.items() if v is not None}
    if {"chosen", "rejected"} & has:
        if "conversations" in has:
            return "sharegpt"
        asked = row.get("prompt")
        texts = [asked] if isinstance(asked, str) else [row.get("chosen"), row.get("rejected")]
        hh = "prompt" not in has or isinstance(asked, str)
        hh = hh and all(isinstance(t, str) and HH_START.match(t) for t in texts)
        return "hh" if hh and all(isinstance(row.get(n), str) for n in ("chosen", "rejected")) else "preference"
    if {"messages", "conversation"} & has:
        return "messages"
    if "conversations" in has:
        turns = row["conversations"]
        named = isinstance(turns, list | tuple) and bool(turns) and isinstance(turns[0], dict) and "role" in turns[0]
        return "messages" if named else "sharegpt"
    if ("prompt" in has and {"completion", "response"} & has) or (
        "instruction" in has and {"output", "response"} & has
    ):
        return "prompt_completion"
    if "prompt" in has:
        return "prompt"
    return "text" if "text" in has else None
