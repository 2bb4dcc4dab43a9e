"""What models write is made safe for a terminal, and streamed without broken characters."""

from __future__ import annotations

from typing import Any

import pytest

from ppomax.commands.terminal import Streamed, visible
from ppomax.models.fresh import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["some text"], 263)  # every byte its own token


def test_control_characters_go_and_text_stays() -> None:
    assert visible("a\x1b[31mb\x07\x00\r\x9bc\u202ed\u2066e") == "a[31mbcde"
    kept = "line\n\ttab  中文 👩‍👩‍👧 é \u200d [bold]x[/bold]"
    assert visible(kept) == kept


@pytest.mark.parametrize("text", ["plain words", "中文 👩‍👩‍👧‍👦 é", " leading\n\n", "\x1b[2Jclear"])
def test_stream_grows_to_the_whole_text(tokenizer: Any, text: str) -> None:
    shown = Streamed(tokenizer)
    pieces = [shown.add(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) == shown.text == visible(text)
    assert not any("\ufffd" in piece for piece in pieces)
