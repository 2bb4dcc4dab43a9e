"""One reader a layout: a decoded row (a dict) becomes a record.

A row that lacks what its layout needs is the user's mistake (``UserError`` with the place); a row that is well formed
but useless, such as an empty answer, raises ``Dropped`` and is counted; small repairs are noted and counted.
"""

from __future__ import annotations

import math
import os.path
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppomax.data.records import Dialogue, Message, PreferencePair, Prompt, Record, Text
from ppomax.errors import UserError

Row = dict[str, Any]

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
_STRENGTHS = {"slight": 1 / 3, "clear": 1.0}
"""margins for worded strengths of preference, on the usual scale of 0 (none) to 1 (strong)"""
_HH_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
_HH_START = re.compile(r"\s*(?:Human|Assistant):")


class Dropped(Exception):
    """A well-formed row that is of no use; the message is the reason under which it is counted."""


@dataclass
class Place:
    """Where a row comes from, and what had to be repaired in it."""

    origin: str
    source: str
    layout: str
    notes: list[str] = field(default_factory=list)

    def error(self, what: str) -> UserError:
        return UserError(f"{self.origin}: {what}")

    def missing(self, needed: str, row: Row) -> UserError:
        have = ", ".join(sorted(str(k) for k, v in row.items() if v is not None)) or "nothing"
        return self.error(f"a record of layout `{self.layout}` needs {needed}, this one has {have}")


# --------------------------------------------------------------------------------------------- messages


def parse_content(value: Any, name: str, place: Place) -> str:
    """A string, or a list of text parts, which are joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = []
        for part in value:
            text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
            if not isinstance(text, str):
                raise place.error(f"{name} holds a part that is not text; only text can be used")
            parts.append(text)
        return "".join(parts)
    raise place.error(f"{name} must be a string, not {_kind(value)}")


def parse_messages(value: Any, name: str, place: Place, needed: str = "a list of messages") -> list[Message]:
    """Messages in either naming (role/content, from/value), roles mapped to ours, one-role runs merged."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        raise place.error(f"{name} must be {needed}, not {_kind(value)}")
    messages: list[Message] = []
    for i, item in enumerate(value):
        at = f"{name}[{i}]"
        if not isinstance(item, dict):
            raise place.error(f"{at} must be a message with role and content, not {_kind(item)}")
        keys = ("role", "content") if "role" in item else ("from", "value")
        if any(k not in item for k in keys):
            raise place.error(f"{at} needs role and content (or from and value), it has {', '.join(map(str, item))}")
        role = _ROLES.get(item[keys[0]]) if isinstance(item[keys[0]], str) else None
        if role is None:
            raise place.error(f"{at} has the role {item[keys[0]]!r}; known are {', '.join(_ROLES)}")
        messages.append({"role": role, "content": parse_content(item[keys[1]], f"{at}.{keys[1]}", place)})
    return tidy(messages, place)


def tidy(messages: Sequence[Message], place: Place) -> list[Message]:
    """Drop empty system turns, merge runs of one role, refuse empty turns."""
    out: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        _check_unicode(content)
        if not content.strip():
            if role == "system":
                continue
            if role != "tool":
                raise Dropped("empty response" if role == "assistant" else "empty user turn")
        if out and out[-1]["role"] == role and role != "tool":
            place.notes.append("consecutive turns of one role merged")
            out[-1] = {"role": role, "content": f"{out[-1]['content']}\n\n{content}"}
        else:
            out.append({"role": role, "content": content})
    return out


