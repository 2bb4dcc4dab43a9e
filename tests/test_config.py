"""Configurations made in Python: sections given in part, presets."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ppomax import PPOConfig, SFTConfig
from ppomax.config import KLConfig, OptimConfig
from ppomax.options import from_mapping

NEEDED = {"model": "m", "prompts": "p", "output_dir": "o"}


def test_a_section_given_in_part_keeps_the_stages_defaults() -> None:
    for optim in ({"lr": 1e-3}, OptimConfig(lr=1e-3)):
        config = SFTConfig.model_validate({"model": "m", "data": "d", "output_dir": "o", "optim": optim})
        assert config.optim.lr == 1e-3 and config.optim.schedule == "cosine"
    critic = PPOConfig.model_validate(NEEDED | {"critic_optim": {"eps": 1e-6}})
    assert critic.critic_optim.lr == PPOConfig.model_validate(NEEDED).critic_optim.lr == 3e-5


@pytest.mark.parametrize("name", ["ppo_max", "ppo_max_ptx", "vanilla", "vanilla_noclip", "moss_rlhf"])
def test_presets_apply_in_python_as_on_the_command_line(name: str) -> None:
    values = NEEDED | {"preset": name, "ptx": {"data": "t"}}
    assert PPOConfig.model_validate(values) == from_mapping(PPOConfig, values)


def test_what_is_given_wins_over_the_preset() -> None:
    assert PPOConfig.model_validate(NEEDED | {"preset": "vanilla"}).kl.coef == 0
    config = PPOConfig.model_validate(NEEDED | {"preset": "vanilla", "kl": KLConfig(coef=0.1)})
    assert config.kl.coef == 0.1 and config.reward_shaping.clip is None and not config.reward_shaping.normalise
    again = PPOConfig.model_validate(config.model_dump())
    assert again == config


def test_unknown_presets_and_fields_are_errors() -> None:
    for wrong in ({"preset": "ppo_min"}, {"kl": {"coeff": 1}}, {"klcoef": 1}):
        with pytest.raises(ValidationError):
            PPOConfig.model_validate(NEEDED | wrong)
