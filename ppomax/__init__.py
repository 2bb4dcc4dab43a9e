"""ppomax: RLHF with PPO that stays stable, and that tells you when it does not."""

__version__ = "0.1.0"
