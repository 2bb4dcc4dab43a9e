"""Text that models, data and names hold, made fit to be shown: nothing in it may act on what stands around it."""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)
"""control characters but tab and line feed, marks that turn the direction of writing, spaces and hyphens of no width, tags and
variation selectors that can carry a hidden message, half surrogates"""
MOST_MARKS = 6
"""marks on one letter (an accent is one); more of them climb over the lines above and below"""
_MAYBE_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{MOST_MARKS + 1},}}")
"""a mark is no letter, no digit and no space; so are quotes and symbols, which `_mark_runs` tells apart"""
_LETTERS = re.compile(r"[^\W\d_]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_OTHERS_WITH_HAN = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uac00-\ud7af]")
"""kana and hangul: Japanese and Korean"""


def visible(text: str) -> str:
    """Characters that act and are not seen are written out: U+202E, which reverses what follows, becomes ``[U+202E]``.

    Of a pile of marks on one letter `MOST_MARKS` stay, and the rest are counted.
    """
    plain = _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))
    return without_piles(plain)


def without_piles(text: str) -> str:
    """At most `MOST_MARKS` combining marks in a row."""
    return _MAYBE_MARKS.sub(lambda found: _mark_runs(found[0]), text)


def _mark_runs(text: str) -> str:
    kept: list[str] = []
    marks = 0
    for letter in f"{text}\0":  # the end ends a run
        if unicodedata.category(letter).startswith("M"):
            marks += 1
            if marks > MOST_MARKS:
                continue
        else:
            if marks > MOST_MARKS:
                kept.append(f"[{marks - MOST_MARKS} more marks]")
            marks = 0
        kept.append(letter)
    return "".join(kept[:-1])


def language(text: str) -> str:
    """``zh`` for text of mostly Chinese characters, by its script; else nothing, since Latin letters tell no language."""
    han = len(_HAN.findall(text))
    return "zh" if han and 2 * han >= len(_LETTERS.findall(text)) and not _OTHERS_WITH_HAN.search(text) else ""


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters; what was cut is counted."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} [… {len(text) - limit} more characters]"


def label(name: str) -> str:
    """A name for a figure: no mathematics between dollars, and no leading underscore, which would hide it."""
    plain = visible(name).replace("\n", " ").replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
