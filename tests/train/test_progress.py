"""A live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import json
import math
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppomax.train.progress import ASCII, BLOCKS, ProgressLine, course, sparkline


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
    with ProgressLine("ppo", 9, sparklines={"reward": [], "kl": [], "win_rate": []}, alarms=alarms) as bar:
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
    with ProgressLine("ppo", 9, sparklines={"reward": [], "win_rate": []}, alarms=alarms) as bar:
        bar.step(reward=1.0)
        bar.step(reward=2.0, win_rate=0.625)
        alarms.write_text("no line of ours")
        bar.step(reward=3.0, win_rate=0.625)
    frame = " ".join(terminal.frame().split())
    assert re.search(r"win_rate +▅▅ +0\.625 +from 0\.625", frame)
    assert "collapse, iteration 2: xxx" in frame and "more characters]" in frame, "the last one that could be read"


def test_a_terminal_without_blocks(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal("ascii")
    with ProgressLine("ppo", 3, sparklines={"reward": []}) as bar:
        bar.step(reward=0.0)
        bar.step(reward=1.0)
    assert re.search(r"reward +_# +1", terminal.frame())


def test_narrow_terminal_keeps_each_row_on_its_line(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal(columns=60)
    with ProgressLine("ppo", 300, sparklines={"perplexity": []}) as bar:
        for i in range(200):
            bar.step(perplexity=100.0 + i)
    row = next(line for line in terminal.frame().splitlines() if line.startswith("perplexity"))
    assert len(row.rstrip()) <= 60 and row.split()[-2:] == ["from", "100"] and row.split()[2] == "299"


def test_plain_lines_elsewhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with ProgressLine("ppo", 2, sparklines={"reward": []}, alarms=tmp_path / "none") as bar:
        bar.step(phase="policy", reward=1.0)
        bar.step(phase="policy", reward=2.5, kl=0.1)
    assert capsys.readouterr().err == "ppo 2/2  phase policy  reward 2.5  kl 0.1  0s left\n"
    with ProgressLine("ppo", 1, quiet=True) as bar:
        bar.step(reward=1.0)
    assert capsys.readouterr().err == ""


def test_course_of_earlier_lives() -> None:
    rows = [{"a": 1}, {"b": 5.0}, {"a": None, "b": 6}, {"a": 3.0, "b": 7}]
    assert course(rows, "a") == [1.0, 1.0, 1.0, 3.0], "evaluations are not in every line"
    assert course(rows, "b") == [5.0, 6.0, 7.0] and course(rows, "c") == course([], "a") == []


def test_a_resumed_run_shows_its_whole_course(open_terminal: Callable[..., Terminal]) -> None:
    terminal = open_terminal()
    with ProgressLine("ppo", 9, done=4, sparklines={"reward": [0.0, 1.0, 2.0, 3.0], "win_rate": []}) as bar:
        assert re.search(r"reward +▁▃▆█ +3 +from 0", terminal.frame()), "before its first step"
        for i in range(4, 8):
            bar.step(reward=float(i))
    assert f"reward  {BLOCKS}  7  from 0" in terminal.frame() and "8/9" in terminal.frame()


IN_A_TERMINAL = """
import json, sys
from pathlib import Path
from ppomax.train.progress import ProgressLine
alarms = Path(sys.argv[1])
with ProgressLine("sft", 40, sparklines={"loss": [], "held_out_loss": []}, alarms=alarms) as bar:
    for i in range(40):
        if i == 20:
            alarms.write_text(json.dumps({"iteration": 19, "level": "warning", "message": "slow"}) + "\\n")
            print("a line of the run", file=sys.stderr, flush=True)
        bar.step(loss=4.0 - i / 10, perplexity=2.5)
"""


def screen(written: str, columns: int) -> list[str]:
    """What a terminal of ``columns`` shows in the end, line by line; it knows only the commands that a panel needs."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif not part.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
            assert column <= columns, "it would be broken into two"
        elif part.endswith("A"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        else:
            assert part[-1] in "mhl", part  # colours, and whether the cursor is seen
    return [line.rstrip() for line in lines]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_in_a_real_terminal(tmp_path: Path) -> None:
    """A process of its own, whose errors go to a pseudo-terminal of 90 columns: the panel is drawn in one place."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, str(tmp_path / "alarms.jsonl")], stdin=theirs, stdout=subprocess.DEVNULL,
        stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    end = time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux says so of the end
                break
            if not chunk:
                break
            written += chunk
        assert process.wait(timeout=60) == 0, written.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    lines = [line for line in screen(written.decode(), 90) if line]
    assert lines[0] == "a line of the run" and len(lines) == 4, lines
    assert lines[1].startswith("sft ━") and "40/40" in lines[1] and lines[1].endswith("perplexity 2.5")
    assert re.fullmatch(r"loss +█[▁-█]+▁ +0\.1 +from 4", lines[2]), lines
    assert lines[3] == "warning, iteration 19: slow"
