"""ppomax: reinforcement learning from human feedback with PPO that stays stable, and that tells you when it does not."""

__version__ = "0.1.0"
