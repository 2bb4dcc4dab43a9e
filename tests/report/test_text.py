"""Text of models and data: what acts without being seen is written out, and what people write is left as it is."""

from __future__ import annotations

import unicodedata

import pytest

from ppomax.report.text import MOST_MARKS, language, shortened, visible, without_piles


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb\u2066c", "a[U+202E]b[U+2066]c"),
        ("pass\u200bword\u2060s\u00ad!", "pass[U+200B]word[U+2060]s[U+00AD]!"),
        ("hi\U000e0068\U000e0069\U000e007f", "hi[U+E0068][U+E0069][U+E007F]"),
        ("x\U000e0100\U000e01efy", "x[U+E0100][U+E01EF]y"),
        ("\x00\x1b[31m\ud800\ufeff\u180e\u2063", "[U+0000][U+001B][31m[U+D800][U+FEFF][U+180E][U+2063]"),
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("e" + "\u0301" * 40 + "f", "e" + "\u0301" * MOST_MARKS + "[34 more marks]f"),
        ("\u0e01" + "\u0e49" * 9, "\u0e01" + "\u0e49" * MOST_MARKS + "[3 more marks]"),
        ("“" + "\u0336" * 8 + "”…", "“" + "\u0336" * MOST_MARKS + "[2 more marks]”…"),
        ("\u0301\u0489\u20e3\ufe0f\u0591\u064b\u0e31", "\u0301\u0489\u20e3\ufe0f\u0591\u064b[1 more marks]"),
    ],
)
def test_what_is_not_seen_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(visible(text)) == shown or "more marks" in shown


@pytest.mark.parametrize(
    "text",
    [
        "Việt Nam", unicodedata.normalize("NFD", "Việt Nam, ǖ ế"), "क्षत्रिय में", "เก้าอี้", "שָׁלוֹם", "مُحَمَّد", "你好，世界！！！！！！！！",
        "👩\u200d👩\u200d👧 ❤️ 1️⃣", "“”«»…—–·•°±×÷≤≥≠≈∞", "نمی\u200cخواهم", "བསྐྱོདཔ", "a" * 50,
    ],
)  # fmt: skip
def test_what_people_write_stays(text: str) -> None:
    assert visible(text) == text


def test_a_long_text_is_quick() -> None:
    piled = "e" + "\u0301" * 1_000_000
    assert len(without_piles(piled)) < 50
    assert without_piles("…" * 1_000_000) == "…" * 1_000_000


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("你好", "zh"), ("奖励模型 PPO 很好。", "zh"), ("𠮷野家", "zh"), ("hello", ""), ("", ""), ("The word 好 means good.", ""),
        ("日本語のテキスト", ""), ("漢字 한국어", ""), ("123 !?", ""),
    ],
)  # fmt: skip
def test_language_by_script(text: str, tag: str) -> None:
    assert language(text) == tag


def test_shortened() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abc def", 4) == "abc [… 3 more characters]"
