"""The tables of speed.md from lines of JSON, and that the scripts' lines can be read by themselves."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import contest
import ppo_iteration
import roofline
import speed_page

MACHINE = {"processor": "Some CPU", "cores": 2, "threads": 2, "load": 0.25}
ORIGIN: dict[str, Any] = {"kind": "summary", "machine": MACHINE, "settings": {"iterations": 5, "warmup": 2}}


def row(seconds: float, peak: float, **more: Any) -> dict[str, Any]:
    times = dict.fromkeys([*ppo_iteration.PHASES, "total"], seconds)
    return {
        "seconds": times, "cpu_seconds": {k: 2 * v for k, v in times.items()}, "fastest": seconds / 2,
        "slowest": 2 * seconds, "units_per_s": 8 / seconds, "peak_mib": peak, "updates": 4, **more,
    }  # fmt: skip


def ppo(**more: Any) -> dict[str, Any]:
    summary = {
        "ours_bf16": row(1.0, 60.0, versions={"torch": "2.13.0"}), "ours_float32": row(2.0, 90.0, versions={"torch": "2.13.0"}),
        "trl_float32": row(4.0, 120.0, versions={"torch": "2.13.0", "trl": "1.12.0"}),
    }  # fmt: skip
    ratios = {
        f"{ours} / trl_float32": {
            "ratio": 2.5 / n,
            "lowest": 2.25 / n,
            "highest": 2.75 / n,
            "cpu_seconds": {"total": 2.6 / n},
        }
        for n, ours in ((1, "ours_bf16"), (2, "ours_float32"))
    }
    return {
        **ORIGIN, "benchmark": "ppo_iteration", "size": "27m", "lengths": "fixed", "parameters": 27.4e6, "summary": summary,
        "ratios": ratios, **more,
    }  # fmt: skip


def test_what_was_tried_with_a_setting_is_a_case_of_its_own() -> None:
    tried = ppo(settings={**ORIGIN["settings"], "set": ["micro_batch_tokens=256"]})
    text = speed_page.page([ppo(), tried])
    assert "fixed lengths\n" in text
    assert "fixed lengths, micro_batch_tokens=256\n" in text


def test_what_is_wanted_stands_beside_what_was_got() -> None:
    older = ppo()
    older["summary"] = {"ours_bf16": row(77.0, 1.0)}
    text = speed_page.page([older | {"ratios": {}}, {"kind": "iteration", "benchmark": "ppo_iteration"}, ppo()])
    assert "77.00" not in text  # an older line of the same case
    assert "### PPO, 27m (27.4M parameters), fixed lengths\n" in text
    assert (
        "Some CPU, 2 threads of 2 cores, load 0.2; 5 rounds after 2; ours_bf16 and ours_float32: torch 2.13.0; " in text
    )
    assert "trl_float32: torch 2.13.0, trl 1.12.0." in text
    assert "| ours_bf16 | 1.00 | 1.00 | 1.00 | 1.00 | 0.50 to 2.00 | 2.00 | 8.0 | 60 |" in text
    assert "| ours_bf16 over trl_float32 | 3 | 2.50 | no | 2.25 to 2.75 | 2.60 | 0.50 | at most 0.6 | yes |" in text
    assert "| ours_float32 over trl_float32 |  | 1.25 |  | 1.12 to 1.38 | 1.30 | 0.75 |  |  |" in text


def test_other_numbers_of_updates_are_told() -> None:
    record = ppo()
    record["summary"]["trl_float32"]["updates"] = 3
    assert "NOT COMPARABLE" in speed_page.page([record])
    assert "NOT COMPARABLE" not in speed_page.page([ppo()])


def test_the_reward_model_is_held_against_the_faster_of_trls() -> None:
    summary = {"ours_bf16": row(1.0, 60.0), "trl_float32": row(4.0, 99.0), "trl_bf16_flag": row(2.0, 99.0)}
    ratios = {
        f"ours_bf16 / {name}": {"ratio": n, "lowest": n, "highest": n, "cpu_seconds": n}
        for name, n in (("trl_float32", 4.0), ("trl_bf16_flag", 2.0))
    }
    text = speed_page.page([{
        **ORIGIN, "benchmark": "reward_model", "parameters": 5.8e6, "pairs": 32, "summary": summary, "ratios": ratios,
    }])  # fmt: skip
    assert "| ours_bf16 over trl_float32 |  | 4.00 |  |" in text
    assert "| ours_bf16 over trl_bf16_flag | 2 | 2.00 | yes |" in text


def test_shares_of_the_matrix_rate_by_hand() -> None:
    seconds = {"sample": 1.0, "score": 2.0, "update": 3.0}
    ideal = {"sample": 0.25, "score": 1.0, "update": 1.25}
    groups = {
        p: {"matrix products": 0.5, "attention": 0.25, "elementwise": 0.1, "copies and casts": 0.05} for p in seconds
    }
    text = speed_page.page([{
        **ORIGIN, "benchmark": "roofline", "versions": {"torch": "2.13.0"}, "size": "27m", "precision": "bf16",
        "seconds": seconds, "at_100": ideal, "groups": groups,
    }])  # fmt: skip
    assert "| sample | 1.00 | 0.25 |  | 0.25 |  | 50% | 25% | 15% |" in text
    assert "| score | 2.00 | 1.00 | 0.5 | 0.50 | yes | 50% | 25% | 15% |" in text
    assert "| update | 3.00 | 1.25 | 0.5 | 0.42 | no | 50% | 25% | 15% |" in text
    assert "| whole | 6.00 | 2.50 |  | 0.42 |" in text


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing measured yet"):
        speed_page.main([str(tmp_path / "none.jsonl")])


def test_lines_of_a_run_can_be_read_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.jsonl"
    small = ["--threads", "1", "--batch", "4", "--prompt", "6", "--response", "4", "--iterations", "1", "--warmup", "1"]
    small += ["--sizes", "tiny", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["ppo_iteration.py", *small, "--lengths", "fixed", "--contenders", "ours_bf16"])
    ppo_iteration.main()
    monkeypatch.setattr(sys, "argv", ["roofline.py", *small, "--precisions", "bf16", "--seconds", "0.003"])
    monkeypatch.setattr(roofline.torch, "set_num_threads", lambda n: None)  # of this process
    roofline.main()
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["benchmark"], r["kind"]) for r in found] == [
        ("ppo_iteration", "iteration"), ("ppo_iteration", "iteration"), ("ppo_iteration", "summary"), ("roofline", "summary"),
    ]  # fmt: skip
    for record in found:
        assert record["machine"]["processor"] and record["machine"]["threads"] == 1
        assert record["settings"]["response"] == 4 and record["settings"]["iterations"] == 1
        ran = record["summary"]["ours_bf16"] if "summary" in record else record
        assert {"torch", "transformers", "python"} <= ran["versions"].keys()
    capsys.readouterr()
    speed_page.main([str(out)])
    text = capsys.readouterr().out
    assert "### PPO, tiny" in text and "### Share of the matrix rate, tiny, bf16" in text


def test_settings_hold_no_places() -> None:
    options = argparse.Namespace(
        threads=1, trl="/a/python", out=Path("/a/b"), quick=False, batch=4, data=Path("/x/pairs.gz")
    )
    assert contest.about("b", options)["settings"] == {"threads": 1, "batch": 4, "data": "pairs.gz"}
