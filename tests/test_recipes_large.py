"""Recipes for large models: strict configurations without idle options, which fit the devices that they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ppomax.commands.plan import run_config
from ppomax.commands.serve_rollouts import HERE, ServeRolloutsConfig
from ppomax.config import PPOConfig, RewardConfig, SFTConfig
from ppomax.data.batches import balanced_batches
from ppomax.options import load_yaml, resolve, warnings_for
from ppomax.plan.devices import Shares, parse_devices
from ppomax.plan.search import plan
from ppomax.plan.shapes import shape_of
from ppomax.plan.work import settings_of, work_of

RECIPES = Path(__file__).parents[1] / "recipes"
STAGES = ((SFTConfig, "sft"), (RewardConfig, "reward"))


def recipe(name: str, shape: str, reward: str, words: Sequence[str] = ()) -> PPOConfig:
    """As `ppomax plan recipes/NAME.yaml --model SHAPE --reward REWARD WORDS` reads it."""
    return run_config([f"--model={shape}", f"--reward={reward}", *words], str(RECIPES / f"{name}.yaml"))


def lines_of(name: str, start: str) -> list[list[str]]:
    """Words of the commands in a recipe or script that begin with ``start``, continued lines joined."""
    text = re.sub(r" *\\\n#? *", " ", (RECIPES / name).read_text(encoding="utf-8"))
    lines = [line.strip("# ").partition("#")[0] for line in text.splitlines()]
    return [shlex.split(line[line.index(start) + len(start) :]) for line in lines if start in line]


@pytest.mark.parametrize(
    ("name", "shape", "reward", "devices"),
    [
        ("llama_7b", "llama-7b", "llama-7b", "8x80GB"),
        ("llama_13b", "llama-13b", "llama-7b", "8x80GB"),
        ("llama_70b", "llama-70b", "llama-70b", "7x8x80GB"),
    ],
)
def test_a_recipe_fits_what_it_names(name: str, shape: str, reward: str, devices: str) -> None:
    file = RECIPES / f"{name}.yaml"
    assert f"--model {shape} --reward {reward} --devices {devices}\n" in file.read_text(encoding="utf-8")
    assert warnings_for(load_yaml(PPOConfig, str(file))) == []
    config = recipe(name, shape, reward)
    work, there = work_of(config), parse_devices(devices)
    assert min(work.rollout_batch, work.minibatch) >= there.count
    found = plan(work, settings_of(config), there, Shares())
    assert found.fits, found.memory.peak / 2**30
    # the paper's numbers (sections 3 and 5)
    assert (config.policy_optim.lr, config.critic_optim.lr, config.policy_optim.warmup) == (5e-7, 1.65e-6, 0.1)
    assert (work.response, work.updates, config.kl.coef, config.parallel.activation_checkpointing) == (
        512,
        4,
        0.05,
        True,
    )
    sampling = config.sampling
    assert (sampling.top_p, sampling.temperature, sampling.repetition_penalty) == (0.9, 0.8, 1.1)


def test_one_base_under_adapters_fits_a_device_of_24_gb() -> None:
    """The row of docs/plan.md; a base in float32, if only while it is loaded, would not."""
    words = ["--lora.rank=16", "--lora.shared_base=true", "--sampling.batch_size=8"]
    config, there = recipe("llama_7b", "llama-7b", "llama-7b", words), parse_devices("1x24GB")
    work, settings = work_of(config), settings_of(config)
    found = plan(work, settings, there, Shares())
    assert found.fits, found.memory.peak / 2**30
    assert 4 * work.policy.causal > found.room
    assert not plan(work, replace(settings, shared_base=False), there, Shares()).fits


def test_seventy_billion_parameters_on_eight_machines() -> None:
    """Seven train, and the server's options are those of `ppomax serve-rollouts`, in the recipe and in the script alike."""
    served = [*lines_of("llama_70b.yaml", "serve-rollouts "), *lines_of("slurm/ppo_vllm.sbatch", "serve-rollouts ")]
    assert len(served) == 2
    config = recipe("llama_70b", "llama-70b", "llama-70b")
    for model, *words in served:
        server = resolve(ServeRolloutsConfig, [f"--model={model}", *(word for word in words if word != "&")])
        assert server.host not in HERE and server.transfer == "nccl" and server.dtype == "bfloat16"
        assert server.gpus == 8 and server.gpus <= shape_of("llama-70b").kv_heads
        assert server.max_length == config.max_prompt_length + config.sampling.max_new_tokens
        assert 2 * shape_of("llama-70b").causal / server.gpus < server.memory * 80 * 2**30
    [trained] = [words for words in lines_of("llama_70b.yaml", "torchrun ") if "recipes/llama_70b.yaml" in words]
    assert trained[:4] == ["--nnodes", "7", "--nproc_per_node", "8"]
    given = trained[trained.index("recipes/llama_70b.yaml") + 1 :]
    assert resolve(PPOConfig, given, yaml_path=str(RECIPES / "llama_70b.yaml")).rollout.url == "http://EIGHTH:8000"
    assert config.rollout.engine == "vllm"


def test_the_papers_sft_and_reward_model() -> None:
    """Sections 3.1 and 4 and appendix B; `ppomax plan` knows PPO alone."""
    sft, reward = (load_yaml(kind, str(RECIPES / f"llama_7b_{name}.yaml")) for kind, name in STAGES)
    assert warnings_for(sft) == warnings_for(reward) == []
    assert isinstance(sft, SFTConfig) and isinstance(reward, RewardConfig)
    assert (sft.optim.lr, sft.optim.schedule, sft.optim.min_lr_ratio) == (9.5e-6, "cosine", 0.1)
    assert (sft.epochs, sft.batch_size, sft.packing) == (2, 1024, False)
    assert (reward.optim.lr, reward.optim.warmup, reward.lm_coef, reward.epochs) == (5e-6, 0.1, 1.0, 1.06)
    assert (reward.min_pairs, reward.max_pairs) == (8 * 4, 8 * 128)
    pairs = [500] * 160_000
    updates = sum(
        round(share * len(balanced_batches(pairs, reward.batch_tokens, reward.min_pairs, reward.max_pairs)))
        for share in (1.0, 0.06)
    )
    assert updates == pytest.approx(1000, rel=0.01)
    for config in (sft, reward):
        assert (config.precision, config.parallel.shard, config.parallel.activation_checkpointing) == (
            "bf16",
            "zero2",
            True,
        )
