"""A live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ppomax.train.progress import ASCII, BLOCKS, ProgressLine, sparkline


class Terminal(io.TextIOWrapper):
    """What a run believes to be a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        """All that was ever written, without colours and movements."""
        written = self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)

    def frame(self, name: str = "ppo") -> str:
        """The last drawing of the panel."""
        return self.text()[self.text().rindex(name) :]


@pytest.fixture
def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """To be called in the test: pytest sets stderr anew after the fixtures."""

    def make(encoding: str = "utf-8", columns: int = 110) -> Terminal:
        made = Terminal(encoding)
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        return made

    return make


def test_sparkline_by_hand() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == BLOCKS
    assert sparkline([3, 3], 8) == "▅▅"
    assert sparkline([0, 0, 10, 10, 5, 6], 3) == "▁█▅", "means of two: 0, 10, 5.5"
    assert sparkline([0, math.nan, 1], 3) == "▁ █"
    assert sparkline([math.nan, 2.0, math.inf, 2.0], 2) == "▅▅"
    assert sparkline([math.nan], 4) == " "
    assert sparkline([0, 1], 4, ASCII) == "_#"
    assert len(sparkline([float(i % 7) for i in range(10_000)], 40)) == 40


def test_a_panel_on_a_terminal(open_terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = open_terminal()
    alarms = tmp_path / "alarms.jsonl"
    with ProgressLine("ppo", 9, sparklines=("reward", "kl", "win_rate"), alarms=alarms) as bar:
        for i in range(8):
            if i == 3:
                row = {"iteration": 2, "level": "warning", "message": "KL grows \x1b]0;evil\x07[red]fast[/red]"}
                alarms.write_text(json.dumps(row) + "\n")
            bar.step(phase="policy", reward=float(i), kl=0.5, speed=1.25)
    lines = [line.rstrip() for line in terminal.frame().splitlines()]
    assert lines[0].startswith("ppo ━") and "8/9" in lines[0] and lines[0].endswith("phase policy  speed 1.25")
    assert lines[1] == f"reward  {BLOCKS}  7    from 0"
    assert lines[2] == "kl      ▅▅▅▅▅▅▅▅  0.5  from 0.5"
    assert lines[3] == "warning, iteration 2: KL grows [U+001B]]0;evil[U+0007][red]fast[/red]"
    assert "win_rate" not in terminal.text()


def test_win_rate_appears_once_it_is_judged_and_a_long_alarm_is_cut(
    open_terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    terminal = open_terminal()
    alarms = tmp_path / "alarms.jsonl"
    alarms.write_text('{"iteration": 2, "level": "collapse", "message": "' + "x" * 900 + '"}\n')
    with ProgressLine("ppo", 9, sparklines=("reward", "win_rate"), alarms=alarms) as bar:
        bar.step(reward=1.0)
        bar.step(reward=2.0, win_rate=0.625)
        alarms.write_text("no line of ours")
        bar.step(reward=3.0, win_rate=0.625)
    frame = " ".join(terminal.frame().split())
    assert re.search(r"win_rate +▅▅ +0\.625 +from 0\.625", frame)
    assert "collapse, iteration 2: xxx" in frame and "more characters]" in frame, "the last one that could be read"


def test_a_terminal_without_blocks(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("ascii")
    with ProgressLine("ppo", 3, sparklines=("reward",)) as bar:
        bar.step(reward=0.0)
        bar.step(reward=1.0)
    assert re.search(r"reward +_# +1", terminal.frame())


def test_narrow_terminal_keeps_each_row_on_its_line(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal(columns=60)
    with ProgressLine("ppo", 300, sparklines=("perplexity",)) as bar:
        for i in range(200):
            bar.step(perplexity=100.0 + i)
    row = next(line for line in terminal.frame().splitlines() if line.startswith("perplexity"))
    assert len(row.rstrip()) <= 60 and row.split()[-2:] == ["from", "100"] and row.split()[2] == "299"


def test_plain_lines_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with ProgressLine("ppo", 2, sparklines=("reward",), alarms=tmp_path / "none") as bar:
        bar.step(phase="policy", reward=1.0)
        bar.step(phase="policy", reward=2.5, kl=0.1)
    assert capsys.readouterr().err == "ppo 2/2  phase policy  reward 2.5  kl 0.1  0s left\n"
    with ProgressLine("ppo", 1, quiet=True) as bar:
        bar.step(reward=1.0)
    assert capsys.readouterr().err == ""
