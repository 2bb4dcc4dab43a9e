"""ppomax: RLHF with PPO that stays stable, and that tells you when it does not.

    from ppomax import SFTConfig, train_sft, RewardConfig, train_reward, PPOConfig, train_ppo

Names are imported when they are first used, so that ``ppomax --help`` need not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppomax.config import PPOConfig, RewardConfig, SFTConfig
    from ppomax.errors import UserError
    from ppomax.train.ppo import train_ppo
    from ppomax.train.reward import train_reward
    from ppomax.train.sft import train_sft

__version__ = "0.1.0"
__all__ = ["PPOConfig", "RewardConfig", "SFTConfig", "UserError", "train_ppo", "train_reward", "train_sft"]

_HOMES = {
    "PPOConfig": "ppomax.config",
    "RewardConfig": "ppomax.config",
    "SFTConfig": "ppomax.config",
    "UserError": "ppomax.errors",
    "train_ppo": "ppomax.train.ppo",
    "train_reward": "ppomax.train.reward",
    "train_sft": "ppomax.train.sft",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppomax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
