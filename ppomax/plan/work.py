"""From a PPO configuration to what the formulas need: shapes, lengths, batches, settings."""

from __future__ import annotations

import math
import re

from ppomax.config import PPOConfig
from ppomax.errors import UserError
from ppomax.plan.memory import Settings, Work
from ppomax.plan.shapes import Shape, shape_of


def _shape(name: str, field: str, config: PPOConfig) -> Shape:
    try:
        shape = shape_of(name, config.trust_remote_code)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if shape.reward_model and field in ("model", "reference"):
        raise UserError(f"{field}: {name} is a reward model, not a language model; give the model it was trained from")
    return shape


def _check_context(shape: Shape, field: str, config: PPOConfig) -> None:
    """As the run does: policy, reference and critic must read the longest sample. Reward models cut its left."""
    prompt, response = config.max_prompt_length, config.sampling.max_new_tokens
    if shape.context is not None and prompt + response > shape.context:
        raise UserError(
            f"{field}: prompts of {prompt} and responses of {response} tokens do not fit the context of {shape.name}, "
            f"{shape.context} tokens; lower max_prompt_length or sampling.max_new_tokens"
        )


def work_of(config: PPOConfig) -> Work:
    """What an iteration of ``config`` has to do. Without a reward source one reward model of the policy's shape is taken."""
    if config.rollout.colocated:
        raise UserError("rollout.colocated: cannot be planned; leave it out to plan for a server on devices of its own")
    policy = _shape(config.model, "model", config)
    names = [
        name
        for source in config.reward
        for name in (source.model if isinstance(source.model, list) else [source.model])
        if name is not None
    ]
    rewards = tuple(_shape(name, "reward", config) for name in names) if config.reward else (policy,)
    if config.critic.init == "policy":
        critic = policy
    elif config.critic.init == "reward":
        critic = rewards[0] if rewards else policy
    else:
        critic = _shape(config.critic.init, "critic.init", config)
    if config.reference is not None:
        reference = _shape(config.reference, "reference", config)
        if reference.causal != policy.causal:
            raise UserError(
                f"reference: {config.reference} has another shape than {config.model}, which cannot be planned"
            )
        _check_context(reference, "reference", config)
    _check_context(policy, "model", config)
    _check_context(critic, "critic.init", config)
    samples = config.rollout_batch * config.buffer_iterations
    return Work(
        policy=policy, critic=critic, rewards=rewards, reference=config.reference is not None or config.lora is None,
        prompt=config.max_prompt_length, response=config.sampling.max_new_tokens, rollout_batch=config.rollout_batch,
        minibatch=min(config.minibatch, samples), updates=config.ppo_epochs * math.ceil(samples / config.minibatch),
        precision=config.precision, penalty=config.sampling.repetition_penalty != 1,
        server=config.rollout.engine == "vllm", joint=config.grad_clip.joint,
    )  # fmt: skip


def _targets(named: str | list[str]) -> tuple[str, ...]:
    """Which matrices of a layer `lora.target_modules` means, as peft reads it; none for all."""
    if named == "all-linear":
        return ()
    attention, feed_forward = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    whole = {name: f"model.layers.0.self_attn.{name}" for name in attention}
    whole |= {name: f"model.layers.0.mlp.{name}" for name in feed_forward}
    found = tuple(
        name
        for name, path in whole.items()
        if (re.fullmatch(named, path) if isinstance(named, str) else any(f".{path}".endswith(f".{n}") for n in named))
    )
    if not found:
        raise UserError(f"lora.target_modules: {named} names none of {', '.join(whole)}")
    return found


def settings_of(config: PPOConfig) -> Settings:
    """What of ``config`` changes memory and speed alone."""
    return Settings(
        micro_batch_tokens=config.micro_batch_tokens, sampling_batch=config.sampling.batch_size,
        shard=config.parallel.shard, frozen=config.parallel.frozen,
        checkpointing=config.parallel.activation_checkpointing,
        lora_rank=config.lora.rank if config.lora is not None else 0,
        lora_targets=_targets(config.lora.target_modules) if config.lora is not None else (),
        shared_base=config.lora is not None and config.lora.shared_base,
    )  # fmt: skip
