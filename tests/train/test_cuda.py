"""The same training on a GPU as on a CPU. Skipped where there is none; PPOMAX_TEST_DEVICE=cpu tries the tests themselves."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.config import RewardConfig, SamplingConfig, SFTConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.records import PreferencePair
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train.reward import train_reward
from ppomax.train.sft import train_sft

sys.path.insert(0, str(Path(__file__).parent))
import ppo_tools

DEVICE = os.environ.get("PPOMAX_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here")


def close(ours: list[dict[str, Any]], cpu: list[dict[str, Any]], names: list[str], relative: float) -> None:
    assert len(ours) == len(cpu)
    for mine, theirs in zip(ours, cpu, strict=True):
        for name in names:
            assert mine[name] == pytest.approx(theirs[name], rel=relative, abs=1e-5), name


def numbers(path: Path) -> list[dict[str, Any]]:
    return ppo_tools.timeless(ppo_tools.lines(path / "metrics.jsonl"))


def test_generation_is_the_same_as_on_a_cpu() -> None:
    tokenizer = ppo_tools.make_tokenizer()
    chat = ChatFormat(tokenizer)
    prompts = [chat.encode_prompt(p.messages) for p in ppo_tools.prompts(5)]
    sampling = SamplingConfig(max_new_tokens=12, top_p=0.9, repetition_penalty=1.2)
    drawn = [
        TransformersEngine(ppo_tools.make_policy().to(device), chat, sampling).generate(prompts, list(range(5)))
        for device in ("cpu", DEVICE)
    ]
    assert drawn[0] == drawn[1]


def test_ppo_learns_the_same_as_on_a_cpu(tmp_path: Path) -> None:
    for folder, device in (("cpu", "cpu"), ("here", DEVICE)):
        ppo_tools.run(tmp_path / folder, {"device": device, "iterations": 3})
    names = [
        "reward/mean",
        "kl/ref",
        "loss/policy",
        "loss/value",
        "grad_norm/policy",
        "grad_norm/critic",
        "response/length",
    ]
    close(numbers(tmp_path / "here"), numbers(tmp_path / "cpu"), names, 2e-3)


def test_ppo_in_bf16(tmp_path: Path) -> None:
    ppo_tools.run(tmp_path / "run", {"device": DEVICE, "precision": "bf16", "iterations": 3, "minibatch": 8})
    rows = numbers(tmp_path / "run")
    assert len(rows) == 3
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert rows[0]["policy/ratio_deviation"] < 0.02  # one update an iteration: the ratio is 1 but for rounding


def test_resumed_as_if_never_stopped(tmp_path: Path) -> None:
    changes = {"device": DEVICE, "iterations": 4, "checkpoint.every": 2}
    ppo_tools.run(tmp_path / "run", changes)
    whole = numbers(tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)  # as if it had been killed in the second half
    ppo_tools.run(tmp_path / "run", changes, resume=True)
    again = numbers(tmp_path / "run")
    assert len(again) == 4
    names = ["reward/mean", "loss/policy", "loss/value", "grad_norm/policy"]
    close(again, whole, names, 1e-4)


def test_sft_and_reward_model_learn_the_same_as_on_a_cpu(tmp_path: Path) -> None:
    dialogues = ppo_tools.dialogues()
    pairs = [
        PreferencePair(d.messages[:1], d.messages[1:], ({"role": "assistant", "content": "no"},)) for d in dialogues
    ]
    for folder, device in (("cpu", "cpu"), ("here", DEVICE)):
        common = {"model": "memory", "data": "memory", "device": device, "max_length": 64, "checkpoint": {"every": 0}}
        sft = SFTConfig(output_dir=str(tmp_path / f"sft_{folder}"), batch_size=2, eval_fraction=0.0, **common)
        train_sft(sft, model=ppo_tools.make_policy(), tokenizer=ppo_tools.make_tokenizer(), records=dialogues)
        reward = RewardConfig(output_dir=str(tmp_path / f"rm_{folder}"), batch_tokens=128, eval_fraction=0.0, **common)
        train_reward(reward, model=ppo_tools.make_policy(), tokenizer=ppo_tools.make_tokenizer(), pairs=pairs)
    for stage in ("sft", "rm"):
        ours, cpu = (
            [row for row in numbers(tmp_path / f"{stage}_{folder}") if "loss/train" in row]
            for folder in ("here", "cpu")
        )
        assert len(cpu) >= 2
        close(ours, cpu, ["loss/train", "grad_norm"], 1e-3)
