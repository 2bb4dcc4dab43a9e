"""Text that models, data and names hold, made fit to be shown: nothing in it may act on what stands around it."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""control characters but tab and line feed, marks that turn the direction of writing, half surrogates"""


def visible(text: str) -> str:
    """Characters that act and are not seen are written out: U+202E, which reverses what follows, becomes ``[U+202E]``."""
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters; what was cut is counted."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} [… {len(text) - limit} more characters]"


def label(name: str) -> str:
    """A name for a figure: no mathematics between dollars, and no leading underscore, which would hide it."""
    plain = visible(name).replace("\n", " ").replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