def _check_unicode(text: str) -> None:
    """JSON can spell half of a surrogate pair (a cut emoji); no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Dropped("not valid Unicode") from None


def parse_transcript(text: str, place: Place) -> list[Message]:
    """Turns of an HH-RLHF transcript; text before the first turn becomes the system turn."""
    parts = _HH_TURN.split(text)
    messages: list[Message] = [{"role": "system", "content": parts[0].strip()}]
    for who, content in zip(parts[1::2], parts[2::2], strict=True):
        messages.append({"role": "user" if who == "Human" else "assistant", "content": content.strip()})
    return tidy(messages, place)


def _prompt(value: Any, name: str, place: Place) -> list[Message]:
    """A prompt as plain text (one user turn), as an HH transcript that awaits an answer, or as messages."""
    if not isinstance(value, str):
        return parse_messages(value, name, place, "text or a list of messages")
    if _HH_START.match(value):
        return parse_transcript(_await_answer(value), place)
    if not value.strip():
        raise Dropped("empty prompt")
    return [{"role": "user", "content": value}]


def _await_answer(transcript: str) -> str:
    """An HH prompt without its open "Assistant:" at the end."""
    text = transcript.rstrip()
    return text.removesuffix("Assistant:").rstrip() if _HH_TURN.split(text)[-2:] == ["Assistant", ""] else text


def _system(row: Row, place: Place) -> list[Message]:
    value = row.get("system")
    return [{"role": "system", "content": value}] if isinstance(value, str) and value.strip() else []


def _dialogue(messages: list[Message], place: Place) -> Record:
    """A dialogue up to its last assistant turn; without one it can only serve as a prompt."""
    if not messages:
        raise Dropped("no messages")
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        return _as_prompt(messages, place, ())
    if last + 1 < len(messages):
        place.notes.append("turns after the last assistant turn cut")
    _starts_with_user(messages)
    return Dialogue(tuple(messages[: last + 1]), place.source, place.origin)


def _as_prompt(messages: list[Message], place: Place, metadata: tuple[tuple[str, Any], ...]) -> Prompt:
    kept = list(messages)
    while kept and kept[-1]["role"] not in ("user", "tool"):
        kept.pop()
    if not kept:
        raise Dropped("no user turn")
    if len(kept) < len(messages):
        place.notes.append("turns after the last user turn cut from the prompt")
    _starts_with_user(kept)
    return Prompt(tuple(kept), place.source, place.origin, metadata)


def _starts_with_user(messages: Sequence[Message]) -> None:
    first = next((m["role"] for m in messages if m["role"] != "system"), None)
    if first != "user":
        raise Dropped("does not begin with a user turn")


# ------------------------------------------------------------------------------------------------ pairs


def _pair(
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
    _starts_with_user(both[0][:split])
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


def _sides(row: Row, place: Place) -> tuple[Any, Any]:
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise place.missing("`chosen` and `rejected`", row)
    return row["chosen"], row["rejected"]


def _answer(value: Any, name: str, place: Place) -> list[Message]:
    if not isinstance(value, str):
        return parse_messages(value, name, place, "text or a list of messages")
    if not value.strip():
        raise Dropped("empty response")
    return [{"role": "assistant", "content": value}]


def _after(prompt: str, text: str) -> str:
    """The whole transcript, from a text that may hold all of it, its last turns, or the bare answer."""
    start = _HH_START.match(text)
    if start is None:
        return f"{prompt}\n\nAssistant: {text}"
    if start.group().strip() == "Human:" or text.startswith(prompt):
        return text
    return f"{prompt}\n\n{text.strip()}"


def read_hh(row: Row, place: Place) -> Record:
    """HH-RLHF transcripts, whole or as ``prompt`` and answers."""
    sides = _sides(row, place)
    texts = [parse_content(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True)]
    if row.get("prompt") is not None:
        prompt = _await_answer(parse_content(row["prompt"], "prompt", place))
        texts = [_after(prompt, t) for t in texts]
    for name, text in zip(("chosen", "rejected"), texts, strict=True):
        if not _HH_TURN.search(text):
            raise place.error(f"{name} has no `Human:` / `Assistant:` turns, which layout `hh` needs")
    chosen, rejected = (parse_transcript(t, place) for t in texts)
    return _pair([], chosen, rejected, row, place)


def read_preference(row: Row, place: Place) -> Record:
    """``chosen`` and ``rejected`` as text or messages, with ``prompt`` or with a shared beginning."""
    sides = _sides(row, place)
    plain = [isinstance(s, str) for s in sides]
    if row.get("prompt") is not None:
        prompt = [*_system(row, place), *_prompt(row["prompt"], "prompt", place)]
        chosen, rejected = (_answer(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True))
        # Some data repeat the whole dialogue in front of both answers: then `prompt` says nothing new.
        if any(side and side[0]["role"] in ("user", "system") for side in (chosen, rejected)):
            asked = {m["content"].strip() for m in prompt if m["role"] == "user"}
            if not all(asked & {m["content"].strip() for m in side} for side in (chosen, rejected)):
                raise place.error("chosen or rejected begins with a user turn that is not the prompt's")
            prompt = _system(row, place)
        return _pair(prompt, chosen, rejected, row, place)
    if all(plain):
        shared, chosen_text, rejected_text = split_plain(*sides)
        user: Message = {"role": "user", "content": shared.strip()}
        chosen, rejected = (_answer(t.strip(), "answer", place) for t in (chosen_text, rejected_text))
        return _pair([*_system(row, place), user], chosen, rejected, row, place)
    if any(plain):
        raise place.error("chosen and rejected must both be text or both be messages")
    chosen, rejected = (parse_messages(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True))
    return _pair(_system(row, place), chosen, rejected, row, place)


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


# -------------------------------------------------------------------------------------- the other layouts


def read_messages(row: Row, place: Place) -> Record:
    """A list under ``messages`` or ``conversation``."""
    name = next((n for n in ("messages", "conversation", "conversations") if row.get(n) is not None), None)
    if name is None:
        raise place.missing("`messages` (or `conversation`)", row)
    return _dialogue(tidy([*_system(row, place), *parse_messages(row[name], name, place)], place), place)


def read_sharegpt(row: Row, place: Place) -> Record:
    """``conversations`` of from/value: a dialogue, or with ``chosen`` and ``rejected`` a pair."""
    if row.get("conversations") is None:
        raise place.missing("`conversations`", row)
    messages = tidy([*_system(row, place), *parse_messages(row["conversations"], "conversations", place)], place)
    if row.get("chosen") is None and row.get("rejected") is None:
        return _dialogue(messages, place)
    sides = _sides(row, place)
    chosen, rejected = (_answer(s, n, place) for s, n in zip(sides, ("chosen", "rejected"), strict=True))
    return _pair(messages, chosen, rejected, row, place)


def read_prompt_completion(row: Row, place: Place) -> Record:
    """prompt + completion or response, or instruction (+ input) + output."""
    asked = next((n for n in ("prompt", "instruction") if row.get(n) is not None), None)
    answered = next((n for n in ("completion", "response", "output") if row.get(n) is not None), None)
    if asked is None or answered is None:
        raise place.missing("`prompt` and `completion` (or `response`), or `instruction` and `output`", row)
    prompt = _prompt(row[asked], asked, place)
    extra = next((n for n in ("input", "context") if row.get(n)), None)
    if asked == "instruction" and extra is not None:
        more = parse_content(row[extra], extra, place)
        if more.strip():
            prompt[-1] = {"role": "user", "content": f"{prompt[-1]['content']}\n\n{more}"}
    messages = [*_system(row, place), *prompt, *_answer(row[answered], answered, place)]
    return _dialogue(tidy(messages, place), place)


def read_prompt(row: Row, place: Place) -> Record:
    """``prompt`` alone; what else the row holds becomes metadata."""
    if row.get("prompt") is None:
        raise place.missing("`prompt`", row)
    metadata = tuple((k, v) for k, v in row.items() if k not in ("prompt", "source", "system"))
    messages = tidy([*_system(row, place), *_prompt(row["prompt"], "prompt", place)], place)
    return _as_prompt(messages, place, metadata)


def read_text(row: Row, place: Place) -> Record:
    """``text`` alone."""
    if row.get("text") is None:
        raise place.missing("`text`", row)
    text = parse_content(row["text"], "text", place)
    if not text.strip():
        raise Dropped("empty text")
    _check_unicode(text)
    return Text(text, place.source, place.origin)


READERS: dict[str, Callable[[Row, Place], Record]] = {
    "hh": read_hh,
    "preference": read_preference,
    "messages": read_messages,
    "prompt_completion": read_prompt_completion,
    "prompt": read_prompt,
    "sharegpt": read_sharegpt,
    "text": read_text,
}


# ------------------------------------------------------------------------------------------- recognition


def recognise(rows: Sequence[Row], name: str) -> str:
    """The layout of most of ``rows``, the first ones of a file. Raises UserError when none fits."""
    found = Counter(layout for layout in map(_layout_of, rows) if layout is not None)
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
        hh = hh and all(isinstance(t, str) and _HH_START.match(t) for t in texts)
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


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
