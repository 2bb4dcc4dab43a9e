"""Helpful or harmless, English or Chinese: how section 6 of the paper takes prompts apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppomax.data.records import Message
from ppomax.errors import UserError

HARMLESS = "(?<![a-z])(?:harm(?!on)|red.?team|(?:un)?safe|toxic|cvalues)|无害|安全"
"""categories and sources that count as harmless, such as harmless-base, hh-red-team, safety"""
HELPFUL = "(?<![a-z])help|有用|有帮助"
"""those that say the opposite"""


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
    """By the prompt's `category` column or, where that says neither, its source: "harmless" if it matches the pattern.

    What is said nowhere is "helpful".
    """
    for named in (str(metadata.get("category") or ""), source):
        if re.search(harmless, named, re.IGNORECASE):
            return "harmless"
        if re.search(HELPFUL, named, re.IGNORECASE):
            return "helpful"
    return "helpful"


def label(
    prompt: Sequence[Message] | Sequence[Mapping[str, Any]], source: str, metadata: Mapping[str, Any],
    harmless: str = HARMLESS,
) -> str:  # fmt: skip
    """Category and language, such as "harmless zh"."""
    return f"{prompt_category(source, metadata, harmless)} {prompt_language(prompt)}"
