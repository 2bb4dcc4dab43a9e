"""Files of a run that hold something else than a run writes: left out, told of, or one line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ppomax.errors import UserError
from ppomax.report.frame import Figures, Picture
from ppomax.report.page import run_page

sys.path.insert(0, str(Path(__file__).parent))
from test_page import ppo_run, write

EVERYWHERE = {
    "metrics.jsonl": ["{}", '{"iteration": 9, "update": "9"}', "[" * 100_000],
    "samples.jsonl": ["{}", '{"iteration": 0, "update": 0, "prompt": "q", "response": "r"}',
                      '{"iteration": 0, "update": 0, "prompt": [{"role": "user", "content": null}], "response": "r"}'],
    "evaluations.jsonl": ["{}", '{"iteration": 3, "update": 12, "eval/win_rate": null, "eval/win_rate_se": null, "eval/prompts": 9}'],
    "alarms.jsonl": ["{}", '{"iteration": null, "level": null}'],
}  # fmt: skip


def test_records_that_lack_what_makes_them_one_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ppo_run(tmp_path / "run", iterations=4)
    page = run_page(run)
    for file, lines in EVERYWHERE.items():
        with (run / file).open("a") as out:
            out.writelines(line + "\n" for line in lines)
    assert run_page(run) == page
    told = capsys.readouterr().err
    for file, lines in EVERYWHERE.items():
        assert re.search(rf"{file}:\d+: no record; {len(lines)} such lines are left out", told)


def test_numbers_that_no_figure_can_show_are_missing_ones(tmp_path: Path) -> None:
    run = ppo_run(tmp_path / "run", iterations=4)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wild = {"reward/mean": 10**400, "loss/policy": 1.7e308, "kl/ref": "0.5", "time/total": "x"}
    write(run / "metrics.jsonl", [{**row, **wild} for row in rows])
    given = run_page(run)
    write(run / "metrics.jsonl", [{**row, **dict.fromkeys(wild)} for row in rows])
    assert given == run_page(run)
    assert "No iteration of the policy has a reward (3 are on record)." in given


@pytest.mark.parametrize("file", ["evaluation.json", "result.json", "config.yaml"])
def test_files_that_cannot_be_read_are_one_line(tmp_path: Path, file: str) -> None:
    run = ppo_run(tmp_path / "run", iterations=4)
    for data in (b"a: [1\n b: :", b"\xe9"):
        (run / file).write_bytes(data)
        with pytest.raises(UserError, match=rf"{file}: (no JSON object|cannot be read as settings)") as caught:
            run_page(run)
        assert "\n" not in str(caught.value)


def test_runs_of_like_names_keep_their_figures_apart(tmp_path: Path) -> None:
    def draw(files: Any) -> None:
        for file in files:
            file.write_text("")

    taken: set[str] = set()
    pictures = [Picture(f"time_{name}", "about", draw) for name in ("run 1", "run+1", "RUN_1")]
    saved = [f.name for f in Figures("time", "Time", pictures).save(tmp_path, taken) if f.suffix == ".svg"]
    saved += [f.name for f in Figures("time_run 1", "Time", [], whole=draw).save(tmp_path, taken) if f.suffix == ".svg"]
    assert saved == ["time_run_1.svg", "time_run_1_2.svg", "time_RUN_1_3.svg", "time_run_1_4.svg"]
    assert len(list(tmp_path.iterdir())) == 8
