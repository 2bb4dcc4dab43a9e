"""Files that are being written: half lines, foreign lines, replaced, cut and vanished ones, and long ones."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from view_tools import line, make_run, write

from ppomax.view import files
from ppomax.view.files import Columns, last_rows, number, parse
from ppomax.view.live import LiveRun
from ppomax.view.runs import find_runs


def read(columns: Columns) -> tuple[dict[str, list[float]], bool]:
    found, sampled = columns.read()
    return {name: column.tolist() for name, column in found.items()}, sampled


def test_numbers() -> None:
    assert number(2) == 2.0 and number(-0.5) == -0.5
    assert all(math.isnan(number(v)) for v in (None, "3", True, [1], math.nan, math.inf, 10**400))
    assert parse(b'{"a": 1}') == {"a": 1}
    for bad in (b"[1]", b"{", b"3", b"\xff\xfe", b"[" * 100_000):
        assert parse(bad) is None


def test_a_file_that_grows_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    columns = Columns(file, ["a", "b"])
    assert read(columns) == ({"a": [], "b": []}, False)
    file.write_text('{"a": 1}\n{"a": 2, "b": nu')
    found, sampled = read(columns)
    assert found["a"] == [1.0] and math.isnan(found["b"][0]) and not sampled
    with file.open("a") as f:
        f.write('ll}\n{"a": 3, "b": 5}\nnonsense\n[1]\n\n{"a": 4')
    found, _ = read(columns)
    assert found["a"] == [1.0, 2.0, 3.0] and found["b"][2] == 5.0 and columns.unreadable == 2
    assert read(columns)[0]["a"] == [1.0, 2.0, 3.0]
    assert [row["a"] for row in last_rows(file)] == [1, 2, 3]


def test_replaced_cut_and_vanished(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    write(file, [{"a": i} for i in range(5)])
    columns = Columns(file, ["a"])
    assert read(columns)[0]["a"] == [0, 1, 2, 3, 4]
    write(tmp_path / "new", [{"a": i} for i in range(9, 15)])  # longer than before, as after a resumed run went on
    (tmp_path / "new").replace(file)
    assert read(columns)[0]["a"] == [9, 10, 11, 12, 13, 14]
    file.write_text('{"a": 7}\n')
    assert read(columns)[0]["a"] == [7]
    file.unlink()
    assert read(columns)[0]["a"] == [7] and last_rows(file) == []


def test_last_rows_of_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    write(file, [{"a": i} for i in range(10_000)])
    rows = last_rows(file, 100)
    assert rows[-1] == {"a": 9999} and len(rows) < 10 and rows[0]["a"] == 10_000 - len(rows)
    file.write_text("x" * 5000)
    assert last_rows(file, 100) == []


def test_a_line_without_an_end_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AT_ONCE", 5000)
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    file = tmp_path / "m.jsonl"
    file.write_text('{"a": 1}\n' + "x" * 50_000 + '\n{"a": 2}\n')
    columns = Columns(file, ["a"])
    end = time.monotonic() + 20
    while read(columns)[1] and time.monotonic() < end:
        time.sleep(0.01)
    assert read(columns) == ({"a": [1.0, 2.0]}, False) and columns.unreadable >= 1


def long_run(folder: Path, count: int = 100_000) -> Path:
    """A run with as many lines of the length that PPO writes, one spike and one dip among them."""
    run = make_run(folder, iterations=3)
    about = {f"other/number_{k}": 0.12345678901234567 * k for k in range(30)}
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as f:
        ending = json.dumps(line(0, **about)).partition('"reward/mean": 0.0')[2]
        for i in range(count):
            reward = {61_803: 50.0, 31_415: -50.0}.get(i, i / count)
            f.write(f'{{"iteration": {i}, "phase": "policy", "update": {i}, "reward/mean": {reward}{ending}\n')
    return run


def test_a_hundred_thousand_lines(tmp_path: Path) -> None:
    run = long_run(tmp_path / "run")
    size = (run / "metrics.jsonl").stat().st_size
    assert size > 100_000_000
    (found,) = find_runs(tmp_path)
    live = LiveRun(found)
    begun = time.thread_time()
    first = live.look()
    seconds = time.thread_time() - begun
    assert seconds < 1.0, f"{seconds:.2f} s of processor time before anything can be shown"
    assert first["sampled"] and first["head"]["step"] == 99_999
    panel = next(p for p in first["panels"] if p["metric"] == "reward/mean")
    assert panel["x"][0] == 0 and panel["x"][-1] == 99_999 and len(panel["x"]) >= 400
    assert panel["y"][-1] == pytest.approx(1.0, abs=1e-4)
    end = time.monotonic() + 300
    while (shown := live.look())["sampled"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    panel = next(p for p in shown["panels"] if p["metric"] == "reward/mean")
    assert max(panel["y"]) == 50.0 and min(panel["y"]) == -50.0, "spikes stay"
    assert panel["x"][panel["y"].index(50.0)] == 61_803
    assert len(panel["x"]) <= 602 and len(panel["mean"][0]) <= 300
    assert len(json.dumps(shown)) < 300_000
    begun = time.thread_time()
    again = live.look()
    assert time.thread_time() - begun < 0.2 and again["version"] == shown["version"]
    shutil.rmtree(run)
    assert live.look()["head"]["step"] is None
