"""Which engine draws the responses of a PPO run."""

from __future__ import annotations

import secrets
from pathlib import Path

from ppomax.config import PPOConfig
from ppomax.rollout.engine import Engine
from ppomax.rollout.transformers_engine import TransformersEngine
from ppomax.rollout.vllm_engine import VLLMEngine
from ppomax.rollout.vllm_server import VLLMServer
from ppomax.train.parallel import Ranks
from ppomax.train.ppo_setup import Setup
from ppomax.train.weight_transfer import make_transfer


def make_engine(config: PPOConfig, setup: Setup, ranks: Ranks, run: Path) -> Engine:
    """The policy itself, or a vLLM server, asked what it is. Weights that go by file go through RUN/rollout."""
    rollout = config.rollout
    if rollout.engine == "transformers":
        return TransformersEngine(setup.policy, setup.chat_format, config.sampling, bf16=config.precision == "bf16")
    server = VLLMServer(
        rollout.url, timeout=rollout.timeout, retries=rollout.retries, first_pause=rollout.first_pause
    )  # fmt: skip
    facts = server.facts()
    transfer = make_transfer(rollout.transfer, server, facts, setup.policy, ranks, run / "rollout")
    engine = VLLMEngine(
        config, setup.chat_format.eos_ids, server, facts, transfer,
        session=ranks.collect([secrets.token_hex(4)])[0], is_main=ranks.is_main, barrier=ranks.barrier,
    )  # fmt: skip
    ranks.say(
        f"sampling by vLLM {facts.version} at {server.url}: {facts.dtype} on {facts.device}, weights by {transfer.name}",
    )
    return engine
