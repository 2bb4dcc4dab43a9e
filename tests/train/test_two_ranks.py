"""SFT and the reward model on two gloo ranks give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ppomax.config import RewardConfig, SFTConfig
from ppomax.data.records import Dialogue, PreferencePair
from ppomax.train.reward import train_reward
from ppomax.train.sft import train_sft

sys.path.insert(0, str(Path(__file__).parent))
from rank_tools import free_port

WORKER = """
import sys
from ppomax.config import RewardConfig, SFTConfig
from ppomax.train.reward import train_reward
from ppomax.train.sft import train_sft
train_sft(SFTConfig.model_validate_json(sys.argv[1]))
train_reward(RewardConfig.model_validate_json(sys.argv[2]))
"""


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "memory/"))} for line in lines]


def test_two_ranks_equal_one(
    tmp_path: Path, model_dir: Path, dialogues: list[Dialogue], pairs: list[PreferencePair]
) -> None:
    demonstrations, preferences = tmp_path / "dialogues.jsonl", tmp_path / "pairs.jsonl"
    demonstrations.write_text("".join(json.dumps({"messages": list(d.messages)}) + "\n" for d in dialogues))
    preferences.write_text(
        "".join(
            json.dumps({"prompt": list(p.prompt), "chosen": list(p.chosen), "rejected": list(p.rejected)}) + "\n"
            for p in pairs
        )
    )
    shared: dict[str, Any] = {
        "model": str(model_dir), "device": "cpu", "max_length": 64, "optim": {"lr": 2e-3, "eps": 1e-3},
    }  # fmt: skip

    def configs(name: str) -> tuple[SFTConfig, RewardConfig]:
        sft = {"data": [str(demonstrations)], "eval_data": [str(demonstrations)], "batch_size": 3, "packing": False}
        reward = {
            "data": [str(preferences)], "eval_fraction": 0.3, "batch_tokens": 250, "micro_batch_tokens": 200,
            "eval_every": 3, "calibration_data": [str(demonstrations)], "min_pairs": 3,
        }  # fmt: skip
        return (
            SFTConfig.model_validate(shared | sft | {"output_dir": str(tmp_path / name / "sft")}),
            RewardConfig.model_validate(shared | reward | {"output_dir": str(tmp_path / name / "reward")}),
        )

    sft, reward = configs("one")
    train_sft(sft)
    train_reward(reward)
    port = free_port()
    command = [sys.executable, "-c", WORKER, *(c.model_dump_json() for c in configs("two"))]
    base = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = [subprocess.Popen(command, env=base | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    assert [p.wait(timeout=300) for p in processes] == [0, 0]

    loaders = (("sft", AutoModelForCausalLM), ("reward", AutoModelForSequenceClassification))
    for stage, loader in loaders:
        one, two = _lines(tmp_path / "one" / stage), _lines(tmp_path / "two" / stage)
        assert len(one) == len(two) > 2
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
        finals = [loader.from_pretrained(tmp_path / n / stage / "final") for n in ("one", "two")]
        for name, value in finals[0].state_dict().items():
            torch.testing.assert_close(value, finals[1].state_dict()[name], rtol=1e-4, atol=1e-5)
    assert finals[0].config.reward_offset == pytest.approx(finals[1].config.reward_offset, rel=1e-4)
    assert finals[0].config.reward_offset != 0
