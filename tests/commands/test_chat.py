"""The chat loop with input from a pipe: turns, commands, two models, limits of the context."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppomax.cli import main
from ppomax.commands import chat as command
from ppomax.commands.chat import ChatConfig, Talker
from ppomax.errors import UserError
from ppomax.models.fresh import new_model

QUICK = ["--sampling.max-new-tokens", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    new_model(folder, ["some words to answer with"] * 5, size="1m", vocab_size=300)
    return folder


def talk(monkeypatch: pytest.MonkeyPatch, text: str, words: list[str]) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", *words])


def scripted(monkeypatch: pytest.MonkeyPatch, replies: dict[str, str]) -> list[list[dict[str, str]]]:
    """Answers by script instead of by weights; returns the histories that were answered."""
    seen: list[list[dict[str, str]]] = []

    def answer(self: Talker, text: str) -> Iterator[str]:
        self.history.append({"role": "user", "content": text})
        seen.append([dict(message) for message in self.history])
        reply = replies.get(text, f"{Path(self.name).name} heard {text}")
        yield from reply
        self.history.append({"role": "assistant", "content": reply})

    monkeypatch.setattr(Talker, "answer", answer)
    return seen


def test_real_answers(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(monkeypatch, "hello\nhello\n/reset\nhello\n", [str(model), *QUICK]) == 0
    out = capsys.readouterr().out
    answers = [part.split("\n", 1)[1] for part in out.split("> hello")[1:]]
    assert len(answers) == 3
    assert answers[2].split("(new")[0].strip() == answers[0].split("(new")[0].strip()  # same turn, same seed


def test_turns_accumulate_until_reset(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, {"a": "A", "b": "B"})
    text = "a\n\nb\n/reset\na\n/system Be kind. Always.\nb\n/nonsense\n/quit\nnever\n"
    assert talk(monkeypatch, text, [str(model), "--system", "S", *QUICK]) == 0
    roles = [[(m["role"], m["content"]) for m in history] for history in seen]
    assert roles == [
        [("system", "S"), ("user", "a")],
        [("system", "S"), ("user", "a"), ("assistant", "A"), ("user", "b")],
        [("system", "S"), ("user", "a")],
        [("system", "Be kind. Always."), ("user", "b")],
    ]


def test_two_models_answer_the_same_turn(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = scripted(monkeypatch, {})
    assert talk(monkeypatch, "hi\n", [str(model), "--against", str(model), *QUICK]) == 0
    out = capsys.readouterr().out
    assert len(seen) == 2 and out.count("base heard hi") == 2


def test_two_columns_on_a_terminal(model: Path) -> None:
    from rich.console import Console

    class Fake:
        def __init__(self, name: str, pieces: list[str]) -> None:
            self.name, self.pieces = name, pieces

        def answer(self, text: str) -> Iterator[str]:
            yield from self.pieces

    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    talkers: Any = [Fake("left", ["le", "ft [b]"]), Fake("right", ["right only"])]
    command._say_both(talkers, "x", console)
    last = console.file.getvalue().rstrip().splitlines()[-3:]  # type: ignore[attr-defined]
    assert any("left [b]" in line and "right only" in line for line in last)  # markup is shown, not obeyed


def test_models_cannot_control_the_terminal(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ppomax.data.chat import ChatFormat

    talker = Talker(str(model), ChatConfig(model=str(model), device="cpu"))
    ids = ChatFormat(talker.format.tokenizer).tokenizer("\x1b]0;evil\x07ok", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(talker.engine, "stream", lambda prompt, seed: iter(ids))
    assert "".join(talker.answer("x")) == "]0;evilok"


def test_the_oldest_turns_are_forgotten_where_the_context_ends(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "context_of", lambda model: 60)
    talker = Talker(str(model), ChatConfig(model=str(model), device="cpu", system="S"))
    assert talker.new_tokens == 30
    for turn in range(6):
        list(talker.answer(f"turn {turn}"))
        assert talker.history[0] == {"role": "system", "content": "S"}
        assert talker.history[-2] == {"role": "user", "content": f"turn {turn}"}
    assert len(talker.history) < 13
    with pytest.raises(UserError, match="the context holds 60"):
        list(talker.answer("word " * 60))
    assert talker.history[-1]["role"] != "user"  # the turn that did not fit is gone, the dialogue can go on
    list(talker.answer("short"))


def test_mistakes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        ([], "missing model"),
        ([str(model), str(model)], "a second model is --against"),
        ([str(tmp_path)], "not a model directory"),
        ([str(model), "--agains", "x"], "did you mean --against"),
    ):
        assert main(["chat", *words]) == 2
        assert expected in capsys.readouterr().err
