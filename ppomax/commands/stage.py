"""``ppomax sft|reward|ppo [CONFIG.yaml] [--any.field value ...]``."""

from __future__ import annotations

import importlib

from ppomax.config import PPOConfig, RewardConfig, RunConfig, SFTConfig
from ppomax.options import dump_yaml, resolve

# verb -> (configuration, module, function(config, resume=bool))
STAGES: dict[str, tuple[type[RunConfig], str, str]] = {
    "sft": (SFTConfig, "ppomax.train.sft", "train_sft"),
    "reward": (RewardConfig, "ppomax.train.reward", "train_reward"),
    "ppo": (PPOConfig, "ppomax.train.ppo", "train_ppo"),
}


def main(verb: str, words: list[str]) -> int:
    """Resolve the options, then print them or train."""
    cls, module, function = STAGES[verb]
    if "--help" in words or "-h" in words:
        from ppomax.options_help import help_text

        print(help_text(cls, verb))
        return 0
    switches = {"--print-config", "--print_config", "--resume"}
    given = {word.replace("_", "-") for word in words if word in switches}
    words = [word for word in words if word not in switches]
    yaml_path = words.pop(0) if words and not words[0].startswith("-") else None
    config = resolve(cls, words, yaml_path=yaml_path)
    if "--print-config" in given:
        print(dump_yaml(config), end="")
        return 0
    getattr(importlib.import_module(module), function)(config, resume="--resume" in given)
    return 0
