"""What all layouts are made of: texts, messages, HH-RLHF transcripts, and what to say where a row lacks them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ppomax.data.records import Message
from ppomax.errors import UserError

Row = dict[str, Any]

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
HH_TURN = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):")
HH_START = re.compile(r"\s*(?:Human|Assistant):")


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
    raise place.error(f"{name} must be a string, not {kind_of(value)}")


def parse_messages(
    value: Any, name: str, place: Place, needed: str = "a list of messages", *, weights: bool = False
) -> list[Message]:
    """Messages in either naming (role/content, from/value), roles mapped to ours, one-role runs merged.

    ``weights``: an assistant turn of ``weight`` 0 keeps it; elsewhere no turn is trained on for itself, and weights are told.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        raise place.error(f"{name} must be {needed}, not {kind_of(value)}")
    messages: list[Message] = []
    for i, item in enumerate(value):
        at = f"{name}[{i}]"
        if not isinstance(item, dict):
            raise place.error(f"{at} must be a message with role and content, not {kind_of(item)}")
        keys = ("role", "content") if "role" in item else ("from", "value")
        if any(k not in item for k in keys):
            raise place.error(f"{at} needs role and content (or from and value), it has {', '.join(map(str, item))}")
        role = _ROLES.get(item[keys[0]]) if isinstance(item[keys[0]], str) else None
        if role is None:
            raise place.error(f"{at} has the role {item[keys[0]]!r}; known are {', '.join(_ROLES)}")
        if item[keys[1]] is None and (item.get("tool_calls") or item.get("function_call")):
            raise Dropped("a call of a tool without text")
        message: Message = {"role": role, "content": parse_content(item[keys[1]], f"{at}.{keys[1]}", place)}
        if role == "assistant" and item.get("weight", 1) not in (None, 1):
            if weights and item["weight"] == 0:
                message["weight"] = 0
            else:
                known = "0 and 1 are known" if weights else "it counts in demonstrations alone"
                place.notes.append(f"weight of a turn not used: {known}")
        messages.append(message)
    return tidy(messages, place)


def tidy(messages: Sequence[Message], place: Place) -> list[Message]:
    """Drop empty system turns, merge runs of one role, refuse empty turns."""
    out: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        check_unicode(content)
        if not content.strip():
            if role == "system":
                continue
            if role != "tool":
                raise Dropped("empty response" if role == "assistant" else "empty user turn")
        if out and out[-1]["role"] == role and role != "tool":
            place.notes.append("consecutive turns of one role merged")
            before = out.pop()
            message = {**before, **message, "content": f"{before['content']}\n\n{content}"}  # of weight 0 if either is
        out.append(message)
    return out


def check_unicode(text: str) -> None:
    """JSON can spell half of a surrogate pair (a cut emoji); no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Dropped("not valid Unicode") from None


def parse_transcript(text: str, place: Place) -> list[Message]:
    """Turns of an HH-RLHF transcript; text before the first turn becomes the system turn."""
    parts = HH_TURN.split(text)
    messages: list[Message] = [{"role": "system", "content": parts[0].strip()}]
    for who, content in zip(parts[1::2], parts[2::2], strict=True):
        messages.append({"role": "user" if who == "Human" else "assistant", "content": content.strip()})
    return tidy(messages, place)


def parse_prompt(value: Any, name: str, place: Place) -> list[Message]:
    """A prompt as plain text (one user turn), as an HH transcript that awaits an answer, or as messages."""
    if not isinstance(value, str):
        return parse_messages(value, name, place, "text or a list of messages")
    if HH_START.match(value):
        return parse_transcript(await_answer(value), place)
    if not value.strip():
        raise Dropped("empty prompt")
    return [{"role": "user", "content": value}]


def await_answer(transcript: str) -> str:
    """An HH prompt without its open "Assistant:" at the end."""
    text = transcript.rstrip()
    return text.removesuffix("Assistant:").rstrip() if HH_TURN.split(text)[-2:] == ["Assistant", ""] else text


def system_turn(row: Row) -> list[Message]:
    value = row.get("system")
    return [{"role": "system", "content": value}] if isinstance(value, str) and value.strip() else []


def answer_turn(value: Any, name: str, place: Place) -> list[Message]:
    if not isinstance(value, str):
        return parse_messages(value, name, place, "text or a list of messages")
    if not value.strip():
        raise Dropped("empty response")
    return [{"role": "assistant", "content": value}]


def is_history(value: Any) -> bool:
    """Pairs of texts, question and answer."""
    return isinstance(value, list | tuple) and all(
        isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in value
    )


def parse_instruction(row: Row, name: str, place: Place) -> list[Message]:
    """An instruction with its input, after the turns of its ``history`` (pairs of question and answer)."""
    prompt = parse_prompt(row[name], name, place)
    extra = next((n for n in ("input", "context") if row.get(n)), None)
    if extra is not None:
        more = parse_content(row[extra], extra, place)
        if more.strip():
            prompt[-1] = {"role": "user", "content": f"{prompt[-1]['content']}\n\n{more}"}
    before: list[Message] = []
    if not is_history(row.get("history") or []):
        raise place.error("history must be a list of pairs of texts, question and answer")
    for turn in row.get("history") or []:
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [*before, *prompt]


def starts_with_user(messages: Sequence[Message]) -> None:
    first = next((m["role"] for m in messages if m["role"] != "system"), None)
    if first != "user":
        raise Dropped("does not begin with a user turn")


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number", str: "text"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
