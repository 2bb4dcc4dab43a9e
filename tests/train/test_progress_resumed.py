"""The terminal's curves of a resumed run begin where those of its first life did."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ppo_tools import byte_sum, make_policy, run

from ppomax.config import RewardConfig, SFTConfig
from ppomax.train import ppo, reward, sft
from ppomax.train.progress import ProgressLine
from ppomax.train.requests import StopRequested, ask
from ppomax.train.run import RunDirectory

COMMON: dict[str, Any] = {
    "model": "-", "data": "-", "device": "cpu", "epochs": 2, "max_length": 64, "eval_every": 2, "optim": {"lr": 1e-3},
}  # fmt: skip
Courses = dict[str, list[float]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Courses]]:
    """(stage, courses at the start) of every panel of a stage that is made."""
    made: list[tuple[str, Courses]] = []

    class Recorded(ProgressLine):
        def __init__(self, name: str, total: int, **options: Any) -> None:
            made.append((name, {key: list(values) for key, values in options["sparklines"].items()}))
            super().__init__(name, total, **options)

    for stage in (ppo, reward, sft):
        monkeypatch.setattr(stage, "ProgressLine", Recorded)
    return made


def stop_after(monkeypatch: pytest.MonkeyPatch, path: Path, step: str, last: int) -> None:
    """Ask the run to stop once it has written the metrics of ``last``."""
    log = RunDirectory.log

    def asking(self: RunDirectory, record: Any, file: str = "metrics.jsonl") -> None:
        log(self, record, file)
        if file == "metrics.jsonl" and record[step] == last:
            ask(path, "stop")

    monkeypatch.setattr(RunDirectory, "log", asking)


def values(path: Path, metric: str, file: str = "metrics.jsonl") -> list[Any]:
    return [json.loads(line).get(metric) for line in (path / file).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_sft_and_reward_models(
    tmp_path: Path, make_lm: Callable[..., Any], tokenizer: Any, dialogues: Any, pairs: Any,
    monkeypatch: pytest.MonkeyPatch, shown: list[tuple[str, Courses]], stage: str,
) -> None:  # fmt: skip
    def go(resume: bool) -> None:
        if stage == "sft":
            config = SFTConfig(output_dir=str(tmp_path / "run"), batch_size=2, packing=False, **COMMON)
            given = {"records": dialogues, "eval_records": dialogues[:2]}
            sft.train_sft(config, model=make_lm(), tokenizer=tokenizer, resume=resume, **given)
        else:
            options = {"batch_tokens": 200, "min_pairs": 2, "max_pairs": 2}
            settings = RewardConfig(output_dir=str(tmp_path / "run"), **options, **COMMON)
            about = {"pairs": pairs, "eval_pairs": pairs[:2]}
            reward.train_reward(settings, model=make_lm(), tokenizer=tokenizer, resume=resume, **about)

    stop_after(monkeypatch, tmp_path / "run", "update", 3)
    with pytest.raises(StopRequested):
        go(resume=False)
    loss = values(tmp_path / "run", "loss/train")
    metric = {"sft": "eval/loss", "reward": "eval/accuracy"}[stage]
    held_out = [v for v in values(tmp_path / "run", metric) if v is not None]
    go(resume=True)
    (_, before), (name, after) = shown
    assert name == stage and not any(before.values()) and len(loss) == 4 and len(held_out) == 2
    assert after["loss"] == loss
    assert after[f"held_out_{metric.removeprefix('eval/')}"] == [held_out[0]] * 2 + [held_out[1]] * 2


def test_ppo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: list[tuple[str, Courses]]) -> None:
    path = tmp_path / "run"
    changes: dict[str, Any] = {
        "iterations": 5, "critic.pretrain_iterations": 1,
        "watch": {"judge": [{"function": "ppo_tools:byte_sum"}], "judge_prompts": 2, "judge_every": 2},
    }  # fmt: skip
    stop_after(monkeypatch, path, "iteration", 3)
    with pytest.raises(StopRequested):
        run(path, changes, policy=make_policy(), reward=byte_sum)
    rewards, kl = values(path, "reward/mean"), values(path, "kl/ref")
    rates, judged = values(path, "eval/win_rate", "evaluations.jsonl"), values(path, "iteration", "evaluations.jsonl")
    run(path, changes, policy=make_policy(), reward=byte_sum, resume=True)
    (_, before), (name, after) = shown
    assert name == "ppo" and not any(before.values()) and judged == [1, 3] and len(rewards) == 4
    assert after["reward"] == rewards and after["kl"] == kl
    assert after["win_rate"] == [rates[0], rates[0], rates[1]], "known from iteration 1 on"
