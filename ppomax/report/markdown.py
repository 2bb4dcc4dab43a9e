"""Small pieces of Markdown: tables, numbers, and text that must appear as it is."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: Any) -> str:
    """Four significant digits; an en dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def share(value: float | None) -> str:
    """0.1234 as 12.3%."""
    return "–" if value is None else f"{value:.1%}"


def estimate(rate: Mapping[str, float]) -> str:
    """A share {value, low, high} with its interval."""
    return f"{rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def accuracy_cell(cell: Mapping[str, Any] | None) -> str:
    """An accuracy {accuracy, interval} of a reward model's evaluation."""
    if not cell or cell["accuracy"] is None:
        return "–"
    low, high = cell["interval"]
    return f"{cell['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown table; cells must not hold line breaks or bare pipes."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def verbatim(text: str, limit: int = 700) -> str:
    """Text of a model or of data for a table cell: nothing in it acts as Markdown or HTML; line breaks become <br>."""
    cut = text if len(text) <= limit else text[:limit].rstrip() + " […]"
    escaped = html.escape(cut, quote=False)
    # a backslash before a punctuation mark is always a plain mark in Markdown; a pipe would end the cell even so
    escaped = re.sub(r"([\\`*_{}\[\]()#+\-.!~$:@^=])", r"\\\1", escaped).replace("|", "&#124;")
    return re.sub(r"\r\n|\r|\n|\u2028|\u2029|\x0b|\x0c", "<br>", escaped).strip() or "*(empty)*"
