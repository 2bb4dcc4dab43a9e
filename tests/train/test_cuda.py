"""The same training on a GPU as on a CPU. Skipped where there is none; PPOMAX_TEST_DEVICE=cpu tries the tests themselves."""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppomax.config import LoraConfig, RewardConfig, SamplingConfig, SFTConfig
from ppomax.data.chat import ChatFormat
from ppomax.data.records import PreferencePair
from ppomax.models.loading import add_lora, save_final
from ppomax.rollout.engine import Completion
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.train.parallel import Ranks
from ppomax.train.ppo import train_ppo
from ppomax.train.ppo_score import to_samples
from ppomax.train.ppo_setup import prepare
from ppomax.train.reward import train_reward
from ppomax.train.sft import train_sft
from ppomax.train.sharding import to_save

sys.path.insert(0, str(Path(__file__).parent))
import ppo_tools
from test_shared_base import SETTINGS, write_models

DEVICE = os.environ.get("PPOMAX_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU here")


HERE = torch.device(DEVICE)
LARGE = {"width": 512, "layers": 4}
"""a model of 9M parameters in matrices: what a device holds beside them is little"""
SLACK = 2**20
"""bytes of buffers and the like"""


def allocated(*, peak: bool = False) -> int:
    """Bytes of tensors on the device, or the most since `forget_peak`; nothing tells them on a CPU.

    As they were asked for: what the allocator hands out is rounded up.
    """
    if HERE.type != "cuda":
        return 0
    torch.cuda.synchronize(HERE)
    return int(torch.cuda.memory_stats(HERE)[f"requested_bytes.all.{'peak' if peak else 'current'}"])


def forget_peak() -> int:
    """Begin to look for the largest memory; what is allocated now."""
    gc.collect()
    if HERE.type == "cuda":
        torch.cuda.reset_peak_memory_stats(HERE)
    return allocated()


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


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("changes", [{"parallel.frozen": "offload"}, {"parallel.activation_checkpointing": True}])
def test_what_saves_memory_changes_no_number(tmp_path: Path, changes: dict[str, Any], precision: str) -> None:
    common = {"device": DEVICE, "precision": precision, "iterations": 2, "critic.init": "reward"}
    for folder, more in (("plain", {}), ("saved", changes)):
        ppo_tools.run(tmp_path / folder, {**common, **more}, reward=[ppo_tools.make_critic(5)])
    names = ["reward/mean", "kl/ref", "loss/policy", "loss/value", "grad_norm/policy", "grad_norm/critic"]
    close(numbers(tmp_path / "saved"), numbers(tmp_path / "plain"), names, 1e-4 if precision == "float32" else 2e-2)


def test_offloaded_models_leave_the_device(tmp_path: Path) -> None:
    reward = ppo_tools.make_critic(5, **LARGE)
    changes = {"device": DEVICE, "parallel.frozen": "offload", "critic.init": "reward"}
    config = ppo_tools.make_config(tmp_path / "out", **changes)
    setup = prepare(
        config, Ranks(device=HERE), policy=ppo_tools.make_policy(), tokenizer=ppo_tools.make_tokenizer(),
        critic=ppo_tools.make_critic(), reward=reward, prompts=ppo_tools.prompts(),
    )  # fmt: skip
    size = sum(p.numel() * p.element_size() for p in reward.parameters())
    samples = to_samples(setup, setup.prompts[:2], [Completion(p.ids, [5, 6, 7], True) for p in setup.prompts[:2]])
    setup.sources[0](samples)  # a library's workspace comes with the first product, and stays
    setup.frozen_go_home()
    before = forget_peak()
    assert all(math.isfinite(score) for score in setup.sources[0](samples))
    if HERE.type == "cuda":
        assert allocated() >= before + size
    setup.frozen_go_home()
    assert allocated() <= before + SLACK
    assert all(p.device.type == "cpu" for p in reward.parameters())


def test_a_shared_base_never_lies_on_the_device_twice(tmp_path: Path) -> None:
    """Nor in float32, while it is loaded; and saving needs nothing there."""
    start, reward = write_models(tmp_path / "models", **LARGE)
    changes = {**SETTINGS, "model": start, "reward": reward, "precision": "bf16", "device": DEVICE}
    config = ppo_tools.make_config(tmp_path / "out", **changes)
    before = forget_peak()
    setup = prepare(config, Ranks(device=HERE), prompts=ppo_tools.prompts())
    inner = setup.policy.get_base_model()
    held = sum(p.numel() * p.element_size() for p in inner.parameters())
    halved = [p for name, p in inner.named_parameters() if "base_layer" in name]
    assert halved and all(p.dtype == torch.bfloat16 and p.device.type == HERE.type for p in halved)
    whole = 2 * sum(p.numel() * p.element_size() for p in halved)  # in float32
    assert whole > 4 * SLACK
    assert allocated(peak=True) - before <= held + SLACK
    before = forget_peak()
    save_final(to_save(setup.policy), ppo_tools.make_tokenizer(), tmp_path / "final", stage="ppo", card="")
    assert allocated(peak=True) - before <= SLACK


def test_a_shared_base_is_trained_in_bf16(tmp_path: Path) -> None:
    start, reward = write_models(tmp_path / "models")
    changes = {**SETTINGS, "model": start, "reward": reward, "precision": "bf16", "device": DEVICE,
               "parallel.activation_checkpointing": True}  # fmt: skip
    train_ppo(ppo_tools.make_config(tmp_path / "out", **changes), prompts=ppo_tools.prompts())
    rows = numbers(tmp_path / "out")
    assert len(rows) == 2
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_adapters_are_merged_beside_the_device(tmp_path: Path) -> None:
    policy = add_lora(ppo_tools.make_policy(**LARGE).to(HERE), LoraConfig(rank=2), "CAUSAL_LM")
    size = sum(p.numel() * p.element_size() for p in policy.parameters())
    assert size > 4 * SLACK
    before = forget_peak()
    save_final(to_save(policy), ppo_tools.make_tokenizer(), tmp_path / "final", stage="sft", card="")
    assert allocated(peak=True) - before <= SLACK
    assert (tmp_path / "final" / "adapter").is_dir()
