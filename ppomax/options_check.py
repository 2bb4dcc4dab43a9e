"""Options that contradict each other (refused) and options that cannot act in the chosen mode (named in a warning)."""

from __future__ import annotations

from ppomax.config import PPOConfig
from ppomax.errors import UserError


def refuse_contradictions(config: PPOConfig) -> None:
    """Raise a UserError where two options cannot both be meant."""
    if config.reward_shaping.scale and config.reward_shaping.normalise:
        raise UserError(
            "reward_shaping.scale and reward_shaping.normalise are both on: choose scaling (detail 4) or "
            "normalisation (detail 5) and switch the other off"
        )


def warnings_for(config: PPOConfig) -> list[str]:
    return []
