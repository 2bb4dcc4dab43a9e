"""The four kinds of record that every reader produces and every stage consumes.

A message is a plain ``{"role": ..., "content": ...}`` dict, the form that chat templates take. Records are immutable and
know where they came from (``origin`` is ``file:line``), so that any later complaint can name the place.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

_SPLIT_NAME = re.compile(r"(?:train|test|valid(?:ation)?|val|dev|eval)(?:[-_.]\d.*)?")
"""what a file may be named by and say nothing of what is in it"""


class Message(TypedDict):
    """One turn. ``role`` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str
    weight: NotRequired[int]
    """0, while a record is read: a turn that a dialogue is not trained on. Messages of records do not have it."""


def split_key(messages: Sequence[Message], fallback: str = "") -> str:
    """Normalised first user turn: records with the same key always fall on the same side of a split.

    The first turn alone decides, since several records may continue one conversation.
    """
    text = next((m["content"] for m in messages if m["role"] == "user"), None)
    if text is None:
        text = messages[0]["content"] if messages else fallback
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def unit_hash(key: str, seed: int) -> float:
    """Deterministic position of ``key`` in [0, 1), the same on every machine and Python version."""
    digest = hashlib.blake2b(f"{seed}\x00{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class Dialogue:
    """A demonstration: messages that alternate user / assistant (an optional system turn first)."""

    messages: tuple[Message, ...]
    source: str = "memory"
    origin: str = "memory"
    untrained: tuple[int, ...] = ()
    """indices of assistant turns that are context alone (``weight: 0`` in OpenAI's layout)"""

    @property
    def key(self) -> str:
        return split_key(self.messages)


@dataclass(frozen=True)
class PreferencePair:
    """Two continuations of one prompt, the first preferred.

    ``margin`` is an optional strength of preference >= 0 (section 4 of the reward-model loss).
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: str = "memory"
    origin: str = "memory"
    margin: float | None = None

    @property
    def key(self) -> str:
        return split_key(self.prompt)


@dataclass(frozen=True)
class Prompt:
    """A dialogue so far, ending with the turn to be answered. ``metadata`` reaches reward functions."""

    messages: tuple[Message, ...]
    source: str = "memory"
    origin: str = "memory"
    metadata: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        return split_key(self.messages)


@dataclass(frozen=True)
class Text:
    """Plain text for language modelling: every token is trained on."""

    text: str
    source: str = "memory"
    origin: str = "memory"

    @property
    def key(self) -> str:
        return split_key((), fallback=self.text)


Record = Dialogue | PreferencePair | Prompt | Text


def telling_name(file: Path, stem: str) -> str:
    """``stem``, and where it is no more than a split's name, its folder before it: harmless-base/train."""
    return f"{file.absolute().parent.name}/{stem}" if _SPLIT_NAME.fullmatch(stem) else stem


def groups_of(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Names under which each record is counted: its file, and file/source where a file has several sources.

    Records from memory have their source alone. Two files may name the same source (one data set in two languages).
    """
    files = [telling_name(p, p.name.split(".")[0]) for p in (Path(r.origin.rpartition(":")[0]) for r in records)]
    sources: dict[str, set[str]] = {}
    for file, record in zip(files, records, strict=True):
        sources.setdefault(file, set()).add(record.source)
    return [
        (r.source,) if not file else (file, f"{file}/{r.source}") if len(sources[file]) > 1 else (file,)
        for file, r in zip(files, records, strict=True)
    ]
