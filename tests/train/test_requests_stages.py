"""SFT and reward models are asked as PPO is: obeyed after the update they are in, and a stopped run goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppomax.config import RewardConfig, SFTConfig
from ppomax.train.checkpoint import list_checkpoints, step_of
from ppomax.train.requests import FILE, LOCK, StopRequested, ask, asked, ending, is_running
from ppomax.train.reward import train_reward
from ppomax.train.run import RunDirectory
from ppomax.train.sft import train_sft

METRICS = "metrics.jsonl"
COMMON: dict[str, Any] = {
    "model": "-", "data": "-", "device": "cpu", "epochs": 3, "max_length": 64, "checkpoint": {"every": 0, "keep": 9},
    "optim": {"lr": 1e-3},
}  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in rows]


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_requests_are_obeyed_and_a_stopped_run_goes_on_exactly(
    tmp_path: Path,
    make_lm: Callable[..., Any],
    tokenizer: Any,
    dialogues: Any,
    pairs: Any,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    def go(folder: Path, resume: bool = False) -> Any:
        if stage == "sft":
            sft = SFTConfig(output_dir=str(folder), batch_size=2, packing=False, **COMMON)
            return train_sft(sft, model=make_lm(), tokenizer=tokenizer, records=dialogues, resume=resume)
        reward = RewardConfig(output_dir=str(folder), batch_tokens=200, min_pairs=2, max_pairs=2, **COMMON)
        return train_reward(reward, model=make_lm(), tokenizer=tokenizer, pairs=pairs, resume=resume)

    whole = go(tmp_path / "whole")
    path, log, alive = tmp_path / "asked", RunDirectory.log, []

    def asking(self: RunDirectory, record: Any, file: str = "metrics.jsonl") -> None:
        log(self, record, file)
        if file == METRICS and record["update"] in (1, 3):
            alive.append(is_running(path))
            ask(path, "checkpoint" if record["update"] == 1 else "stop")

    monkeypatch.setattr(RunDirectory, "log", asking)
    with pytest.raises(StopRequested, match="after update 3"):
        go(path)
    monkeypatch.setattr(RunDirectory, "log", log)
    assert alive == [True, True]
    assert lines(path / FILE) == [
        {"update": 1, "request": "checkpoint", "checkpoint": "step-000002"},
        {"update": 3, "request": "stop", "checkpoint": "step-000004"},
    ]
    assert [step_of(p) for p in list_checkpoints(path / "checkpoints")] == [2, 4]
    assert is_running(path) is False and ending(path) == "stopped" and asked(path) == []
    go(path, resume=True)
    assert lines(path / METRICS) == lines(whole.path / METRICS)
    assert (path / "final" / "model.safetensors").read_bytes() == (
        whole.path / "final" / "model.safetensors"
    ).read_bytes()
    assert not (path / LOCK).exists() and is_running(path) is None
