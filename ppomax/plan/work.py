"""From a PPO configuration to what the formulas need: shapes, lengths, batches, settings."""

from __future__ import annotations

import math

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.plan.memory import Settings, Work
from ppomax.plan.shapes import Shape, shape_of


def _shape(name: str, field: str, trust_remote_code: bool) -> Shape:
    try:
        return shape_of(name, trust_remote_code)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def work_of(config: PPOConfig) -> Work:
    """What an iteration of ``config`` has to do. Without a reward source one reward model of the policy's shape is taken."""
    trust = config.trust_remote_code
    if config.rollout.colocated:
        raise UserError("rollout.colocated: cannot be planned; leave it out to plan for a server on devices of its own")
    policy = _shape(config.model, "model", trust)
    names = [
        name
        for source in config.reward
        for name in (source.model if isinstance(source.model, list) else [source.model])
        if name is not None
    ]
    rewards = tuple(_shape(name, "reward", trust) for name in names) if config.reward else (policy,)
    if config.critic.init == "policy":
        critic = policy
    elif config.critic.init == "reward":
        critic = rewards[0] if rewards else policy
    else:
        critic = _shape(config.critic.init, "critic.init", trust)
    if config.reference is not None:
        reference = _shape(config.reference, "reference", trust)
        if reference.causal != policy.causal:
            raise UserError(
                f"reference: {config.reference} has another shape than {config.model}, which cannot be planned"
            )
    samples = config.rollout_batch * config.buffer_iterations
    return Work(
        policy=policy, critic=critic, rewards=rewards, reference=config.reference is not None or config.lora is None,
        prompt=config.max_prompt_length, response=config.sampling.max_new_tokens, rollout_batch=config.rollout_batch,
        minibatch=min(config.minibatch, samples), updates=config.ppo_epochs * math.ceil(samples / config.minibatch),
        precision=config.precision, penalty=config.sampling.repetition_penalty != 1,
        server=config.rollout.engine == "vllm", joint=config.grad_clip.joint,
    )  # fmt: skip


def settings_of(config: PPOConfig) -> Settings:
    """What of ``config`` changes memory and speed alone."""
    return Settings(
        micro_batch_tokens=config.micro_batch_tokens, sampling_batch=config.sampling.batch_size,
        shard=config.parallel.shard, frozen=config.parallel.frozen,
        checkpointing=config.parallel.activation_checkpointing,
        lora_rank=config.lora.rank if config.lora is not None else 0,
        shared_base=config.lora is not None and config.lora.shared_base,
    )  # fmt: skip
