"""Turns, medians and ratios, with contenders of a few lines; and ppomax itself as a tiny contender."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import contest
import ppo_iteration

TOY = f"""
import sys, time
sys.path.insert(0, {str(contest.HERE)!r})
from contender import Turns
import json
from pathlib import Path
turns = Turns()
spec = json.loads(Path(sys.argv[1]).read_text())
print("noise on standard output")
turns.ready(threads=spec["threads"])
while True:
    if spec["fails"]:
        raise ValueError("the toy broke")
    time.sleep(spec["seconds"])
    turns.phase("sample")
    turns.phase("update")
    turns.finish(units=6)
"""


def toy(folder: Path, name: str, seconds: float, fails: bool = False) -> contest.Contender:
    script = folder / "toy.py"
    script.write_text(TOY)
    return contest.Contender(name, sys.executable, str(script), {"seconds": seconds, "fails": fails})


def test_contenders_run_in_turning_order(tmp_path: Path) -> None:
    kept: list[dict[str, Any]] = []
    pair = [toy(tmp_path, "slow", 0.06), toy(tmp_path, "fast", 0.02)]
    records = contest.run_in_turns(pair, warmup=1, iterations=2, threads=1, folder=tmp_path, keep=kept.append)
    assert kept == records
    assert [(r["round"], r["contender"]) for r in records] == [
        (0, "slow"), (0, "fast"), (1, "fast"), (1, "slow"), (2, "slow"), (2, "fast"),
    ]  # fmt: skip
    assert [r["warmup"] for r in records] == [True, True, False, False, False, False]
    assert pair[0].facts["ready"] == {"threads": 1}
    summary = contest.summarise(records)
    assert summary["slow"]["seconds"]["total"] >= summary["slow"]["seconds"]["sample"] >= 0.06
    assert summary["slow"]["cpu_seconds"]["total"] < 0.05  # it slept
    for contender in pair:
        assert contender.process.returncode == 0


def test_a_contender_that_breaks_ends_the_contest_with_its_own_words(tmp_path: Path) -> None:
    pair = [toy(tmp_path, "whole", 0.0), toy(tmp_path, "broken", 0.0, fails=True)]
    with pytest.raises(SystemExit, match=r"(?s)broken ended with exit status 1.*the toy broke"):
        contest.run_in_turns(pair, warmup=1, iterations=1, threads=1, folder=tmp_path, keep=lambda record: None)
    assert pair[0].process.poll() == 0  # the other one is not left behind


def record(
    contender: str, round_: int, total: float, units: int = 10, warmup: bool = False, **more: Any
) -> dict[str, Any]:
    seconds = {"sample": total / 2, "total": total}
    return {
        "contender": contender, "round": round_, "warmup": warmup, "units": units, "seconds": seconds,
        "cpu_seconds": {k: 2 * v for k, v in seconds.items()}, "peak_mib": 100.0 + round_, **more,
    }  # fmt: skip


def test_medians_and_ratios_by_hand() -> None:
    records = [
        record("a", 0, 99.0, warmup=True), record("a", 1, 4.0), record("a", 2, 2.0), record("a", 3, 5.0),
        record("b", 0, 99.0, warmup=True), record("b", 1, 1.0), record("b", 2, 1.0, units=5), record("b", 3, 2.0),
    ]  # fmt: skip
    summary = contest.summarise(records)
    assert summary["a"]["seconds"] == {"sample": 2.0, "total": 4.0}
    assert (summary["a"]["fastest"], summary["a"]["slowest"], summary["a"]["iterations"]) == (2.0, 5.0, 3)
    assert summary["a"]["peak_mib"] == 103.0
    assert summary["a"]["units_per_s"] == 2.5  # of 2.5, 5, 2
    found = contest.ratio(records, "a", "b")
    # b: 10, 5, 5 units a second; a: 2.5, 5, 2
    assert found == {"ratio": 2.0, "lowest": 1.0, "highest": 4.0}
    assert contest.ratio(records, "a", "b", phase="sample", clock="cpu_seconds")["ratio"] == 2.0
    text = contest.table(summary, ("sample",))
    assert "| a | 2.000 | 4.000 | 2.5 | 8.000 | 103 | 10 |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_device_memory_counts_where_there_is_one() -> None:
    rows = [record("a", 1, 1.0, device_peak_mib=7.0), record("a", 2, 1.0, device_peak_mib=9.0)]
    assert contest.summarise(rows)["a"]["peak_mib"] == 9.0


def test_both_are_given_the_same_settings() -> None:
    start: Any = ppo_iteration.Start(Path("p"), Path("r"), Path("x"), 1)
    sizes = {"batch": 32, "minibatches": 4, "response": 64, "iterations": 9}
    ours = ppo_iteration.our_config(start, Path("out"), precision="bf16", **sizes)
    theirs = ppo_iteration.trl_args(bf16=False, **sizes)
    assert ours["rollout_batch"] == theirs["total_episodes"] / 9 == theirs["per_device_train_batch_size"] == 32
    assert ours["rollout_batch"] // ours["minibatch"] == theirs["num_mini_batches"] == 4
    assert theirs["gradient_accumulation_steps"] == 1  # more would make fewer steps of it
    assert ours["ppo_epochs"] == theirs["num_ppo_epochs"] == 1
    assert ours["sampling"]["max_new_tokens"] == theirs["response_length"] == 64
    assert ours["sampling"]["temperature"] == theirs["temperature"]
    assert (ours["kl"]["coef"], ours["kl"]["estimator"]) == (theirs["kl_coef"], theirs["kl_estimator"])
    assert (ours["gae"]["gamma"], ours["gae"]["lam"]) == (theirs["gamma"], theirs["lam"])
    assert ours["surrogate"]["clip_range"] == theirs["cliprange"]
    assert ours["critic"]["value_clip"] == theirs["cliprange_value"]
    assert ours["policy_optim"] == ours["critic_optim"]
    assert ours["policy_optim"]["lr"] == theirs["learning_rate"]
    assert ours["policy_optim"]["betas"] == [theirs["adam_beta1"], theirs["adam_beta2"]]


def test_ppomax_as_a_contender(tmp_path: Path) -> None:
    start = ppo_iteration.make_start(
        tmp_path / "start", ppo_iteration.SHAPES["tiny"], prompts=8, prompt_length=6, response_length=5, mean_length=5.0
    )  # fmt: skip
    contender = ppo_iteration.make_contender(
        "ours_bf16", start, tmp_path, None, {"kl.coef": 0.2}, batch=8, minibatches=4, response=5, iterations=4
    )
    records = contest.run_in_turns(
        [contender], warmup=1, iterations=2, threads=1, folder=tmp_path, keep=lambda record: None
    )
    config = contender.facts["ready"]["config"]
    assert (config["kl"]["coef"], config["precision"]) == (0.2, "bf16")
    assert len(records) == 3
    for found in records:
        assert found["units"] == 8 * 5  # nothing ends early
        assert found["updates"] == 4
        seconds = found["seconds"]
        assert sum(seconds[p] for p in ppo_iteration.PHASES) <= seconds["total"]
        assert min(seconds.values()) > 0
        assert found["peak_mib"] >= found["resident_mib"] > 50


def test_trl_without_its_environment_is_named(tmp_path: Path) -> None:
    start = ppo_iteration.Start(tmp_path, tmp_path, tmp_path, 1)
    with pytest.raises(SystemExit, match="trl_float32 needs --trl"):
        ppo_iteration.make_contender(
            "trl_float32", start, tmp_path, None, {}, batch=8, minibatches=4, response=5, iterations=4
        )


def test_lines_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.jsonl"
    contest.append_line(file, {"x": 1})
    contest.append_line(file, {"x": 2})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"x": 1}, {"x": 2}]
