"""What a model wrote, made safe for a terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

_KEPT = "\n\t"
_REORDERS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """``text`` without control characters (so no escape sequence works) and marks that reorder text on the screen.

    A model's output is untrusted: it could move the cursor, rename the window or hide what it says.
    """
    return "".join(c for c in text if c in _KEPT or (unicodedata.category(c) != "Cc" and c not in _REORDERS))


class Streamed:
    """Token ids to text that grows at its end only: a character whose bytes are not complete yet is held back."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""
        """everything shown so far"""

    def add(self, token: int) -> str:
        """The text that this token adds, safe to print."""
        self._ids.append(token)
        decoded = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = visible(decoded)
        if whole.endswith("\ufffd") or not whole.startswith(self.text):
            return ""
        new = whole[len(self.text) :]
        self.text = whole
        return new
