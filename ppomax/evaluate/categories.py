"""Helpful or harmless, English or Chinese: how section 6 of the paper takes prompts apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppomax.data.records import Message
from ppomax.errors import UserError

HARMLESS = "(?<![a-z])harm"
"""categories and sources that count as harmless: a word that begins with "harm" """


def check_pattern(harmless: str) -> None:
    """UserError where the option `llm.harmless` holds no pattern."""
    try:
        re.compile(harmless)
    except re.error as error:
        raise UserError(f"llm.harmless: {harmless!r} is no pattern: {error}") from None


def prompt_language(prompt: Sequence[Message] | Sequence[Mapping[str, Any]]) -> str:
    """ "zh" where the prompt has more Chinese characters than words of other scripts, else "en"."""
    text = " ".join(m["content"] for m in prompt)
    chinese = len(re.findall(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]", text))
    return "zh" if chinese > len(re.findall(r"[^\W\d_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+", text)) else "en"


def prompt_category(source: str, metadata: Mapping[str, Any], harmless: str = HARMLESS) -> str:
    """ "harmless" where the prompt's `category` column, or without one its source, matches the pattern, else "helpful"."""
    named = str(metadata.get("category") or source)
    return "harmless" if re.search(harmless, named, re.IGNORECASE) else "helpful"


def label(
    prompt: Sequence[Message] | Sequence[Mapping[str, Any]], source: str, metadata: Mapping[str, Any],
    harmless: str = HARMLESS,
) -> str:  # fmt: skip
    """Category and language, such as "harmless zh"."""
    return f"{prompt_category(source, metadata, harmless)} {prompt_language(prompt)}"
