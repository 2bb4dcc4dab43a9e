"""Recipes for large models: strict configurations without idle options, which fit the devices that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppomax.config import PPOConfig
from ppomax.options import load_yaml, warnings_for
from ppomax.plan.devices import Shares, parse_devices
from ppomax.plan.search import plan
from ppomax.plan.work import settings_of, work_of

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize(
    ("name", "shape", "reward", "devices"),
    [
        ("llama_7b", "llama-7b", "llama-7b", "8x80GB"),
        ("llama_13b", "llama-13b", "llama-7b", "8x80GB"),
        ("llama_70b", "llama-70b", "llama-70b", "8x8x80GB"),
    ],
)
def test_a_recipe_fits_what_it_names(name: str, shape: str, reward: str, devices: str) -> None:
    file = RECIPES / f"{name}.yaml"
    assert f"--model {shape} --reward {reward} --devices {devices}\n" in file.read_text(encoding="utf-8")
    config = load_yaml(PPOConfig, str(file))
    assert warnings_for(config) == []
    config = config.model_copy(
        update={"model": shape, "reward": [config.reward[0].model_copy(update={"model": reward})]}
    )
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
